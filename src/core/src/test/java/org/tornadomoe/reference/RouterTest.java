package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.Draw;
import org.tornadomoe.Draw.Property;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.RoutingCases;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.RouterWeights;

class RouterTest {
    private static final double NAN = Double.NaN;
    private static final double INF = Double.POSITIVE_INFINITY;
    private static final RouterConfig DEEPSEEK =
            RouterConfig.of(ScoringFunction.SIGMOID, true).withCorrectionBias();

    /** Every kind of router against sorting and sums, on finite logits. */
    @Property(tries = 60)
    void everyRouterIsTheSortOfItsScores(Draw draw) {
        int choices = draw.between(1, 48);
        boolean ties = draw.aBoolean();
        long seed = draw.aLong();
        SplittableRandom random = new SplittableRandom(seed);
        int k = random.nextInt(1, Math.min(choices, 32) + 1);
        float[] logits = ties ? RoutingCases.ties(choices, seed) : RoutingCases.any(choices, seed);
        float[] bias = ties ? RoutingCases.ties(choices, seed + 1) : RoutingCases.any(choices, seed + 1);
        for (RouterConfig router : RoutingCases.routers(choices, k)) {
            float[] added = router.hasCorrectionBias() ? bias : null;
            Routing routing = Router.route(Numerics.widen(logits), 1, choices, k, router, added);
            assertBruteForce(routing, logits, k, router, added);
        }
    }

    /** At the sizes of models, where many logits are alike. */
    @ParameterizedTest
    @CsvSource({"16, 2, 8, 2", "128, 2, 8, 2", "256, 8, 8, 4", "384, 8, 1, 1", "512, 22, 1, 1", "1024, 32, 16, 3"})
    void groupsAsModelsHaveThem(int experts, int k, int groups, int topkGroup) {
        for (double factor : new double[] {1, 2.5}) {
            RouterConfig router = DEEPSEEK.withGroups(groups, topkGroup).withRoutedScalingFactor(factor);
            RouterConfig softmax =
                    RouterConfig.of(ScoringFunction.SOFTMAX, true).withGroups(groups, topkGroup);
            for (int seed = 0; seed < 5; seed++) {
                for (float[] logits : List.of(RoutingCases.ties(experts, seed), RoutingCases.any(experts, seed))) {
                    float[] bias = RoutingCases.ties(experts, seed + 100);
                    double[] wide = Numerics.widen(logits);
                    assertBruteForce(Router.route(wide, 1, experts, k, router, bias), logits, k, router, bias);
                    assertBruteForce(Router.route(wide, 1, experts, k, softmax, null), logits, k, softmax, null);
                }
            }
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {512, 896, 1024})
    void whereAllAreAlikeTheFirstAreChosen(int experts) {
        for (RouterConfig router : RoutingCases.routers(experts, 32)) {
            float[] bias = router.hasCorrectionBias() ? new float[experts] : null;
            assertThat(Router.route(new double[experts], 1, experts, 32, router, bias)
                            .ids())
                    .as("%s", router)
                    .isEqualTo(IntStream.range(0, 32).toArray());
        }
    }

    private static void assertBruteForce(
            Routing routing, float[] logits, int k, RouterConfig router, float @Nullable [] bias) {
        int choices = logits.length;
        double all = IntStream.range(0, choices)
                .mapToDouble(e -> Math.exp(logits[e]))
                .sum();
        double[] score = new double[choices];
        double[] key = new double[choices];
        for (int e = 0; e < choices; e++) {
            score[e] = switch (router.scoring()) {
                case SOFTMAX -> Math.exp(logits[e]) / all;
                case SIGMOID -> 1 / (1 + Math.exp(-logits[e]));
                case SQRTSOFTPLUS -> Math.sqrt(Math.log(1 + Math.exp(logits[e])));
                default -> logits[e];
            };
            key[e] = bias == null ? logits[e] : score[e] + bias[e];
        }
        List<Integer> candidates =
                new ArrayList<>(IntStream.range(0, choices).boxed().toList());
        int groups = router.numExpertGroup();
        if (groups > 1 && choices % groups == 0 && choices > groups) {
            int size = choices / groups;
            Comparator<Integer> byScore = Comparator.comparingDouble(g -> -IntStream.range(g * size, (g + 1) * size)
                    .mapToObj(e -> key[e])
                    .sorted(Comparator.reverseOrder())
                    .limit(bias == null ? 1 : 2)
                    .mapToDouble(v -> v)
                    .sum());
            List<Integer> kept = IntStream.range(0, groups)
                    .boxed()
                    .sorted(byScore)
                    .limit(router.topkGroup())
                    .toList();
            candidates.removeIf(e -> !kept.contains(e / size));
        }
        // A stable sort: ties stay in the order of ids.
        int[] expected = candidates.stream()
                .sorted(Comparator.comparingDouble(e -> -key[e]))
                .limit(k)
                .mapToInt(e -> e)
                .toArray();
        assertThat(routing.ids()).as("%s", router).isEqualTo(expected);
        double chosen = Arrays.stream(expected).mapToDouble(e -> score[e]).sum();
        boolean divided = (router.renormalize() || router.equals(RouterConfig.topKThenSoftmax())) && chosen > 0;
        for (int slot = 0; slot < k; slot++) {
            double weight = score[expected[slot]] / (divided ? chosen : 1) * router.routedScalingFactor();
            assertThat(routing.weights()[slot]).as("%s slot %d", router, slot).isCloseTo(weight, within(1e-9));
        }
    }

    @Test
    void methodsAndRoutersNameOneAnother() {
        for (RoutingMethodType method : RoutingMethodType.values()) {
            assertThat(RouterConfig.of(method).method()).isEqualTo(method);
        }
        assertThat(DEEPSEEK.withGroups(8, 4).withRoutedScalingFactor(2.5).method())
                .isEqualTo(RoutingMethodType.DEEPSEEK_V3);
        assertThat(DEEPSEEK.withRoutedScalingFactor(2.5).method()).isEqualTo(RoutingMethodType.UNSPECIFIED);
        // vLLM doesn't ask for groups there, either.
        assertThat(RouterConfig.of(ScoringFunction.SOFTMAX, false)
                        .withGroups(8, 3)
                        .method())
                .isEqualTo(RoutingMethodType.DEFAULT);
    }

    @Test
    void everyLogitThatIsNotFiniteStaysWithItself() {
        double[] logits = {NAN, 1, INF, 2, -INF, 0};
        assertRow(
                RouterConfig.of(ScoringFunction.SIGMOID, false),
                logits,
                4,
                new int[] {2, 3, 1, 5},
                1,
                .8808,
                .7311,
                .5);
        assertRow(
                RouterConfig.of(ScoringFunction.SQRTSOFTPLUS, false),
                logits,
                4,
                new int[] {3, 1, 5, 0},
                1.4584,
                1.1460,
                .8326,
                0);
        assertRow(RouterConfig.of(ScoringFunction.IDENTITY, false), logits, 4, new int[] {3, 1, 5, 0}, 2, 1, 0, 0);
        RouterConfig softmax = RouterConfig.of(ScoringFunction.SOFTMAX, false);
        assertRow(softmax.ofEachGroup(2), new double[] {1, 2, 3, 4}, 2, new int[] {1, 3}, .0871, .6439);
        assertRow(softmax.ofEachGroup(1), new double[] {1, 2, 3, 4}, 2, new int[] {3, 2}, .6439, .2369);
        assertRow(RouterConfig.topKThenSigmoid(), logits, 2, new int[] {2, 3}, 1, .8808);
        assertRow(RouterConfig.topKThenSoftmax(), logits, 2, new int[] {0, 1}, 0, 0);
        double[] nothing = {NAN, NAN, NAN};
        for (ScoringFunction scoring : List.of(ScoringFunction.SOFTMAX, ScoringFunction.SIGMOID)) {
            assertRow(RouterConfig.of(scoring, true), nothing, 2, new int[] {0, 1}, 0, 0);
        }
    }

    @Test
    void aScoreThatIsNotFiniteIsZeroBeforeTheBiasIsAdded() {
        Routing routing = Router.route(new double[] {NAN, -2, NAN}, 1, 3, 2, DEEPSEEK, new float[] {.5f, 0, .1f});
        assertThat(routing.ids()).containsExactly(0, 1);
        assertThat(routing.weights()).containsExactly(0, 1);
    }

    @Test
    void withGroupsWhatIsNotFiniteComesLastAndWeighsNothing() {
        RouterConfig one = DEEPSEEK.withGroups(1, 1).withRoutedScalingFactor(2.5);
        float[] bias = {9, 0, 0, 0};
        Routing some = Router.route(new double[] {INF, 0, NAN, 3}, 1, 4, 3, one, bias);
        assertThat(some.ids()).containsExactly(3, 1, 0);
        assertThat(some.weights()[2]).isZero();
        assertThat(some.weights()[0] + some.weights()[1]).isCloseTo(2.5, within(1e-12));
        Routing none = Router.route(new double[] {INF, -INF, NAN, NAN}, 1, 4, 2, one, bias);
        assertThat(none.ids()).containsExactly(0, 1);
        assertThat(none.weights()).containsExactly(.5, .5);
        Routing groups = Router.route(new double[] {NAN, NAN, 1, NAN}, 1, 4, 2, DEEPSEEK.withGroups(2, 1), bias);
        assertThat(groups.ids()).as("both groups have a sum of -infinity").containsExactly(0, 1);
        assertThat(groups.weights()).containsExactly(0, 0);
    }

    @Test
    void groupsThatDoNotDivideTheExpertsAreNoGroups() {
        double[] logits = {1, 5, 2, 4, 3};
        for (int groups : new int[] {2, 5}) {
            RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, false)
                    .withGroups(groups, 1)
                    .withRoutedScalingFactor(2);
            Routing routing = Router.route(logits, 1, 5, 3, router, null);
            assertThat(routing.ids()).containsExactly(1, 3, 4);
            // vLLM forgets score function and factor here.
            assertThat(routing.weights()[0]).isCloseTo(2 / (1 + Math.exp(-5)), within(1e-12));
        }
    }

    @Test
    void sharedAndZeroExpertsFollow() {
        FusedMoeConfig config = config(RouterConfig.of(ScoringFunction.SOFTMAX, false)
                .withRoutedScalingFactor(3)
                .withZeroExperts(2)
                .withSharedExpertGate());
        assertThat(config.numRouterLogits()).isEqualTo(7);
        RouterWeights router = new RouterWeights(new float[0], null, null, new float[4]);
        Routing routing = Router.route(config, router, new double[] {0, 2, 0, 0, 3, 0, -1}, 1);
        assertThat(routing.ids()).containsExactly(6, 1, 4, 5);
        double sum = Math.exp(3) + Math.exp(2) + 4;
        assertThat(routing.weights()[0]).isCloseTo(3 * Math.exp(3) / sum, within(1e-12));
        assertThat(routing.weights()[3]).isEqualTo(1 / (1 + Math.exp(1)));
    }

    @Test
    void logitsHaveTheBiasButTheGateHasNot() {
        FusedMoeConfig config = RandomLayer.of(2, 1, 3, 4, 1, 1).config().toBuilder()
                .numFusedSharedExperts(1)
                .router(RouterConfig.of(ScoringFunction.SOFTMAX, true).withSharedExpertGate())
                .build();
        RouterWeights router =
                new RouterWeights(new float[] {1, 2, 3, 4, 5, 6}, new float[] {10, 20}, null, new float[] {0, 0, 1});
        assertThat(Router.logits(config, router, new double[] {1, 1, 2}, 1)).containsExactly(19, 41, 2);
    }

    @Test
    void logitsAreOfEveryTokenAndWantAWeightAndAllHiddenStates() {
        FusedMoeConfig config = RandomLayer.of(2, 1, 3, 4, 2, 1).config();
        RouterWeights router = RouterWeights.of(new float[] {1, 2, 3, 4, 5, 6});
        assertThat(Router.logits(config, router, new double[] {1, 0, 0, 0, 1, 2}, 2))
                .containsExactly(1, 4, 8, 17);
        assertThatIllegalArgumentException().isThrownBy(() -> Router.logits(config, router, new double[5], 2));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Router.logits(config, RouterWeights.NONE, new double[6], 2))
                .withMessage("router: expected one with a weight, got one without (the caller passes router logits)");
        assertThatIllegalArgumentException().isThrownBy(() -> Router.route(config, router, new double[5], 2));
    }

    /** The two PhiMoE's kernel would choose, each by itself among those near it; 0.02 of the greatest is the margin. */
    @Test
    void theSparseMixerScoresAndChoosesByTurns() {
        RouterConfig mixer =
                RouterConfig.of(ScoringFunction.SPARSE_MIXER, false).withRoutedScalingFactor(2);
        double near = 9.9;
        double[] logits = {1, 10, near, 10 - .21, 1, -3};
        Routing routing = Router.route(logits, 1, 6, 2, mixer, null);
        assertThat(routing.ids()).containsExactly(1, 2);
        assertThat(routing.weights())
                .containsExactly(
                        new double[] {2 / (1 + Math.exp(-.1)), 2 / (1 + Math.exp(10 - .21 - near))}, within(1e-12));
        Routing special = Router.route(new double[] {NAN, -1, INF, -INF}, 1, 4, 2, mixer, null);
        assertThat(special.ids()).as("what isn't finite comes last").containsExactly(1, 0);
        assertThat(special.weights()[0]).isEqualTo(2);
        assertThat(Router.route(logits, 1, 6, 1, mixer, null).ids()).containsExactly(1);
    }

    /** Yuan's: a query that is 0 sees all values alike, a large one the value of the largest key. */
    @Test
    void expertsThatAttendGetWhatTheirQueriesFind() {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(3)
                .expertsPerToken(2)
                .hiddenDim(4)
                .intermediateSize(4)
                .router(RouterConfig.of(ScoringFunction.ATTENTION, false))
                .build();
        double[] queries = {0, 100, -100};
        double[] keys = {1, -1, 0};
        double[] values = {3, 6, 9};
        double[] logits =
                Stream.of(queries, keys, values).flatMapToDouble(Arrays::stream).toArray();
        Routing routing = Router.route(config, RouterWeights.NONE, logits, 1);
        double[] found = {6, 3, 6}; // the mean, the first expert's, the second's
        double total = Arrays.stream(found).map(Math::exp).sum();
        assertThat(routing.ids()).containsExactly(0, 2);
        assertThat(routing.weights())
                .containsExactly(new double[] {Math.exp(6) / total, Math.exp(6) / total}, within(1e-12));
    }

    /** Klear's: what the gate leaves is the others', whose weights it multiplies. */
    @Test
    void aMixedSharedExpertLeavesTheRest() {
        RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, true).withMixedShared();
        FusedMoeConfig config = config(router);
        double gate = 0.75;
        double[] logits = {1, 2, 3, 4, gate};
        Routing mixed = Router.route(config, RouterWeights.NONE, logits, 1);
        Routing alone = Router.route(
                config(RouterConfig.of(ScoringFunction.SIGMOID, true).withSharedExpertGate()),
                RouterWeights.NONE,
                logits,
                1);
        double share = 1 / (1 + Math.exp(-gate));
        int k = config.expertsPerToken();
        for (int slot = 0; slot < k; slot++) {
            assertThat(mixed.weights()[slot]).isEqualTo(alone.weights()[slot] * (1 - share), within(1e-12));
        }
        assertThat(mixed.weights()[k]).isEqualTo(share, within(1e-12));
    }

    /** Shared, zero experts and gate included, and so with a function of the caller's. */
    @Test
    void aTokensChoiceIsItsOwn() {
        RouterConfig plain = RouterConfig.of(ScoringFunction.SOFTMAX, true)
                .withRoutedScalingFactor(3)
                .withZeroExperts(2)
                .withSharedExpertGate();
        for (RouterConfig router : List.of(
                plain,
                plain.withCorrectionBias(),
                RouterConfig.of(ScoringFunction.SPARSE_MIXER, false).withZeroExperts(3))) {
            FusedMoeConfig config = config(router);
            float[] bias = router.hasCorrectionBias() ? RoutingCases.any(6, 9) : null;
            RouterWeights weights = new RouterWeights(new float[0], null, bias, new float[4]);
            double[] logits = Numerics.widen(RoutingCases.any(3 * 7, 4));
            Routing together = Router.route(config, weights, logits, 3);
            for (int m = 0; m < 3; m++) {
                Routing alone = Router.route(config, weights, Arrays.copyOfRange(logits, m * 7, (m + 1) * 7), 1);
                assertThat(Arrays.copyOfRange(together.ids(), m * 4, (m + 1) * 4))
                        .isEqualTo(alone.ids());
                assertThat(Arrays.copyOfRange(together.weights(), m * 4, (m + 1) * 4))
                        .isEqualTo(alone.weights());
            }
        }
    }

    @Test
    void aFunctionOfTheCallersSeesTheLogitsOfAllTokensWithoutTheGates() {
        FusedMoeConfig config = config(
                RouterConfig.of(ScoringFunction.CUSTOM, true).withZeroExperts(1).withSharedExpertGate());
        double[] logits = {1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10, 1};
        Routing routing = Router.route(
                config,
                (x, seen, tokens, k, renormalize) -> {
                    assertThat(seen).containsExactly(1, 2, 3, 4, 5, 6, 7, 8, 9, 10);
                    assertThat(renormalize).isTrue();
                    return new ChosenExperts(k, new int[] {0, 1, 3, 1}, new float[] {1, 2, 3, 4});
                },
                new float[8],
                logits,
                2);
        assertThat(routing.ids()).containsExactly(0, 1, 4, 5, 3, 1, 4, 5);
        double one = 1 / (1 + Math.exp(-1));
        assertThat(routing.weights()).containsExactly(1, 2, .5, .5, 3, 4, one, one);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Router.route(
                        config,
                        (x, l, m, k, r) -> new ChosenExperts(k, new int[] {0, 1, 2, 2}, new float[4]),
                        new float[8],
                        logits,
                        2))
                .withMessage(
                        "router: expected ids from 0 to 4, each at most once per token, or -1, got 2 again for token"
                                + " 1");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Router.route(
                        config,
                        (x, l, m, k, r) -> new ChosenExperts(k, new int[] {0, 1, 2, -2}, new float[4]),
                        new float[8],
                        logits,
                        2))
                .withMessage(
                        "router: expected ids from 0 to 4, each at most once per token, or -1, got -2 for token 1");
    }

    @Test
    void asManyAreChosenAsThereAre() {
        RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, false);
        assertThat(Router.route(new double[] {1, 2}, 1, 2, 2, router, null).ids())
                .containsExactly(1, 0);
        assertThatIllegalArgumentException().isThrownBy(() -> Router.route(new double[5], 2, 3, 1, router, null));
        for (int k : new int[] {0, 3}) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Router.route(new double[2], 1, 2, k, router, null))
                    .withMessage("topK: expected 1 to the 2 experts, got " + k);
        }
    }

    /** Nothing overflows: a softmax is of differences from the greatest. */
    @Test
    void greatLogitsDoNotOverflow() {
        Routing routing = Router.route(
                new double[] {1000, 999, 0}, 1, 3, 2, RouterConfig.of(ScoringFunction.SOFTMAX, false), null);
        assertThat(routing.weights())
                .containsExactly(new double[] {1 / (1 + Math.exp(-1)), 1 / (1 + Math.E)}, within(1e-12));
    }

    @Test
    void aFunctionOfTheCallersIsHeldToItsWord() {
        FusedMoeConfig config = config(RouterConfig.of(ScoringFunction.CUSTOM, false)
                .withRoutedScalingFactor(2)
                .withZeroExperts(1));
        float[] hidden = new float[4];
        Routing routing = Router.route(
                config,
                (x, logits, tokens, k, renormalize) ->
                        new ChosenExperts(k, new int[] {4, -1}, new float[] {logits[4], 0}),
                hidden,
                new double[] {0, 0, 0, 0, .25},
                1);
        assertThat(routing.ids()).containsExactly(6, -1, 4, 5);
        assertThat(routing.weights()).containsExactly(.5, 0, 1, 1);
        refused(
                config,
                new int[] {0, 0},
                new float[2],
                "router: expected ids from 0 to 4, each at most once per token, or -1, got 0 again for token 0");
        refused(
                config,
                new int[] {5, 0},
                new float[2],
                "router: expected ids from 0 to 4, each at most once per token, or -1, got 5 for token 0");
        refused(
                config,
                new int[] {1, 0},
                new float[] {1, Float.NaN},
                "router: expected finite weights, got NaN for token 0, expert 0");
        refused(config, new int[1], new float[1], "router: expected [1, 2] ids and weights, got 1 and 1");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Router.route(config, RouterWeights.NONE, new double[5], 1))
                .withMessage("router: expected one that chooses by logits, got custom");
    }

    private static void refused(FusedMoeConfig config, int[] ids, float[] weights, String message) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Router.route(
                        config, (x, l, m, k, r) -> new ChosenExperts(k, ids, weights), new float[4], new double[0], 1))
                .withMessage(message);
    }

    /** Four experts, top 2, two shared ones, H = 4. */
    private static FusedMoeConfig config(RouterConfig router) {
        return RandomLayer.of(4, 2, 4, 4, 1, 1).config().toBuilder()
                .numFusedSharedExperts(2)
                .router(router)
                .build();
    }

    private static void assertRow(RouterConfig router, double[] logits, int k, int[] ids, double... weights) {
        Routing routing = Router.route(logits, 1, logits.length, k, router, null);
        assertThat(routing.ids()).as("%s", router).isEqualTo(ids);
        assertThat(routing.weights()).as("%s", router).containsExactly(weights, within(1e-4));
    }
}
