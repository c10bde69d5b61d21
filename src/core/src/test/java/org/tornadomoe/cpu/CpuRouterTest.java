package org.tornadomoe.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.util.Arrays;
import java.util.List;
import java.util.concurrent.FutureTask;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.RoutingCases;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;

/** The CPU's router against the definition's. */
class CpuRouterTest {
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
                            layer.config(), layer.router(), Reference.widen(logits), logits.length / choices);
                    CpuRouter own = new CpuRouter(layer.config(), layer.router());
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

    /** Zero experts and shared ones with a gate; a bias on the logits; rows of the weight that fill no, one and two blocks of 16. */
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
                Router.route(config, weights, Router.logits(config, weights, Reference.widen(hidden), tokens), tokens);
        CpuRouter router = new CpuRouter(config, weights);
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
        CpuRouter router = new CpuRouter(layer.config(), layer.router());
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
        CpuRouter router = new CpuRouter(layer.config(), weights);
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
        CpuRouter router = new CpuRouter(config, RouterWeights.NONE);
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
        CpuRouter router = new CpuRouter(
                RandomLayer.of(8, 4, 4, 4, 1, 1).routedBy(config).config(),
                new RouterWeights(new float[0], null, new float[8], null));
        double nan = Double.NaN;
        int[] ids = new int[4];
        double[] weights = new double[4];
        router.route(scratch(router, nan, nan, nan, nan, nan, nan, nan, nan), ids, weights, 0);
        assertThat(ids).containsExactly(0, 1, 2, 3);
        assertThat(weights).as("without the factor").containsOnly(weight);
    }

    private static Scratch scratch(CpuRouter router, double... logits) {
        Scratch scratch = new Scratch();
        scratch.require(0, router.paddedLogits(), router.groups());
        System.arraycopy(logits, 0, scratch.logits, 0, logits.length);
        return scratch;
    }

    @ParameterizedTest
    @EnumSource(
            value = ScoringFunction.class,
            names = {"CUSTOM", "SIMULATED", "SPARSE_MIXER"})
    void aChoiceOfTheHostsIsRefused(ScoringFunction scoring) {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 1, 1).routedBy(RouterConfig.of(scoring, false));
        CpuRouter router = new CpuRouter(layer.config(), layer.router());
        assertThatIllegalArgumentException()
                .isThrownBy(() -> router.route(layer.hidden(1, 1), 1))
                .withMessage("router: expected one that chooses by logits, got " + scoring);
    }

    @Test
    void aRouterWithoutAWeightIsRefused() {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 1, 1);
        CpuRouter router = new CpuRouter(layer.config(), RouterWeights.NONE);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> router.routeOnAllCores(new float[8], 1))
                .withMessage("router: expected one with a weight, got one that is handed its logits");
    }
}
