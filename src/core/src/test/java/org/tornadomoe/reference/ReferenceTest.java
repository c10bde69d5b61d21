package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.Draw;
import org.tornadomoe.Draw.Property;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;

class ReferenceTest {
    private static final double NAN = Double.NaN;
    private static final double INF = Double.POSITIVE_INFINITY;

    private static final List<RoutingMethodType> SOFTMAX_METHODS =
            List.of(RoutingMethodType.DEFAULT, RoutingMethodType.RENORMALIZE, RoutingMethodType.RENORMALIZE_NAIVE);

    private static Routing route(double[] logits, int tokens, int experts, int topK, RoutingMethodType method) {
        return Router.route(logits, tokens, experts, topK, RouterConfig.of(method), null);
    }

    record RoutingCase(double[] logits, int topK) {}

    /** Few distinct logits, so that ties are common. */
    private static RoutingCase routingCase(Draw draw) {
        double[] logits = new double[draw.between(1, 40)];
        Arrays.setAll(logits, e -> draw.between(-6, 6) / 2.0);
        return new RoutingCase(logits, draw.between(1, Math.min(logits.length, 32)));
    }

    @Property(tries = 300)
    void theChosenExpertsAreThoseOfAStableSort(Draw draw) {
        RoutingCase c = routingCase(draw);
        RoutingMethodType method = draw.oneOf(SOFTMAX_METHODS);
        int experts = c.logits.length;
        Routing routing = route(c.logits, 1, experts, c.topK, method);
        int[] expected = IntStream.range(0, experts)
                .boxed()
                .sorted(Comparator.comparingDouble((Integer e) -> -c.logits[e]).thenComparing(e -> e))
                .limit(c.topK)
                .mapToInt(e -> e)
                .toArray();
        assertThat(routing.ids()).isEqualTo(expected);
        double all = Arrays.stream(c.logits).map(Math::exp).sum();
        double chosen =
                Arrays.stream(expected).mapToDouble(e -> Math.exp(c.logits[e])).sum();
        for (int slot = 0; slot < c.topK; slot++) {
            double sum = method == RoutingMethodType.DEFAULT ? all : chosen;
            assertThat(routing.weights()[slot]).isCloseTo(Math.exp(c.logits[expected[slot]]) / sum, within(1e-12));
        }
    }

    @ParameterizedTest
    @EnumSource(names = {"DEFAULT", "RENORMALIZE", "RENORMALIZE_NAIVE"})
    void tiesGoToTheLowerIdAndTheOrderIsDescending(RoutingMethodType method) {
        Routing routing = route(new double[] {1, 3, 2, 3, 2}, 1, 5, 4, method);
        assertThat(routing.ids()).containsExactly(1, 3, 2, 4);
        assertThat(routing.weights()).isSortedAccordingTo(Comparator.reverseOrder());
    }

    @Test
    void aProbabilityThatIsNotFiniteCountsZeroBeforeTheChoice() {
        double[] logits = {5, NAN, 7, 1, 2, 3, INF, 1, -INF, 0, -INF, 1, NAN, NAN, NAN, NAN, -INF, -INF, -INF, -INF};
        Routing routing = route(logits, 5, 4, 2, RoutingMethodType.RENORMALIZE_NAIVE);
        assertThat(routing.ids()).containsExactly(0, 1, 0, 1, 3, 1, 0, 1, 0, 1);
        assertThat(routing.weights()[4]).isCloseTo(1 / (1 + Math.exp(-1)), within(1e-15));
        assertThat(routing.weights())
                .containsExactly(0, 0, 0, 0, routing.weights()[4], routing.weights()[5], 0, 0, 0, 0);
        for (RoutingMethodType method : SOFTMAX_METHODS) {
            assertThat(route(logits, 5, 4, 2, method).ids()).as("%s", method).isEqualTo(routing.ids());
        }
    }

    @Test
    void hugeLogitsDoNotOverflow() {
        Routing routing = route(new double[] {1e300, -1e300, 1e300}, 1, 3, 2, RoutingMethodType.DEFAULT);
        assertThat(routing.ids()).containsExactly(0, 2);
        assertThat(routing.weights()).containsExactly(0.5, 0.5);
    }

    @Test
    void fourTokensOnFourOfFiveExpertsAreAlignedByHand() {
        int[] ids = {2, 3, 4, 1, 2, 4, 1, 3, 4, 1, 2, 3};
        Alignment alignment = Alignments.align(ids, 5, 4);
        assertThat(alignment.sortedTokenIds()).containsExactly(3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12);
        assertThat(alignment.expertIds()).containsExactly(1, 2, 3, 4);
        assertThat(alignment.numTokensPostPadded()).isEqualTo(16);
    }

    @Test
    void pairsOfExpertsElsewhereAreKeptOrLeftOutByHand() {
        int[] ids = {2, 3, 4, 1, 2, 4, 1, 3, 4, 1, 2, 3};
        int[] map = {-1, 0, -1, 1, -1};
        Alignment kept = Alignments.align(ids, map, true, 4);
        assertThat(kept.sortedTokenIds()).containsExactly(3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12);
        assertThat(kept.expertIds()).containsExactly(0, -1, 1, -1);
        Alignment leftOut = Alignments.align(ids, map, false, 4);
        assertThat(leftOut.sortedTokenIds()).containsExactly(3, 6, 9, 12, 1, 7, 11, 12);
        assertThat(leftOut.expertIds()).containsExactly(0, 1);
        assertThat(leftOut.numTokensPostPadded()).isEqualTo(8);
    }

    @Test
    void aBlockForEveryPairByHand() {
        Alignment alignment = Alignments.naiveAlign(new int[] {2, -1, 5, 0}, 5, 3);
        assertThat(alignment.sortedTokenIds()).containsExactly(0, 4, 4, 1, 4, 4, 2, 4, 4, 3, 4, 4);
        assertThat(alignment.expertIds()).containsExactly(2, -1, -1, 0);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Alignments.naiveAlign(new int[1], 1, 0))
                .withMessage("blockSize: expected a positive number, got 0");
    }

    @Test
    void slotsOfFourExpertsByHand() {
        // Three tokens, two experts each, in blocks of two: four slots an expert, and six where all pairs are one's.
        Alignment alignment = Alignments.alignBatched(new int[] {2, 0, 2, 1, -1, 2}, 4, 3, 2);
        assertThat(alignment.sortedTokenIds()).containsExactly(1, 6, 6, 6, 3, 6, 6, 6, 0, 2, 5, 6, 6, 6, 6, 6);
        assertThat(alignment.expertIds()).containsExactly(0, -1, 1, -1, 2, 2, -1, -1);
        assertThat(Alignments.alignBatched(new int[] {0, 0, 0, 0, 0, 0}, 2, 3, 2)
                        .sortedTokenIds())
                .containsExactly(0, 1, 2, 3, 4, 5, 6, 6, 6, 6);
    }

    @Property(tries = 300)
    void everyPairIsInABlockOfItsExpertOnceAndInOrder(Draw draw) {
        int[] ids = expertIds(draw);
        int blockSize = draw.between(1, 20);
        int experts = 12;
        Alignment alignment = Alignments.align(ids, experts, blockSize);
        int[] sorted = alignment.sortedTokenIds();
        assertThat(sorted.length % blockSize).isZero();
        assertThat(alignment.expertIds()).hasSize(sorted.length / blockSize).isSorted();
        Map<Integer, Integer> last = new HashMap<>();
        int seen = 0;
        for (int i = 0; i < sorted.length; i++) {
            if (sorted[i] == ids.length) {
                continue;
            }
            int expert = alignment.expertIds()[i / blockSize];
            assertThat(ids[sorted[i]]).isEqualTo(expert);
            assertThat(sorted[i]).isGreaterThan(last.getOrDefault(expert, -1));
            last.put(expert, sorted[i]);
            seen++;
        }
        assertThat(seen).isEqualTo((int)
                Arrays.stream(ids).filter(e -> e >= 0 && e < experts).count());
        // No more blocks than needed.
        int blocks = IntStream.range(0, experts)
                .map(e -> (int) Arrays.stream(ids).filter(id -> id == e).count())
                .map(count -> (count + blockSize - 1) / blockSize)
                .sum();
        assertThat(alignment.expertIds()).hasSize(blocks);
    }

    /** Ids of twelve experts, and some that are none. */
    private static int[] expertIds(Draw draw) {
        int[] ids = new int[draw.between(0, 100)];
        Arrays.setAll(ids, pair -> draw.between(-1, 12));
        return ids;
    }

    @Test
    void aGemmIsTheExactSumTimesBothScales() {
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor w = Int8Tensor.allocate(arena, 2, 2, 3);
            w.setRow(0, 0, new byte[] {1, 2, 3}, 0, 0.5f);
            w.setRow(0, 1, new byte[] {-127, 127, 127}, 0, 2f);
            w.setRow(1, 0, new byte[] {0, 0, 1}, 0, 1f);
            w.setRow(1, 1, new byte[] {0, -1, 0}, 0, 4f);
            QuantizedTokens a = new QuantizedTokens(new byte[] {127, 127, 127, 1, 2, 3}, new float[] {0.25f, 8f});
            // Two tokens of two slots; the last pair's expert is not here.
            double[] out = ReferenceGemm.multiply(a, 2, new int[] {1, 0, 0, -1}, w, null);
            assertThat(out)
                    .containsExactly(127 * .25, -127, 762 * .25 * .5, 16129 * .25 * 2, 14 * 4, 508 * 8. * 2, 0, 0);
            double[] float16 = ReferenceGemm.multiply(new double[] {1.5, 2, 0, 0, 1, 1}, 1, new int[] {0, 1}, w, null);
            assertThat(float16).containsExactly(2.75, 127, 1, -4);
        }
    }

    @Test
    void combineAddsTheSlotsOfAToken() {
        double[] weighed = Reference.weigh(new double[] {1, 2, 3, 4, 5, 6, 7, 8}, new double[] {1, .5, 2, 0});
        assertThat(Reference.combine(weighed, 2, 2, 2)).containsExactly(2.5, 4, 10, 12);
    }

    @Test
    void aRouterWeightOnTheInputGoesThroughTheActivation() {
        // One expert of H = I = 1 with gate 1, up 1, down 1; logits of 0 for two experts give a weight of 1/2.
        FusedMoeConfig onOutput = FusedMoeConfig.builder()
                .numExperts(2)
                .expertsPerToken(1)
                .hiddenDim(1)
                .intermediateSize(1)
                .router(RouterConfig.of(RoutingMethodType.DEFAULT))
                .build();
        FusedMoeConfig onInput =
                onOutput.toBuilder().applyRouterWeightOnInput(true).build();
        float x = 3;
        double gated = x / (1 + Math.exp(-x)) * x;
        double half = x / 2.0;
        double gatedHalf = half / (1 + Math.exp(-half)) * half;
        for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)) {
            assertThat(ones(onOutput, scheme, x)).as("%s, on output", scheme).isCloseTo(gated / 2, within(1e-6));
            assertThat(ones(onInput, scheme, x)).as("%s, on input", scheme).isCloseTo(gatedHalf, within(1e-6));
        }
        assertThatIllegalArgumentException()
                .isThrownBy(() -> onInput.toBuilder().expertsPerToken(2).build())
                .withMessage("apply_router_weight_on_input is only implemented for topk=1, got expertsPerToken 2");
    }

    /** The layer's output for the token x, all weights being 1. */
    private static double ones(FusedMoeConfig config, Int8Scheme scheme, float x) {
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = Int8Tensor.allocate(arena, 2, 2, 1);
        Int8Tensor w2 = Int8Tensor.allocate(arena, 2, 1, 1);
        for (int e = 0; e < 2; e++) {
            w13.setRow(e, 0, new byte[] {1}, 0, 1);
            w13.setRow(e, 1, new byte[] {1}, 0, 1);
            w2.setRow(e, 0, new byte[] {1}, 0, 1);
        }
        try (Int8Experts experts = Int8Experts.of(config, scheme, w13, w2, RouterWeights.of(new float[2]), arena)) {
            return Reference.forward(experts, new float[] {x}, new double[2], 1).output()[0];
        }
    }

    @Test
    void quantizationIsPerToken() {
        QuantizedTokens q = Reference.quantize(new double[] {1, -2, 0, 0, 127, 0.5}, 3, 2);
        assertThat(q.values()).containsExactly(64, -127, 0, 0, 127, 1);
        assertThat(q.scales()).containsExactly(2f / 127f, 1e-10f / 127f, 1f);
    }

    @Test
    void noTokensGiveNoOutput() {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(2)
                .expertsPerToken(1)
                .hiddenDim(3)
                .intermediateSize(1)
                .build();
        Arena arena = Arena.ofShared();
        try (Int8Experts experts = Int8Experts.of(
                config,
                Int8Scheme.W8A8_CHANNEL,
                Int8Tensor.allocate(arena, 2, 2, 3),
                Int8Tensor.allocate(arena, 2, 3, 1),
                RouterWeights.of(new float[6]),
                arena)) {
            assertThat(Reference.forward(experts, new float[0], 0).output()).isEmpty();
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Reference.forward(experts, new float[5], 2))
                    .withMessage("hidden: expected [2, 3] = 6 values, got 5");
            assertThatIllegalArgumentException().isThrownBy(() -> Reference.forward(experts, new float[3], -1));
        }
    }

    @Test
    void wrongSizesAreNamed() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> route(new double[4], 1, 4, 5, RoutingMethodType.DEFAULT))
                .withMessage("topK: expected 1 to the 4 experts, got 5");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Alignments.align(new int[1], 1, 0))
                .withMessage("blockSize: expected a positive number, got 0");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new Routing(2, 2, new int[4], new double[3]))
                .withMessageContaining("expected 2 * 2 ids and weights, got 4 and 3");
    }

    @Test
    void relativeErrorIsThatOfTheNorms() {
        assertThat(Numerics.relativeL2(new double[] {3, 5}, new double[] {3, 4}))
                .isCloseTo(0.2, within(1e-15));
        assertThat(Numerics.relativeL2(new double[2], new double[2])).isZero();
        assertThat(Numerics.relativeL2(new double[] {NAN}, new double[] {1})).isNaN();
    }
}
