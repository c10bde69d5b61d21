package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.Draw;
import org.tornadomoe.Draw.Property;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;

/** Against values computed with 30 digits from the formulas. */
class ActivationsTest {
    private static FusedMoeConfig.Builder layer(MoeActivation activation, int intermediate) {
        return FusedMoeConfig.builder()
                .numExperts(2)
                .expertsPerToken(1)
                .hiddenDim(4)
                .intermediateSize(intermediate)
                .activation(activation);
    }

    @ParameterizedTest
    @CsvSource(textBlock = """
        # activation, limit, alpha, beta, situ beta, linear beta, at (1.5, -2), at (-3, 0.5), at (9, -8)
        silu, , , , , , -2.452723428580931, -0.071138809766350171, -71.991115590528991
        silu, 2, , , , , -2.452723428580931, -0.071138809766350171, -3.5231883119115298
        silu, 0, , , , , -2.452723428580931, -0.071138809766350171, -71.991115590528991
        gelu, , , , , , -2.7995783961934258, -0.0020248470474451418, -72
        gelu_tanh, , , , , , -2.7991431539604658, -0.0018186960408865094, -72
        relu2, , , , , , -4.5, 0, -648
        relu, , , , , , -3, 0, -72
        swigluoai, , , , , , -1.3916621984470766, -0.02710696456167895, -41.999718769819903
        swigluoai_uninterleave, 6, 1.5, 0.25, , , -2.3747076546398376, -0.024720620918834655, -34.495742887128475
        swiglustep, , , , , , -2.452723428580931, -0.071138809766350171, -49
        situ, , , , 4, 3, -2.048951978154883, -0.05969329250546332, -11.622098924750175
        situ, , , , 4, , -2.3438708979740858, -0.06024498732956778, -31.292973811874623
        """)
    void gatedActivations(
            String name,
            Double limit,
            Double alpha,
            Double beta,
            Double situBeta,
            Double linearBeta,
            double first,
            double second,
            double third) {
        MoeActivation activation = MoeActivation.fromString(name);
        FusedMoeConfig config = layer(activation, 3)
                .swigluLimit(limit)
                .swigluAlpha(alpha)
                .swigluBeta(beta)
                .activationSituBeta(situBeta)
                .activationSituLinearBeta(linearBeta)
                .build();
        double[] halves = {0, 0, 0, 0, 0, 0, 1.5, -3, 9, -2, 0.5, -8};
        double[] alternating = {0, 0, 0, 0, 0, 0, 1.5, -2, -3, 0.5, 9, -8};
        double[] act = Activations.apply(config, activation.isInterleaved() ? alternating : halves, 2);
        assertThat(act).startsWith(0, 0, 0);
        assertThat(act[3]).isCloseTo(first, within(1e-14));
        assertThat(act[4]).isCloseTo(second, within(1e-14));
        assertThat(act[5]).isCloseTo(third, within(1e-12));
    }

    /** Without a gate it is the gated function with an up projection of 1. */
    @ParameterizedTest
    @CsvSource({
        "silu_no_mul, 1.2263617142904655",
        "gelu_no_mul, 1.3997891980967129",
        "gelu_tanh_no_mul, 1.3995715769802329",
        "relu2_no_mul, 2.25",
        "relu_no_mul, 1.5"
    })
    void activationsWithoutGate(String name, double expected) {
        FusedMoeConfig config = layer(MoeActivation.fromString(name), 2).build();
        double[] act = Activations.apply(config, new double[] {0, 1.5}, 1);
        assertThat(act[0]).isZero();
        assertThat(act[1]).isCloseTo(expected, within(1e-15));
    }

    @Test
    void farFromZeroTheyAreNoNumberButTheirLimit() {
        for (MoeActivation activation : MoeActivation.values()) {
            FusedMoeConfig config = layer(activation, 1)
                    .swigluLimit(
                            activation == MoeActivation.SILU || activation == MoeActivation.SWIGLUSTEP ? null : 7.0)
                    .activationSituBeta(2.0)
                    .build();
            double[] row = activation.isGated() ? new double[] {-1e6, 1} : new double[] {-1e6};
            assertThat(Math.abs(Activations.apply(config, row, 1)[0]))
                    .as("%s", activation)
                    .isZero();
        }
    }

    @Test
    void theArgumentsLengthIsChecked() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Activations.apply(layer(MoeActivation.SILU, 3).build(), new double[6], 2))
                .withMessage("gateUp: expected [2, 6] = 12 values, got 6");
    }

    @ParameterizedTest
    @CsvSource({
        "0, 1",
        "0.5, 0.47950012218695346",
        "1, 0.15729920705028513",
        "2.4375, 0.00056654325458016491",
        "2.5, 0.00040695201744495894",
        "3, 2.2090496998585441e-5",
        "5, 1.5374597944280349e-12",
        "9, 4.1370317465138102e-37"
    })
    void theComplementaryErrorFunction(double x, double expected) {
        double relative = x < 2.5 ? 1e-12 : 1e-14;
        assertThat(Activations.erfc(x)).isCloseTo(expected, within(relative * expected));
        assertThat(Activations.erfc(-x)).isCloseTo(2 - expected, within(1e-15));
    }

    @Property
    void erfcDescends(Draw draw) {
        double x = draw.between(-5.0, 25.0);
        assertThat(Activations.erfc(x + 0.01)).isLessThan(Activations.erfc(x));
    }
}
