package org.tornadomoe.cpu;

import static org.assertj.core.api.Assertions.assertThat;

import com.sun.management.ThreadMXBean;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.CompiledLoops;
import org.tornadomoe.host.Team;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;
import org.tornadomoe.reference.Stages;

/**
 * The CPU's layer against the definition, at sizes that are no multiple of a vector, in both forms of its inner loops.
 */
@Tag("hot")
class CpuExpertsTest {
    private static final int TOKENS = 23;

    /** The definition's integers are ours, so all that differs is the last rounding to float. */
    private static final double EXACT = 2e-7;

    /** Float sums of products. */
    private static final double CLOSE = 1e-5;

    private static RandomLayer layer() {
        return RandomLayer.of(7, 3, 75, 45, TOKENS, 5);
    }

    static Stream<Int8Quantization> schemes() {
        return Stream.of(
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(16, 24)),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                        .withGrid(new GroupShape(5, 7))
                        .withRoundToNearest(true),
                Int8Quantization.of(Int8Scheme.W8A16_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 32)),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                        .withGrid(new GroupShape(1, 9))
                        .withZeroPoints(true));
    }

    private static double tolerance(Int8Scheme scheme) {
        return scheme.quantizesActivations() ? EXACT : CLOSE;
    }

    @ParameterizedTest
    @MethodSource("schemes")
    void everySchemeAgreesWithTheDefinition(Int8Quantization quantization) {
        check(layer(), quantization);
    }

    @ParameterizedTest
    @EnumSource(MoeActivation.class)
    void everyActivationAgreesWithTheDefinition(MoeActivation activation) {
        check(layer().activatedBy(activation).withBiases(), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
        check(layer().activatedBy(activation).withBiases(), Int8Quantization.of(Int8Scheme.W8A16_CHANNEL));
    }

    @Test
    void sharedAndZeroExpertsAgreeWithTheDefinition() {
        RouterConfig softmax = RouterConfig.of(ScoringFunction.SOFTMAX, true);
        check(layer().sharing(2), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
        check(
                layer().sharing(2).routedBy(softmax.withSharedExpertGate()),
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
        check(layer().sharing(1).routedBy(softmax.withZeroExperts(3)), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
    }

    @ParameterizedTest
    @MethodSource("schemes")
    void routerWeightsOnTheInputAgreeWithTheDefinition(Int8Quantization quantization) {
        check(RandomLayer.of(5, 1, 75, 45, TOKENS, 6).sharing(1).weighedOnInput(), quantization);
    }

    /**
     * Widths of whole blocks, several of which a task takes at once where tokens are few or products native; of 512
     * columns also where oneDNN's plain loops sum in float.
     */
    @Test
    void wideLayersAgreeWithTheDefinition() {
        check(RandomLayer.of(5, 2, 512, 256, TOKENS, 9), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
        for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A8_TENSOR, Int8Scheme.W8A16_CHANNEL)) {
            check(RandomLayer.of(5, 2, 1024, 256, TOKENS, 9), Int8Quantization.of(scheme));
        }
    }

    /** More columns than a sum of int8 products stays exact for in float. */
    @Test
    void widerThanFloatIsExact() {
        check(RandomLayer.of(2, 1, 2500, 1100, TOKENS, 7), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
        check(RandomLayer.of(2, 1, 2500, 1100, TOKENS, 7), Int8Quantization.of(Int8Scheme.W8A16_CHANNEL));
    }

    /** The greatest sums there can be, and every value the same. */
    @Test
    void theGreatestSumsAreExact() {
        int cols = 1024;
        float[] a = new float[cols];
        Arrays.fill(a, -128);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment w = arena.allocate((cols + 1L) * PackedWeights.ROWS, 64);
            w.fill((byte) -128);
            for (Arithmetic arithmetic : Arithmetic.all()) {
                float[] tile = new float[Arithmetic.TOKENS * PackedWeights.ROWS];
                arithmetic.dot(w, 0, cols, a, new int[Arithmetic.TOKENS], 1, tile);
                assertThat(tile).startsWith(1 << 24, 1 << 24);
                assertThat(tile[PackedWeights.ROWS - 1]).isEqualTo(1 << 24);
            }
        }
    }

    @Test
    void partsOfALayerAddUpToIt() {
        RandomLayer layer = layer().sharing(1);
        try (Int8Experts whole =
                QuantizedWeights.int8(layer, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE)) {
            float[] hidden = layer.hidden(TOKENS, 3);
            double[] sum = new double[hidden.length];
            for (int rank = 0; rank < 2; rank++) {
                int[] map = new int[8];
                Arrays.fill(map, -1);
                int local = 0;
                for (int e = rank; e < 8; e += 2) {
                    map[e] = local++;
                }
                Arena arena = Arena.ofShared();
                try (Int8Experts part = whole.with(
                                layer.config(),
                                part(whole.w13(), map, local, arena),
                                part(whole.w2(), map, local, arena),
                                arena)
                        .expertMap(map)
                        .build()) {
                    double[] expected = Reference.forward(part, hidden, TOKENS).output();
                    double[] output = Numerics.widen(forward(part, Arithmetic.best(), 2, hidden, TOKENS, null));
                    assertThat(Numerics.relativeL2(output, expected)).isLessThan(EXACT);
                    for (int v = 0; v < sum.length; v++) {
                        sum[v] += output[v];
                    }
                }
            }
            assertThat(Numerics.relativeL2(
                            sum, Reference.forward(whole, hidden, TOKENS).output()))
                    .isLessThan(EXACT);
        }
    }

    private static Int8Tensor part(Int8Tensor w, int[] map, int local, Arena arena) {
        Int8Tensor part = Int8Tensor.allocate(arena, local, w.rows(), w.cols());
        byte[] row = new byte[w.cols()];
        for (int e = 0; e < map.length; e++) {
            for (int r = 0; r < w.rows() && map[e] >= 0; r++) {
                w.row(e, r, row);
                part.setRow(map[e], r, row, 0, w.scale(e, r));
            }
        }
        return part;
    }

    @ParameterizedTest
    @MethodSource("schemes")
    void adaptersAgreeWithTheDefinition(Int8Quantization quantization) {
        for (RandomLayer layer : List.of(layer(), layer().activatedBy(MoeActivation.SWIGLUOAI))) {
            FusedMoeConfig config = layer.config().toBuilder().lora(2, 4).build();
            RandomLayer room = new RandomLayer(config, layer.seed());
            LoraAdapter adapter = layer.adapter(3, false);
            float[] hidden = layer.hidden(TOKENS, 4);
            float[] output = new float[hidden.length];
            float[] plain = new float[hidden.length];
            int[] slots =
                    IntStream.range(0, TOKENS).map(m -> m % 3 == 0 ? 1 : -1).toArray();
            try (Int8Experts experts = QuantizedWeights.int8(room, quantization, Progress.NONE);
                    CpuMoeKernel kernel = new CpuMoeKernel(config, experts, Arithmetic.best(), new Team(2))) {
                kernel.setAdapter(1, adapter);
                kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(output), null, slots);
                kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(plain), null, null);
                double[] logits = Router.logits(config, experts.router(), Numerics.widen(hidden), TOKENS);
                Routing routing = Router.route(config, experts.router(), logits, TOKENS);
                List<@Nullable LoraAdapter> adapters = new ArrayList<>();
                for (int slot : slots) {
                    adapters.add(slot < 0 ? null : adapter);
                }
                Stages expected = Reference.forward(experts, hidden, logits, routing, adapters);
                assertThat(Numerics.relativeL2(Numerics.widen(output), expected.output()))
                        .as("%s", quantization)
                        .isLessThan(CLOSE);
                int h = config.hiddenDim();
                if (quantization.scheme() != Int8Scheme.W8A8_TENSOR) { // there one scale is all tokens'
                    assertThat(Arrays.copyOfRange(output, h, 2 * h)).isEqualTo(Arrays.copyOfRange(plain, h, 2 * h));
                }
                assertThat(Arrays.equals(output, 0, h, plain, 0, h)).isFalse();
            }
        }
    }

    @ParameterizedTest
    @MethodSource("schemes")
    void oneAndTwoAndFiveThreadsGiveTheSameBits(Int8Quantization quantization) {
        RandomLayer layer = RandomLayer.of(8, 3, 300, 200, 64, 8);
        float[] hidden = layer.hidden(64, 1);
        try (Int8Experts experts = QuantizedWeights.int8(layer, quantization, Progress.NONE)) {
            float[] alone = forward(experts, Arithmetic.best(), 1, hidden, 64, null);
            for (int threads : new int[] {2, 5}) {
                assertThat(forward(experts, Arithmetic.best(), threads, hidden, 64, null))
                        .isEqualTo(alone);
            }
        }
    }

    @ParameterizedTest
    @MethodSource("schemes")
    void aTokensOutputDoesNotDependOnTheOthers(Int8Quantization quantization) {
        if (quantization.scheme() == Int8Scheme.W8A8_TENSOR) {
            return;
        }
        float[] hidden = layer().hidden(TOKENS, 1);
        int h = layer().config().hiddenDim();
        try (Int8Experts experts = QuantizedWeights.int8(layer(), quantization, Progress.NONE)) {
            float[] together = forward(experts, Arithmetic.best(), 1, hidden, TOKENS, null);
            for (int m = 0; m < TOKENS; m++) {
                float[] token = Arrays.copyOfRange(hidden, m * h, (m + 1) * h);
                assertThat(forward(experts, Arithmetic.best(), 1, token, 1, null))
                        .isEqualTo(Arrays.copyOfRange(together, m * h, (m + 1) * h));
            }
        }
    }

    /** With oneDNN, few tokens are multiplied by it in a JVM's first calls, and then by Java's loops. */
    @ParameterizedTest
    @MethodSource("schemes")
    void theBitsAreTheSameOnceJavasLoopsAreCompiled(Int8Quantization quantization) {
        try (Int8Experts blocks =
                        QuantizedWeights.int8(layer(), Int8Quantization.of(Int8Scheme.W8A8_BLOCK), Progress.NONE);
                CpuMoeKernel kernel = new CpuMoeKernel(layer().config(), blocks, Arithmetic.best(), new Team(2))) {
            MemorySegment hidden = MemorySegment.ofArray(layer().hidden(2, 1));
            MemorySegment output =
                    MemorySegment.ofArray(new float[2 * layer().config().hiddenDim()]);
            boolean library = Arithmetic.best().java() != Arithmetic.best();
            for (int call = 0; library && !CompiledLoops.multiplyFewTokens() && call < 100_000; call++) {
                kernel.forward(hidden, 2, output, null, null);
            }
        }
        try (Int8Experts experts = QuantizedWeights.int8(layer(), quantization, Progress.NONE)) {
            for (int tokens : new int[] {1, 2, 3, TOKENS}) {
                float[] hidden = layer().hidden(tokens, tokens);
                assertThat(forward(experts, Arithmetic.best(), 2, hidden, tokens, null))
                        .isEqualTo(forward(experts, Arithmetic.best().java(), 2, hidden, tokens, null));
            }
        }
    }

    /** A helper may come at any stage, and bring a scratch that has seen none. */
    @ParameterizedTest
    @MethodSource("schemes")
    void helpersMayComeLate(Int8Quantization quantization) {
        float[] hidden = layer().hidden(TOKENS, 1);
        try (Int8Experts experts = QuantizedWeights.int8(layer(), quantization, Progress.NONE)) {
            float[] alone = forward(experts, Arithmetic.best(), 1, hidden, TOKENS, null);
            for (int again = 0; again < 200; again++) {
                assertThat(forward(experts, Arithmetic.best(), 2, hidden, TOKENS, null))
                        .isEqualTo(alone);
            }
        }
    }

    /**
     * Once the JVM has compiled it, all its threads together: what a call itself makes, a segment or two, is far below
     * what one boxed vector a loop would be.
     */
    @ParameterizedTest
    @ValueSource(ints = {1, 2})
    void aSteadyStateAllocatesNothing(int team) {
        RandomLayer layer = RandomLayer.of(4, 2, 512, 128, 32, 9);
        MemorySegment hidden = MemorySegment.ofArray(layer.hidden(32, 1));
        MemorySegment output = MemorySegment.ofArray(new float[32 * 512]);
        ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
        try (Int8Experts experts =
                        QuantizedWeights.int8(layer, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE);
                CpuMoeKernel kernel = new CpuMoeKernel(layer.config(), experts, Arithmetic.best(), new Team(team))) {
            long least = Long.MAX_VALUE;
            for (int round = 0; round < 35 && least / 100 >= 256; round++) {
                long before = threads.getTotalThreadAllocatedBytes();
                for (int call = 0; call < 100; call++) {
                    kernel.forward(hidden, 32, output, null, null);
                }
                least = Math.min(least, threads.getTotalThreadAllocatedBytes() - before);
            }
            assertThat(least / 100).isLessThan(256);
        }
    }

    private static void check(RandomLayer layer, Int8Quantization quantization) {
        try (Int8Experts experts = QuantizedWeights.int8(layer, quantization, Progress.NONE)) {
            check(layer, experts);
        }
    }

    private static void check(RandomLayer layer, Int8Experts experts) {
        for (int tokens : new int[] {1, 2, 3, 5, TOKENS}) {
            float[] hidden = layer.hidden(tokens, tokens);
            Stages expected = Reference.forward(experts, hidden, tokens);
            float[] last = null;
            for (Arithmetic arithmetic : Arithmetic.all()) {
                ChosenExperts chosen =
                        ChosenExperts.allocate(tokens, layer.config().pairsPerToken());
                float[] output = forward(experts, arithmetic, 2, hidden, tokens, chosen);
                assertThat(chosen.ids()).isEqualTo(expected.routing().ids());
                assertThat(Numerics.relativeL2(Numerics.widen(output), expected.output()))
                        .as("%s, %s, %d tokens", experts.quantization(), arithmetic.description(), tokens)
                        .isLessThan(tolerance(experts.scheme()));
                if (last != null && experts.scheme().quantizesActivations()) { // sums are exact
                    assertThat(output).as(arithmetic.description()).isEqualTo(last);
                }
                last = output;
            }
        }
    }

    private static float[] forward(
            Int8Experts experts,
            Arithmetic arithmetic,
            int threads,
            float[] hidden,
            int tokens,
            @Nullable ChosenExperts chosen) {
        float[] output = new float[hidden.length];
        try (CpuMoeKernel kernel = new CpuMoeKernel(experts.config(), experts, arithmetic, new Team(threads))) {
            kernel.forward(MemorySegment.ofArray(hidden), tokens, MemorySegment.ofArray(output), chosen, null);
        }
        return output;
    }
}
