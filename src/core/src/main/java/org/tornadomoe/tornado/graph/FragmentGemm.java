package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.kernels.FragmentGemmKernels;
import org.tornadomoe.tornado.kernels.FragmentHalfKernels;
import org.tornadomoe.tornado.layout.FragmentWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;

/**
 * NVIDIA's tensor cores from kernels in Java, for every scheme: {@link FragmentGemmKernels}, on
 * {@link FragmentWeights}. Activations are int8 or, where they stay in float, floats of int8, exact to float.
 */
public final class FragmentGemm extends JavaGemm {
    private final boolean floats;

    private FragmentGemm(boolean floats) {
        this.floats = floats;
    }

    /** For {@code w8a8_*}. */
    public static FragmentGemm ofInt8() {
        return new FragmentGemm(false);
    }

    /** For {@code w8a16_*}. */
    public static FragmentGemm ofFloats() {
        return new FragmentGemm(true);
    }

    @Override
    public String name() {
        return floats ? "fragments_a16" : "fragments";
    }

    @Override
    public WeightLayout layout() {
        return new FragmentWeights(floats);
    }

    @Override
    public List<LaunchConfig> launches() {
        int k = FragmentGemmKernels.CHUNK;
        return List.of(
                new LaunchConfig(
                        FragmentGemmKernels.FEW,
                        FragmentGemmKernels.STRIP,
                        k,
                        1,
                        FragmentGemmKernels.FEW_GROUP / 32,
                        2),
                new LaunchConfig(
                        FragmentGemmKernels.MANY,
                        FragmentGemmKernels.MANY_ROWS,
                        k,
                        1,
                        FragmentGemmKernels.MANY_GROUP / 32,
                        2));
    }

    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        return launchOf(
                GemmFamily.pairsOfExpert(config, tokens) <= FragmentGemmKernels.FEW
                        ? FragmentGemmKernels.FEW
                        : FragmentGemmKernels.MANY);
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme.quantizesActivations() != floats;
    }

    @Override
    public int columnsOfScale() {
        return floats ? FragmentHalfKernels.STEP : FragmentGemmKernels.CHUNK;
    }

    @Override
    public boolean packsFloats() {
        return floats;
    }

    @Override
    public long sums(LayerShape shape) {
        return floats ? 1 : sumsOfGroups(shape);
    }

    @Override
    public long floatSums(LayerShape shape) {
        return floats ? sumsOfGroups(shape) : 1;
    }

    private static long sumsOfGroups(LayerShape shape) {
        int rows = Math.max(shape.gateUpRows, shape.hidden);
        long few = groups(true, rows, shape.blocks(shape.maxTokens, FragmentGemmKernels.FEW));
        long many = groups(false, rows, shape.blocks(shape.maxTokens, FragmentGemmKernels.MANY));
        return Math.max(few * FragmentGemmKernels.FEW_SUMS, many * FragmentGemmKernels.MANY_SCRATCH);
    }

    /** Groups of a launch for so many blocks and weight rows. */
    private static int groups(boolean few, int rows, long blocks) {
        long tiles = blocks * Math.ceilDiv(rows, few ? FragmentGemmKernels.STRIP : FragmentGemmKernels.MANY_ROWS);
        return (int) Math.min(tiles, few ? FragmentGemmKernels.FEW_GROUPS : FragmentGemmKernels.MANY_GROUPS);
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        String lacking = device.is(Device.CUDA) || device.is(Device.PTX)
                ? floats ? device.lacksHalfMma() : device.lacksInt8Mma()
                : "TornadoVM has matrix instructions through CUDA and PTX only";
        return withoutTensorCores(device, floats ? "16-bit" : "int8", lacking);
    }

    @Override
    public LayerProgram program(LayerArrays arrays) {
        return floats ? new FragmentProgram(this, arrays) : super.program(arrays);
    }

    @Override
    public List<Stage> stages(LayerArrays a, Product p) {
        return ofEitherSize(
                a, FragmentGemmKernels.FEW, FragmentGemmKernels.MANY, (part, size) -> stage(a, p, part, size));
    }

    private Stage stage(LayerArrays a, Product p, int part, int size) {
        boolean few = size == FragmentGemmKernels.FEW;
        IntPredicate works = m -> a.blockSize(m) == size;
        int group = a.shape.quantization.colsPerScale(p.cols());
        int chunks = FragmentWeights.chunks(p.cols());
        int groups = Math.ceilDiv(p.cols(), group);
        int groupChunks = groups > 1 ? group / FragmentGemmKernels.CHUNK : chunks;
        int groupSteps = groups > 1 ? group / FragmentHalfKernels.STEP : 2 * chunks;
        return KernelTask.stage(
                p.name() + (few ? "Few" : "Many") + a.shape.parts.suffix(part),
                few ? FragmentGemmKernels.FEW_GROUP : FragmentGemmKernels.MANY_GROUP,
                m -> works.test(m) ? groups(few, p.rows(), a.blocks(m)) : 1,
                t -> floats
                        ? t.runs(
                                few ? FragmentHalfKernels::few : FragmentHalfKernels::many,
                                t.in(a.work.header),
                                t.in(a.work.sortedIds(part)),
                                t.in(a.work.expertIds(part)),
                                t.in(a.work.numPostPadded),
                                t.in(p.quantized()),
                                t.in(p.scales()),
                                t.in(p.projection().values().get(part)),
                                t.in(p.projection().scales().get(part)),
                                t.in(p.projection().zeroPoints().get(part)),
                                t.in(p.projection().bias().get(part)),
                                t.in(a.work.topkWeights),
                                t.out(a.work.floatSums),
                                t.out(p.out()),
                                a.shape.topK,
                                p.rows(),
                                chunks,
                                groups,
                                groupSteps,
                                p.form(a.shape))
                        : t.runs(
                                few ? FragmentGemmKernels::few : FragmentGemmKernels::many,
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
                                t.out(a.work.sums),
                                t.out(p.out()),
                                a.shape.topK,
                                p.rows(),
                                chunks,
                                groupChunks,
                                p.rowsPerScale(a.shape),
                                p.form(a.shape)));
    }
}
