package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;
import org.tornadomoe.tornado.layout.PanelWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;

/**
 * With shifts and multiplications that OpenCL's compilers make dot-product instructions of: {@link PanelGemmKernels},
 * on {@link PanelWeights}.
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

    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        return launchOf(GemmFamily.pairsOfExpert(config, tokens) <= 6 ? PanelGemmKernels.FEW : PanelGemmKernels.MANY);
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme == Int8Scheme.W8A8_CHANNEL || scheme == Int8Scheme.W8A8_TENSOR;
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
                t -> t.runs(
                        few ? PanelGemmKernels::stream : PanelGemmKernels::tile,
                        t.in(a.work.header),
                        t.in(a.work.sortedIds(part)),
                        t.in(a.work.expertIds(part)),
                        t.in(a.work.numPostPadded),
                        t.in(p.quantized()),
                        t.in(p.scales()),
                        t.in(p.projection().values().get(part)),
                        t.in(p.projection().scales().get(part)),
                        t.in(p.projection().bias().get(part)),
                        t.in(a.work.topkWeights),
                        t.out(p.out()),
                        a.shape.topK,
                        p.pairsPerRow(),
                        p.rows(),
                        layout().rowInts(p.cols()),
                        layout().weightPad(),
                        a.shape.biased ? 1 : 0,
                        p.weighted()));
    }
}
