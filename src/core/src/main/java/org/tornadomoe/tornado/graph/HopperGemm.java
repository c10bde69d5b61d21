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
import org.tornadomoe.tornado.layout.HopperWeights;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;

/** Hopper's tensor cores: the kernels of {@code hopper-gemm.cu}, on {@link HopperWeights}. */
public final class HopperGemm extends CudaGemm {
    /** What kernels for Hopper are compiled for. */
    public static final String ARCHITECTURE = "--gpu-architecture=sm_90a";

    /** Four stages of 128 k, scales and biases of five tiles, and what aligning them takes. */
    private static final int TILE_BYTES = 4 * (128 + 256) * 128 + 5 * 2 * 1024 + 1024;

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
                new LaunchConfig(TILE, 256, 128, 8, 12, 4));
    }

    /** That of the first product; each has as many warps as suit its own k. */
    @Override
    public LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        boolean few = GemmFamily.pairsOfExpert(config, tokens) <= 5;
        int warps = few ? streamingWarps(config.hiddenDim()) : 12;
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
        return scheme == Int8Scheme.W8A8_CHANNEL;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
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
    List<String> options(LayerArrays a, int cols) {
        return List.of(ARCHITECTURE);
    }

    static boolean isSkinny(LayerArrays a, int tokens) {
        return a.blockSize(tokens) < TILE;
    }

    @Override
    Stage stage(LayerArrays a, Rows rows, Product p, ActivationCode activation, int packsUpTo) {
        int groups = HopperWeights.groups(p.rows(), activation.layout());
        int chunks = HopperWeights.chunks(p.cols());
        IntFunction<Launch> launch = m -> {
            int warps = a.launches.source() == null
                    ? streamingWarps(p.cols())
                    : a.launch(m).numWarps();
            int packedBytes = rows.of(m) <= packsUpTo ? 8 * (chunks * HopperWeights.CHUNK + 64) : 0;
            return isSkinny(a, m)
                    ? new Launch("skinnyGemm", 32 * warps, groups / 4, a.blocks(m), packedBytes)
                    : new Launch("tileGemm", 384, CudaKernel.ALL_MULTIPROCESSORS, 1, TILE_BYTES);
        };
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
                chunks,
                a.shape.parts.expertsOfPart(),
                p.weighted(),
                a.shape.biased ? 1 : 0,
                p.isFirst() ? 0 : 1,
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
