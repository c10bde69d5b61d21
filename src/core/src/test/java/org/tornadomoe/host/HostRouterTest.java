package org.tornadomoe.host;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.util.Arrays;
import java.util.List;
import java.util.concurrent.FutureTask;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.RoutingCases;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.kernel.TopKRouter;
import org.tornadomoe.quant.RouterNetwork;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;

/** The host's router against the definition's. */
class HostRouterTest {
    private static final RouterConfig SIGMOID = RouterConfig.of(ScoringFunction.SIGMOID, true);

    /** Ids and weights are the definition's to the bit, whatever the logits. */
    @Test
    void routingIsTheDefinitions() {
        int tokens = 40;
        for (int choices : new int[] {8, 12}) {
            for (RouterConfig router : RoutingCases.routers(choices, 3)) {
                RandomLayer layer =
                        RandomLayer.of(choices, 3, 16, 16, tokens, 2).routedBy(router);
                for (float[] logits : List.of(
                        RoutingCases.ties(tokens * choices, 1),
                        RoutingCases.any(tokens * choices, 2),
                        RoutingCases.special(tokens, choices, 3))) {
                    Routing expected = Router.route(
                            layer.config(), layer.router(), Numerics.widen(logits), logits.length / choices);
                    HostRouter own = new HostRouter(layer.config(), layer.router());
                    Scratch scratch = new Scratch();
                    scratch.require(16, own.paddedLogits(), own.groups());
                    int[] ids = new int[expected.ids().length];
                    double[] weights = new double[ids.length];
                    for (int m = 0; m < logits.length / choices; m++) {
                        for (int c = 0; c < choices; c++) {
                            scratch.logits[c] = logits[m * choices + c];
                        }
                        own.route(scratch, ids, weights, m * 3);
                    }
                    assertThat(ids).as("%s", router).isEqualTo(expected.ids());
                    assertThat(weights).as("%s", router).isEqualTo(expected.weights());
                }
            }
        }
    }

    /**
     * Zero experts and shared ones with a gate; a bias on the logits; rows of the weight that fill no, one and two
     * blocks of 16.
     */
    @ParameterizedTest
    @ValueSource(ints = {3, 13, 14, 29, 30})
    void tokensAreRoutedAsByTheDefinition(int experts) {
        int tokens = 5;
        RandomLayer layer = RandomLayer.of(experts, 3, 7, 8, tokens, 4)
                .sharing(2)
                .routedBy(SIGMOID.withZeroExperts(2).withCorrectionBias().withSharedExpertGate());
        FusedMoeConfig config = layer.config();
        RouterWeights drawn = layer.router();
        RouterWeights weights = new RouterWeights(
                drawn.weight(), RoutingCases.any(experts + 2, 1), drawn.correctionBias(), drawn.sharedExpertGate());
        float[] hidden = layer.hidden(tokens, 1);
        Routing expected =
                Router.route(config, weights, Router.logits(config, weights, Numerics.widen(hidden), tokens), tokens);
        HostRouter router = new HostRouter(config, weights);
        for (ChosenExperts chosen : List.of(router.route(hidden, tokens), router.routeOnAllCores(hidden, tokens))) {
            assertThat(chosen.ids()).isEqualTo(expected.ids());
            for (int p = 0; p < expected.weights().length; p++) {
                assertThat(chosen.weights()[p]).isEqualTo((float) expected.weights()[p], within(1e-6f));
            }
        }
        int blocks = Math.ceilDiv(experts + 3, 16);
        assertThat(router.paddedLogits()).isEqualTo(16 * blocks);
        assertThat(router.bytes()).isEqualTo(4L * 16 * blocks * 7);
    }

    /** Ways of routing that no device has: scores of shared experts among the divided, logits cut off smoothly. */
    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3})
    void whatIsRoutedHereAloneIsTheDefinitions(int shared) {
        int tokens = 9;
        RouterConfig corrected = SIGMOID.withCorrectionBias().withRoutedScalingFactor(2.5);
        for (RouterConfig kind : List.of(
                corrected.withNormalizedShared(),
                corrected.withNormalizedShared().withLogitCap(0.5),
                RouterConfig.of(ScoringFunction.SQRTSOFTPLUS, true).withNormalizedShared(),
                corrected.withMixedShared(),
                RouterConfig.of(ScoringFunction.SOFTMAX, true)
                        .withZeroExperts(2)
                        .withMixedShared(),
                RouterConfig.of(ScoringFunction.ATTENTION, true).withRoutedScalingFactor(1.5),
                RouterConfig.of(ScoringFunction.SOFTMAX, true).withLogitCap(0.25),
                corrected.withLogitCap(2))) {
            RandomLayer layer =
                    RandomLayer.of(13, 3, 7, 8, tokens, 4).sharing(shared).routedBy(kind);
            FusedMoeConfig config = layer.config();
            RouterWeights weights = layer.router();
            assertThat(config.router().isHandedIn()).isTrue();
            float[] hidden = layer.hidden(tokens, 1);
            Routing expected = Router.route(
                    config, weights, Router.logits(config, weights, Numerics.widen(hidden), tokens), tokens);
            ChosenExperts chosen = new HostRouter(config, weights).route(hidden, tokens);
            assertThat(chosen.ids()).isEqualTo(expected.ids());
            for (int p = 0; p < expected.weights().length; p++) {
                assertThat(chosen.weights()[p]).as("%s", kind).isEqualTo((float) expected.weights()[p], within(1e-6f));
            }
        }
    }

    @Test
    void noFunctionStandsInWhereSharedScoresAreDividedToo() {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 1, 1).sharing(1).routedBy(SIGMOID.withNormalizedShared());
        TopKRouter any = (hidden, logits, tokens, k, renormalize) -> ChosenExperts.allocate(tokens, k);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new HostRouter(layer.config(), layer.router(), any))
                .withMessageStartingWith("router: expected none in the options");
        RandomLayer attends =
                RandomLayer.of(4, 2, 8, 8, 1, 1).routedBy(RouterConfig.of(ScoringFunction.ATTENTION, true));
        FusedMoeConfig ofCaller = attends.config().toBuilder()
                .router(attends.config().router().handedIn())
                .build();
        attends.router().requireFits(ofCaller);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new HostRouter(ofCaller, attends.router(), any))
                .withMessageStartingWith("router: expected none in the options");
    }

    /** Whether another thread would get the cores; none of the common pool's, which has the helpers. */
    private static boolean areCoresFree() throws Exception {
        FutureTask<Boolean> asked = new FutureTask<>(() -> {
            boolean free = Team.shared().begin();
            if (free) {
                Team.shared().end();
            }
            return free;
        });
        Thread.ofPlatform().start(asked);
        return asked.get();
    }

    @Test
    void theCoresAreGivenBack() throws Exception {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 3, 1);
        HostRouter router = new HostRouter(layer.config(), layer.router());
        boolean before = areCoresFree();
        router.routeOnAllCores(layer.hidden(3, 1), 3);
        assertThat(areCoresFree()).isEqualTo(before);
    }

    @Test
    void theRouterKeepsItsOwnCopies() {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 1, 1).routedBy(SIGMOID.withCorrectionBias());
        float[] correction = {0, 0, 0, 0};
        float[] bias = {0, 0, 0, 0};
        RouterWeights weights = new RouterWeights(layer.router().weight(), bias, correction, null);
        HostRouter router = new HostRouter(layer.config(), weights);
        ChosenExperts before = router.route(layer.hidden(1, 1), 1);
        Arrays.fill(weights.weight(), 7);
        bias[3] = 100;
        correction[2] = 100;
        assertThat(router.route(layer.hidden(1, 1), 1).ids()).isEqualTo(before.ids());
        assertThat(router.route(layer.hidden(1, 1), 1).weights()).isEqualTo(before.weights());
    }

    /** The last of E, E + n and more: the ids of what is chosen, shared or handed on. */
    @Test
    void zeroExpertsComeAfterTheSharedOnes() {
        FusedMoeConfig config = RandomLayer.of(3, 2, 4, 4, 1, 1)
                .sharing(2)
                .routedBy(RouterConfig.of(ScoringFunction.IDENTITY, false).withZeroExperts(2))
                .config();
        HostRouter router = new HostRouter(config, RouterWeights.NONE);
        int[] ids = new int[5];
        double[] weights = new double[5];
        Scratch scratch = scratch(router, 1, 2, 9, 8, 7);
        router.route(scratch, ids, weights, 1);
        assertThat(ids).containsExactly(0, 2, 5, 3, 4);
        assertThat(weights).containsExactly(0, 9, 8, 1, 1);
        assertThat(router.bytes()).isZero();
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 0.25", "1, 2, 0.25", "2, 1, 0"})
    void withoutAFiniteLogitOneGroupSharesAlikeAndGroupsWeighNothing(int groups, int factor, double weight) {
        RouterConfig config = SIGMOID.withCorrectionBias().withGroups(groups, 1).withRoutedScalingFactor(factor);
        HostRouter router = new HostRouter(
                RandomLayer.of(8, 4, 4, 4, 1, 1).routedBy(config).config(),
                new RouterWeights(new float[0], null, new float[8], null));
        double nan = Double.NaN;
        int[] ids = new int[4];
        double[] weights = new double[4];
        router.route(scratch(router, nan, nan, nan, nan, nan, nan, nan, nan), ids, weights, 0);
        assertThat(ids).containsExactly(0, 1, 2, 3);
        assertThat(weights).as("without the factor").containsOnly(weight);
    }

    private static Scratch scratch(HostRouter router, double... logits) {
        Scratch scratch = new Scratch();
        scratch.require(0, router.paddedLogits(), router.groups());
        System.arraycopy(logits, 0, scratch.logits, 0, logits.length);
        return scratch;
    }

    @ParameterizedTest
    @EnumSource(
            value = ScoringFunction.class,
            names = {"CUSTOM", "SIMULATED"})
    void aChoiceOfTheCallersIsRefused(ScoringFunction scoring) {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 1, 1).routedBy(RouterConfig.of(scoring, false));
        HostRouter router = new HostRouter(layer.config(), layer.router());
        assertThatIllegalArgumentException()
                .isThrownBy(() -> router.route(layer.hidden(1, 1), 1))
                .withMessage("router: expected one that chooses by logits, got " + scoring);
    }

    private static List<RouterConfig> scoresThatNoKernelHas() {
        return List.of(
                RouterConfig.of(ScoringFunction.SPARSE_MIXER, false),
                RouterConfig.of(ScoringFunction.SOFTMAX, false).ofEachGroup(3),
                RouterConfig.of(ScoringFunction.SOFTMAX, true).ofEachGroup(1));
    }

    @ParameterizedTest
    @MethodSource("scoresThatNoKernelHas")
    void scoresThatNoKernelHasAreTheDefinitions(RouterConfig scored) {
        int tokens = 40;
        RandomLayer layer = RandomLayer.of(12, 3, 16, 16, tokens, 2).routedBy(scored.withRoutedScalingFactor(1.5));
        HostRouter router = new HostRouter(layer.config(), layer.router());
        for (float[] logits : List.of(
                RoutingCases.ties(tokens * 12, 1),
                RoutingCases.any(tokens * 12, 2),
                RoutingCases.special(tokens, 12, 3))) {
            Routing expected = Router.route(layer.config(), layer.router(), Numerics.widen(logits), logits.length / 12);
            int[] ids = new int[expected.ids().length];
            double[] weights = new double[ids.length];
            for (int m = 0; m < logits.length / 12; m++) {
                double[] row = Numerics.widen(Arrays.copyOfRange(logits, m * 12, (m + 1) * 12));
                router.route(scratch(router, row), ids, weights, m * 3);
            }
            assertThat(ids).isEqualTo(expected.ids());
            assertThat(weights).isEqualTo(expected.weights());
        }
    }

    /** A function of the caller's sees the logits in float; the scaling factor, shared and zero experts come on top. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void aFunctionsChoiceIsTheDefinitions(boolean hasGate) {
        int tokens = 50;
        RouterConfig scored = SIGMOID.withZeroExperts(2).withRoutedScalingFactor(2.5);
        RandomLayer layer = RandomLayer.of(6, 3, 17, 8, tokens, 4)
                .sharing(2)
                .routedBy(hasGate ? scored.withSharedExpertGate() : scored);
        FusedMoeConfig config = layer.config().toBuilder()
                .router(layer.config().router().handedIn())
                .build();
        TopKRouter function = (x, logits, m, k, _) -> {
            ChosenExperts chosen = ChosenExperts.allocate(m, k);
            for (int p = 0; p < m * k; p++) {
                chosen.ids()[p] = p % k == 2 ? -1 : (p / k + 7 * (p % k)) % 8;
                chosen.weights()[p] = logits[p / k * 8 + p % 8] + x[p / k * 17];
            }
            return chosen;
        };
        float[] hidden = layer.hidden(tokens, 1);
        double[] logits = Router.logits(config, layer.router(), Numerics.widen(hidden), tokens);
        ChosenExperts expected =
                Router.route(config, function, hidden, logits, tokens).chosen();
        HostRouter router = new HostRouter(config, layer.router(), function);
        for (ChosenExperts chosen : List.of(router.route(hidden, tokens), router.routeOnAllCores(hidden, tokens))) {
            assertThat(chosen.ids()).isEqualTo(expected.ids());
            assertThat(chosen.weights()).isEqualTo(expected.weights());
        }
    }

    @Test
    void aRouterWithoutAWeightIsRefused() {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 1, 1);
        HostRouter router = new HostRouter(layer.config(), RouterWeights.NONE);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> router.routeOnAllCores(new float[8], 1))
                .withMessage("router: expected one with a weight, got one without (the caller passes router logits)");
    }

    /** Worked out by hand; powers of two, so that floats are exact. */
    private static RouterNetwork network(float @Nullable [] stateFactor) {
        return new RouterNetwork(
                new float[] {1, 0.5f, -0.25f, 1},
                new float[] {0.125f, -0.25f},
                stateFactor,
                new float[] {1, 2},
                0.25,
                new float[] {0.5f, -1, 1, 0.25f},
                new float[] {0.25f, -0.5f},
                new float[] {2, 1, -1, 0.5f},
                new float[] {-0.125f, 0.5f},
                new float[] {0.25f, 0.5f, 0.75f, -0.25f, -0.125f, 0.25f},
                new float[] {0.25f, -0.125f, 0.125f});
    }

    /** The choice is that of score and bias, the weight the score; the last choice is no expert. */
    @ParameterizedTest
    @CsvSource({
        "false, false, 0.9240661272398697, 0.06647192343216578, 0.4203447420696829",
        "true, true, 0.9340786384577682, 0.05848399185393076, 0.40138812804696145",
        "true, false, 0.9240661272398697, 0.06647192343216578, 0.4203447420696829", // a model's first layer
        "false, true, 0.9240661272398697, 0.06647192343216578, 0.4203447420696829"
    })
    void aRouterThatIsANetwork(boolean before, boolean reads, double first, double second, double third) {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(2)
                .expertsPerToken(2)
                .hiddenDim(2)
                .intermediateSize(4)
                .router(RouterConfig.of(ScoringFunction.NETWORK, false).withRoutedScalingFactor(2.5))
                .build();
        RouterWeights weights =
                new RouterWeights(new float[0], null, null, null, null, network(reads ? new float[] {0.5f, 2} : null));
        weights.requireFits(config);
        float[] hidden = {2, -1, 0.5f, 4};
        float[] states = {1, -0.5f, -2, 0.25f};
        RouterInputs inputs = before ? RouterInputs.ofStates(states) : RouterInputs.NONE;
        double[] logits = Router.logits(config, weights, Numerics.widen(hidden), 2);
        Routing expected = Router.route(config, weights, hidden, logits, 2, inputs);
        assertThat(expected.ids()).containsExactly(1, 0, 0, -1);
        assertThat(expected.weights())
                .containsExactly(new double[] {2.5 * first, 2.5 * second, 2.5 * third, 0}, within(1e-12));
        ChosenExperts chosen = new HostRouter(config, weights).routeOnAllCores(hidden, 2, inputs);
        assertThat(chosen.ids()).containsExactly(1, 0, 0, -1);
        assertThat(chosen.weights())
                .containsExactly(
                        new float[] {(float) (2.5 * first), (float) (2.5 * second), (float) (2.5 * third), 0},
                        within(1e-6f));
        if (before) { // the host's gives the next layer its states
            assertThat(states)
                    .containsExactly(
                            reads
                                    ? new float[] {2.125f, -2.75f, 1.625f, 4.125f}
                                    : new float[] {1.625f, -1.75f, 2.625f, 3.625f});
        }
    }

    /** SmallThinker's reads what its layer had before attention. */
    @Test
    void aRouterThatReadsSomethingElse() {
        RandomLayer layer = RandomLayer.of(6, 2, 5, 8, 3, 1);
        RandomLayer own = layer.routedBy(RouterConfig.topKThenSigmoid(true).withOwnInput());
        RandomLayer plain = layer.routedBy(RouterConfig.topKThenSigmoid(true));
        float[] hidden = layer.hidden(3, 1);
        float[] read = layer.hidden(3, 2);
        HostRouter router = new HostRouter(own.config(), own.router());
        ChosenExperts chosen = router.routeOnAllCores(hidden, 3, RouterInputs.ofHidden(read));
        ChosenExperts expected = new HostRouter(plain.config(), plain.router()).route(read, 3);
        assertThat(chosen.ids()).isEqualTo(expected.ids());
        assertThat(chosen.weights()).isEqualTo(expected.weights());
        assertThatIllegalArgumentException()
                .isThrownBy(() -> router.route(hidden, 3))
                .withMessage("hidden: expected what this layer's router reads, [3, 5] values, got none");
        RouterInputs few = RouterInputs.ofHidden(new float[14]);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> router.routeOnAllCores(hidden, 3, few))
                .withMessage("hidden: expected what this layer's router reads, [3, 5] values, got 14");
    }

    /** By the token's id, with the scores of those experts; one that is there twice is one, with both weights. */
    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void aRouterThatIsATable(boolean renormalize) {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(3)
                .expertsPerToken(2)
                .hiddenDim(2)
                .intermediateSize(4)
                .numFusedSharedExperts(1)
                .router(RouterConfig.of(ScoringFunction.TOKEN_TABLE, renormalize)
                        .withRoutedScalingFactor(2.5)
                        .withSharedExpertGate())
                .build();
        RouterWeights weights = new RouterWeights(
                new float[] {1, 0, 0.5f, -1, -0.25f, 0.75f},
                null,
                null,
                new float[] {0.5f, 0.25f},
                new int[] {2, 0, 1, 1, 0, 2},
                null);
        weights.requireFits(config);
        float[] hidden = {1, 2, -1, 0.5f, 0.5f, -2};
        RouterInputs inputs = RouterInputs.ofTokenIds(1, 0, 2);
        int[] ids = {1, -1, 3, 2, 0, 3, 0, 2, 3};
        double[][] scores = {
            {score(-1.5), score(-1.5), 1 / (1 + Math.exp(-1))},
            {score(0.625), score(-1), 1 / (1 + Math.exp(0.375))},
            {score(0.5), score(-1.625), 1 / (1 + Math.exp(0.25))}
        };
        double[] expected = new double[9];
        for (int m = 0; m < 3; m++) {
            double factor = 2.5 / (renormalize ? scores[m][0] + scores[m][1] : 1);
            expected[3 * m] = scores[m][0] * factor;
            expected[3 * m + 1] = scores[m][1] * factor;
            expected[3 * m + 2] = scores[m][2];
        }
        expected[0] += expected[1];
        expected[1] = 0;
        Routing routing = Router.route(
                config, weights, hidden, Router.logits(config, weights, Numerics.widen(hidden), 3), 3, inputs);
        assertThat(routing.ids()).containsExactly(ids);
        assertThat(routing.weights()).containsExactly(expected, within(1e-12));
        ChosenExperts chosen = new HostRouter(config, weights).routeOnAllCores(hidden, 3, inputs);
        assertThat(chosen.ids()).containsExactly(ids);
        for (int p = 0; p < ids.length; p++) {
            assertThat((double) chosen.weights()[p]).isCloseTo(expected[p], within(1e-6));
        }
    }

    private static double score(double logit) {
        return Math.sqrt(Math.log1p(Math.exp(logit)));
    }
}
