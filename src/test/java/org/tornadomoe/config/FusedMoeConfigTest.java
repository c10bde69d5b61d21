package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatNoException;

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
                        + " 'swigluoai', 'situ', 'swigluoai_uninterleave', 'swiglustep', 'silu_no_mul', 'gelu_no_mul',"
                        + " 'gelu_tanh_no_mul', 'relu2_no_mul']");
    }

    @Test
    void onlyW8a8QuantizesActivations() {
        assertThat(Int8Scheme.W8A8_CHANNEL.quantizesActivations()).isTrue();
        assertThat(Int8Scheme.W8A16_CHANNEL.quantizesActivations()).isFalse();
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
                        MoeActivation.RELU2_NO_MUL);
        assertThat(MoeActivation.GELU_TANH.withoutMul()).isEqualTo(MoeActivation.GELU_TANH_NO_MUL);
        assertThat(MoeActivation.RELU2.withoutMul()).isEqualTo(MoeActivation.RELU2_NO_MUL);
        assertThat(MoeActivation.SWIGLUOAI.withoutMul()).isEqualTo(MoeActivation.SWIGLUOAI);
    }

    @Test
    void whatIsNotGivenFollowsFromTheRest() {
        FusedMoeConfig config = of(10, 2, 64, 32, 1);
        assertThat(config.numLocalExperts()).isEqualTo(10);
        assertThat(config.numLogicalExperts()).isEqualTo(10);
        assertThat(config.routerLogitsDtype()).isEqualTo(ScalarType.F32);
        assertThat(config.hiddenDimUnpadded()).isEqualTo(64);
        assertThat(config.intermediateSizePerPartitionUnpadded()).isEqualTo(32);
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
        assertThat(tp.intermediateSizePerPartitionUnpadded()).isEqualTo(8);
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
        assertThatIllegalArgumentException()
                .isThrownBy(() -> config.toBuilder().numLogicalExperts(-1).build())
                .withMessage("numLogicalExperts: expected 1 to 1024, got -1");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> config.toBuilder().hiddenDimUnpadded(65).build())
                .withMessage("hiddenDimUnpadded: expected at most hiddenDim = 64, got 65");
    }

    @Test
    void everyOtherCheckHasItsMessageToo() {
        FusedMoeConfig config = of(10, 2, 64, 32, 1);
        refused(config.toBuilder().lora(0, 1), "maxLoras: expected 1 to 1024, got 0");
        refused(config.toBuilder().lora(1, 0), "maxLoraRank: expected a positive number, got 0");
        refused(
                config.toBuilder().intermediateSizePerPartitionUnpadded(33),
                "intermediateSizePerPartitionUnpadded: expected at most intermediateSizePerPartition = 32, got 33");
        refused(
                config.toBuilder().intermediateSizePerPartitionUnpadded(-1),
                "intermediateSizePerPartitionUnpadded: expected a positive number, got -1");
        refused(config.toBuilder().hiddenDimUnpadded(-1), "hiddenDimUnpadded: expected a positive number, got -1");
        refused(
                config.toBuilder().numLogicalExperts(11),
                "numLogicalExperts: expected at most numExperts = 10, got 11");
        refused(
                config.toBuilder().numFusedSharedExperts(2).numLocalExperts(13),
                "numLocalExperts: expected at most globalNumExperts = 12, got 13");
        refused(config.toBuilder().numLocalExperts(-1), "numLocalExperts: expected 1 to 1024, got -1");
        refused(
                config.toBuilder().numFusedSharedExperts(-1),
                "numFusedSharedExperts: expected 0 to 30 beside 10 experts and 2 a token (1024 and 32 in all), got -1");
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
}
