package org.tornadomoe.tornado.graph;

import java.util.List;
import org.tornadomoe.tornado.kernels.QuantizeKernels;

/** Quantisation of float values to int8 and scales by the layer's scheme; no stage if activations stay in float. */
final class QuantizeStages {
    private final LayerArrays a;

    QuantizeStages(LayerArrays arrays) {
        a = arrays;
    }

    /** hidden → hiddenQ and scales, after multiplying by the router's weights if they apply to the input. */
    List<Stage> hidden() {
        return quantize(QuantizedMatrix.tokens(a));
    }

    /** activated → activatedQ and scales. */
    List<Stage> activated() {
        return quantize(QuantizedMatrix.pairs(a));
    }

    private List<Stage> quantize(QuantizedMatrix x) {
        return switch (a.shape.scheme) {
            case W8A16_CHANNEL, W8A16_GROUP -> List.of();
            case W8A8_CHANNEL -> List.of(perRow(x));
            case W8A8_TENSOR ->
                a.staticScales ? List.of(perTensor(x)) : List.of(magnitudes(x), oneScale(x), perTensor(x));
            case W8A8_BLOCK -> List.of(perGroup(x));
        };
    }

    private Stage perRow(QuantizedMatrix x) {
        return KernelTask.stage(
                x.name(),
                QuantizeKernels.GROUP,
                x::rows,
                t -> t.runs(
                        QuantizeKernels::quantizeRows,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.topkWeights),
                        t.in(x.from()),
                        t.out(x.into()),
                        t.out(x.scales()),
                        x.rowsPerToken(),
                        x.cols(),
                        x.rowInts(),
                        x.keyed(),
                        x.weighted()));
    }

    /** The rows' magnitudes, in the array that later holds their scales. */
    private Stage magnitudes(QuantizedMatrix x) {
        return KernelTask.stage(
                x.name() + "Magnitudes",
                QuantizeKernels.GROUP,
                x::rows,
                t -> t.runs(
                        QuantizeKernels::rowMagnitudes,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.topkWeights),
                        t.in(x.from()),
                        t.out(x.scales()),
                        x.rowsPerToken(),
                        x.cols(),
                        x.keyed(),
                        x.weighted()));
    }

    private Stage oneScale(QuantizedMatrix x) {
        return KernelTask.stage(
                x.name() + "Scale",
                QuantizeKernels.GROUP,
                m -> 1,
                t -> t.runs(
                        QuantizeKernels::tensorScale,
                        t.in(a.work.header),
                        t.in(x.scales()),
                        t.out(x.scale()),
                        x.rowsPerToken()));
    }

    private Stage perTensor(QuantizedMatrix x) {
        return KernelTask.stage(
                x.name(),
                QuantizeKernels.GROUP,
                x::rows,
                t -> t.runs(
                        QuantizeKernels::quantizeTensor,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.topkWeights),
                        t.in(x.from()),
                        t.in(x.scale()),
                        t.out(x.into()),
                        t.out(x.scales()),
                        x.rowsPerToken(),
                        x.cols(),
                        x.rowInts(),
                        x.keyed(),
                        x.weighted()));
    }

    private Stage perGroup(QuantizedMatrix x) {
        int group = a.shape.quantization.colsPerScale(x.cols());
        return KernelTask.stage(
                x.name(),
                QuantizeKernels.GROUP,
                m -> Math.multiplyExact(x.rows(m), Math.ceilDiv(x.cols(), group)),
                t -> t.runs(
                        QuantizeKernels::quantizeGroups,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.topkWeights),
                        t.in(x.from()),
                        t.out(x.into()),
                        t.out(x.scales()),
                        x.rowsPerToken(),
                        x.cols(),
                        x.rowInts(),
                        group,
                        a.shape.quantization.roundToNearest() ? 1 : 0,
                        x.keyed(),
                        x.weighted()));
    }
}
