package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.quant.RouterWeights;

class RouterConfigTest {
    private static final RouterConfig SIGMOID = RouterConfig.of(ScoringFunction.SIGMOID, true);

    private static FusedMoeConfig.Builder layer() {
        return FusedMoeConfig.builder()
                .numExperts(8)
                .expertsPerToken(2)
                .hiddenDim(4)
                .intermediateSize(6);
    }

    @Test
    void sharedExpertsAreCountedWhereTheyCount() {
        FusedMoeConfig config = layer().numFusedSharedExperts(2)
                .router(SIGMOID.withZeroExperts(3).withSharedExpertGate())
                .build();
        assertThat(config.globalNumExperts()).isEqualTo(10);
        assertThat(config.pairsPerToken()).isEqualTo(4);
        assertThat(config.numChoices()).isEqualTo(11);
        assertThat(config.numRouterLogits()).isEqualTo(12);
        assertThat(config.numLocalExperts()).isEqualTo(10);
        assertThat(config.inputRowsPerToken()).isEqualTo(1);
        assertThat(config.pairsPerInputRow()).isEqualTo(4);
        assertThat(config.toBuilder().build()).isEqualTo(config);
        FusedMoeConfig onInput = config.toBuilder()
                .expertsPerToken(1)
                .applyRouterWeightOnInput(true)
                .build();
        assertThat(onInput.inputRowsPerToken()).isEqualTo(3);
        assertThat(onInput.pairsPerInputRow()).isEqualTo(1);
        FusedMoeParallelConfig ranks =
                FusedMoeParallelConfig.builder().tp(3, 1).expertParallel(true).build();
        assertThat(config.toBuilder().moeParallelConfig(ranks).build().numLocalExperts())
                .as("the second of three ranks has 3 of 10")
                .isEqualTo(3);
    }

    @Test
    void whatDoesNotFitIsNamed() {
        refused(() -> SIGMOID.withGroups(-1, 0), "numExpertGroup: expected at least 0, got -1");
        refused(() -> SIGMOID.withGroups(0, 1), "topkGroup: expected 0 without groups, got 1");
        refused(() -> SIGMOID.withGroups(4, 5), "topkGroup: expected 1 to numExpertGroup = 4, got 5");
        refused(
                () -> SIGMOID.withRoutedScalingFactor(Double.NaN),
                "routedScalingFactor: expected a finite number, got NaN");
        refused(() -> SIGMOID.withZeroExperts(-2), "numZeroExperts: expected at least 0, got -2");
        refused(
                () -> RouterConfig.topKThenSoftmax().withCorrectionBias(),
                "scoresChosenOnly: expected neither a correction bias nor groups beside it: the choice is made by"
                        + " logits");
        refused(
                () -> SIGMOID.handedIn().withGroups(2, 1),
                "scoring: expected neither a correction bias nor groups beside custom, which chooses");
        refused(() -> ScoringFunction.fromString("tanh"), "Unsupported scoring function: tanh");
        refused(
                () -> layer().router(SIGMOID.withSharedExpertGate()).build(),
                "router: expected shared experts for its shared expert gate, got none");
        refused(
                () -> layer().router(SIGMOID.withZeroExperts(1017)).build(),
                "router: expected at most 1024 experts, zero experts included, got 1025");
        refused(
                () -> layer().expertsPerToken(3)
                        .router(SIGMOID.withGroups(4, 1))
                        .build(),
                "expertsPerToken: expected at most the 2 experts of 1 of 4 groups, got 3");
        refused(
                () -> layer().numFusedSharedExperts(31).build(),
                "numFusedSharedExperts: expected 0 to 30 beside 8 experts and 2 per token (1024 and 32 in all), got"
                        + " 31");
    }

    @Test
    void aRoutersTensorsFitItsConfiguration() {
        FusedMoeConfig plain = layer().build();
        FusedMoeConfig biased = layer().router(SIGMOID.withCorrectionBias()).build();
        float[] weight = new float[32];
        RouterWeights.of(weight).requireFits(plain);
        new RouterWeights(weight, new float[8], new float[8], null).requireFits(biased);
        new RouterWeights(weight, null, new float[8], null)
                .requireFits(layer().router(biased.router().handedIn()).build());
        refused(
                () -> RouterWeights.of(weight).requireFits(biased),
                "router: expected a correction bias, as its configuration says, got none");
        refused(
                () -> new RouterWeights(weight, null, new float[8], null).requireFits(plain),
                "router: expected no correction bias, as its configuration says, got one");
        refused(
                () -> new RouterWeights(weight, null, null, new float[4]).requireFits(plain),
                "router: expected no shared expert gate, as its configuration says, got one");
        refused(
                () -> new RouterWeights(weight, new float[7], null, null).requireFits(plain),
                "router bias: expected [8, 1] = 8 values, got 7");
        refused(
                () -> RouterWeights.of(new float[31]).requireFits(plain),
                "router weight: expected [8, 4] = 32 values, got 31");
        float[] infinite = new float[8];
        infinite[5] = Float.POSITIVE_INFINITY;
        refused(
                () -> new RouterWeights(weight, null, infinite, null).requireFits(biased),
                "router's correction bias: expected finite values, got Infinity at expert 5, column 0");
    }

    @Test
    void aSharedExpertGateIsOneRow() {
        FusedMoeConfig gated = layer().numFusedSharedExperts(1)
                .router(SIGMOID.withSharedExpertGate())
                .build();
        RouterWeights router = new RouterWeights(new float[32], new float[8], new float[8], new float[4]);
        new RouterWeights(router.weight(), null, null, router.sharedExpertGate()).requireFits(gated);
        refused(
                () -> new RouterWeights(router.weight(), null, null, new float[5]).requireFits(gated),
                "shared expert gate: expected [1, 4] = 4 values, got 5");
        assertThat(router.bytes()).isEqualTo(4 * (32 + 8 + 8 + 4));
        assertThat(RouterWeights.NONE.bytes()).isZero();
    }

    @Test
    void asManyGroupsAndZeroExpertsAsThereMayBeExperts() {
        assertThat(SIGMOID.withGroups(1024, 1024).topkGroup()).isEqualTo(1024);
        assertThat(SIGMOID.withZeroExperts(1024).numZeroExperts()).isEqualTo(1024);
        refused(() -> SIGMOID.withGroups(1025, 1), "numExpertGroup: expected at most 1024, got 1025");
        refused(() -> SIGMOID.withZeroExperts(1025), "numZeroExperts: expected at most 1024, got 1025");
        refused(() -> SIGMOID.withGroups(4, 0), "topkGroup: expected 1 to numExpertGroup = 4, got 0");
        assertThat(SIGMOID.withGroups(4, 4).withZeroExperts(0).numExpertGroup()).isEqualTo(4);
        refused(
                () -> RouterConfig.topKThenSoftmax().withGroups(2, 1),
                "scoresChosenOnly: expected neither a correction bias nor groups beside it: the choice is made by"
                        + " logits");
        refused(
                () -> RouterConfig.of(ScoringFunction.SIMULATED, false).withCorrectionBias(),
                "scoring: expected neither a correction bias nor groups beside simulated, which chooses");
    }

    @ParameterizedTest
    @EnumSource(
            value = ScoringFunction.class,
            names = {"SOFTMAX", "SIGMOID", "SQRTSOFTPLUS"})
    void scoresAreFoundByTheirName(ScoringFunction scoring) {
        assertThat(ScoringFunction.fromString(scoring.toString())).isEqualTo(scoring);
        assertThat(RouterConfig.of(scoring, true).isHandedIn()).isFalse();
    }

    private static void refused(Runnable doing, String message) {
        assertThatIllegalArgumentException().isThrownBy(doing::run).withMessage(message);
    }
}
