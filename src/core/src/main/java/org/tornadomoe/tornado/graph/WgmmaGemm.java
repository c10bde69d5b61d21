package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.layout.MmaWeights;
import org.tornadomoe.tuning.LaunchConfig;

/**
 * {@link MmaGemm} with Hopper's tensor cores for all but the fewest rows: the kernels of {@code wgmma-gemm.cu}. Tiles
 * are 256 packed rows wide and give the bits that those of {@code mma-gemm.cu} do, but for {@code w8a8_block}, where
 * 128 k, not 64, have whole sums. For the schemes that {@link HopperGemm} doesn't serve.
 */
public final class WgmmaGemm extends MmaGemm {
    /** Of all stages. */
    private static final int MOST_BYTES = 204_800;

    private static final int MOST_STAGES = 8;

    private WgmmaGemm(boolean halves) {
        super(halves);
    }

    /** For {@code w8a8_block}. */
    public static WgmmaGemm ofInt8() {
        return new WgmmaGemm(false);
    }

    /** For {@code w8a16_*}. */
    public static WgmmaGemm ofHalves() {
        return new WgmmaGemm(true);
    }

    @Override
    public String name() {
        return halves ? "wgmma_a16" : "wgmma";
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return halves ? super.supports(scheme) : scheme == Int8Scheme.W8A8_BLOCK;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        return HopperGemm.lacksWgmma(device);
    }

    @Override
    public List<LaunchConfig> launches() {
        return Stream.concat(
                        super.launches().stream().filter(launch -> isSkinny(launch.blockSizeM())),
                        Stream.of(MIN_TILE, 32, 64, TILE)
                                .map(rows -> new LaunchConfig(
                                        rows, HopperGemm.TILE_ROWS, 64, 8, HopperGemm.THREADS / 32, MOST_STAGES)))
                .toList();
    }

    @Override
    public int placeOf(int k, int cols, int block, int colsPerScale) {
        int group = colsPerScale >= cols ? 64 * MmaWeights.chunks(cols) : colsPerScale;
        // Tiles of 128 pairs whose sums of 128 k are scaled have pairs and weights in the same order.
        boolean folds = block == TILE && colsPerScale > 0 && group % 128 == 0;
        boolean ordered = block >= ordersFrom() && !folds;
        return ordered ? k : super.placeOf(k, cols, block, colsPerScale);
    }

    @Override
    int tileFor(int rows) {
        return rows <= 6 ? MIN_TILE : rows <= 20 ? 32 : rows <= 40 ? 64 : TILE;
    }

    @Override
    int ordersFrom() {
        return MIN_TILE;
    }

    @Override
    String source() {
        return "wgmma-gemm.cu";
    }

    @Override
    boolean isForHopper() {
        return true;
    }

    @Override
    List<String> options(LayerArrays a, int cols) {
        return Stream.concat(
                        scheme(a, cols),
                        Stream.of(
                                "-DMOST_BYTES=" + MOST_BYTES,
                                "-DMOST_STAGES=" + MOST_STAGES,
                                "-DUNIFORM=" + (isUniform(a) ? 1 : 0),
                                HopperGemm.ARCHITECTURE))
                .toList();
    }

    /** Whether every other of 64 packed rows has the same scales: those of the gate, and of the up projection. */
    private static boolean isUniform(LayerArrays a) {
        return isBlocked(a) && a.shape.quantization.grid().row() % 64 == 0 && a.shape.intermediate % 32 == 0;
    }

    /** A stage has 128 bytes of a pair: 128 k of int8. */
    private int columnsOfStage() {
        return halves ? 64 : 128;
    }

    @Override
    int step(LayerArrays a, int cols) {
        boolean whole = isBlocked(a) && columnsOfGroup(a, cols) % columnsOfStage() == 0;
        return whole ? columnsOfStage() : super.step(a, cols);
    }

    @Override
    Launch launchOfTiles(LayerArrays a, Product p, int groups, int tokens) {
        int block = a.blockSize(tokens);
        int bytes = stageBytes(a, HopperGemm.TILE_ROWS, columnsOfStage(), block, p.cols());
        int stage = Math.ceilDiv(bytes, 1024) * 1024;
        int stages = Math.min(MOST_BYTES / stage, MOST_STAGES);
        // What aligning them to 1024 bytes takes, too.
        return new Launch(
                "tileGemm" + block, HopperGemm.THREADS, CudaKernel.ALL_MULTIPROCESSORS, 1, stages * stage + 1024);
    }
}
