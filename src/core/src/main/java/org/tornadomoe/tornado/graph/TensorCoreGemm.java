package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.cuda.PrebuiltKernel;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.layout.RowTiles;
import org.tornadomoe.tornado.layout.TiledWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;

/** NVIDIA's tensor cores: the kernels of {@code expert-gemm.cu}, on {@link TiledWeights}. */
public final class TensorCoreGemm extends PrebuiltGemm {
    private static final PrebuiltKernel KERNEL =
            new PrebuiltKernel("expert-gemm", "expertGemm", "#define TORNADO_CUDA\n");

    @Override
    public String name() {
        return "tensor_cores";
    }

    @Override
    public WeightLayout layout() {
        return new TiledWeights();
    }

    @Override
    public List<LaunchConfig> launches() {
        return List.of(
                new LaunchConfig(8, 16, 64, 8, 4, 4),
                new LaunchConfig(16, 16, 64, 8, 4, 4),
                new LaunchConfig(32, 16, 64, 8, 4, 2),
                new LaunchConfig(TILE, 128, 64, 8, 8, 3));
    }

    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        int pairs = GemmFamily.pairsOfExpert(config, tokens);
        return launchOf(pairs <= 6 ? 8 : pairs < 16 ? 16 : TILE);
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme == Int8Scheme.W8A8_CHANNEL || scheme == Int8Scheme.W8A8_TENSOR;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        return withoutTensorCores(device, "int8", PrebuiltKernel.obstacle(device));
    }

    @Override
    public int prebuiltSizes() {
        return 8;
    }

    @Override
    PrebuiltKernel kernel(LayerArrays a) {
        return KERNEL;
    }

    @Override
    int smallestGroup() {
        return 128;
    }

    @Override
    public List<Stage> stages(LayerArrays a, Product p) {
        int tiles = RowTiles.tiles(p.rows());
        setSizes(
                p.projection().sizes(),
                a.shape.topK,
                p.pairsPerRow(),
                p.rows(),
                RowTiles.chunks(p.cols()),
                tiles,
                p.weighted(),
                a.shape.biased ? 1 : 0,
                1);
        IntPredicate streams = m -> a.blockSize(m) < TILE;
        return stages(
                a,
                p,
                m -> streams.test(m) ? 128 : 256,
                a::blocks,
                m -> streams.test(m) ? tiles : Math.ceilDiv(tiles, 8));
    }
}
