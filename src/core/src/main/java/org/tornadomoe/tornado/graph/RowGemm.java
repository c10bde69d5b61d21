package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.BiConsumer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tornado.layout.RowWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Kernels in Java on rows of weights, for every scheme: {@link GemmKernels}. */
abstract class RowGemm extends JavaGemm {
    private final boolean dp4a;

    RowGemm(boolean dp4a) {
        this.dp4a = dp4a;
    }

    @Override
    public final WeightLayout layout() {
        return new RowWeights();
    }

    @Override
    public final List<LaunchConfig> launches() {
        return List.of(new LaunchConfig(
                GemmKernels.BLOCK, GemmKernels.ROWS, 4 * GemmKernels.SLICES, 1, GemmKernels.GROUP / 32, 1));
    }

    @Override
    public final LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        return launches().getFirst();
    }

    @Override
    public final List<Stage> stages(LayerArrays a, Product p) {
        return a.shape.parts.each(part -> KernelTask.stage(
                p.name() + a.shape.parts.suffix(part),
                GemmKernels.GROUP,
                m -> Math.ceilDiv(p.rows(), GemmKernels.ROWS),
                a::blocks,
                task -> kernel(task, a, p, part)));
    }

    private BiConsumer<TaskGraph, String> kernel(KernelTask t, LayerArrays a, Product p, int part) {
        LayerShape shape = a.shape;
        IntArray header = t.in(a.work.header);
        IntArray sortedIds = t.in(a.work.sortedIds(part));
        IntArray expertIds = t.in(a.work.expertIds(part));
        IntArray padded = t.in(a.work.numPostPadded);
        IntArray weights = t.in(p.projection().values().get(part));
        FloatArray weightScales = t.in(p.projection().scales().get(part));
        FloatArray bias = t.in(p.projection().bias().get(part));
        FloatArray routerWeights = t.in(a.work.topkWeights);
        FloatArray out = t.out(p.out());
        int groupInts = Math.ceilDiv(Math.min(shape.quantization.colsPerScale(p.cols()), p.cols()), 4);
        int form = p.form(shape);
        if (!shape.scheme.quantizesActivations()) {
            return t.runs(
                    GemmKernels::w8a16,
                    header,
                    sortedIds,
                    expertIds,
                    padded,
                    t.in(p.floats()),
                    weights,
                    weightScales,
                    t.in(p.projection().zeroPoints().get(part)),
                    bias,
                    routerWeights,
                    out,
                    shape.topK,
                    p.rows(),
                    p.cols(),
                    groupInts,
                    form);
        }
        return t.runs(
                dp4a ? GemmKernels::dp4a : GemmKernels::portable,
                header,
                sortedIds,
                expertIds,
                padded,
                t.in(p.quantized()),
                t.in(p.scales()),
                weights,
                weightScales,
                bias,
                routerWeights,
                out,
                shape.topK,
                p.rows(),
                layout().rowInts(p.cols()),
                groupInts,
                p.rowsPerScale(shape),
                form);
    }
}
