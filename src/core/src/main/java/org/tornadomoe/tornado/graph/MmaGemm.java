package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntFunction;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.layout.ActivationCode;
import org.tornadomoe.tornado.layout.MmaWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;

/**
 * NVIDIA's tensor cores from compute capability 8.0 on, for every scheme: the kernels of {@code mma-gemm.cu}, on
 * {@link MmaWeights}. Activations are int8, or, where they stay in float, halves: a row's values times a power of two,
 * and, where an expert has few rows ({@link #FEW} in all), halves of what these leave, which makes them exact to float;
 * else they are rounded to 11 bits (relative L2 of 2e-4), and so are, in groups of k, weights times scales.
 */
public final class MmaGemm extends CudaGemm {
    /** Rows of the experts, all together, for which weights are streamed. */
    private static final int FEW = 8;

    /** Stages of a tile's copies to shared memory: what 99 KB, that every device from 8.0 on has, have room for. */
    private static final int STAGES = 3;

    private static final int THREADS = 128;

    private final boolean halves;

    private MmaGemm(boolean halves) {
        this.halves = halves;
    }

    /** For {@code w8a8_*}. */
    public static MmaGemm ofInt8() {
        return new MmaGemm(false);
    }

    /** For {@code w8a16_*}. */
    public static MmaGemm ofHalves() {
        return new MmaGemm(true);
    }

    @Override
    public String name() {
        return halves ? "mma_a16" : "mma";
    }

    @Override
    public WeightLayout layout() {
        return new MmaWeights(halves);
    }

    @Override
    public List<LaunchConfig> launches() {
        return List.of(
                new LaunchConfig(8, 32, 64, 1, 4, 4),
                new LaunchConfig(8, 32, 64, 1, 8, 4),
                new LaunchConfig(16, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES),
                new LaunchConfig(32, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES),
                new LaunchConfig(64, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES),
                new LaunchConfig(TILE, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES));
    }

    /**
     * Larger blocks the more rows an expert has. Those that are streamed are added up in another order than tiles, so
     * that where batches are to be invariant all are tiles, whose bits don't depend on their size.
     */
    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        int rows = GemmFamily.pairsOfExpert(config, tokens);
        if (tokens * config.pairsPerToken() <= FEW && !config.batchInvariant()) {
            return launches().get(isDeep(config.hiddenDim()) ? 1 : 0);
        }
        return launchOf(rows <= 2 ? 16 : rows <= 96 ? 32 : rows <= 512 ? 64 : TILE);
    }

    /** Whether there are so many k that eight warps share them, not four. */
    private static boolean isDeep(int cols) {
        return cols >= 4096;
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme.quantizesActivations() != halves;
    }

    @Override
    public int columnsOfScale() {
        return halves ? 16 : 32;
    }

    @Override
    public boolean packsFloats() {
        return halves;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        String lacking = CudaKernel.obstacle(device, 80, 999);
        return lacking == null
                ? null
                : Support.no(
                        device + " has no mma.sync with asynchronous copies: " + lacking,
                        "device: an NVIDIA GPU from compute capability 8.0 on, through CUDA");
    }

    @Override
    public LayerProgram program(LayerArrays arrays) {
        return new MmaProgram(this, arrays);
    }

    @Override
    String source() {
        return "mma-gemm.cu";
    }

    @Override
    List<String> options(LayerArrays a, int cols) {
        boolean grouped = isGrouped(a);
        boolean blocked = a.shape.scheme == Int8Scheme.W8A8_BLOCK;
        return List.of(
                "-DFORM=" + (halves ? 2 : 0),
                "-DGROUPED=" + (grouped ? 1 : 0),
                "-DSTEP=" + step(a, cols),
                "-DBLOCKED=" + (blocked ? 1 : 0),
                "-DZEROS=" + (a.shape.quantization.zeroPoints() ? 1 : 0),
                "-DNEAREST=" + (a.shape.quantization.roundToNearest() ? 1 : 0),
                "-DONE_SCALE=" + (a.shape.scheme == Int8Scheme.W8A8_TENSOR ? 1 : 0),
                "-DSTAGES=" + STAGES);
    }

    private static boolean isGrouped(LayerArrays a) {
        return MmaWeights.isGrouped(a.shape.scheme);
    }

    /** k that have a scale in common wherever they begin. */
    private static int step(LayerArrays a, int cols) {
        int group = a.shape.quantization.colsPerScale(cols);
        return !isGrouped(a) || group >= cols || group % 64 == 0 ? 64 : group % 32 == 0 ? 32 : 16;
    }

    /** Columns of a row that have a scale in common: where that is all, what pads them, too. */
    int columnsOfGroup(LayerArrays a, int cols) {
        int group = a.shape.quantization.colsPerScale(cols);
        return group >= cols ? 64 * MmaWeights.chunks(cols) : group;
    }

    /** Bytes of a packed row. */
    int rowBytes(int cols) {
        return 4 * layout().rowInts(cols);
    }

    private int stageBytes(LayerArrays a, int block, int cols) {
        int scales = isGrouped(a) ? 64 / step(a, cols) : 0;
        int scaleBytes = scales * 4 * MmaWeights.TILE_ROWS;
        boolean blocked = a.shape.scheme == Int8Scheme.W8A8_BLOCK;
        return MmaWeights.TILE_ROWS * 64
                + block * (halves ? 128 : 64)
                + scaleBytes * (a.shape.quantization.zeroPoints() ? 2 : 1)
                + (blocked ? 4 * block * scales : 0);
    }

    @Override
    Stage stage(LayerArrays a, Rows rows, Product p, ActivationCode activation, int packsUpTo) {
        int groups = MmaWeights.groups(p.rows(), activation.layout());
        int tiles = Math.ceilDiv(8 * groups, MmaWeights.TILE_ROWS);
        IntFunction<Launch> launch = m -> {
            int block = a.blockSize(m);
            if (block >= 16) {
                return new Launch(
                        "tileGemm" + block,
                        THREADS,
                        Math.multiplyExact(a.blocks(m), tiles),
                        1,
                        STAGES * stageBytes(a, block, p.cols()));
            }
            int warps = a.launches.source() != null ? a.launch(m).numWarps() : isDeep(p.cols()) ? 8 : 4;
            int packedBytes = rows.of(m) <= packsUpTo ? 8 * (rowBytes(p.cols()) + 64) : 0;
            return new Launch("skinnyGemm", 32 * warps, groups / 4, a.blocks(m), packedBytes);
        };
        int group = columnsOfGroup(a, p.cols());
        List<Object> reads = Stream.of(
                        List.of(
                                rows.header(),
                                a.work.sortedIds,
                                a.work.expertIds,
                                a.work.numPostPadded,
                                p.quantized(),
                                p.scales()),
                        p.projection().values(),
                        List.of(
                                p.projection().scales().getFirst(),
                                p.projection().zeroPoints().getFirst(),
                                p.projection().bias().getFirst(),
                                a.work.topkWeights,
                                packsUpTo > 0 ? p.floats() : a.work.topkWeights))
                .<Object>flatMap(List::stream)
                .toList();
        int columns = activation.function() < 0 ? p.rows() : a.shape.intermediate;
        List<Object> scalars = List.of(
                rows.perHeader(),
                p.pairsPerRow(),
                columns,
                groups,
                MmaWeights.chunks(p.cols()),
                isGrouped(a) ? Math.ceilDiv(p.cols(), group) : 1,
                group,
                a.shape.parts.expertsOfPart(),
                p.weighted(),
                a.shape.biased ? 1 : 0,
                1,
                p.cols(),
                packsUpTo,
                activation.limit(),
                activation.alpha(),
                activation.beta(),
                activation.linearBeta());
        return kernel(
                a, p.name(), activation, p.cols(), launch, reads, List.of(p.out()), List.of(a.work.amax), scalars);
    }
}
