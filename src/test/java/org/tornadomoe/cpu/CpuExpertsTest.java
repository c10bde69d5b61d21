package org.tornadomoe.cpu;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.modular.ChosenExperts;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Stages;

/** The CPU's layer against the definition, at sizes that are no multiple of a vector, in both forms of its inner loops. */
class CpuExpertsTest {
    private static final int TOKENS = 23;

    /** The definition's integers are ours, so all that differs is the last rounding to float. */
    private static final double EXACT = 2e-7;

    /** Float sums of products. */
    private static final double CLOSE = 1e-5;

    private static RandomLayer layer() {
        return RandomLayer.of(7, 3, 75, 45, TOKENS, 5);
    }

    static Stream<Int8Quantization> schemes() {
        return Stream.of(
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(16, 24)),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                        .withGrid(new GroupShape(5, 7))
                        .withRoundToNearest(true),
                Int8Quantization.of(Int8Scheme.W8A16_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 32)),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                        .withGrid(new GroupShape(1, 9))
                        .withZeroPoints(true));
    }

    private static double tolerance(Int8Scheme scheme) {
        return scheme.quantizesActivations() ? EXACT : CLOSE;
    }

    @ParameterizedTest
    @MethodSource("schemes")
    void everySchemeAgreesWithTheDefinition(Int8Quantization quantization) {
        check(layer(), quantization);
    }

    @ParameterizedTest
    @EnumSource(MoeActivation.class)
    void everyActivationAgreesWithTheDefinition(MoeActivation activation) {
        check(layer().activatedBy(activation).withBiases(), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
        check(layer().activatedBy(activation).withBiases(), Int8Quantization.of(Int8Scheme.W8A16_CHANNEL));
    }

    private static void check(RandomLayer layer, Int8Quantization quantization) {
        try (Int8Experts experts = QuantizedWeights.int8(layer, quantization, Progress.NONE)) {
            check(layer, experts);
        }
    }

    private static void check(RandomLayer layer, Int8Experts experts) {
        for (Arithmetic arithmetic : List.of(Arithmetic.best(), new ScalarArithmetic())) {
            for (int tokens : new int[] {1, 2, 3, 5, TOKENS}) {
                float[] hidden = layer.hidden(tokens, tokens);
                Stages expected = Reference.forward(experts, hidden, tokens);
                ChosenExperts chosen = ChosenExperts.allocate(tokens, layer.config().pairsPerToken());
                float[] output = forward(experts, arithmetic, 2, hidden, tokens, chosen);
                assertThat(chosen.ids()).isEqualTo(expected.routing().ids());
                assertThat(Reference.relativeL2(Reference.widen(output), expected.output()))
                        .as("%s, %s, %d tokens", experts.quantization(), arithmetic.description(), tokens)
                        .isLessThan(tolerance(experts.scheme()));
            }
        }
    }

    private static float[] forward(
            Int8Experts experts, Arithmetic arithmetic, int threads, float[] hidden, int tokens, ChosenExperts chosen) {
        float[] output = new float[hidden.length];
        try (CpuMoeKernel kernel = new CpuMoeKernel(
                experts.config(), experts, arithmetic, new Team(threads))) {
            kernel.forward(MemorySegment.ofArray(hidden), tokens, MemorySegment.ofArray(output), chosen);
        }
        return output;
    }
}
