package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.cuda.CudaSource;
import org.tornadomoe.tornado.device.HostMemory;

/** What the kernels of {@code mma-gemm.cu} are launched with, against what their source says that they want. */
class MmaStagesTest {
    private static final int[] TOKENS = {1, 2, 3, 4, 5, 16, 32, 33, 200, 800, 2000};

    /** Dynamic shared memory that every device of compute capability 8.0 or later has for a group. */
    private static final int LEAST_SHARED = 99 << 10;

    /** On Hopper, less what its tiles have of their own. */
    private static final int HOPPERS_SHARED = (227 << 10) - 2 * 128 * 16 - 128;

    private static final Map<String, CudaSource> SOURCES = Stream.of("mma-gemm.cu", "wgmma-gemm.cu", "layer-stages.cu")
            .collect(Collectors.toMap(name -> name, CudaSource::new));

    private static final int NEVER = Integer.MAX_VALUE;

    private static final RandomLayer FEW = RandomLayer.of(2, 2, 130, 150, 2000, 1);

    private static Map<String, RandomLayer> layers() {
        Map<String, RandomLayer> layers = new LinkedHashMap<>();
        layers.put("few experts", FEW);
        layers.put("many experts", RandomLayer.of(130, 8, 24, 12, 2000, 1));
        layers.put("long rows of w13", RandomLayer.of(1, 1, 4100, 36, 5, 1));
        layers.put("long rows of w2", RandomLayer.of(1, 1, 40, 3300, 5, 1));
        layers.put("weighed on input", RandomLayer.of(5, 1, 40, 24, 200, 1).weighedOnInput());
        layers.put("biases", FEW.withBiases());
        layers.put(
                "routed by the host",
                FEW.routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, true).handedIn()));
        layers.put("batched", FEW.batched());
        layers.put(
                "adapters", new RandomLayer(FEW.config().toBuilder().lora(2, 4).build(), 1));
        return layers;
    }

    /** Launches depend on a layer's shape, not on its weights: these take no time to draw. */
    private record Ones(RandomLayer like) implements ExpertWeights {
        @Override
        public FusedMoeConfig config() {
            return like.config();
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            Arrays.fill(into, 1);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            Arrays.fill(into, 1);
        }

        @Override
        public float @Nullable [] w13Bias() {
            return like.w13Bias();
        }

        @Override
        public float @Nullable [] w2Bias() {
            return like.w2Bias();
        }

        @Override
        public RouterWeights router() {
            return like.router();
        }
    }

    private record Layer(LayerArrays arrays, List<CudaKernel> kernels) {
        CudaKernel kernel(String step) {
            return kernels.stream()
                    .filter(kernel -> kernel.name().equals(step))
                    .findFirst()
                    .orElseThrow();
        }

        Launch launch(String step, int tokens) {
            return kernel(step).launch().apply(tokens);
        }
    }

    private static Layer layer(RandomLayer layer, Int8Quantization quantization) {
        return layer(layer, quantization, mma(quantization.scheme()));
    }

    private static MmaGemm mma(Int8Scheme scheme) {
        return scheme.quantizesActivations() ? MmaGemm.ofInt8() : MmaGemm.ofHalves();
    }

    private static MmaGemm wgmma(Int8Scheme scheme) {
        return scheme.quantizesActivations() ? WgmmaGemm.ofInt8() : WgmmaGemm.ofHalves();
    }

    private static Layer layer(RandomLayer layer, Int8Quantization quantization, MmaGemm gemm) {
        try (Int8Experts experts = Int8Quantizer.quantize(new Ones(layer), quantization, Progress.NONE)) {
            LayerArrays arrays = new LayerArrays(
                    layer.config(),
                    experts,
                    Long.MAX_VALUE,
                    HostMemory.of(false),
                    gemm,
                    !layer.config().isLoraEnabled());
            List<CudaKernel> kernels = Families.program(arrays).call().stream()
                    .map(Stage::cuda)
                    .filter(CudaKernel.class::isInstance)
                    .map(CudaKernel.class::cast)
                    .toList();
            return new Layer(arrays, kernels);
        }
    }

    /** Their names are kernels of the source, groups fit, and the parameters are as many as it has, of its kinds. */
    @Test
    void everyLaunchIsOneThatTheSourceTakes() {
        everyLaunchIsOneThatTheSourceTakes("mma-gemm.cu", MmaStagesTest::mma, LEAST_SHARED);
    }

    @Test
    void everyLaunchOnHopperIsOneThatTheSourceTakes() {
        everyLaunchIsOneThatTheSourceTakes("wgmma-gemm.cu", MmaStagesTest::wgmma, HOPPERS_SHARED);
    }

    private static void everyLaunchIsOneThatTheSourceTakes(
            String products, Function<Int8Scheme, MmaGemm> family, int mostShared) {
        Set<String> launched = new TreeSet<>();
        layers().forEach((name, random) -> {
            for (Int8Scheme scheme : Int8Scheme.values()) {
                if (!family.apply(scheme).supports(scheme)) {
                    continue;
                }
                Layer layer = layer(random, Int8Quantization.of(scheme), family.apply(scheme));
                for (CudaKernel kernel : layer.kernels) {
                    CudaSource source = Objects.requireNonNull(SOURCES.get(kernel.source()));
                    for (int m : TOKENS) {
                        Launch launch = m > random.config().maxNumTokens()
                                ? Launch.NONE
                                : kernel.launch().apply(m);
                        if (launch.equals(Launch.NONE)) {
                            continue;
                        }
                        String as = name + ", " + scheme + ", " + kernel.name() + ", " + m + " tokens: " + launch;
                        source.assertTakes(kernel, launch, 1, as);
                        if (kernel.source().equals(products)) {
                            assertThat(launch.sharedBytes()).as(as).isBetween(0, mostShared);
                            launched.add(launch.entryPoint());
                        }
                    }
                }
            }
        });
        Set<String> written = new TreeSet<>(
                Objects.requireNonNull(SOURCES.get(products)).entries().keySet());
        if (!family.apply(Int8Scheme.W8A8_TENSOR).supports(Int8Scheme.W8A8_TENSOR)) {
            written.removeAll(Set.of("rowMagnitudes", "tensorScale"));
        }
        assertThat(launched).isEqualTo(written);
    }

    /** A few rows in all are streamed, more are tiles, larger the more there are. */
    @ParameterizedTest
    @EnumSource
    void blocksGrowWithTheRowsOfAnExpert(Int8Scheme scheme) {
        Layer layer = layer(FEW, Int8Quantization.of(scheme));
        Map<Integer, String> expected = Map.of(
                1,
                "skinnyGemm",
                4,
                "skinnyGemm",
                5,
                "tileGemm32",
                33,
                "tileGemm32",
                200,
                "tileGemm64",
                800,
                "tileGemm128");
        expected.forEach((m, entry) -> {
            assertThat(layer.launch("gateUp", m).entryPoint()).isEqualTo(entry);
            assertThat(layer.launch("down", m).entryPoint()).isEqualTo(entry);
        });
        // 300 rows of gate and up projection, in twos of 16: 320 packed, three tiles of 128; 130 rows, 160 packed.
        assertThat(layer.launch("gateUp", 200).gridX()).isEqualTo(3 * layer.arrays.blocks(200));
        assertThat(layer.launch("down", 200).gridX()).isEqualTo(2 * layer.arrays.blocks(200));
        assertThat(layer.launch("gateUp", 1)).isEqualTo(new Launch("skinnyGemm", 128, 10, 2, 4 * 2 * 32 * 64));
        assertThat(layer(RandomLayer.of(130, 8, 24, 12, 64, 1), Int8Quantization.of(scheme))
                        .launch("gateUp", 16)
                        .entryPoint())
                .isEqualTo("tileGemm16");
    }

    /** On Hopper tiles are for the rows that an expert has, too, and as many groups as the device runs at once. */
    @ParameterizedTest
    @EnumSource(names = {"W8A8_BLOCK", "W8A16_CHANNEL", "W8A16_GROUP"})
    void tilesOnHopper(Int8Scheme scheme) {
        Layer layer = layer(FEW, Int8Quantization.of(scheme), wgmma(scheme));
        int weights = 256 * (scheme.quantizesActivations() ? 128 : 64);
        boolean blocked = scheme == Int8Scheme.W8A8_BLOCK;
        int scales = blocked || scheme == Int8Scheme.W8A16_GROUP ? 1024 : 0;
        Map.of(5, 16, 16, 32, 33, 64, 200, 128).forEach((m, rows) -> {
            // A scale of each row is less than what stages are aligned to.
            int stage = weights + rows * 128 + scales + (blocked ? 1024 : 0);
            Launch expected = new Launch(
                    "tileGemm" + rows,
                    384,
                    CudaKernel.ALL_MULTIPROCESSORS,
                    1,
                    Math.min(8, 200 * 1024 / stage) * stage + 1024);
            assertThat(layer.launch("gateUp", m)).isEqualTo(expected);
            assertThat(layer.launch("down", m)).isEqualTo(expected);
        });
        assertThat(layer.launch("gateUp", 4).entryPoint()).isEqualTo("skinnyGemm");
        // Rows are in the tiles' order from their smallest on, whatever the kernel.
        assertThat(layer.kernel("quantizeTokens").scalars().getLast()).isEqualTo(16);
        assertThat(layer.kernel("quantizePairs").scalars().getLast()).isEqualTo(16);
        assertThat(layer.kernel("gateUp").options())
                .contains(HopperGemm.ARCHITECTURE, "-DSTEP=" + (blocked ? 128 : 64));
    }

    /** Blocks that 128 k are no multiple of have whole sums of what they are multiples of. */
    @ParameterizedTest
    @CsvSource({"64, 64", "192, 64", "96, 32", "256, 128"})
    void sumsEndWithBlocks(int cols, int step) {
        Int8Quantization quantization =
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(8, cols));
        RandomLayer layer = RandomLayer.of(2, 2, 600, 500, 40, 1);
        assertThat(layer(layer, quantization, WgmmaGemm.ofInt8())
                        .kernel("gateUp")
                        .options())
                .contains("-DSTEP=" + step);
    }

    /** Where 64 packed rows, which are 32 of the gate and 32 of the up projection, lie in one block each. */
    @ParameterizedTest
    @CsvSource({"128, 160, 1", "64, 160, 1", "192, 32, 1", "128, 150, 0", "32, 160, 0", "8, 160, 0"})
    void rowsThatShareScalesAreSeen(int rows, int intermediate, int uniform) {
        Int8Quantization quantization =
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(rows, 128));
        Layer layer = layer(RandomLayer.of(2, 2, 600, intermediate, 40, 1), quantization, WgmmaGemm.ofInt8());
        for (String product : List.of("gateUp", "down")) {
            assertThat(layer.kernel(product).options()).contains("-DUNIFORM=" + uniform);
        }
    }

    /** Sums in another order have other bits. */
    @ParameterizedTest
    @EnumSource
    void nothingIsStreamedWhereBatchesAreToBeInvariant(Int8Scheme scheme) {
        RandomLayer invariant =
                new RandomLayer(FEW.config().toBuilder().batchInvariant(true).build(), 1);
        Layer layer = layer(invariant, Int8Quantization.of(scheme));
        for (int m : TOKENS) {
            assertThat(layer.launch("gateUp", m).entryPoint()).startsWith("tileGemm");
            assertThat(layer.launch("down", m).entryPoint()).startsWith("tileGemm");
        }
    }

    /** The second product packs what it reads where it has a scale a row, and rows are few. */
    @ParameterizedTest
    @EnumSource
    void activationsArePackedOnce(Int8Scheme scheme) {
        Layer layer = layer(FEW, Int8Quantization.of(scheme));
        boolean itself = scheme != Int8Scheme.W8A8_TENSOR && scheme != Int8Scheme.W8A8_BLOCK;
        assertThat(layer.launch("quantizePairs", 1))
                .isEqualTo(itself ? Launch.NONE : new Launch("packRows", 128, 2, 1, 0));
        assertThat(layer.launch("quantizePairs", 200)).isEqualTo(new Launch("packRows", 128, 400, 1, 0));
        assertThat(layer.launch("quantizeTokens", 200)).isEqualTo(new Launch("packRows", 128, 200, 1, 0));
    }

    /** A plan is built before there is a token, and asked for more shared memory than there is for rows this long. */
    @ParameterizedTest
    @EnumSource
    void nothingIsPackedBeforeThereIsAToken(Int8Scheme scheme) {
        for (RandomLayer longRows :
                List.of(RandomLayer.of(1, 1, 9000, 12, 5, 1), RandomLayer.of(1, 1, 12, 9000, 5, 1))) {
            Layer layer = layer(longRows, Int8Quantization.of(scheme));
            for (int m : new int[] {0, 1, 5}) {
                for (String product : List.of("gateUp", "down")) {
                    assertThat(layer.launch(product, m).sharedBytes()).isBetween(0, LEAST_SHARED);
                }
            }
        }
    }

    /** A group that ended within four columns would be written by two, of which one knows zeros only. */
    @Test
    void oneGroupOfAllColumnsHasWhatPadsThem() {
        RandomLayer odd = RandomLayer.of(2, 2, 27, 130, 8, 1);
        Layer layer = layer(odd, Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(8, 27)));
        // rows a token, columns, chunks, groups, columns of a group, keyed, weighted, cleared, rows of a block from
        // which on they are ordered for it
        assertThat(layer.kernel("quantizeTokens").scalars()).containsExactly(1, 27, 1, 1, 64, 0, 0, 2, NEVER);
        layer = layer(odd, Int8Quantization.of(Int8Scheme.W8A8_BLOCK));
        assertThat(layer.kernel("quantizeTokens").scalars()).containsExactly(1, 27, 1, 1, 64, 0, 0, 2, NEVER);
        assertThat(layer.kernel("quantizePairs").scalars()).containsExactly(2, 130, 3, 2, 128, 1, 0, 0, NEVER);
    }

    @Test
    void sourcesAreCompiledForTheScheme() {
        assertThat(options(Int8Quantization.of(Int8Scheme.W8A8_CHANNEL)))
                .contains("-DFORM=0", "-DGROUPED=0", "-DBLOCKED=0", "-DZEROS=0", "-DONE_SCALE=0")
                .noneMatch(option -> option.startsWith("--gpu-architecture"));
        assertThat(options(Int8Quantization.of(Int8Scheme.W8A8_TENSOR))).contains("-DFORM=0", "-DONE_SCALE=1");
        assertThat(options(Int8Quantization.of(Int8Scheme.W8A8_BLOCK)))
                .contains("-DFORM=0", "-DGROUPED=1", "-DBLOCKED=1", "-DSTEP=64", "-DNEAREST=0");
        assertThat(options(Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                        .withGrid(new GroupShape(8, 32))
                        .withRoundToNearest(true)))
                .contains("-DSTEP=32", "-DNEAREST=1");
        assertThat(options(Int8Quantization.of(Int8Scheme.W8A16_CHANNEL)))
                .contains("-DFORM=2", "-DGROUPED=0", "-DBLOCKED=0");
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP);
        assertThat(options(group.withGrid(new GroupShape(1, 48)).withZeroPoints(true)))
                .contains("-DFORM=2", "-DGROUPED=1", "-DSTEP=16", "-DZEROS=1");
        assertThat(options(group.withGrid(new GroupShape(1, 32)))).contains("-DSTEP=32", "-DZEROS=0");
        assertThat(options(group.withGrid(new GroupShape(1, 64)))).contains("-DSTEP=64");
        // One group has all columns, whatever their number.
        assertThat(options(group.withGrid(new GroupShape(1, 1000)))).contains("-DGROUPED=1", "-DSTEP=64");
    }

    private static List<String> options(Int8Quantization quantization) {
        return layer(FEW, quantization).kernel("gateUp").options();
    }
}
