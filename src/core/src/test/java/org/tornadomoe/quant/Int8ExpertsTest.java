package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.lang.foreign.Arena;
import java.util.Arrays;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;

/** What a layer's int8 weights may be put together from, and what they say of themselves. */
class Int8ExpertsTest {
    private static final int H = 20;
    private static final int I = 12;

    /** Three experts of [2 * 12, 20] and [20, 12]. */
    private static final FusedMoeConfig CONFIG = FusedMoeConfig.builder()
            .numExperts(3)
            .expertsPerToken(1)
            .hiddenDim(H)
            .intermediateSize(I)
            .hasBias(true)
            .build();

    private final Arena arena = Arena.ofShared();

    @AfterEach
    void free() {
        if (arena.scope().isAlive()) {
            arena.close();
        }
    }

    private Int8Tensor w13(int experts, int rowsPerScale, int colsPerScale, boolean zeroPoints) {
        return Int8Tensor.allocate(arena, experts, 2 * I, H, rowsPerScale, colsPerScale, zeroPoints);
    }

    private Int8Tensor w2(int experts, int rowsPerScale, int colsPerScale, boolean zeroPoints) {
        return Int8Tensor.allocate(arena, experts, H, I, rowsPerScale, colsPerScale, zeroPoints);
    }

    private Int8Experts.Builder rows(int experts) {
        return Int8Experts.builder(
                CONFIG, Int8Scheme.W8A8_CHANNEL, w13(experts, 1, H, false), w2(experts, 1, I, false), arena);
    }

    private Int8Experts.Builder perTensor(int experts) {
        return Int8Experts.builder(
                CONFIG, Int8Scheme.W8A8_TENSOR, w13(experts, 2 * I, H, false), w2(experts, H, I, false), arena);
    }

    private static void refused(Int8Experts.Builder builder, String message) {
        assertThatIllegalArgumentException().isThrownBy(builder::build).withMessage(message);
    }

    private static int[] map(String numbers) {
        return Arrays.stream(numbers.split(" ", -1)).mapToInt(Integer::parseInt).toArray();
    }

    @ParameterizedTest
    @CsvSource({"0 1 2, 3, false", "2 0 1, 3, false", "-1 0 1, 2, true", "1 -1 0, 2, true", "-1 -1 0, 1, true"})
    void aMapGivesEachExpertItsLocalNumber(String map, int local, boolean part) {
        int[] numbers = map(map);
        Int8Experts experts = rows(local).expertMap(numbers).build();
        for (int e = 0; e < 3; e++) {
            assertThat(experts.expertMap(e)).isEqualTo(numbers[e]);
        }
        assertThat(experts.isPart()).isEqualTo(part);
        assertThat(experts.with(CONFIG, experts.w13(), experts.w2(), arena)
                        .build()
                        .expertMap(0))
                .isEqualTo(numbers[0]);
    }

    @Test
    void withoutAMapAllExpertsAreHereUnderTheirOwnNumbers() {
        Int8Experts experts = rows(3).build();
        assertThat(experts.isPart()).isFalse();
        assertThat(experts.expertMap(2)).isEqualTo(2);
        assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> experts.expertMap(3));
        assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> experts.expertMap(-1));
    }

    @ParameterizedTest
    @ValueSource(strings = {"-1 -1 -1", "0 2 -1", "0 0 1", "1 2 -1", "-2 0 1"})
    void aMapWithGapsOrTwiceTheSameNumberIsRefused(String map) {
        refused(
                rows(2).expertMap(map(map)),
                "expertMap: expected each local number from 0 once and -1 elsewhere, got [" + map.replace(" ", ", ")
                        + "]");
    }

    @Test
    void aMapIsOfAllExpertsAndTensorsOfThoseHere() {
        refused(rows(3).expertMap(new int[] {0, 1}), "expertMap: expected an entry for each of the 3 experts, got 2");
        refused(rows(3).expertMap(new int[] {0, 1, -1}), "w13: expected [2, 24, 20], got Int8Tensor[3, 24, 20]");
        refused(
                Int8Experts.builder(CONFIG, Int8Scheme.W8A8_CHANNEL, w13(3, 1, H, false), w13(3, 1, H, false), arena),
                "w2: expected [3, 20, 12], got Int8Tensor[3, 24, 20]");
    }

    @Test
    void biasesAreOfEveryRowFiniteAndExpected() {
        float[] w13 = new float[3 * 2 * I];
        float[] w2 = new float[3 * H];
        Int8Experts experts = rows(3).biases(w13, w2).build();
        assertThat(experts.w13Bias()).isEqualTo(w13).isNotSameAs(w13);
        assertThat(experts.w2Bias()).isEqualTo(w2).isNotSameAs(w2);
        assertThat(experts.bytes())
                .as("rows of 32 and 16 bytes, scales, biases")
                .isEqualTo(3 * 24 * 32 + 3 * 20 * 16 + 4 * (3 * 24 + 3 * 20) + 4 * (3 * 24 + 3 * 20));
        assertThat(experts.with(CONFIG, experts.w13(), experts.w2(), arena)
                        .router(RouterWeights.of(new float[3 * H]))
                        .build()
                        .bytes())
                .isEqualTo(experts.bytes() + 4 * 3 * H);
        refused(rows(3).biases(new float[71], null), "w13Bias: expected [3, 24] = 72 values, got 71");
        refused(rows(3).biases(null, new float[61]), "w2Bias: expected [3, 20] = 60 values, got 61");
        w2[H + 7] = Float.NaN;
        refused(rows(3).biases(w13, w2), "w2Bias: expected finite values, got NaN at expert 1, row 7");
        FusedMoeConfig plain = CONFIG.toBuilder().hasBias(false).build();
        refused(
                experts.with(plain, experts.w13(), experts.w2(), arena),
                "w13Bias: expected none, the configuration's hasBias is false");
    }

    @ParameterizedTest
    @CsvSource({
        "W8A8_BLOCK, 8, 4, false, w8a8_block 8x4",
        "W8A16_GROUP, 1, 4, false, w8a16_group of 4",
        "W8A16_GROUP, 1, 4, true, w8a16_group of 4 with zero points",
        "W8A16_CHANNEL, 1, 20, false, w8a16_channel",
        "W8A8_TENSOR, 24, 20, false, w8a8_tensor",
        "W8A8_TENSOR, 1, 20, false, w8a8_tensor"
    })
    void theQuantisationIsTheTensors(Int8Scheme scheme, int rows, int cols, boolean zeroPoints, String expected) {
        Int8Experts experts = Int8Experts.builder(
                        CONFIG, scheme, w13(3, rows, cols, zeroPoints), w2(3, rows, cols, zeroPoints), arena)
                .build();
        assertThat(experts.quantization()).hasToString(expected);
        assertThat(experts.scheme()).isEqualTo(scheme);
        assertThat(experts.weightKey()).isEqualTo(experts.quantization().weightKey());
        assertThat(experts.activationKey()).isEqualTo(experts.quantization().activationKey());
        int grids =
                3 * (Math.ceilDiv(24, rows) * Math.ceilDiv(20, cols) + Math.ceilDiv(20, rows) * Math.ceilDiv(12, cols));
        assertThat(experts.bytes()).isEqualTo(3 * 24 * 32 + 3 * 20 * 16 + (zeroPoints ? 5 : 4) * grids);
    }

    /** Of w13's 20 columns a group of 16 is a part, of w2's 12 all. */
    @Test
    void aGroupMayBeWiderThanOneOfTheWeights() {
        Int8Experts experts = Int8Experts.builder(
                        CONFIG, Int8Scheme.W8A16_GROUP, w13(3, 1, 16, false), w2(3, 1, I, false), arena)
                .build();
        assertThat(experts.quantization().grid()).isEqualTo(new GroupShape(1, 16));
    }

    @ParameterizedTest
    @CsvSource({
        "W8A16_GROUP, 2, 4, 1, 4, w13",
        "W8A16_GROUP, 1, 8, 1, 4, w2",
        "W8A8_BLOCK, 8, 4, 4, 4, w2",
        "W8A8_BLOCK, 8, 4, 8, 8, w2",
        "W8A8_CHANNEL, 1, 8, 1, 12, w13",
        "W8A8_CHANNEL, 2, 20, 1, 12, w13",
        "W8A8_TENSOR, 12, 20, 20, 12, w13",
        "W8A8_TENSOR, 1, 10, 20, 12, w13",
    })
    void aGridOfAnotherSchemeIsRefused(Int8Scheme scheme, int rows13, int cols13, int rows2, int cols2, String named) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Experts.builder(
                                CONFIG, scheme, w13(3, rows13, cols13, false), w2(3, rows2, cols2, false), arena)
                        .build())
                .withMessageStartingWith(named + ": expected a scale for ");
    }

    @Test
    void scalesOfActivationsAreOneOrOneAnExpert() {
        Int8Experts found = perTensor(3).build();
        assertThat(found.a1Scale()).isNull();
        assertThat(found.a2Scales()).isNull();
        assertThat(found.hasInputsOfTheirOwn()).isFalse();
        assertThat(found.activationKey()).isEqualTo(QuantKey.INT8_DYNAMIC_TENSOR_SYM);

        Int8Experts known = perTensor(3).activationScales(0.5f, 0.25f).build();
        assertThat(known.a1Scale()).isEqualTo(0.5f);
        assertThat(known.a2Scale()).isEqualTo(0.25f);
        assertThat(known.activationKey()).isEqualTo(QuantKey.INT8_STATIC_TENSOR_SYM);

        float[] same = {2, 2, 2};
        float[] own = {2, 2, 3};
        Int8Experts second = perTensor(3).activationScales(same, own).build();
        assertThat(second.hasInputsOfTheirOwn()).isFalse();
        assertThat(second.a1Scale()).isEqualTo(2f);
        assertThatIllegalStateException()
                .isThrownBy(second::a2Scale)
                .withMessage("each expert has a scale of its own for its activations");
        assertThat(second.a2Scales()).containsExactly(own);
        assertThat(second.activationKey()).isEqualTo(QuantKey.INT8_STATIC_TOKEN_SYM);
        Int8Experts first = perTensor(3).activationScales(own, same).build();
        assertThat(first.hasInputsOfTheirOwn()).isTrue();
        assertThat(first.activationKey()).isEqualTo(QuantKey.INT8_STATIC_TOKEN_SYM);
        assertThat(first.with(CONFIG, first.w13(), first.w2(), arena).build().a1Scales())
                .containsExactly(own);
    }

    @Test
    void scalesOfActivationsThatCannotBeAreNamed() {
        refused(
                perTensor(3).activationScales(null, new float[] {1}),
                "a1_scale and a2_scale must both be provided or both be None");
        refused(
                perTensor(3).activationScales(new float[2], new float[] {1}),
                "a1Scale: expected one, or one for each of 3 experts, got 2");
        for (float wrong : new float[] {0, -1, Float.NaN, Float.POSITIVE_INFINITY}) {
            refused(
                    perTensor(3).activationScales(new float[] {1, 1, 1}, new float[] {1, 1, wrong}),
                    "a2Scale: expected a positive finite scale, got " + wrong);
        }
        assertThat(perTensor(3)
                        .activationScales(Float.MIN_VALUE, Float.MAX_VALUE)
                        .build()
                        .a2Scale())
                .isEqualTo(Float.MAX_VALUE);
        refused(
                rows(3).activationScales(1f, 1f),
                "a1Scale: expected none, w8a8_channel has no scales of activations known beforehand");
    }

    @Test
    void whatALayerHasIsKeptInAnother() {
        RouterWeights router = RouterWeights.of(new float[3 * H]);
        Int8Experts experts = Int8Experts.builder(
                        CONFIG, Int8Scheme.W8A8_BLOCK, w13(3, 8, 4, false), w2(3, 8, 4, false), arena)
                .router(router)
                .roundToNearest(true)
                .build();
        Int8Experts copy =
                experts.with(CONFIG, experts.w13(), experts.w2(), arena).build();
        assertThat(copy.router()).isSameAs(router);
        assertThat(copy.router().weight()).isSameAs(router.weight());
        assertThat(copy.config()).isEqualTo(CONFIG);
        assertThat(copy.quantization())
                .isEqualTo(Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                        .withGrid(new GroupShape(8, 4))
                        .withRoundToNearest(true));
        Int8Experts part = Int8Experts.of(
                CONFIG,
                Int8Scheme.W8A8_CHANNEL,
                w13(1, 1, H, false),
                w2(1, 1, I, false),
                router,
                new int[] {-1, 0, -1},
                arena);
        assertThat(part.isPart()).isTrue();
        assertThat(part.hasRouter()).isTrue();
        assertThat(part.w13().experts()).isEqualTo(1);
        Int8Experts all =
                Int8Experts.of(CONFIG, Int8Scheme.W8A8_CHANNEL, w13(3, 1, H, false), w2(3, 1, I, false), router, arena);
        assertThat(all.router()).isSameAs(router);
        assertThat(all.isPart()).isFalse();
        assertThat(rows(3).build().hasRouter()).isFalse();
        refused(rows(3).router(RouterWeights.of(new float[1])), "router weight: expected [3, 20] = 60 values, got 1");
    }

    @Test
    void closingFreesTheArena() {
        Int8Experts experts = rows(3).build();
        experts.close();
        assertThat(arena.scope().isAlive()).isFalse();
        assertThatIllegalStateException().isThrownBy(experts::w13).withMessage("the layer's int8 weights are closed");
        assertThatIllegalStateException().isThrownBy(experts::w2).withMessage("the layer's int8 weights are closed");
        experts.close();
    }
}
