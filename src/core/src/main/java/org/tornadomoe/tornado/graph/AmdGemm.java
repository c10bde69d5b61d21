package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.cuda.PrebuiltKernel;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.layout.AmdWeights;
import org.tornadomoe.tornado.layout.RowTiles;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;

/**
 * AMD's matrix cores, WMMA of RDNA3 and RDNA4 and MFMA of CDNA: the kernel of {@code amd-gemm.cl}, on
 * {@link AmdWeights}, through OpenCL. Activations are int8, or, where they stay in float, halves: a row's values times
 * a power of two, and, in blocks of up to {@link #FEW} pairs, halves of what these leave, which makes them exact to
 * float; else they are rounded to 11 bits (relative L2 of 2e-4). Weights are exact in both, zero points taken off.
 * Where scales change along k, sums of up to 64 k are scaled and added up in float, and a sum's bits depend on the size
 * of its block.
 */
public final class AmdGemm extends PrebuiltGemm {
    /**
     * Pairs of a block, and tokens of a call, for which weights are streamed through dot products: an expert has no
     * more pairs than there are tokens. Of int8 only.
     */
    private static final int STREAM = 4;

    /** Pairs of a block for which weights are streamed through matrix cores: what one fragment has. */
    private static final int FEW = 16;

    private static final int GROUP = 256;

    private final boolean halves;

    private AmdGemm(boolean halves) {
        this.halves = halves;
    }

    /** For {@code w8a8_*}. */
    public static AmdGemm ofInt8() {
        return new AmdGemm(false);
    }

    /** For {@code w8a16_*}. */
    public static AmdGemm ofHalves() {
        return new AmdGemm(true);
    }

    @Override
    public String name() {
        return halves ? "amd_a16" : "amd";
    }

    @Override
    public WeightLayout layout() {
        return new AmdWeights(halves);
    }

    @Override
    public List<LaunchConfig> launches() {
        return IntStream.of(STREAM, FEW, TILE)
                .filter(block -> block != STREAM || !halves)
                .mapToObj(block -> new LaunchConfig(
                        block,
                        block == TILE ? TILE : RowTiles.ROWS,
                        RowTiles.CHUNK,
                        1,
                        GROUP / 32,
                        block == TILE ? 2 : 1))
                .toList();
    }

    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        if (config.batchInvariant() || GemmFamily.pairsOfExpert(config, tokens) > FEW) {
            return launchOf(TILE);
        }
        return launchOf(tokens <= STREAM && !halves ? STREAM : FEW);
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme.quantizesActivations() != halves;
    }

    @Override
    public int columnsOfScale() {
        return halves ? 16 : RowTiles.CHUNK;
    }

    @Override
    public boolean packsFloats() {
        return halves;
    }

    @Override
    public @Nullable String rounding(Int8Scheme scheme) {
        return halves
                ? "activations of calls with more than " + FEW + " pairs an expert, to 11 bits of a row's greatest"
                        + " (relative L2 of about 4e-4)"
                : null;
    }

    @Override
    public LayerProgram program(LayerArrays arrays) {
        return halves ? new AmdProgram(this, arrays) : super.program(arrays);
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        String lacking = halves ? device.lacksAmdHalfMatrixCores() : device.lacksAmdMatrixCores();
        return lacking == null
                ? null
                : Support.no(
                        device + " has no AMD matrix cores: " + lacking,
                        "device: an AMD GPU that has them (gfx908, gfx90a, gfx94x, gfx950, gfx11xx, gfx12xx), through"
                                + " OpenCL");
    }

    @Override
    public int prebuiltSizes() {
        return 12;
    }

    @Override
    PrebuiltKernel kernel(LayerArrays a) {
        Int8Scheme scheme = a.shape.scheme;
        boolean grouped = scheme == Int8Scheme.W8A8_BLOCK || scheme == Int8Scheme.W8A16_GROUP;
        int group = a.shape.quantization.grid().col();
        int step = !grouped || group % 64 == 0 ? 64 : group % 32 == 0 ? 32 : 16;
        return new PrebuiltKernel(
                "amd-gemm",
                "amdGemm",
                define("HALVES", halves ? 1 : 0)
                        + define("GROUPED", grouped ? 1 : 0)
                        + define("STEP", halves ? step : RowTiles.CHUNK)
                        + define("ZEROS", a.shape.quantization.zeroPoints() ? 1 : 0));
    }

    private static String define(String name, int value) {
        return "#define " + name + " " + value + "\n";
    }

    @Override
    int smallestGroup() {
        return GROUP;
    }

    @Override
    public List<Stage> stages(LayerArrays a, Product p) {
        int chunks = RowTiles.chunks(p.cols());
        int group = a.shape.quantization.colsPerScale(p.cols());
        setSizes(
                p.projection().sizes(),
                a.shape.topK,
                p.pairsPerRow(),
                p.rows(),
                chunks,
                p.weighted(),
                a.shape.biased ? 1 : 0,
                layout().weightPad(),
                group < p.cols() ? group : chunks * RowTiles.CHUNK,
                a.shape.scheme == Int8Scheme.W8A8_BLOCK ? a.shape.quantization.rowsPerScale(p.rows()) : 1,
                Math.ceilDiv(p.cols(), group),
                0,
                0);
        IntPredicate tiles = m -> a.blockSize(m) == TILE;
        return stages(a, p, m -> GROUP, m -> Math.ceilDiv(p.rows(), tiles.test(m) ? TILE : RowTiles.ROWS), a::blocks);
    }

    /**
     * The sizes that the kernel that packs rows takes.
     *
     * @param perToken rows of a token
     * @param weighted 1 to multiply them by the router's weights
     * @param keyed 1 if they are pairs
     */
    static int[] sizesOfPacking(int perToken, int weighted, int cols, int keyed) {
        return new int[] {perToken, 1, 0, RowTiles.chunks(cols), weighted, 0, 0, RowTiles.CHUNK, 1, 1, cols, keyed};
    }
}
