package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.cuda.PrebuiltKernel;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.layout.TiledWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** NVIDIA's tensor cores: the kernels of {@code expert-gemm.cu}, on {@link TiledWeights}. */
public final class TensorCoreGemm extends JavaGemm {
    private static final PrebuiltKernel KERNEL = new PrebuiltKernel("expert-gemm", "expertGemm");

    /** Arrays that the kernel reads. */
    private static final int READS = 11;

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
        String lacking = PrebuiltKernel.obstacle(device);
        return lacking == null
                ? null
                : Support.no(
                        device + " has no int8 tensor cores to be used: " + lacking,
                        "device: one that has them, through CUDA or PTX");
    }

    @Override
    public int prebuiltSizes() {
        return 8;
    }

    /**
     * Where TornadoVM {@linkplain Quirks#takesPrebuiltTasksForTheFirst takes each prebuilt task for the graph's first},
     * one that does nothing before everything else in a graph. Its arguments are ignored.
     */
    @Override
    public List<Stage> preparations(LayerArrays a) {
        if (!Quirks.HERE.takesPrebuiltTasksForTheFirst()) {
            return List.of();
        }
        List<Object> reads = Stream.concat(Stream.of(a.work.header), Stream.generate(() -> a.work.noSizes))
                .limit(READS)
                .map(Object.class::cast)
                .toList();
        return List.of(new Stage(
                "first",
                m -> 128,
                m -> 1,
                m -> 1,
                (graph, device, task) -> KERNEL.addTask(graph, device, task, reads, a.work.gateUp),
                List.of(a.work.header, a.work.noSizes),
                List.of(a.work.gateUp)));
    }

    /** A caller's graph begins with other tasks. */
    @Override
    public boolean joinsOtherTasks() {
        return false;
    }

    @Override
    public List<Stage> stages(LayerArrays a, Rows rows, Product p) {
        int tiles = TiledWeights.tiles(p.rows());
        IntArray sizes = p.projection().sizes();
        int[] values = {
            rows.perHeader(),
            p.pairsPerRow(),
            p.rows(),
            TiledWeights.chunks(p.cols()),
            tiles,
            p.weighted(),
            a.shape.biased ? 1 : 0,
            1
        };
        for (int i = 0; i < values.length; i++) {
            sizes.set(i, values[i]);
        }
        IntPredicate streams = m -> a.blockSize(m) < TILE;
        return a.shape.parts.each(part -> {
            List<Object> reads = List.of(
                    rows.header(),
                    sizes,
                    a.work.sortedIds(part),
                    a.work.expertIds(part),
                    a.work.numPostPadded,
                    p.quantized(),
                    p.scales(),
                    p.projection().values().get(part),
                    p.projection().scales().get(part),
                    p.projection().bias().get(part),
                    a.work.topkWeights);
            return new Stage(
                    p.name() + a.shape.parts.suffix(part),
                    m -> streams.test(m) ? 128 : 256,
                    a::blocks,
                    m -> streams.test(m) ? tiles : Math.ceilDiv(tiles, 8),
                    (graph, device, task) -> KERNEL.addTask(graph, device, task, reads, p.out()),
                    reads,
                    List.of(p.out()));
        });
    }
}
