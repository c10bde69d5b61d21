package org.tornadomoe.tornado.graph;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.layout.HopperWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/**
 * Hopper's tensor cores for {@code w8a8_channel} and {@code w8a8_tensor}: the kernels of {@code hopper-gemm.cu}, on
 * {@link HopperWeights}.
 */
public final class HopperGemm extends CudaGemm {
    /** What kernels for Hopper are compiled for. */
    public static final String ARCHITECTURE = "--gpu-architecture=sm_90a";

    /** Packed rows of a tile by {@code wgmma}. */
    static final int TILE_ROWS = 256;

    /** Of such a tile: four warps that fetch and two times four that multiply. */
    static final int THREADS = 384;

    @Override
    public String name() {
        return "hopper";
    }

    @Override
    public WeightLayout layout() {
        return new HopperWeights();
    }

    @Override
    public List<LaunchConfig> launches() {
        return List.of(
                new LaunchConfig(8, 32, 64, 1, 8, 4),
                new LaunchConfig(8, 32, 64, 1, 4, 4),
                tile(MmaGemm.MIN_TILE),
                tile(32),
                tile(64),
                tile(TILE));
    }

    private static LaunchConfig tile(int rows) {
        return new LaunchConfig(rows, TILE_ROWS, HopperWeights.CHUNK, 8, THREADS / 32, stages(rows));
    }

    /** Stages of a tile's copies to shared memory. */
    private static int stages(int block) {
        return block == TILE ? 4 : 5;
    }

    /** That of the first product; each has as many warps as suit its own k. */
    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        int rows = GemmFamily.pairsOfExpert(config, tokens);
        if (rows > 1 && tokens * config.pairsPerToken() > MmaGemm.FEW) {
            return tile(rows <= 6 ? MmaGemm.MIN_TILE : rows <= 20 ? 32 : rows <= 30 ? 64 : TILE);
        }
        int warps = streamingWarps(config.hiddenDim());
        return launches().stream()
                .filter(launch -> launch.numWarps() == warps)
                .findFirst()
                .orElseThrow();
    }

    /** Many k are shared among more warps. */
    private static int streamingWarps(int cols) {
        return HopperWeights.chunks(cols) >= 32 ? 8 : 4;
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme == Int8Scheme.W8A8_CHANNEL || scheme == Int8Scheme.W8A8_TENSOR;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        return lacksWgmma(device);
    }

    /** Why a device can't run kernels with {@code wgmma}; null if it can. */
    static @Nullable Support lacksWgmma(Device device) {
        String lacking = CudaKernel.hopperObstacle(device);
        return lacking == null
                ? null
                : Support.no(device + " has no wgmma: " + lacking, "device: one that has it, through CUDA");
    }

    @Override
    public LayerProgram program(LayerArrays arrays) {
        return new HopperProgram(arrays);
    }

    @Override
    String source() {
        return "hopper-gemm.cu";
    }

    @Override
    boolean isForHopper() {
        return true;
    }

    @Override
    List<String> options(LayerArrays a, int cols) {
        return List.of(ARCHITECTURE, "-DONE_SCALE=" + (hasOneScale(a) ? 1 : 0));
    }

    static boolean hasOneScale(LayerArrays a) {
        return a.shape.scheme == Int8Scheme.W8A8_TENSOR;
    }

    static boolean isSkinny(LayerArrays a, int tokens) {
        return a.blockSize(tokens) < MmaGemm.MIN_TILE;
    }

    @Override
    Launch launch(LayerArrays a, Product p, int groups, int tokens) {
        if (!isSkinny(a, tokens)) {
            int block = a.blockSize(tokens);
            int stage = (block + TILE_ROWS) * HopperWeights.CHUNK;
            // Scales and biases of a tile more than there are stages, where these are fetched, too; and what aligning
            // takes.
            int scales = block == TILE ? 2 * 4 * TILE_ROWS * (stages(block) + 1) : 0;
            int bytes = stages(block) * stage + scales + 1024;
            return new Launch("tileGemm" + block, THREADS, CudaKernel.ALL_MULTIPROCESSORS, 1, bytes);
        }
        int warps = a.launches.source() == null
                ? streamingWarps(p.cols())
                : a.launch(tokens).numWarps();
        return streaming(a, groups, warps, HopperWeights.CHUNK, tokens);
    }

    @Override
    List<Integer> chunking(LayerArrays a, Product p) {
        return List.of(HopperWeights.chunks(p.cols()));
    }

    @Override
    List<FloatArray> scales(Projection projection) {
        return List.of(projection.scales().getFirst());
    }

    /** In front of the first is the router of few tokens. */
    @Override
    boolean isLater(Product p) {
        return !p.isFirst();
    }
}
