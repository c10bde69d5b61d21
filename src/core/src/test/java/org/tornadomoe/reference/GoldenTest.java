package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.CaseFile;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;

/**
 * The reference against what Hugging Face's modules and vLLM's kernel gave (golden/README.md has the bounds' origin).
 */
class GoldenTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden");

    @ParameterizedTest
    @ValueSource(strings = {"mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4"})
    void aLayerOfHuggingFaceIsReproduced(String family) {
        Path directory = GOLDEN.resolve("hf").resolve(family);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory);
                Safetensors golden = Safetensors.open(directory.resolve("golden.safetensors"))) {
            ExpertWeights weights = checkpoint.layer(0);
            float[] hidden = golden.tensor("hidden_states").toFloats();
            int tokens = hidden.length / weights.config().hiddenDim();
            double[] expected = Numerics.widen(golden.tensor("output").toFloats());

            Stages exact = Reference.forward(weights, hidden, tokens);
            assertThat(Numerics.relativeL2(exact.output(), expected)).isLessThan(1e-6);

            for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)) {
                try (Int8Experts experts = Int8Quantizer.quantize(weights, scheme, Progress.NONE)) {
                    Stages int8 = Reference.forward(experts, hidden, tokens);
                    assertThat(Numerics.relativeL2(int8.output(), expected))
                            .as("%s %s", family, scheme)
                            .isBetween(1e-3, scheme.quantizesActivations() ? 2.5e-2 : 1.5e-2);
                    assertThat(int8.routing().ids()).isEqualTo(exact.routing().ids());
                }
            }
        }
    }

    @ParameterizedTest
    @CsvSource({
        "w8a8_channel_m1, 1.5e-2",
        "w8a8_channel_m33, 1.5e-2",
        "w8a16_channel_m33, 6e-3",
        "w8a8_channel_ep, 1.5e-2",
        "w8a8_tensor_m16, 1.5e-2",
        "w8a8_block_m33, 1.5e-2",
        "w8a8_channel_bias_swigluoai, 1.5e-2"
    })
    void everyStageOfVllmsKernelIsReproduced(String name, double endToEnd) {
        try (CaseFile c = CaseFile.read(GOLDEN.resolve("vllm").resolve(name + ".safetensors"))) {
            int experts = c.config().numExperts();
            int topK = c.config().expertsPerToken();
            int hidden = c.config().hiddenDim();
            int intermediate = c.config().intermediateSize();
            int pairs = c.topkIds().length;
            double[] logits = Numerics.widen(c.routerLogits());

            Routing routing = Router.route(c.config(), c.experts().router(), logits, c.tokens());
            assertThat(routing.ids()).isEqualTo(c.topkIds());
            for (int p = 0; p < pairs; p++) {
                assertThat((float) routing.weights()[p]).isCloseTo(c.topkWeights()[p], within(1e-6f));
            }

            int[] map = IntStream.range(0, experts).map(c.experts()::expertMap).toArray();
            int[] local = Arrays.stream(c.topkIds()).map(e -> map[e]).toArray();
            Alignment alignment = Alignments.align(c.topkIds(), map, true, CaseFile.BLOCK_SIZE);
            assertThat(alignment.sortedTokenIds()).isEqualTo(c.sortedTokenIds());
            assertThat(alignment.expertIds()).isEqualTo(c.expertIds());
            assertThat(alignment.numTokensPostPadded()).isEqualTo(c.numTokensPostPadded());

            double[] weights = Numerics.widen(c.topkWeights());
            double[] x = Numerics.widen(c.hiddenStates());
            double[] act = Numerics.widen(c.act());
            QuantizedTokens a1 = quantized(c.a1());
            QuantizedTokens a2 = quantized(c.a2());
            Int8Experts e = c.experts();
            assertQuantized(c, c.hiddenStates(), Reference.quantize(e, e.a1Scale(), x, c.tokens(), hidden), a1);
            assertQuantized(c, c.act(), Reference.quantize(e, e.a2Scale(), act, pairs, intermediate), a2);
            double[] gemm1 = ReferenceGemm.multiply(a1, x, topK, local, e.w13(), e.w13Bias());
            double[] gemm2 = ReferenceGemm.multiply(a2, act, 1, local, e.w2(), e.w2Bias());
            assertWithinOneBf16Ulp(gemm1, c.gemm1(), c.scheme());
            assertWithinOneBf16Ulp(Reference.weigh(gemm2, weights), c.gemm2(), c.scheme());
            // The producer rounds silu(gate) to bf16 before it multiplies, and the product once more.
            assertThat(Numerics.relativeL2(Activations.apply(c.config(), Numerics.widen(c.gemm1()), pairs), act))
                    .isLessThan(3e-3);
            assertThat(Numerics.relativeL2(
                            Reference.combine(Numerics.widen(c.gemm2()), c.tokens(), topK, hidden),
                            Numerics.widen(c.output())))
                    .isLessThan(1e-6);

            Stages stages = Reference.forward(c.experts(), c.hiddenStates(), logits, c.tokens());
            assertThat(Numerics.relativeL2(stages.output(), Numerics.widen(c.output())))
                    .isLessThan(endToEnd);
        }
    }

    private static @Nullable QuantizedTokens quantized(CaseFile.@Nullable Quantized given) {
        return given == null ? null : new QuantizedTokens(given.values(), given.scales());
    }

    /**
     * Equal, but for the few values that lie within an ulp or two of a rounding boundary, where a GPU's division
     * decides.
     */
    private static void assertQuantized(
            CaseFile c, float[] x, @Nullable QuantizedTokens actual, @Nullable QuantizedTokens expected) {
        if (actual == null || expected == null) {
            assertThat(actual).isEqualTo(expected);
            assertThat(c.scheme().quantizesActivations()).isFalse();
            return;
        }
        assertThat(actual.scales()).hasSameSizeAs(expected.scales());
        int perScale = x.length / expected.scales().length;
        int differing = 0;
        for (int i = 0; i < x.length; i++) {
            int a = actual.values()[i];
            int b = expected.values()[i];
            if (a != b) {
                double exact = x[i] / (double) actual.scales()[i / perScale];
                double truncated = Math.abs(a) > Math.abs(b) ? a : b;
                double boundary = c.scheme() == Int8Scheme.W8A8_BLOCK ? truncated : (a + b) / 2.0;
                assertThat(exact).as("value %d", i).isCloseTo(boundary, within(2.0 * Math.ulp((float) boundary)));
                differing++;
            }
        }
        // Where quotients are truncated, every group's greatest value is on a boundary: it is 127 or just below.
        int most = c.scheme() == Int8Scheme.W8A8_BLOCK ? expected.scales().length : 2 + x.length / 4000;
        assertThat(differing).isLessThanOrEqualTo(most);
        for (int row = 0; row < expected.scales().length; row++) {
            float scale = expected.scales()[row];
            assertThat(Math.abs(actual.scales()[row] - scale)).isLessThanOrEqualTo(2 * Math.ulp(scale));
        }
    }

    private static void assertWithinOneBf16Ulp(double[] actual, float[] expected, Int8Scheme scheme) {
        assertThat(actual).hasSameSizeAs(expected);
        double greatest = greatest(expected);
        int worst = 0;
        for (int i = 0; i < expected.length; i++) {
            // Where terms cancel, what is left is the producer's rounding of floats of the size of the terms.
            if (Math.abs(actual[i] - expected[i]) < greatest * 0x1p-23) {
                continue;
            }
            worst = Math.max(worst, Math.abs(bf16Rank((float) actual[i]) - bf16Rank(expected[i])));
        }
        assertThat(worst).as("bf16 ulps, %s", scheme).isLessThanOrEqualTo(1);
    }

    private static double greatest(float[] values) {
        double greatest = 0;
        for (float value : values) {
            greatest = Math.max(greatest, Math.abs(value));
        }
        return greatest;
    }

    /** Position of the nearest bf16 among all of them in ascending order, so that neighbours differ by 1. */
    private static int bf16Rank(float x) {
        int bits = Float.floatToIntBits(x);
        int rounded = (bits + 0x7fff + (bits >>> 16 & 1)) >> 16;
        return rounded >= 0 ? rounded : Short.MIN_VALUE - rounded;
    }
}
