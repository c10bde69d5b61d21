package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.BiConsumer;
import java.util.function.IntPredicate;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.kernels.PanelFloatKernels;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;
import org.tornadomoe.tornado.layout.PanelWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Plain arithmetic for OpenCL's compilers, for every scheme, on {@link PanelWeights}: {@link PanelGemmKernels} with
 * shifts and multiplications of int8 that they make dot-product instructions of, {@link PanelFloatKernels} in float.
 */
public final class PanelGemm extends JavaGemm {
    @Override
    public String name() {
        return "panels";
    }

    @Override
    public WeightLayout layout() {
        return new PanelWeights();
    }

    @Override
    public List<LaunchConfig> launches() {
        return List.of(
                new LaunchConfig(
                        PanelGemmKernels.FEW,
                        PanelGemmKernels.STREAM_ROWS,
                        4 * PanelGemmKernels.SLICES,
                        1,
                        PanelGemmKernels.STREAM_GROUP / 32,
                        1),
                new LaunchConfig(
                        PanelGemmKernels.MANY,
                        PanelGemmKernels.TILE_ROWS,
                        4 * PanelGemmKernels.CHUNK,
                        1,
                        PanelGemmKernels.TILE_GROUP / 32,
                        1));
    }

    /** The kernels add up groups in float, each in another order: where batches are to be invariant one serves all. */
    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        boolean few = GemmFamily.pairsOfExpert(config, tokens) <= 2 && !config.batchInvariant();
        return launchOf(few ? PanelGemmKernels.FEW : PanelGemmKernels.MANY);
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return true;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        return device.is(Device.OPENCL) || device.is(Device.INTERPRETER)
                ? null
                : Support.no(
                        device
                                + " is not an OpenCL device: these kernels are written for OpenCL's compilers and"
                                + " untried with others",
                        "device: one through OpenCL");
    }

    @Override
    public List<Stage> stages(LayerArrays a, Product p) {
        return ofEitherSize(a, PanelGemmKernels.FEW, PanelGemmKernels.MANY, (part, size) -> stage(a, p, part, size));
    }

    private Stage stage(LayerArrays a, Product p, int part, int size) {
        boolean few = size == PanelGemmKernels.FEW;
        int groups = Math.ceilDiv(p.rows(), few ? PanelGemmKernels.STREAM_ROWS : PanelGemmKernels.TILE_ROWS);
        IntPredicate works = m -> a.blockSize(m) == size;
        return KernelTask.stage(
                p.name() + (few ? "Few" : "Many") + a.shape.parts.suffix(part),
                few ? PanelGemmKernels.STREAM_GROUP : PanelGemmKernels.TILE_GROUP,
                m -> works.test(m) ? groups : 1,
                m -> works.test(m) ? a.blocks(m) : 1,
                t -> kernel(t, a, p, part, few));
    }

    private BiConsumer<TaskGraph, String> kernel(KernelTask t, LayerArrays a, Product p, int part, boolean few) {
        IntArray header = t.in(a.work.header);
        IntArray sortedIds = t.in(a.work.sortedIds(part));
        IntArray expertIds = t.in(a.work.expertIds(part));
        IntArray padded = t.in(a.work.numPostPadded);
        IntArray weights = t.in(p.projection().values().get(part));
        FloatArray weightScales = t.in(p.projection().scales().get(part));
        FloatArray bias = t.in(p.projection().bias().get(part));
        FloatArray routerWeights = t.in(a.work.topkWeights);
        FloatArray out = t.out(p.out());
        int groupInts = Math.ceilDiv(Math.min(a.shape.quantization.colsPerScale(p.cols()), p.cols()), 4);
        int form = p.form(a.shape);
        if (!a.shape.scheme.quantizesActivations()) {
            return t.runs(
                    few ? PanelFloatKernels::stream : PanelFloatKernels::tile,
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
                    a.shape.topK,
                    p.rows(),
                    p.cols(),
                    groupInts,
                    layout().weightPad(),
                    form);
        }
        return t.runs(
                few ? PanelGemmKernels::stream : PanelGemmKernels::tile,
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
                a.shape.topK,
                p.rows(),
                layout().rowInts(p.cols()),
                groupInts,
                p.rowsPerScale(a.shape),
                layout().weightPad(),
                form);
    }
}
