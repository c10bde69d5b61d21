package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatNoException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.reflect.Constructor;
import java.lang.reflect.RecordComponent;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

class FusedMoeConfigTest {
    private static FusedMoeConfig of(int experts, int topK, int hidden, int intermediate, int tokens) {
        return FusedMoeConfig.builder()
                .numExperts(experts)
                .expertsPerToken(topK)
                .hiddenDim(hidden)
                .intermediateSize(intermediate)
                .maxNumTokens(tokens)
                .build();
    }

    @Test
    void defaultsAreThoseOfTheCommonModels() {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(8)
                .expertsPerToken(2)
                .hiddenDim(4096)
                .intermediateSize(14336)
                .build();
        assertThat(config.activation()).isEqualTo(MoeActivation.SILU);
        assertThat(config.routingMethod()).isEqualTo(RoutingMethodType.RENORMALIZE_NAIVE);
        assertThat(config.maxNumTokens()).isEqualTo(4096);
        assertThat(config.gateUpRows()).isEqualTo(28672);
        assertThat(config.withMaxNumTokens(7)).isEqualTo(of(8, 2, 4096, 14336, 7));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "0 | 1 | 8 | 8 | 1 | numExperts: expected 1 to 1024, got 0",
                "-1 | 1 | 8 | 8 | 1 | numExperts: expected 1 to 1024, got -1",
                "1025 | 1 | 8 | 8 | 1 | numExperts: expected 1 to 1024, got 1025",
                "64 | 0 | 8 | 8 | 1 | expertsPerToken: expected 1 to 32, got 0",
                "64 | 33 | 8 | 8 | 1 | expertsPerToken: expected 1 to 32, got 33",
                "4 | 5 | 8 | 8 | 1 | expertsPerToken: expected at most numExperts = 4, got 5",
                "4 | 2 | 0 | 8 | 1 | hiddenDim: expected a positive number, got 0",
                "4 | 2 | 8 | -8 | 1 | intermediateSize: expected a positive number, got -8",
                "4 | 2 | 8 | 8 | 0 | maxNumTokens: expected a positive number, got 0",
                "4 | 2 | 8 | 8 | -2147483648 | maxNumTokens: expected a positive number, got -2147483648",
            })
    void aWrongSizeIsNamedWithWhatWasExpected(int e, int k, int h, int i, int m, String message) {
        assertThatIllegalArgumentException().isThrownBy(() -> of(e, k, h, i, m)).withMessage(message);
    }

    @Test
    void weightsThatIntIndicesCannotReachAreRefusedWithAWayOut() {
        // DeepSeek-V3, the largest shape in use, fits.
        assertThatNoException().isThrownBy(() -> of(256, 8, 7168, 2048, 4096).requireAddressableWeights());
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(512, 8, 7168, 2048, 1).requireAddressableWeights())
                .withMessageContaining("w13 [numExperts 512, rows 4096, cols 7168]")
                .withMessageContaining("expert parallelism");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(1, 1, 1, Integer.MAX_VALUE, 1))
                .withMessageContaining("w13");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(1024, 1, Integer.MAX_VALUE, 1, 1).requireAddressableWeights())
                .withMessageContaining("w13");
    }

    @Test
    void theWeightLimitLiesWhereTheLastWordIsTwoToThe31() {
        // 1024 experts * 2 * 1024 rows * 4096 columns = 2^33 values = 2^31 words: one too many.
        assertThatNoException().isThrownBy(() -> of(1024, 1, 4080, 1024, 1).requireAddressableWeights());
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(1024, 1, 4096, 1024, 1).requireAddressableWeights());
        // The padding of a row counts.
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(1024, 1, 4081, 1024, 1).requireAddressableWeights());
    }

    @Test
    void moreTokensThanIntIndicesReachAreRefusedWithTheMostThatFit() {
        int most = Integer.MAX_VALUE / 2 / 28672;
        assertThat(of(8, 2, 4096, 14336, most).maxNumTokens()).isEqualTo(most);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(8, 2, 4096, 14336, most + 1))
                .withMessageContaining("maxNumTokens: expected at most " + most)
                .withMessageContaining("got " + (most + 1));
    }

    @ParameterizedTest
    @EnumSource
    void schemesAreFoundByTheirName(Int8Scheme scheme) {
        assertThat(Int8Scheme.fromString(scheme.toString())).isEqualTo(scheme);
    }

    @Test
    void unknownNamesAreAnsweredWithAllKnownOnes() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Scheme.fromString("W8A8"))
                .withMessage("scheme: expected one of [w8a8_channel, w8a8_tensor, w8a8_block, w8a16_channel,"
                        + " w8a16_group], got 'W8A8'");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> MoeActivation.fromString("tanh"))
                .withMessage("Unknown MoE activation: 'tanh'. Valid activations: ['silu', 'gelu', 'gelu_tanh', 'relu2',"
                        + " 'relu', 'swigluoai', 'situ', 'swigluoai_uninterleave', 'swiglustep', 'silu_no_mul',"
                        + " 'gelu_no_mul', 'gelu_tanh_no_mul', 'relu2_no_mul', 'relu_no_mul']");
    }

    @ParameterizedTest
    @EnumSource
    void activationsAreFoundByTheirName(MoeActivation activation) {
        assertThat(MoeActivation.fromString(activation.value())).isEqualTo(activation);
        assertThat(activation.withoutMul().withoutMul()).isEqualTo(activation.withoutMul());
    }

    @Test
    void activationsWithAndWithoutGate() {
        assertThat(MoeActivation.fromString("gelu_pytorch_tanh")).isEqualTo(MoeActivation.GELU_TANH);
        assertThat(MoeActivation.values())
                .filteredOn(activation -> !activation.isGated())
                .containsExactly(
                        MoeActivation.SILU_NO_MUL,
                        MoeActivation.GELU_NO_MUL,
                        MoeActivation.GELU_TANH_NO_MUL,
                        MoeActivation.RELU2_NO_MUL,
                        MoeActivation.RELU_NO_MUL);
        assertThat(MoeActivation.GELU_TANH.withoutMul()).isEqualTo(MoeActivation.GELU_TANH_NO_MUL);
        assertThat(MoeActivation.RELU2.withoutMul()).isEqualTo(MoeActivation.RELU2_NO_MUL);
        assertThat(MoeActivation.RELU.withoutMul()).isEqualTo(MoeActivation.RELU_NO_MUL);
        assertThat(MoeActivation.SWIGLUOAI.withoutMul()).isEqualTo(MoeActivation.SWIGLUOAI);
    }

    @Test
    void whatIsNotGivenFollowsFromTheRest() {
        FusedMoeConfig config = of(10, 2, 64, 32, 1);
        assertThat(config.numLocalExperts()).isEqualTo(10);
        assertThat(config.routerLogitsDtype()).isEqualTo(ScalarType.F32);
        assertThat(config.moeBackend()).isEqualTo("auto");
        assertThat(config.activationFormat()).isEqualTo(FusedMoeActivationFormat.STANDARD);

        FusedMoeConfig ep = config.toBuilder()
                .moeParallelConfig(FusedMoeParallelConfig.builder()
                        .tp(4, 1)
                        .expertParallel(true)
                        .build())
                .inDtype(ScalarType.BF16)
                .build();
        assertThat(ep.numLocalExperts()).isEqualTo(3);
        assertThat(ep.intermediateSizePerPartition()).isEqualTo(32);
        assertThat(ep.routerLogitsDtype()).isEqualTo(ScalarType.BF16);

        FusedMoeConfig tp = config.toBuilder()
                .moeParallelConfig(FusedMoeParallelConfig.builder().tp(4, 1).build())
                .build();
        assertThat(tp.numLocalExperts()).isEqualTo(10);
        assertThat(tp.intermediateSizePerPartition()).isEqualTo(8);
        assertThat(tp.gateUpRows()).isEqualTo(16);
        assertThat(tp.toBuilder().build()).isEqualTo(tp);
    }

    @Test
    void whatDoesNotGoTogetherIsNamed() {
        FusedMoeConfig config = of(10, 2, 64, 32, 1);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> config.toBuilder()
                        .moeParallelConfig(
                                FusedMoeParallelConfig.builder().tp(5, 0).build())
                        .build())
                .withMessage("intermediateSize: expected a multiple of the tensor-parallel size 5, got 32");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> config.toBuilder().numLocalExperts(11).build())
                .withMessage("numLocalExperts: expected at most numExperts = 10, got 11");
    }

    @Test
    void everyOtherCheckHasItsMessageToo() {
        FusedMoeConfig config = of(10, 2, 64, 32, 1);
        refused(config.toBuilder().lora(0, 1), "maxLoras: expected 1 to 1024, got 0");
        refused(config.toBuilder().lora(1, 0), "maxLoraRank: expected a positive number, got 0");
        refused(
                config.toBuilder().numFusedSharedExperts(2).numLocalExperts(13),
                "numLocalExperts: expected at most globalNumExperts = 12, got 13");
        refused(config.toBuilder().numLocalExperts(-1), "numLocalExperts: expected 1 to 1024, got -1");
        refused(
                config.toBuilder().numFusedSharedExperts(-1),
                "numFusedSharedExperts: expected 0 to 30 beside 10 experts and 2 per token (1024 and 32 in all), got"
                        + " -1");
        assertThatIllegalArgumentException()
                .isThrownBy(() ->
                        new FusedMoeParallelConfig(1, 1, 1, 2, 0, 0, 0, 0, 1, false, "allgather_reducescatter", false))
                .withMessage("epSize: expected 1 without expert parallelism, got 2");
    }

    private static void refused(FusedMoeConfig.Builder builder, String message) {
        assertThatIllegalArgumentException().isThrownBy(builder::build).withMessage(message);
    }

    @Test
    void constantsOfActivations() {
        FusedMoeConfig.Builder layer = of(10, 2, 64, 32, 1).toBuilder();
        assertThat(layer.swigluLimit(5.0).build().activationConstants()).isEqualTo(new ActivationConstants(5, 1, 0, 0));
        assertThat(layer.activation(MoeActivation.SWIGLUOAI).build().activationConstants())
                .isEqualTo(new ActivationConstants(5, 1.702, 1, 0));
        assertThat(layer.activation(MoeActivation.GELU).build().activationConstants())
                .isEqualTo(new ActivationConstants(Double.POSITIVE_INFINITY, 1, 0, 0));
        FusedMoeConfig.Builder uninterleaved =
                layer.activation(MoeActivation.SWIGLUOAI_UNINTERLEAVE).swigluLimit(null);
        assertThatIllegalArgumentException()
                .isThrownBy(uninterleaved::build)
                .withMessage("swigluLimit: SWIGLUOAI_UNINTERLEAVE requires clamp_limit, got none");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> layer.activation(MoeActivation.SITU).build())
                .withMessage("activationSituBeta: SITU requires activation_situ_beta from FusedMoeConfig, got none");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> layer.activationSituBeta(0.0).build())
                .withMessage("activationSituBeta: expected a positive number, got 0.0");
        assertThatIllegalArgumentException()
                .isThrownBy(() ->
                        layer.activationSituBeta(1.0).swigluAlpha(Double.NaN).build())
                .withMessage("swigluAlpha: expected a finite number, got NaN");
    }

    @Test
    void partsOfALayerMayBeTooLargeAsAWhole() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(512, 8, 7168, 2048, 1).requireAddressableWeights());
        FusedMoeConfig part = FusedMoeConfig.builder()
                .numExperts(512)
                .expertsPerToken(8)
                .hiddenDim(7168)
                .intermediateSize(2048)
                .moeParallelConfig(FusedMoeParallelConfig.builder().tp(2, 1).build())
                .build();
        part.requireAddressableWeights();
        assertThat(part.gateUpRows()).isEqualTo(2048);
    }

    @Test
    void aBuilderOfALayerKnowsAllOfIt() {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(12)
                .expertsPerToken(1)
                .hiddenDim(64)
                .intermediateSize(32)
                .numLocalExperts(5)
                .activation(MoeActivation.SWIGLUOAI)
                .numFusedSharedExperts(2)
                .router(RouterConfig.of(ScoringFunction.SIGMOID, false).withSharedExpertGate())
                .moeParallelConfig(FusedMoeParallelConfig.builder().tp(2, 1).build())
                .moeBackend("cpu")
                .device("ptx:1")
                .inDtype(ScalarType.BF16)
                .routerLogitsDtype(ScalarType.F32)
                .maxNumTokens(7)
                .hasBias(true)
                .lora(3, 8)
                .batchInvariant(true)
                .applyRouterWeightOnInput(true)
                .swigluLimit(6.0)
                .swigluAlpha(1.5)
                .swigluBeta(0.5)
                .activationSituBeta(4.0)
                .activationSituLinearBeta(2.0)
                .sharedSwigluLimit(3.0)
                .build();
        assertThat(config)
                .isEqualTo(new FusedMoeConfig(
                        12,
                        1,
                        64,
                        32,
                        5,
                        2,
                        MoeActivation.SWIGLUOAI,
                        RouterConfig.of(ScoringFunction.SIGMOID, false).withSharedExpertGate(),
                        FusedMoeParallelConfig.builder().tp(2, 1).build(),
                        "cpu",
                        "ptx:1",
                        ScalarType.BF16,
                        ScalarType.F32,
                        7,
                        true,
                        true,
                        3,
                        8,
                        true,
                        true,
                        6.0,
                        1.5,
                        0.5,
                        4.0,
                        2.0,
                        3.0));
        assertThat(config.sharedActivationConstants()).isEqualTo(new ActivationConstants(3, 1.5, 0.5, 0));
        assertThat(config.hasOwnSharedLimit()).isTrue();
        assertThat(config.toBuilder().build()).isEqualTo(config);
        assertThat(config.activationConstants()).isEqualTo(new ActivationConstants(6, 1.5, 0.5, 0));
        assertThat(config.toBuilder().activation(MoeActivation.SITU).build().activationConstants())
                .isEqualTo(new ActivationConstants(Double.POSITIVE_INFINITY, 1, 4, 2));
        FusedMoeConfig adapted =
                of(4, 1, 8, 8, 1).toBuilder().isLoraEnabled(true).build();
        assertThat(adapted.isLoraEnabled()).isTrue();
        assertThat(adapted.maxLoras()).isEqualTo(1);
        assertThat(adapted.maxLoraRank()).isEqualTo(16);
    }

    @ParameterizedTest
    @CsvSource({
        "SILU, 0, 'gate projection, row 0'",
        "SILU, 5, 'gate projection, row 5'",
        "SILU, 6, 'up projection, row 0'",
        "SILU, 11, 'up projection, row 5'",
        "SWIGLUOAI, 6, 'gate projection, row 3'",
        "SWIGLUOAI, 7, 'up projection, row 3'",
        "SILU_NO_MUL, 5, 'up projection, row 5'"
    })
    void aRowOfTheFirstWeightHasAName(MoeActivation activation, int row, String name) {
        FusedMoeConfig config =
                of(2, 1, 8, 6, 1).toBuilder().activation(activation).build();
        assertThat(config.gateUpRow(row)).isEqualTo(name);
    }

    /** Whatever is just within a limit is a layer, and one more is none. */
    @Test
    void theGreatestNumbersAreAccepted() {
        assertThat(of(1024, 32, 8, 8, 1).numLocalExperts()).isEqualTo(1024);
        assertThat(of(4, 4, 8, 8, 1).expertsPerToken()).isEqualTo(4);
        FusedMoeConfig.Builder shared = of(1000, 10, 8, 8, 1).toBuilder();
        assertThat(shared.numFusedSharedExperts(22).build().globalNumExperts()).isEqualTo(1022);
        refused(
                shared.numFusedSharedExperts(23),
                "numFusedSharedExperts: expected 0 to 22 beside 1000 experts and 10 per token (1024 and 32 in all), got"
                        + " 23");
        refused(
                of(1020, 10, 8, 8, 1).toBuilder().numFusedSharedExperts(5),
                "numFusedSharedExperts: expected 0 to 4 beside 1020 experts and 10 per token (1024 and 32 in all), got"
                        + " 5");
        FusedMoeConfig.Builder adapted = of(4, 1, 64, 32, 1).toBuilder().numFusedSharedExperts(2);
        assertThat(adapted.numLocalExperts(6).lora(1024, 1).build().maxLoras()).isEqualTo(1024);
        refused(adapted.lora(1025, 1), "maxLoras: expected 1 to 1024, got 1025");
    }

    @Test
    void zeroExpertsAndGroupsFitTheExperts() {
        RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, true);
        FusedMoeConfig.Builder zero = of(1000, 2, 8, 8, 1).toBuilder();
        assertThat(zero.router(router.withZeroExperts(24)).build().numChoices()).isEqualTo(1024);
        refused(
                zero.router(router.withZeroExperts(25)),
                "router: expected at most 1024 experts, zero experts included, got 1025");
        // Of 12 in 4 groups, 2 groups have 6 to choose from.
        FusedMoeConfig.Builder grouped = of(12, 6, 8, 8, 1).toBuilder().router(router.withGroups(4, 2));
        assertThat(grouped.build().expertsPerToken()).isEqualTo(6);
        refused(grouped.expertsPerToken(7), "expertsPerToken: expected at most the 6 experts of 2 of 4 groups, got 7");
        for (int noGroups : new int[] {1, 5, 12}) {
            grouped.expertsPerToken(12).router(router.withGroups(noGroups, 1)).build();
        }
    }

    /** Both what an expert's matrices and what a call's pairs have in all is counted by int. */
    @ParameterizedTest
    @CsvSource({
        "SILU, 64, 32, 1, 128",
        "SILU, 32, 64, 1, 128",
        "SILU, 64, 32, 1000, 6000",
        "RELU2_NO_MUL, 64, 32, 9, 64"
    })
    void theGreatestRankOfAnAdapterThatIntsCount(
            MoeActivation activation, int hidden, int intermediate, int tokens, int widest) {
        FusedMoeConfig.Builder layer = of(4, 2, hidden, intermediate, tokens).toBuilder()
                .activation(activation)
                .numFusedSharedExperts(1);
        int most = Integer.MAX_VALUE / widest;
        assertThat(layer.lora(1, most).build().maxLoraRank()).isEqualTo(most);
        refused(
                layer.lora(1, most + 1),
                "maxLoraRank: expected at most 2^31 - 1 by " + widest + " = " + most + ", got " + (most + 1));
        assertThat(layer.isLoraEnabled(false).build().maxLoraRank())
                .as("nobody asks for it")
                .isEqualTo(most + 1);
    }

    @Test
    void theSecondWeightIsCountedByItself() {
        FusedMoeConfig config = of(1024, 1, 1, 1 << 20, 1).toBuilder()
                .activation(MoeActivation.SILU_NO_MUL)
                .build();
        assertThatIllegalArgumentException()
                .isThrownBy(config::requireAddressableWeights)
                .withMessageStartingWith("w13 [numExperts 1024, rows 1048576, cols 1]: expected fewer than 2^33 int8");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of(1024, 1, 1 << 20, 1, 1).toBuilder()
                        .activation(MoeActivation.SILU_NO_MUL)
                        .build()
                        .requireAddressableWeights())
                .withMessageStartingWith("w2 [numExperts 1024, rows 1048576, cols 1]: expected fewer than 2^33 int8")
                .withMessageContaining("got 17179869184;");
    }

    @Test
    void pairsOfSharedExpertsAndRowsOfOneHalfCountForTheTokens() {
        int most = Integer.MAX_VALUE / 3 / 64;
        FusedMoeConfig.Builder layer = of(4, 2, 64, 32, 1).toBuilder().numFusedSharedExperts(1);
        assertThat(layer.maxNumTokens(most).build().maxNumTokens()).isEqualTo(most);
        refused(
                layer.maxNumTokens(most + 1),
                "maxNumTokens: expected at most " + most + " for expertsPerToken 3 and rows of 64 values (int indices),"
                        + " got " + (most + 1) + "; lower it and call the layer more often");
        int ungated = Integer.MAX_VALUE / 48;
        FusedMoeConfig.Builder one = of(4, 1, 16, 48, 1).toBuilder().activation(MoeActivation.RELU2_NO_MUL);
        assertThat(one.maxNumTokens(ungated).build().gateUpRows()).isEqualTo(48);
    }

    /** The ranks of w13's rows are counted by int, too: of all together. */
    @Test
    void theIntermediateSizeOfAllRanksIsCountedByInt() {
        FusedMoeParallelConfig ranks =
                FusedMoeParallelConfig.builder().tp(1024, 0).build();
        int most = Integer.MAX_VALUE / 2 / 1024 * 1024;
        FusedMoeConfig.Builder layer =
                of(1, 1, 1, 1024, 1).toBuilder().moeParallelConfig(ranks).intermediateSize(most);
        assertThat(layer.build().intermediateSizePerPartition()).isEqualTo(most / 1024);
        refused(
                layer.intermediateSize(most + 1024),
                "intermediateSize: expected 1 to " + Integer.MAX_VALUE / 2 + ", got " + (most + 1024));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            nullValues = "-",
            value = {
                "SILU | - | - | Infinity | 1.0 | 0.0 | 0.0",
                "SILU | -3.0 | 2.0 | Infinity | 1.0 | 0.0 | 0.0",
                "SILU | 0.0 | - | Infinity | 1.0 | 0.0 | 0.0",
                "SILU | 2.0 | - | 2.0 | 1.0 | 0.0 | 0.0",
                "SWIGLUOAI | - | - | 7.0 | 1.702 | 1.0 | 0.0",
                "SWIGLUOAI | 3.0 | 2.0 | 3.0 | 2.0 | 2.0 | 0.0",
                "SWIGLUOAI_UNINTERLEAVE | 3.0 | - | 3.0 | 1.0 | 0.0 | 0.0",
                "SWIGLUOAI_UNINTERLEAVE | 3.0 | 2.0 | 3.0 | 2.0 | 2.0 | 0.0",
                "SWIGLUSTEP | - | - | 7.0 | 1.0 | 0.0 | 0.0",
                "SWIGLUSTEP | 3.0 | 2.0 | 3.0 | 1.0 | 0.0 | 0.0",
                "SITU | 3.0 | 2.0 | Infinity | 1.0 | 2.0 | 2.0",
                "GELU | 3.0 | 2.0 | Infinity | 1.0 | 0.0 | 0.0",
            })
    void theConstantsAreTheLayersOrTheActivations(
            MoeActivation activation,
            @Nullable Double limit,
            @Nullable Double others,
            double expectedLimit,
            double alpha,
            double beta,
            double linear) {
        assertThat(ActivationConstants.of(activation, limit, others, others, others, others))
                .isEqualTo(new ActivationConstants(expectedLimit, alpha, beta, linear));
    }

    @ParameterizedTest
    @CsvSource({
        "SWIGLUOAI, 0.0, 1.0, 1.0, 'swigluLimit: expected a positive number, got 0.0'",
        "SWIGLUOAI_UNINTERLEAVE, -1.0, 1.0, 1.0, 'swigluLimit: expected a positive number, got -1.0'",
        "SWIGLUSTEP, -1.0, 1.0, 1.0, 'swigluLimit: expected a positive number, got -1.0'",
        "SILU, Infinity, 1.0, 1.0, 'swigluLimit: expected a finite number, got Infinity'",
        "SILU, 1.0, Infinity, 1.0, 'swigluBeta: expected a finite number, got Infinity'",
        "SITU, 1.0, 1.0, Infinity, 'activationSituLinearBeta: expected a positive number, got Infinity'",
    })
    void aConstantThatCannotBeIsNamed(
            MoeActivation activation, double limit, double beta, double linear, String message) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ActivationConstants.of(activation, limit, 1.0, beta, 1.0, linear))
                .withMessage(message);
    }

    @ParameterizedTest
    @CsvSource({
        "W8A8_CHANNEL, true",
        "W8A8_TENSOR, true",
        "W8A8_BLOCK, true",
        "W8A16_CHANNEL, false",
        "W8A16_GROUP, false"
    })
    void schemesQuantiseActivationsOrNot(Int8Scheme scheme, boolean quantises) {
        assertThat(scheme.quantizesActivations()).isEqualTo(quantises);
        assertThat(scheme.activationKey() != null).isEqualTo(quantises);
    }

    /** The record's own constructor checks what the builder has checked before it. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "numExperts | 0 | numExperts: expected 1 to 1024, got 0",
                "expertsPerToken | 33 | expertsPerToken: expected 1 to 32, got 33",
                "numFusedSharedExperts | -1 | numFusedSharedExperts: expected 0 to 30 beside 10 experts and 2 per"
                        + " token (1024 and 32 in all), got -1",
                "numFusedSharedExperts | 31 | numFusedSharedExperts: expected 0 to 30 beside 10 experts and 2 per"
                        + " token (1024 and 32 in all), got 31"
            })
    void aWrongNumberIsNamedWithoutTheBuilder(String field, int value, String message) throws Exception {
        FusedMoeConfig config = of(10, 2, 64, 32, 1);
        RecordComponent[] fields = FusedMoeConfig.class.getRecordComponents();
        Object[] values = new Object[fields.length];
        for (int i = 0; i < fields.length; i++) {
            values[i] = fields[i].getName().equals(field)
                    ? value
                    : fields[i].getAccessor().invoke(config);
        }
        Constructor<FusedMoeConfig> constructor = FusedMoeConfig.class.getDeclaredConstructor(
                Stream.of(fields).map(RecordComponent::getType).toArray(Class<?>[]::new));
        assertThatThrownBy(() -> constructor.newInstance(values))
                .cause()
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage(message);
    }

    @Test
    void sharedExpertsMayBeCutOffElsewhere() {
        FusedMoeConfig.Builder layer = of(10, 2, 64, 32, 1).toBuilder().swigluLimit(7.0);
        assertThat(layer.sharedSwigluLimit(3.0).build().hasOwnSharedLimit()).isFalse(); // of none
        layer.numFusedSharedExperts(1);
        assertThat(layer.build().hasOwnSharedLimit()).isTrue();
        assertThat(layer.build().sharedActivationConstants()).isEqualTo(new ActivationConstants(3, 1, 0, 0));
        assertThat(layer.sharedSwigluLimit(7.0).build().hasOwnSharedLimit()).isFalse();
        // 0 is vLLM's word for no limit.
        assertThat(layer.sharedSwigluLimit(0.0).build().hasOwnSharedLimit()).isTrue();
        assertThat(layer.build().sharedActivationConstants())
                .isEqualTo(new ActivationConstants(Double.POSITIVE_INFINITY, 1, 0, 0));
    }

    @Test
    void aLayerInAFewWords() {
        FusedMoeConfig.Builder layer = of(60, 4, 2048, 1408, 1).toBuilder();
        assertThat(layer.build().summary()).isEqualTo("60 experts, top 4, hidden 2048, intermediate 1408, silu");
        assertThat(layer.numFusedSharedExperts(1).build().summary())
                .isEqualTo("60 experts, top 4 and 1 shared, hidden 2048, intermediate 1408, silu");
        assertThat(layer.build().activationFormat().value()).isEqualTo("standard");
        assertThat(FusedMoeActivationFormat.BATCHED_EXPERTS)
                .hasToString("('batched_experts',)")
                .returns("batched_experts", FusedMoeActivationFormat::value);
    }

    /** In the words of compressed-tensors and of vLLM's launch configurations. */
    @ParameterizedTest
    @CsvSource({
        "W8A8_CHANNEL, channel, token, int8_w8a8",
        "W8A8_TENSOR, tensor, tensor, int8_w8a8",
        "W8A8_BLOCK, block, group, int8_w8a8",
        "W8A16_CHANNEL, channel, , int8_w8a16",
        "W8A16_GROUP, group, , int8_w8a16"
    })
    void schemesHaveNamesForOthers(Int8Scheme scheme, String weights, @Nullable String activations, String config) {
        assertThat(scheme.weightStrategy()).isEqualTo(weights);
        assertThat(scheme.activationStrategy()).isEqualTo(activations);
        assertThat(scheme.configName()).isEqualTo(config);
    }

    /** Truncated quotients and one scale for all cost most, rounded ones no more than a scale a token does. */
    @Test
    void theErrorOfASchemeFollowsFromWhatSharesAScale() {
        double token = Int8Scheme.W8A8_CHANNEL.tolerance();
        assertThat(Int8Scheme.W8A16_CHANNEL.tolerance()).isPositive().isLessThan(token);
        assertThat(Int8Scheme.W8A8_BLOCK.tolerance()).isGreaterThan(token);
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK);
        assertThat(block.tolerance()).isEqualTo(Int8Scheme.W8A8_BLOCK.tolerance());
        assertThat(block.withRoundToNearest(true).tolerance()).isEqualTo(token);
    }
}
