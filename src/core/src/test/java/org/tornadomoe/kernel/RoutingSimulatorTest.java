package org.tornadomoe.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.RoutingMethodType;

class RoutingSimulatorTest {
    private static ChosenExperts route(TopKRouter router, int tokens, int topK) {
        return router.route(new float[0], new float[0], tokens, topK, true);
    }

    @Test
    void namesAreVllms() {
        for (RoutingSimulator strategy : RoutingSimulator.values()) {
            assertThat(RoutingSimulator.fromString(strategy.toString())).isEqualTo(strategy);
        }
        assertThatIllegalArgumentException()
                .isThrownBy(() -> RoutingSimulator.fromString("zipf"))
                .withMessage("Unknown routing strategy: zipf. Available strategies: ['uniform_random',"
                        + " 'normal_routing']");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> RoutingSimulator.NORMAL_ROUTING.router(0, 1))
                .withMessage("choices: expected a positive number, got 0");
    }

    @ParameterizedTest
    @EnumSource
    void everyTokenGetsExpertsThatDifferAndTheSameNumbersGiveTheSame(RoutingSimulator strategy) {
        for (int topK : new int[] {1, 3, 7}) {
            ChosenExperts chosen = route(strategy.router(7, 5), 50, topK);
            for (int m = 0; m < 50; m++) {
                assertThat(Arrays.copyOfRange(chosen.ids(), m * topK, (m + 1) * topK))
                        .doesNotHaveDuplicates();
                double sum = 0;
                for (int p = m * topK; p < (m + 1) * topK; p++) {
                    assertThat(chosen.ids()[p]).isBetween(0, 6);
                    assertThat(chosen.weights()[p]).isNotNegative();
                    sum += chosen.weights()[p];
                }
                assertThat(sum).isCloseTo(strategy == RoutingSimulator.UNIFORM_RANDOM ? topK : 1, within(1e-6));
            }
            TopKRouter again = strategy.router(7, 5);
            assertThat(route(again, 50, topK).ids()).isEqualTo(chosen.ids());
            if (topK < 7) {
                assertThat(route(again, 50, topK).ids()).as("the next call").isNotEqualTo(chosen.ids());
            }
        }
    }

    /**
     * Of ten experts, shares by the distribution function: the sigmoid of a normal deviate lies in [0.4, 0.6) with p
     * 0.3148.
     */
    @Test
    void uniformIsFlatAndNormalIsHighInTheMiddle() {
        for (RoutingSimulator strategy : RoutingSimulator.values()) {
            int[] counts = new int[10];
            for (int id : route(strategy.router(10, 3), 40_000, 1).ids()) {
                counts[id]++;
            }
            double middle = (counts[4] + counts[5]) / 40_000.0;
            double ends = (counts[0] + counts[9]) / 40_000.0;
            boolean uniform = strategy == RoutingSimulator.UNIFORM_RANDOM;
            assertThat(middle).as("%s", strategy).isCloseTo(uniform ? 0.2 : 0.3148, within(0.015));
            assertThat(ends).as("%s", strategy).isCloseTo(uniform ? 0.2 : 0.0280, within(0.015));
        }
    }

    @Test
    void aLayerRunsUnderItsLoad() {
        RandomLayer weights = RandomLayer.of(6, 2, 24, 16, 9, 1);
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend("reference")
                .withMaxTokens(9)
                .withRouter(RoutingSimulator.UNIFORM_RANDOM.router(6, 2));
        ChosenExperts chosen = ChosenExperts.allocate(9, 2);
        float[] output = new float[9 * 24];
        try (MoeLayer layer = MoeLayer.of(weights, options)) {
            layer.forward(weights.hidden(9, 1), 9, output, chosen);
            assertThat(layer.config().routingMethod()).isEqualTo(RoutingMethodType.CUSTOM);
        }
        assertThat(chosen.ids())
                .isEqualTo(route(RoutingSimulator.UNIFORM_RANDOM.router(6, 2), 9, 2)
                        .ids());
        assertThat(chosen.weights()).containsOnly(1f);
        assertThat(output).doesNotContain(Float.NaN, 0f);
    }
}
