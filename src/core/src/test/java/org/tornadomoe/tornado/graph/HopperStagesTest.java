package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.RecordedPart;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.cuda.CudaSource;
import org.tornadomoe.tornado.layout.ActivationCode;

/** What Hopper's kernels are launched with, against what their source says that they want. */
class HopperStagesTest {
    /** Both sides of every switch: the router's tile, few and many to route, to quantise and to multiply. */
    private static final int[] TOKENS = {
        1, 2, 3, 8, 16, 17, 32, 33, 63, 64, 100, 383, 384, 385, 767, 768, 769, 1000, 4096
    };

    /** Dynamic shared memory of a group on a Hopper GPU. */
    private static final int MAX_SHARED = 227 << 10;

    private static final Map<String, CudaSource> SOURCES =
            Stream.of("hopper-gemm.cu", "layer-stages.cu").collect(Collectors.toMap(name -> name, CudaSource::new));

    private static final RandomLayer FEW = RandomLayer.of(5, 2, 40, 24, 4096, 1);
    private static final RandomLayer MANY_EXPERTS = RandomLayer.of(130, 8, 24, 12, 4096, 1);

    private static final RandomLayer LONG_ROWS = RandomLayer.of(3, 2, 4100, 24, 100, 1);
    private static final RandomLayer MANY_COLUMNS = RandomLayer.of(3, 2, 40, 3300, 100, 1);

    /** Every kind of layer that changes what is launched. */
    private static Map<String, RandomLayer> layers() {
        Map<String, RandomLayer> layers = new LinkedHashMap<>();
        layers.put("few experts", FEW);
        layers.put("many experts", MANY_EXPERTS);
        layers.put("32 rows of the router", RandomLayer.of(32, 2, 24, 12, 4096, 1));
        layers.put("odd sizes", RandomLayer.of(33, 3, 27, 13, 4096, 1));
        layers.put("long rows", LONG_ROWS);
        layers.put("many columns", MANY_COLUMNS);
        layers.put("shared experts", FEW.sharing(2));
        layers.put("weighed on input", RandomLayer.of(5, 1, 40, 24, 4096, 1).weighedOnInput());
        layers.put("biases", FEW.withBiases());
        layers.put("no gate", FEW.activatedBy(MoeActivation.RELU2_NO_MUL));
        layers.put("alternating", FEW.activatedBy(MoeActivation.SWIGLUOAI));
        layers.put("sigmoid with groups", MANY_EXPERTS.routedBy(RoutingMethodType.DEEPSEEK_V3));
        layers.put(
                "routed by the host",
                FEW.routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, true).handedIn()));
        layers.put("batched", FEW.batched());
        layers.put("many experts, batched", MANY_EXPERTS.batched());
        layers.put("bf16", with(FEW.config().toBuilder().inDtype(ScalarType.BF16)));
        layers.put("adapters", with(FEW.config().toBuilder().lora(2, 4)));
        FusedMoeParallelConfig p = FEW.config().moeParallelConfig();
        layers.put(
                "experts that move",
                with(FEW.config().toBuilder()
                        .moeParallelConfig(new FusedMoeParallelConfig(
                                p.tpSize(),
                                p.pcpSize(),
                                p.dpSize(),
                                p.epSize(),
                                p.tpRank(),
                                p.pcpRank(),
                                p.dpRank(),
                                p.epRank(),
                                p.spSize(),
                                p.useEp(),
                                p.all2allBackend(),
                                true))));
        return layers;
    }

    private static RandomLayer with(FusedMoeConfig.Builder config) {
        return new RandomLayer(config.build(), 1);
    }

    /** What a test looks at: a layer's arrays and the kernels of its call. */
    private record Layer(LayerArrays arrays, List<CudaKernel> kernels) {
        Launch launch(String step, int tokens) {
            return kernels.stream()
                    .filter(kernel -> kernel.name().equals(step))
                    .map(kernel -> kernel.launch().apply(tokens))
                    .filter(launch -> !launch.equals(Launch.NONE))
                    .reduce((a, b) -> {
                        throw new AssertionError(step + " is launched twice");
                    })
                    .orElse(Launch.NONE);
        }
    }

    /** As many of those as a layer takes. */
    private static int[] tokens(RandomLayer layer) {
        return Arrays.stream(TOKENS)
                .filter(m -> m <= layer.config().maxNumTokens())
                .toArray();
    }

    private static Layer layer(RandomLayer layer) {
        return layer(layer, Int8Scheme.W8A8_CHANNEL);
    }

    private static Layer layer(RandomLayer layer, Int8Scheme scheme) {
        try (Int8Experts experts = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
            LayerArrays arrays = RecordedPart.arrays(layer.config(), experts);
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
        Map<String, Set<String>> launched = new LinkedHashMap<>();
        Stream.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A8_TENSOR)
                .forEach(scheme -> layers().forEach((name, random) -> {
                    Layer layer = layer(random, scheme);
                    for (CudaKernel kernel : layer.kernels) {
                        CudaSource source = Objects.requireNonNull(SOURCES.get(kernel.source()));
                        for (int tokens : tokens(random)) {
                            Launch launch = kernel.launch().apply(tokens);
                            if (launch.equals(Launch.NONE)) {
                                continue;
                            }
                            String as =
                                    name + ", " + scheme + ", " + kernel.name() + ", " + tokens + " tokens: " + launch;
                            source.assertTakes(kernel, launch, layer.arrays.shape.parts.count(), as);
                            assertThat(launch.group() % 32).as(as).isZero();
                            assertThat(launch.sharedBytes()).as(as).isBetween(0, MAX_SHARED);
                            launched.computeIfAbsent(kernel.source(), _ -> new TreeSet<>())
                                    .add(launch.entryPoint());
                        }
                    }
                }));
        // Those of other GPUs.
        launched.computeIfAbsent("layer-stages.cu", _ -> new TreeSet<>()).addAll(Set.of("logits32", "logits128"));
        SOURCES.forEach((name, source) -> assertThat(launched.get(name))
                .as(name)
                .containsExactlyInAnyOrderElementsOf(source.entries().keySet()));
    }

    /** In a call of M tokens every step happens once, whichever kernel does it. */
    @Test
    void stepsAreDoneOnce() {
        layers().forEach((name, random) -> {
            Layer layer = layer(random);
            FusedMoeConfig config = random.config();
            boolean routes = !config.router().isHandedIn();
            for (int m : tokens(random)) {
                List<String> entries = layer.kernels.stream()
                        .map(kernel -> kernel.launch().apply(m))
                        .filter(launch -> !launch.equals(Launch.NONE))
                        .map(Launch::entryPoint)
                        .toList();
                String as = name + ", " + m + " tokens: " + entries;
                boolean few = routes && m <= 32;
                assertThat(count(entries, "route")).as(as).isEqualTo(few ? 1 : 0);
                assertThat(count(entries, "topK")).as(as).isEqualTo(routes && !few ? 1 : 0);
                long both = count(entries, "alignAndQuantize");
                assertThat(count(entries, m < 384 ? "align" : "alignRuns") + both)
                        .as(as)
                        .isEqualTo(few ? 0 : 1);
                assertThat(entries.stream()
                                .filter(entry -> entry.matches("skinnyGemm|tileGemm(16|32|64|128)"))
                                .count())
                        .as(as)
                        .isEqualTo(2);
                assertThat(count(entries, "combine")).as(as).isEqualTo(1);
                assertThat(count(entries, "quantizePairs")).as(as).isLessThanOrEqualTo(1);
                // Logits and tokens in one kernel, or in two.
                boolean tiled = count(entries, "hopperLogits64") + count(entries, "hopperLogits128") == 1;
                boolean apart = tiled || !routes || config.applyRouterWeightOnInput();
                int logits = routes && !tiled ? 1 : 0;
                assertThat(both).as(as).isEqualTo(apart && m >= 384 ? 1 : 0);
                assertThat(count(entries, "prepare")).as(as).isEqualTo(logits + (apart && m < 384 ? 1 : 0));
            }
        });
    }

    private static long count(List<String> entries, String entry) {
        return entries.stream().filter(entry::equals).count();
    }

    /** As many groups as the kernel counts itself: those for the logits, and one for each row in int8. */
    @ParameterizedTest
    @ValueSource(ints = {5, 33, 130})
    void prepareHasAGroupForEverything(int rows) {
        Layer layer = layer(RandomLayer.of(rows, 2, 40, 24, 4096, 1));
        for (int m : TOKENS) {
            if (rows >= 32 && m >= 384) {
                assertThat(layer.launch("prepare", m)).isEqualTo(Launch.NONE);
                assertThat(layer.launch("alignAndQuantize", m))
                        .isEqualTo(new Launch("alignAndQuantize", 1024, ceil(2 * m, 1024) + ceil(m, 8), 1, 76 * rows));
                continue;
            }
            int tile = m <= 16 ? 1 : 4;
            int across = ceil(rows, tile);
            int wide = Math.min(2, across);
            int groups = ceil(across, wide) * ceil(m, tile * (4 / wide));
            assertThat(layer.launch("prepare", m)).isEqualTo(new Launch("prepare", 128, groups + m, 1, 0));
            assertThat(layer.launch("quantizeTokens", m)).isEqualTo(Launch.NONE);
        }
    }

    @Test
    void logitsOfManyAreComputedInTilesThatFitTheSharedMemory() {
        Layer layer = layer(MANY_EXPERTS);
        assertThat(layer.launch("logits", 383)).isEqualTo(Launch.NONE);
        // Three stages of 64 k of the tokens, two of three parts of 128 rows. Eight groups share k, and 64 keep the GPU
        // busy.
        int rows = 2 * 3 * 8 * (128 * 16 + 32);
        assertThat(layer.launch("logits", 384))
                .isEqualTo(new Launch("hopperLogits64", 256, 8 * 6 * 2, 1, 3 * 64 * 256 + rows));
        assertThat(layer.launch("logits", 4096))
                .isEqualTo(new Launch("hopperLogits128", 256, 8 * 32 * 2, 1, 3 * 128 * 256 + rows));
        // A row that doesn't begin at a multiple of 16 bytes is none for the copy engine.
        assertThat(layer(RandomLayer.of(130, 2, 27, 12, 4096, 1)).launch("logits", 4096))
                .isEqualTo(Launch.NONE);
    }

    /** Tiles add up in another order. */
    @Test
    void whereBatchesAreInvariantAllLogitsAreComputedInTiles() {
        Layer layer = layer(MANY_EXPERTS.batchInvariant());
        assertThat(layer.launch("logits", 1).entryPoint()).isEqualTo("hopperLogits64");
        assertThat(layer.launch("prepare", 1)).isEqualTo(Launch.NONE);
        assertThat(layer.launch("quantizeTokens", 1).gridX()).isEqualTo(1);
        assertThat(layer.launch("logits", 4096).entryPoint()).isEqualTo("hopperLogits128");
    }

    /** An RTX 3090, 4090 and 5090 have 99 KB of it. */
    @Test
    void noWideTilesWhereTheyDoNotFitTheSharedMemory() {
        assertThat(IntStream.of(86, 89, 120, 121)).noneMatch(CudaProgram::hasRoomForWideTiles);
        assertThat(IntStream.of(80, 87, 90, 100, 103)).allMatch(CudaProgram::hasRoomForWideTiles);
    }

    @Test
    void routingHasAWarpATokenAndRoomForKeysAndPairs() {
        RandomLayer random = FEW.sharing(2); // 7 experts, of which 5 are chosen from; 4 pairs a token
        Layer layer = layer(random);
        for (int m : TOKENS) {
            int warps = Math.max(4, m);
            int keys = Math.max(warps * 5, 7);
            assertThat(layer.launch("route", m))
                    .isEqualTo(m > 32 ? Launch.NONE : new Launch("route", 32 * warps, 7, 1, 4 * keys + 8 * warps * 4));
            assertThat(layer.launch("topK", m))
                    .isEqualTo(m > 32 ? new Launch("topK", 128, ceil(m, 4), 1, 4 * 4 * 5) : Launch.NONE);
            assertThat(layer.launch("align", m))
                    .isEqualTo(
                            m >= 384
                                    ? new Launch("alignRuns", 1024, ceil(4 * m, 1024), 1, 76 * 7)
                                    : m > 32 ? new Launch("align", 1024, 7, 1, 4 * 7) : Launch.NONE);
        }
    }

    /** A group for 32 rows and a block of 8 pairs, or groups that take tiles until there are none. */
    @Test
    void productsAreStreamedForFewAndTiledForMany() {
        CudaSource source = Objects.requireNonNull(SOURCES.get("hopper-gemm.cu"));
        Layer layer = layer(FEW);
        for (int m : TOKENS) {
            int pairs = 2 * m;
            Launch gateUp = layer.launch("gateUp", m);
            Launch down = layer.launch("down", m);
            int rows = ceil(pairs, 5);
            if (rows <= 1 || pairs <= 8) {
                int blocks = Math.min(pairs, (pairs + 5 * 7) / 8);
                // 48 rows of gate and up projection, in twos of 16, and 40 of the output.
                // Each of four warps has chunks of 32 rows and 128 k on their way.
                Launch streaming = new Launch("skinnyGemm", 128, 2, blocks, 4 * 2 * 32 * 128);
                assertThat(gateUp).isEqualTo(streaming);
                assertThat(down).isEqualTo(streaming);
                // The pairs are quantised by one of the two.
                assertThat(layer.launch("quantizePairs", m))
                        .isEqualTo(pairs <= 16 ? Launch.NONE : new Launch("quantizePairs", 128, pairs, 1, 0));
            } else {
                int block = rows <= 6 ? 16 : rows <= 20 ? 32 : rows <= 30 ? 64 : 128;
                int stages = source.number(block == 128 ? "STAGES_OF_128" : "STAGES");
                int scales = block == 128 ? (stages + 1) * 2 * source.number("TILE_GROUPS") * 32 : 0;
                int tileBytes = stages * (block * 128 + source.number("TILE_GROUPS") * 1024) + scales;
                for (Launch launch : List.of(gateUp, down)) {
                    assertThat(launch.entryPoint()).isEqualTo("tileGemm" + block);
                    assertThat(launch.group()).isEqualTo(384);
                    assertThat(launch.gridX()).isEqualTo(CudaKernel.ALL_MULTIPROCESSORS);
                    // As much as begins at a multiple of 1024.
                    assertThat(launch.sharedBytes()).isGreaterThanOrEqualTo(tileBytes + 1023);
                }
                assertThat(layer.launch("quantizePairs", m))
                        .isEqualTo(
                                m >= 768
                                        ? new Launch("quantizePairs", 128, ceil(pairs, 4), 1, 0)
                                        : new Launch("quantizePairs", 128, pairs, 1, 0));
            }
        }
        // Long rows are shared among more warps; a group quantises 2048 of a pair's columns.
        assertThat(layer(LONG_ROWS).launch("gateUp", 1).group()).isEqualTo(256);
        Layer columns = layer(MANY_COLUMNS);
        assertThat(columns.launch("down", 1))
                .isEqualTo(new Launch("skinnyGemm", 128, ceil(40, 32), 2, 4 * 2 * 32 * 128));
        assertThat(columns.launch("quantizePairs", 1)).isEqualTo(Launch.NONE);
        assertThat(columns.launch("quantizePairs", 9)).isEqualTo(new Launch("quantizePairs", 128, 18, 2, 0));
    }

    /** One scale for all is known when all rows are: each is packed by a kernel of its own, whatever comes next. */
    @Test
    void withOneScaleForAllRowsArePackedByThemselves() {
        Layer layer = layer(FEW, Int8Scheme.W8A8_TENSOR);
        for (int m : TOKENS) {
            Map.of("quantizeTokens", m, "quantizePairs", 2 * m).forEach((step, rows) -> {
                assertThat(layer.launch(step + "Magnitudes", m))
                        .isEqualTo(new Launch("rowMagnitudes", 128, rows, 1, 0));
                assertThat(layer.launch(step + "Scale", m)).isEqualTo(new Launch("tensorScale", 1024, 1, 1, 0));
                assertThat(layer.launch(step, m)).isEqualTo(new Launch("packRows", 128, rows, 1, 0));
            });
            assertThat(layer.launch("down", m)).isEqualTo(layer.launch("gateUp", m));
            // The router's logits alone.
            int groups = ceil(ceil(5, m <= 16 ? 1 : 4), 2) * ceil(m, (m <= 16 ? 1 : 4) * 2);
            assertThat(layer.launch("routerLogits", m).gridX()).isEqualTo(groups);
        }
        CudaKernel pack = layer.kernels.stream()
                .filter(kernel -> kernel.name().equals("quantizePairs"))
                .findFirst()
                .orElseThrow();
        // Rows a token, columns, chunks of 64, groups, columns of a group, keyed, weighted, cleared, and rows of a
        // block
        // from which on they are in the order of k.
        assertThat(pack.scalars()).containsExactly(2, 24, 2, 1, 128, 1, 0, 0, 0);
        assertThat(pack.options()).contains("-DONE_SCALE=1");
    }

    /** A work-item for each four values, or two. */
    @Test
    void whatIsDoneByElementHasEnoughWorkItems() {
        Layer odd = layer(RandomLayer.of(33, 3, 27, 13, 4096, 1));
        Layer halves =
                layer(with(FEW.config().toBuilder().inDtype(ScalarType.F16).hiddenDim(41)));
        for (int m : TOKENS) {
            assertThat(odd.launch("combine", m)).isEqualTo(new Launch("combine", 128, ceil(m * 7, 128), 1, 0));
            for (String step : List.of("widenHidden", "narrowOutput")) {
                assertThat(halves.launch(step, m)).isEqualTo(new Launch(step, 256, ceil(ceil(m * 41, 2), 256), 1, 0));
            }
        }
    }

    /** What is compiled in: the activation in the first product, none in the second; where arrays begin. */
    @Test
    void sourcesAreCompiledForTheLayer() {
        for (MoeActivation activation : MoeActivation.values()) {
            Layer layer = layer(FEW.activatedBy(activation));
            ActivationCode expected = ActivationCode.of(layer.arrays.shape.config);
            Map<String, List<String>> options = layer.kernels.stream()
                    .collect(Collectors.toMap(CudaKernel::name, CudaKernel::options, (a, _) -> a));
            assertThat(options.get("gateUp"))
                    .contains("-DACTIVATION=" + expected.function(), "-DLAYOUT=" + expected.layout());
            assertThat(options.get("down")).contains("-DACTIVATION=-1", "-DLAYOUT=0");
            int lead = 4 * new HopperGemm().layout().activationPad();
            assertThat(options.get("gateUp"))
                    .contains("--gpu-architecture=sm_90a", "-DLEAD=" + lead, "-DWEIGHTS_LEAD=" + lead, "-DPARTS=1");
            assertThat(options.get("prepare")).containsExactly("--gpu-architecture=sm_90a", "-DLEAD=" + lead);
        }
    }

    /** Those that another kernel of the same call writes to are right in front or before. */
    @Test
    void whatIsReadHasBeenWrittenOrGiven() {
        layers().forEach((name, random) -> {
            Layer layer = layer(random);
            List<Object> written = new ArrayList<>();
            for (CudaKernel kernel : layer.kernels) {
                if (kernel.name().equals("quantizePairs") || kernel.name().equals("down")) {
                    assertThat(written)
                            .as("%s, %s", name, kernel.name())
                            .anyMatch(a -> a == layer.arrays.work.activated);
                }
                if (kernel.name().equals("combine")) {
                    assertThat(written).as(name).anyMatch(a -> a == layer.arrays.work.down);
                }
                written.addAll(kernel.writes());
                written.addAll(kernel.updates());
            }
        });
    }

    private static int ceil(int a, int b) {
        return Math.ceilDiv(a, b);
    }
}
