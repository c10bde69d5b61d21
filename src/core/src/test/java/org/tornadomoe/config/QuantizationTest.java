package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/** Quantisation keys and configurations, and the ways of routing. */
class QuantizationTest {
    @Test
    void keysAreShownAsInVllm() {
        assertThat(QuantKey.INT8_STATIC_CHANNEL_SYM)
                .hasToString("QuantKey(i8,scale(f32,static,per_channel),symmetric)");
        assertThat(QuantKey.INT8_DYNAMIC_TOKEN_SYM).hasToString("QuantKey(i8,scale(f32,dynamic,per_token),symmetric)");
        assertThat(QuantKey.INT8_STATIC_TENSOR_SYM).hasToString("QuantKey(i8,scale(f32,static,per_tensor),symmetric)");
        assertThat(QuantKey.INT8_DYNAMIC_TENSOR_SYM)
                .hasToString("QuantKey(i8,scale(f32,dynamic,per_tensor),symmetric)");
        ScaleDesc groups = new ScaleDesc(ScalarType.F16, true, new GroupShape(1, 128));
        assertThat(new QuantKey(ScalarType.BF16, groups, QuantKey.INT8_STATIC_TENSOR_SYM.scale(), false))
                .hasToString("QuantKey(bf16,scale(f16,static,GroupShape(row=1, col=128)),"
                        + "scale2(f32,static,per_tensor),asymmetric)");
    }

    @Test
    void keysAreFoundByTheirName() {
        QuantKey key = QuantKey.fromString("int8_dynamic_token_sym");
        assertThat(key).isEqualTo(QuantKey.INT8_DYNAMIC_TOKEN_SYM);
        assertThat(key.keyName()).isEqualTo("int8_dynamic_token_sym");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> QuantKey.fromString("int4"))
                .withMessage("quantization key: expected one of [int8_static_channel_sym, int8_dynamic_token_sym,"
                        + " int8_static_tensor_sym, int8_dynamic_tensor_sym, int8_static_block_sym,"
                        + " int8_dynamic_group_sym, int8_static_group_sym, int8_static_group_asym], got 'int4'");
    }

    @ParameterizedTest
    @EnumSource
    void schemesAreFoundByTheirKeys(Int8Scheme scheme) {
        assertThat(Int8Scheme.of(scheme.weightKey(), scheme.activationKey())).isEqualTo(scheme);
        assertThat(Int8Scheme.of(null, scheme.activationKey())).isNull();
        assertThat(Int8Scheme.of(scheme.weightKey(), QuantKey.INT8_STATIC_TENSOR_SYM))
                .isEqualTo(scheme == Int8Scheme.W8A8_TENSOR ? scheme : null);
    }

    @Test
    void blocksAndGroupsOfAnySizeAreOfTheirScheme() {
        QuantKey block = QuantKey.int8Weights(new GroupShape(64, 32), true);
        assertThat(Int8Scheme.of(block, QuantKey.int8Groups(32))).isEqualTo(Int8Scheme.W8A8_BLOCK);
        assertThat(Int8Scheme.of(block, QuantKey.int8Groups(64))).isNull();
        assertThat(Int8Scheme.of(block, null)).isNull();
        QuantKey group = QuantKey.int8Weights(new GroupShape(1, 32), true);
        assertThat(Int8Scheme.of(group, null)).isEqualTo(Int8Scheme.W8A16_GROUP);
        assertThat(Int8Scheme.of(group, QuantKey.int8Groups(32))).isEqualTo(Int8Scheme.W8A8_BLOCK);
        QuantKey zeroPoints = QuantKey.int8Weights(new GroupShape(1, 32), false);
        assertThat(Int8Scheme.of(zeroPoints, null)).isEqualTo(Int8Scheme.W8A16_GROUP);
        assertThat(Int8Scheme.of(zeroPoints, QuantKey.int8Groups(32))).isNull();
        assertThat(Int8Scheme.of(QuantKey.INT8_STATIC_TENSOR_SYM, QuantKey.INT8_STATIC_TOKEN_SYM))
                .as("a scale for each expert's activations")
                .isEqualTo(Int8Scheme.W8A8_TENSOR);
        assertThat(Int8Scheme.of(QuantKey.INT8_STATIC_TENSOR_SYM, null)).isNull();
        assertThat(Int8Scheme.of(QuantKey.INT8_STATIC_CHANNEL_SYM, QuantKey.INT8_STATIC_TOKEN_SYM))
                .isNull();
        assertThat(Int8Scheme.of(QuantKey.int8Weights(GroupShape.PER_CHANNEL, false), null))
                .isNull();
    }

    @Test
    void whatASchemeLeavesOpen() {
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(64, 32));
        assertThat(block).hasToString("w8a8_block 64x32");
        assertThat(block.activationKey()).isEqualTo(QuantKey.int8Groups(32));
        assertThat(block.withRoundToNearest(true)).hasToString("w8a8_block 64x32 to the nearest");
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP).withZeroPoints(true);
        assertThat(group).hasToString("w8a16_group of 128 with zero points");
        assertThat(group.weightKey()).isEqualTo(QuantKey.INT8_STATIC_GROUP_ASYM);
        assertThat(group.withGrid(GroupShape.PER_TOKEN).colsPerScale(70)).isEqualTo(70);
        Int8Quantization tensor = Int8Quantization.of(Int8Scheme.W8A8_TENSOR);
        assertThat(tensor.rowsPerScale(30)).isEqualTo(30);
        assertThat(tensor.colsPerScale(40)).isEqualTo(40);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> tensor.withGrid(new GroupShape(64, 32)))
                .withMessage("grid: expected per_tensor for w8a8_tensor, got 64 x 32");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> group.withGrid(new GroupShape(2, 32)))
                .withMessageStartingWith("grid: expected one row and");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> block.withGrid(new GroupShape(0, 32)))
                .withMessageStartingWith("grid: expected a positive number of rows and of columns");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> block.withZeroPoints(true))
                .withMessageStartingWith("zeroPoints: expected none for w8a8_block");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> tensor.withRoundToNearest(true))
                .withMessageStartingWith("roundToNearest: expected false for w8a8_tensor");
    }

    @Test
    void groupShapesTellWhatTheyAre() {
        assertThat(new GroupShape(-1, -1).isPerTensor()).isTrue();
        assertThat(new GroupShape(1, -1).isPerToken()).isTrue();
        assertThat(new GroupShape(-1, 1).isPerChannel()).isTrue();
        assertThat(new GroupShape(1, 64).isPerGroup()).isTrue();
        assertThat(new GroupShape(1, 1).isPerGroup()).isTrue();
        assertThat(GroupShape.PER_TOKEN.isPerGroup()).isFalse();
        assertThat(new GroupShape(128, 128).isPerGroup()).isFalse();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new GroupShape(1, 0))
                .withMessage("col: expected -1 (all) or a positive number, got 0");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new GroupShape(-2, 1))
                .withMessage("row: expected -1 (all) or more, got -2");
    }

    @Test
    void scalarTypesHaveTorchsNamesAndTheirSizes() {
        assertThat(ScalarType.values())
                .extracting(ScalarType::toString)
                .containsExactly("torch.float32", "torch.float16", "torch.bfloat16", "torch.int8");
        assertThat(ScalarType.values()).extracting(ScalarType::bytes).containsExactly(4, 2, 2, 1);
    }

    @Test
    void formatsAreShownAsTuples() {
        assertThat(FusedMoeActivationFormat.STANDARD).hasToString("('standard',)");
        assertThat(FusedMoeActivationFormat.BATCHED_EXPERTS).hasToString("('batched_experts',)");
    }

    @ParameterizedTest
    @CsvSource(nullValues = "-", textBlock = """
        # scoring, renormalize, groups, bias, factor; method
        softmax,      true,  -, false, -,   RENORMALIZE_NAIVE
        softmax,      false, -, false, -,   DEFAULT
        softmax,      true,  8, false, 2.5, RENORMALIZE_NAIVE
        softmax,      true,  -, true,  -,   UNSPECIFIED
        sigmoid,      true,  -, false, -,   SIGMOID_RENORM
        sigmoid,      false, 8, false, -,   SIGMOID
        sigmoid,      true,  8, true,  2.5, DEEPSEEK_V3
        sigmoid,      true,  -, true,  -,   MINIMAX2
        sigmoid,      true,  0, true,  1.0, MINIMAX2
        sigmoid,      true,  -, true,  2.5, UNSPECIFIED
        sigmoid,      false, 8, true,  1.0, UNSPECIFIED
        sqrtsoftplus, true,  -, true,  -,   DEEPSEEK_V4
        sqrtsoftplus, true,  -, false, -,   DEEPSEEK_V4
        sqrtsoftplus, false, -, true,  -,   UNSPECIFIED
        tanh,         true,  -, false, -,   UNSPECIFIED
        """)
    void routerSettingsAmountToAMethod(
            String scoring,
            boolean renormalize,
            @Nullable Integer groups,
            boolean bias,
            @Nullable Double factor,
            RoutingMethodType method) {
        assertThat(RoutingMethodType.getRoutingMethodType(scoring, renormalize, groups, bias, factor))
                .isEqualTo(method);
    }

    @Test
    void methodsHaveVllmsNumbers() {
        assertThat(RoutingMethodType.values())
                .extracting(RoutingMethodType::number)
                .containsExactly(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 101, 102);
    }
}
