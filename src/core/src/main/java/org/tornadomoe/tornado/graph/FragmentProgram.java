package org.tornadomoe.tornado.graph;

import java.util.List;
import org.tornadomoe.tornado.kernels.SplitKernels;

/** A layer with {@link FragmentGemm} on activations in float: they are split into two halves before each product. */
final class FragmentProgram extends LayerProgram {
    FragmentProgram(FragmentGemm gemm, LayerArrays arrays) {
        super(gemm, arrays);
    }

    /** hidden → hiddenQ and scales. */
    @Override
    List<Stage> quantizeTokens() {
        return List.of(split(QuantizedMatrix.tokens(a)));
    }

    @Override
    List<Stage> activateAndQuantize() {
        return inOrder(super.activateAndQuantize(), quantizePairs());
    }

    /** activated → activatedQ and scales. */
    @Override
    List<Stage> quantizePairs() {
        return List.of(split(QuantizedMatrix.pairs(a)));
    }

    private Stage split(QuantizedMatrix x) {
        return KernelTask.stage(
                x.name(),
                SplitKernels.GROUP,
                x::rows,
                t -> t.runs(
                        SplitKernels::split,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.topkWeights),
                        t.in(x.from()),
                        t.out(x.into()),
                        t.out(x.scales()),
                        x.rowsPerToken(),
                        x.cols(),
                        x.keyed(),
                        x.weighted()));
    }
}
