package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.ExpertMap;
import org.tornadomoe.config.ExpertPlacementStrategy;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.PrepareAndFinalize;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.RoutingSimulator;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Activations;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RankWeights;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.tuning.LaunchConfig;

/** Whatever numbers a caller gives, the answer is a result or an exception that says which one doesn't fit. */
class PublicArgumentsTest {
    private static final int ROUNDS = 2000;
    private static final long SEED = 20261129;
    private static final int[] NUMBERS = {
        Integer.MIN_VALUE,
        Integer.MIN_VALUE + 1,
        -65536,
        -1,
        0,
        1,
        2,
        3,
        16,
        127,
        1024,
        46341, // its square is over 2^31
        65536,
        1 << 30,
        Integer.MAX_VALUE - 8,
        Integer.MAX_VALUE - 1,
        Integer.MAX_VALUE
    };

    /** Draws numbers, and keeps them for the message. */
    static final class Draw {
        private final SplittableRandom random = new SplittableRandom(SEED);
        private final List<Integer> drawn = new ArrayList<>();

        int number() {
            int number = NUMBERS[random.nextInt(NUMBERS.length)];
            drawn.add(number);
            return number;
        }

        /** Rather something that fits, so that the others are looked at too. */
        int or(int fits) {
            int number = random.nextInt(3) > 0 ? fits : NUMBERS[random.nextInt(NUMBERS.length)];
            drawn.add(number);
            return number;
        }

        boolean flag() {
            return random.nextBoolean();
        }

        <T> T one(T[] values) {
            return values[random.nextInt(values.length)];
        }
    }

    @FunctionalInterface
    interface Call {
        void with(Draw draw);
    }

    record Named(String name, boolean indexes, Call call) {
        @Override
        public String toString() {
            return name;
        }
    }

    private static Named of(String name, Call call) {
        return new Named(name, false, call);
    }

    /** One whose documentation tells of IndexOutOfBoundsException. */
    private static Named indexing(String name, Call call) {
        return new Named(name, true, call);
    }

    private static final RandomLayer LAYER = RandomLayer.of(4, 2, 32, 16, 8, 1);

    private static FusedMoeConfig config(Draw d) {
        return FusedMoeConfig.builder()
                .numExperts(d.or(8))
                .expertsPerToken(d.or(2))
                .hiddenDim(d.or(64))
                .intermediateSize(d.or(32))
                .numLocalExperts(d.or(0))
                .numFusedSharedExperts(d.or(0))
                .activation(d.flag() ? MoeActivation.SILU : d.one(MoeActivation.values()))
                .swigluLimit(7.0)
                .activationSituBeta(1.0)
                .router(router(d))
                .moeParallelConfig(d.or(0) == 0 ? FusedMoeParallelConfig.NO_PARALLEL : parallel(d))
                .maxNumTokens(d.or(16))
                .lora(d.or(1), d.or(4))
                .build();
    }

    private static RouterConfig router(Draw d) {
        RouterConfig router = RouterConfig.of(d.one(ScoringFunction.values()), d.flag());
        if (d.or(0) != 0) {
            router = router.withGroups(d.or(0), d.or(0));
        }
        return router.withZeroExperts(d.or(0));
    }

    private static FusedMoeParallelConfig parallel(Draw d) {
        return FusedMoeParallelConfig.builder()
                .tp(d.or(2), d.or(0))
                .pcp(d.or(1), d.or(0))
                .dp(d.or(1), d.or(0))
                .sp(d.or(1))
                .expertParallel(d.flag())
                .eplb(d.flag())
                .build();
    }

    @SuppressWarnings("NullAway") // which takes a record's array for one that isn't null
    static Stream<Named> calls() {
        return Stream.of(
                of("FusedMoeConfig", d -> {
                    FusedMoeConfig config = config(d);
                    assertThat(config.gateUpRows()).isPositive();
                    assertThat(config.numRouterLogits()).isBetween(1, FusedMoeConfig.MAX_EXPERTS + 1);
                    assertThat(config.pairsPerToken() * config.inputRowsPerToken())
                            .isPositive();
                    config.gateUpRow(config.gateUpRows() - 1);
                    assertThat(config.toBuilder().build()).isEqualTo(config);
                    PrepareAndFinalize.of(config, null);
                    config.withMaxNumTokens(d.number());
                }),
                of("requireAddressableWeights", d -> config(d).requireAddressableWeights()),
                of("FusedMoeParallelConfig", d -> {
                    FusedMoeParallelConfig parallel = parallel(d);
                    assertThat(parallel.tpRank()).isBetween(0, parallel.tpSize() - 1);
                    assertThat(parallel.epRank()).isBetween(0, parallel.epSize() - 1);
                    assertThat(parallel.toString()).isNotEmpty();
                }),
                of("ExpertMap", d -> {
                    int size = d.number();
                    ExpertMap map = ExpertMap.determineExpertMap(
                            size, d.or(0), d.or(8), d.one(ExpertPlacementStrategy.values()));
                    assertThat(map.numLocalExperts()).isNotNegative();
                }),
                of("RouterConfig", PublicArgumentsTest::router),
                of("GroupShape", d -> {
                    GroupShape shape = new GroupShape(d.number(), d.number());
                    Int8Quantization quantization =
                            Int8Quantization.of(d.one(Int8Scheme.values())).withGrid(shape);
                    assertThat(quantization.rowsPerScale(16)).isPositive();
                    assertThat(quantization.colsPerScale(16)).isPositive();
                    assertThat(quantization.toString()).isNotEmpty();
                }),
                of("QuantKey", d -> QuantKey.int8Groups(d.number())),
                of("EplbConfig", d -> {
                    EplbConfig eplb = new EplbConfig(d.or(1), d.or(1), d.or(0), d.flag(), d.or(1), d.flag());
                    eplb.withWindowSize(d.or(1))
                            .withStepInterval(d.or(1))
                            .withNumRedundantExperts(d.or(1))
                            .withLogBalancedness(d.number());
                }),
                of(
                        "MoeOptions",
                        d -> MoeOptions.DEFAULT
                                .withMaxTokens(d.or(1))
                                .withLora(d.or(0), d.or(1))
                                .withLanes(d.or(1))
                                .withLaneWait(Duration.ofSeconds(d.number()))),
                of("a layer of options", d -> {
                    // Of the definition, which takes no memory for tokens.
                    MoeOptions options = MoeOptions.DEFAULT
                            .withBackend("reference")
                            .withMaxTokens(d.or(8))
                            .withLora(d.or(0), d.or(1))
                            .withLanes(d.or(1))
                            .withLoadBalancing(
                                    d.or(0) == 0 ? null : EplbConfig.DEFAULT.withNumRedundantExperts(d.or(1)));
                    try (MoeLayer layer = MoeLayer.of(LAYER, options)) {
                        layer.forward(
                                new float[32],
                                d.or(1),
                                new float[32],
                                new ChosenExperts(d.or(2), new int[2], new float[2]));
                        layer.removeAdapter(d.number());
                    }
                }),
                of("ChosenExperts", d -> {
                    int tokens = d.number();
                    int topK = d.number();
                    if (tokens > 0
                            && topK > 0
                            && (long) tokens * topK > 1 << 20
                            && tokens <= Integer.MAX_VALUE / topK) {
                        return; // which fits arrays, if not this test's heap
                    }
                    assertThat(ChosenExperts.allocate(tokens, topK).tokens()).isEqualTo(tokens);
                }),
                of("ChosenExperts of arrays", d -> new ChosenExperts(d.number(), new int[3], new float[2]).tokens()),
                of("Replicas", d -> {
                    int experts = d.number();
                    Replicas replicas = Replicas.allHere(experts, e -> e == 0 ? 0 : -1);
                    assertThat(replicas.isHere(0, d.number())).isTrue();
                    replicas.isHere(d.number(), d.number());
                    Replicas.replica(d.number(), d.number());
                }),
                of(
                        "Replicas of a table",
                        d -> new Replicas(new int[] {d.number(), d.number(), d.number()})
                                .isHere(d.number(), d.number())),
                of("RoutingSimulator", d -> {
                    int choices = d.number();
                    int tokens = d.or(2);
                    int topK = d.or(2);
                    if (tokens <= 16) {
                        d.one(RoutingSimulator.values())
                                .router(choices, 1)
                                .route(new float[0], new float[0], tokens, topK, d.flag());
                    }
                }),
                of("Int8Tensor", d -> {
                    Int8Tensor tensor = new Int8Tensor(
                            d.or(1),
                            d.or(2),
                            d.or(16),
                            d.or(1),
                            d.or(16),
                            MemorySegment.ofArray(new byte[32]),
                            new float[2],
                            null);
                    assertThat(tensor.experts() * tensor.rows() * tensor.rowBytes())
                            .isEqualTo(32);
                }),
                of(
                        "Int8Tensor.bytes",
                        d -> assertThat(Int8Tensor.bytes(d.number(), d.number(), d.number()))
                                .isPositive()),
                indexing("Int8Tensor's values", d -> {
                    Int8Tensor tensor = new Int8Tensor(2, 3, 4, MemorySegment.ofArray(new byte[96]), new float[6]);
                    switch (d.random.nextInt(5)) {
                        case 0 -> tensor.get(d.or(0), d.or(0), d.number());
                        case 1 -> tensor.scale(d.or(0), d.number());
                        case 2 -> tensor.experts(d.number(), d.number());
                        case 3 -> tensor.setRow(d.or(0), d.or(0), MemorySegment.ofArray(new byte[8]), d.number());
                        default -> tensor.setRow(d.or(0), d.or(0), new byte[8], d.number());
                    }
                }),
                indexing("Int8Activations", d -> {
                    float[] x = new float[16];
                    byte[] q = new byte[16];
                    float[] scales = new float[16];
                    switch (d.random.nextInt(5)) {
                        case 0 -> Int8Activations.quantize(x, d.number(), d.number(), q, scales);
                        case 1 -> Int8Activations.quantize(x, d.or(0), d.number(), q, d.number());
                        case 2 -> Int8Activations.quantizeGroups(x, d.or(1), d.or(16), d.number(), d.flag(), q, scales);
                        case 3 -> Int8Activations.tensorScale(x, d.number());
                        default -> Int8Activations.quantizeGroup(x, d.or(0), d.number(), d.flag(), q, d.number());
                    }
                }),
                of("HiddenStates", d -> {
                    ScalarType type = d.one(ScalarType.values());
                    MemorySegment memory = MemorySegment.ofArray(new byte[8]);
                    HiddenStates.read(type, memory, new float[4], d.number());
                    HiddenStates.write(type, new float[4], d.number(), memory);
                }),
                of("LoraAdapter", d -> {
                    LoraAdapter adapter = LoraAdapter.of(
                            d.or(1), d.number(), new float[64], new float[32], new float[16], new float[32]);
                    adapter.requireFits(
                            LAYER.config().toBuilder().lora(1, d.or(1)).build());
                }),
                of("RouterWeights", d -> RouterWeights.of(new float[4 * 32]).requireFits(config(d))),
                of("RankWeights", d -> {
                    try (Int8Experts whole = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
                        int[] experts = d.flag() ? new int[] {d.number()} : new int[] {d.or(1), d.or(2)};
                        RankWeights.experts(whole, LAYER.config(), experts, new int[] {-1, d.or(0), -1, -1})
                                .close();
                    }
                }),
                of("RankWeights' columns", d -> {
                    try (Int8Experts whole = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
                        RankWeights.columns(
                                        whole,
                                        LAYER.config().toBuilder()
                                                .intermediateSize(d.or(16))
                                                .hiddenDim(d.or(32))
                                                .moeParallelConfig(FusedMoeParallelConfig.builder()
                                                        .tp(d.or(2), d.or(1))
                                                        .build())
                                                .build())
                                .close();
                    }
                }),
                of("LaunchConfig", d -> new LaunchConfig(d.or(1), d.or(1), d.or(1), d.or(1), d.or(1), d.number())));
    }

    @ParameterizedTest
    @MethodSource("calls")
    @Timeout(120)
    void aResultOrAnExplanation(Named named) {
        Draw draw = new Draw();
        int results = 0;
        int refusals = 0;
        int rounds = named.name.contains("RankWeights") || named.name.contains("layer") ? ROUNDS / 10 : ROUNDS;
        for (int round = 0; round < rounds; round++) {
            draw.drawn.clear();
            try {
                named.call.with(draw);
                results++;
            } catch (IllegalArgumentException refusal) {
                assertThat(refusal.getMessage())
                        .as("%s of %s", named, draw.drawn)
                        .isNotBlank();
                refusals++;
            } catch (IndexOutOfBoundsException outside) {
                refusals++;
                if (!named.indexes) {
                    throw new AssertionError(named + " of " + draw.drawn, outside);
                }
            } catch (RuntimeException | Error wrong) {
                throw new AssertionError(named + " of " + draw.drawn, wrong);
            }
        }
        assertThat(results).as("results").isPositive();
        assertThat(refusals).as("refusals").isPositive();
    }

    @Test
    void numbersThatOnceOverflowedAreNamed() {
        FusedMoeConfig.Builder layer = LAYER.config().toBuilder();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> RouterConfig.of(ScoringFunction.SOFTMAX, true).withZeroExperts(Integer.MAX_VALUE))
                .withMessage("numZeroExperts: expected at most 1024, got 2147483647");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> RouterConfig.of(ScoringFunction.SIGMOID, true).withGroups(100_000_000, 1))
                .withMessage("numExpertGroup: expected at most 1024, got 100000000");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> layer.lora(1, Integer.MAX_VALUE).build())
                .withMessageStartingWith("maxLoraRank: expected at most ")
                .withMessageEndingWith(", got 2147483647");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> MoeOptions.DEFAULT.withLanes(Integer.MAX_VALUE))
                .withMessage("lanes: expected 1 to 1024, got 2147483647");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new ChosenExperts(0, new int[2], new float[2]))
                .withMessage("topK: expected a positive number, got 0");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ChosenExperts.allocate(65536, 65536))
                .withMessage("tokens: expected 0 to 32767 (of 65536 experts each), got 65536");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> FusedMoeParallelConfig.builder()
                        .dp(65536, 0)
                        .tp(65536, 0)
                        .build())
                .withMessage("dpSize * pcpSize * tpSize: expected fewer than 2^31 ranks, got 65536 * 1 * 65536");
        try (Arena arena = Arena.ofConfined()) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8Tensor.allocate(arena, 1, 1, Integer.MAX_VALUE))
                    .withMessageContaining("got [1, 1, 2147483647]");
        }
    }

    /** Ids and weights are both asked, before anything is computed. */
    @Test
    void chosenExpertsThatAreTooShortAreRefusedBeforeTheWork() {
        try (MoeLayer layer = MoeLayer.of(LAYER, MoeOptions.DEFAULT.withBackend("reference"))) {
            for (ChosenExperts tooShort : List.of(
                    new ChosenExperts(2, new int[4], new float[3]), new ChosenExperts(2, new int[3], new float[4]))) {
                float[] written = new float[64];
                written[0] = 7;
                assertThatIllegalArgumentException()
                        .isThrownBy(() -> layer.forward(new float[64], 2, written, tooShort))
                        .withMessage("chosen: expected room for 2 tokens of 2 experts, got 1 of 2");
                assertThat(written[0]).isEqualTo(7);
            }
        }
    }
}
