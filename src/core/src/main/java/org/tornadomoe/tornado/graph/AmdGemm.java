package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
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
 * AMD's matrix cores, WMMA of RDNA3 and RDNA4 and MFMA of CDNA2 and CDNA3: the kernel of {@code amd-gemm.cl}, on
 * {@link AmdWeights}, through OpenCL. Where scales change along k, sums of 64 k are scaled and added up in float, and
 * a sum's bits depend on the size of its block.
 */
public final class AmdGemm extends PrebuiltGemm {
    /** Pairs of a block for which weights are streamed: what one fragment has. */
    private static final int FEW = 16;

    private static final int GROUP = 256;

    @Override
    public String name() {
        return "amd";
    }

    @Override
    public WeightLayout layout() {
        return new AmdWeights();
    }

    @Override
    public List<LaunchConfig> launches() {
        return List.of(
                new LaunchConfig(FEW, RowTiles.ROWS, RowTiles.CHUNK, 1, GROUP / 32, 1),
                new LaunchConfig(TILE, TILE, RowTiles.CHUNK, 1, GROUP / 32, 2));
    }

    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        boolean streams = GemmFamily.pairsOfExpert(config, tokens) <= FEW && !config.batchInvariant();
        return launchOf(streams ? FEW : TILE);
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme.quantizesActivations();
    }

    @Override
    public int columnsOfScale() {
        return RowTiles.CHUNK;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        String lacking = device.lacksAmdMatrixCores();
        return lacking == null
                ? null
                : Support.no(
                        device + " has no matrix cores of AMD's: " + lacking,
                        "device: an AMD GPU that has them (gfx908, gfx90a, gfx94x, gfx950, gfx11xx, gfx12xx), through"
                                + " OpenCL");
    }

    @Override
    public int prebuiltSizes() {
        return 9;
    }

    @Override
    PrebuiltKernel kernel(LayerArrays a) {
        boolean grouped = a.shape.scheme == Int8Scheme.W8A8_BLOCK;
        return new PrebuiltKernel("amd-gemm", "amdGemm", "#define GROUPED " + (grouped ? 1 : 0) + "\n");
    }

    @Override
    int smallestGroup() {
        return GROUP;
    }

    @Override
    public List<Stage> stages(LayerArrays a, Product p) {
        int chunks = RowTiles.chunks(p.cols());
        int group = a.shape.quantization.colsPerScale(p.cols());
        tell(
                p,
                a.shape.topK,
                p.pairsPerRow(),
                p.rows(),
                chunks,
                p.weighted(),
                a.shape.biased ? 1 : 0,
                layout().weightPad(),
                group < p.cols() ? group / RowTiles.CHUNK : chunks,
                a.shape.scheme == Int8Scheme.W8A8_BLOCK ? a.shape.quantization.rowsPerScale(p.rows()) : 1);
        IntPredicate streams = m -> a.blockSize(m) == FEW;
        return stages(a, p, m -> GROUP, m -> Math.ceilDiv(p.rows(), streams.test(m) ? RowTiles.ROWS : TILE), a::blocks);
    }
}
