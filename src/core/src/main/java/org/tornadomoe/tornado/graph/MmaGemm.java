package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.layout.MmaWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/**
 * NVIDIA's tensor cores from compute capability 8.0 on, for every scheme: the kernels of {@code mma-gemm.cu}, on
 * {@link MmaWeights}; {@link WgmmaGemm} has tiles of its own. Activations are int8, or, where they stay in float,
 * halves: a row's values times a power of two, and, where an expert has few rows ({@link #FEW} in all), halves of what
 * these leave, which makes them exact to float; else they are rounded to 11 bits (relative L2 of 2e-4), and so are, in
 * groups of k, weights times scales.
 */
public class MmaGemm extends CudaGemm {
    /** Rows of the experts, all together, for which weights are streamed. */
    static final int FEW = 8;

    /** Stages of a tile's copies to shared memory: what 99 KB, that every device from 8.0 on has, have room for. */
    private static final int STAGES = 3;

    private static final int THREADS = 128;

    /** Rows of the smallest tile. */
    static final int MIN_TILE = 16;

    final boolean halves;

    MmaGemm(boolean halves) {
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
                new LaunchConfig(8, 32, 64, 1, 4, 2),
                new LaunchConfig(8, 32, 64, 1, 8, 2),
                new LaunchConfig(MIN_TILE, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES),
                new LaunchConfig(32, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES),
                new LaunchConfig(64, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES),
                new LaunchConfig(TILE, MmaWeights.TILE_ROWS, 64, 8, 4, STAGES));
    }

    /**
     * Larger blocks the more rows an expert has. Those that are streamed are added up in another order than tiles, so
     * that where batches are to be invariant all are tiles, whose bits don't depend on their size.
     */
    @Override
    public final LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        if (tokens * config.pairsPerToken() <= FEW && !config.batchInvariant()) {
            return launches().get(isDeep(config.hiddenDim()) ? 1 : 0);
        }
        return launchOf(tileFor(GemmFamily.pairsOfExpert(config, tokens)));
    }

    /** Rows of a tile where an expert has so many. */
    int tileFor(int rows) {
        return rows <= 2 ? MIN_TILE : rows <= 96 ? 32 : rows <= 512 ? 64 : TILE;
    }

    /** Rows of a block from which on rows are packed in another order, which its tiles have. */
    int ordersFrom() {
        return Integer.MAX_VALUE;
    }

    /** Whether blocks of so many rows are streamed, and no tiles. */
    static boolean isSkinny(int block) {
        return block < MIN_TILE;
    }

    /** Whether there are so many k that eight warps share them, not four. */
    private static boolean isDeep(int cols) {
        return cols >= 8192;
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
    public @Nullable String rounding(Int8Scheme scheme) {
        if (!halves) {
            return null;
        }
        String rows = "activations of more than " + FEW + " rows of the experts in all, to 11 bits of a row's greatest";
        return scheme == Int8Scheme.W8A16_GROUP
                ? rows + ", and there weights times their group's scale (relative L2 of about 1e-3)"
                : rows + " (relative L2 of about 4e-4)";
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        String lacking = CudaKernel.obstacle(device, capability -> capability >= 80, "8.0 and later");
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
        return Stream.concat(scheme(a, cols), Stream.of("-DSTAGES=" + STAGES)).toList();
    }

    /** What {@code mma.cu} asks for. */
    final Stream<String> scheme(LayerArrays a, int cols) {
        boolean grouped = isGrouped(a);
        return Stream.of(
                "-DFORM=" + (halves ? 2 : 0),
                "-DGROUPED=" + (grouped ? 1 : 0),
                "-DSTEP=" + step(a, cols),
                "-DBLOCKED=" + (isBlocked(a) ? 1 : 0),
                "-DZEROS=" + (a.shape.quantization.zeroPoints() ? 1 : 0),
                "-DNEAREST=" + (a.shape.quantization.roundToNearest() ? 1 : 0),
                "-DONE_SCALE=" + (a.shape.scheme == Int8Scheme.W8A8_TENSOR ? 1 : 0));
    }

    static boolean isBlocked(LayerArrays a) {
        return a.shape.scheme == Int8Scheme.W8A8_BLOCK;
    }

    static boolean isGrouped(LayerArrays a) {
        return MmaWeights.isGrouped(a.shape.scheme);
    }

    /** k that have a scale in common wherever they begin. */
    int step(LayerArrays a, int cols) {
        int group = a.shape.quantization.colsPerScale(cols);
        return !isGrouped(a) || group >= cols || group % 64 == 0 ? 64 : group % 32 == 0 ? 32 : 16;
    }

    /** Columns of a row that have a scale in common: where that is all, what pads them, too. */
    int columnsOfGroup(LayerArrays a, int cols) {
        int group = a.shape.quantization.colsPerScale(cols);
        return group >= cols ? 64 * MmaWeights.chunks(cols) : group;
    }

    /**
     * Bytes of a tile's stage: weights and the rows of a block, and the scales and zero points of both.
     *
     * @param weightRows packed rows of the tile
     * @param depth k of a stage
     * @param cols k of the whole product
     */
    final int stageBytes(LayerArrays a, int weightRows, int depth, int block, int cols) {
        int scales = isGrouped(a) ? depth / step(a, cols) : 0;
        int ofWeights = 4 * weightRows * scales * (a.shape.quantization.zeroPoints() ? 2 : 1);
        int ofBlock = isBlocked(a) ? 4 * block * scales : 0;
        return depth * (weightRows + block * (halves ? 2 : 1)) + ofWeights + ofBlock;
    }

    @Override
    Launch launch(LayerArrays a, Product p, int groups, int tokens) {
        int block = a.blockSize(tokens);
        if (!isSkinny(block)) {
            return launchOfTiles(a, p, groups, tokens);
        }
        int warps = a.launches.source() != null ? a.launch(tokens).numWarps() : isDeep(p.cols()) ? 8 : 4;
        return streaming(a, groups, warps, MmaWeights.CHUNK, tokens);
    }

    Launch launchOfTiles(LayerArrays a, Product p, int groups, int tokens) {
        int block = a.blockSize(tokens);
        int tiles = Math.ceilDiv(8 * groups, MmaWeights.TILE_ROWS);
        return new Launch(
                "tileGemm" + block,
                THREADS,
                Math.multiplyExact(a.blocks(tokens), tiles),
                1,
                STAGES * stageBytes(a, MmaWeights.TILE_ROWS, 64, block, p.cols()));
    }

    @Override
    List<Integer> chunking(LayerArrays a, Product p) {
        int group = columnsOfGroup(a, p.cols());
        return List.of(MmaWeights.chunks(p.cols()), isGrouped(a) ? Math.ceilDiv(p.cols(), group) : 1, group);
    }

    @Override
    List<FloatArray> scales(Projection projection) {
        return List.of(projection.scales().getFirst(), projection.zeroPoints().getFirst());
    }

    /** In front of each a factor is packed. */
    @Override
    boolean isLater(Product p) {
        return true;
    }
}
