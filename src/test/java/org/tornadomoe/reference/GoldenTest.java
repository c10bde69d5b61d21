package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.CaseFile;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.Safetensors;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;

/** The reference against what Hugging Face's modules and vLLM's kernel gave (golden/README.md has the bounds' origin). */
class GoldenTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden");

    @ParameterizedTest
    @ValueSource(strings = {"mixtral", "qwen3_moe"})
    void aLayerOfHuggingFaceIsReproduced(String family) {
        Path directory = GOLDEN.resolve("hf").resolve(family);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory);
                Safetensors golden = Safetensors.open(directory.resolve("golden.safetensors"))) {
            ExpertWeights weights = checkpoint.layer(0);
            float[] hidden = golden.tensor("hidden_states").toFloats();
            int tokens = hidden.length / weights.config().hiddenDim();
            double[] expected = Reference.widen(golden.tensor("output").toFloats());

            Stages exact = Reference.forward(weights, hidden, tokens);
            assertThat(Reference.relativeL2(exact.output(), expected)).isLessThan(1e-6);

            for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)) {
                try (Int8Experts experts = Int8Quantizer.quantize(weights, scheme, Progress.NONE)) {
                    Stages int8 = Reference.forward(experts, hidden, tokens);
                    assertThat(Reference.relativeL2(int8.output(), expected))
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
        "w8a8_channel_bias_swigluoai, 1.5e-2"
    })
    void everyStageOfVllmsKernelIsReproduced(String name, double endToEnd) {
        try (CaseFile c = CaseFile.read(GOLDEN.resolve("vllm").resolve(name + ".safetensors"))) {
            int experts = c.config().numExperts();
            int topK = c.config().expertsPerToken();
            int hidden = c.config().hiddenDim();
            int intermediate = c.config().intermediateSize();
            int pairs = c.topkIds().length;
            double[] logits = Reference.widen(c.routerLogits());

            Routing routing = Router.route(c.config(), c.experts().router(), logits, c.tokens());
            assertThat(routing.ids()).isEqualTo(c.topkIds());
            for (int p = 0; p < pairs; p++) {
                assertThat((float) routing.weights()[p]).isCloseTo(c.topkWeights()[p], within(1e-6f));
            }

            int[] map = IntStream.range(0, experts).map(c.experts()::expertMap).toArray();
            int[] local = Arrays.stream(c.topkIds()).map(e -> map[e]).toArray();
            Alignment alignment = Reference.align(c.topkIds(), map, true, CaseFile.BLOCK_SIZE);
            assertThat(alignment.sortedTokenIds()).isEqualTo(c.sortedTokenIds());
            assertThat(alignment.expertIds()).isEqualTo(c.expertIds());
            assertThat(alignment.numTokensPostPadded()).isEqualTo(c.numTokensPostPadded());

            double[] weights = Reference.widen(c.topkWeights());
            double[] gemm1;
            double[] gemm2;
            CaseFile.Quantized a1 = c.a1();
            CaseFile.Quantized a2 = c.a2();
            if (a1 != null && a2 != null) {
                assertQuantized(
                        c.hiddenStates(),
                        Reference.quantize(Reference.widen(c.hiddenStates()), c.tokens(), hidden),
                        a1);
                assertQuantized(c.act(), Reference.quantize(Reference.widen(c.act()), pairs, intermediate), a2);
                gemm1 = Reference.gemm(
                        new QuantizedTokens(a1.values(), a1.scales()),
                        topK,
                        local,
                        c.experts().w13());
                gemm2 = Reference.gemm(
                        new QuantizedTokens(a2.values(), a2.scales()),
                        1,
                        local,
                        c.experts().w2());
            } else {
                gemm1 = Reference.gemm(
                        Reference.widen(c.hiddenStates()),
                        topK,
                        local,
                        c.experts().w13());
                gemm2 = Reference.gemm(
                        Reference.widen(c.act()), 1, local, c.experts().w2());
            }
            gemm1 = Reference.addBias(gemm1, local, c.experts().w13Bias());
            gemm2 = Reference.addBias(gemm2, local, c.experts().w2Bias());
            assertWithinOneBf16Ulp(gemm1, c.gemm1(), c.scheme());
            assertWithinOneBf16Ulp(Reference.weigh(gemm2, weights), c.gemm2(), c.scheme());
            // The producer rounds silu(gate) to bf16 before it multiplies, and the product once more.
            assertThat(Reference.relativeL2(
                            Activations.apply(c.config(), Reference.widen(c.gemm1()), pairs), Reference.widen(c.act())))
                    .isLessThan(3e-3);
            assertThat(Reference.relativeL2(
                            Reference.combine(Reference.widen(c.gemm2()), c.tokens(), topK, hidden),
                            Reference.widen(c.output())))
                    .isLessThan(1e-6);

            Stages stages = Reference.forward(c.experts(), c.hiddenStates(), logits, c.tokens());
            assertThat(Reference.relativeL2(stages.output(), Reference.widen(c.output())))
                    .isLessThan(endToEnd);
        }
    }

    /** Equal, but for the few values that lie within an ulp or two of a rounding boundary, where a GPU's division decides. */
    private static void assertQuantized(float[] x, QuantizedTokens actual, CaseFile.Quantized expected) {
        int width = x.length / expected.scales().length;
        int differing = 0;
        for (int i = 0; i < x.length; i++) {
            if (actual.values()[i] != expected.values()[i]) {
                double exact = x[i] / (double) actual.scales()[i / width];
                double boundary = (actual.values()[i] + expected.values()[i]) / 2.0;
                assertThat(exact).as("value %d", i).isCloseTo(boundary, within(2.0 * Math.ulp((float) boundary)));
                differing++;
            }
        }
        assertThat(differing).isLessThanOrEqualTo(2 + x.length / 4000);
        for (int row = 0; row < expected.scales().length; row++) {
            float scale = expected.scales()[row];
            assertThat(Math.abs(actual.scales()[row] - scale)).isLessThanOrEqualTo(2 * Math.ulp(scale));
        }
    }

    private static void assertWithinOneBf16Ulp(double[] actual, float[] expected, Int8Scheme scheme) {
        assertThat(actual).hasSameSizeAs(expected);
        int worst = 0;
        for (int i = 0; i < expected.length; i++) {
            worst = Math.max(worst, Math.abs(bf16Rank((float) actual[i]) - bf16Rank(expected[i])));
        }
        assertThat(worst).as("bf16 ulps, %s", scheme).isLessThanOrEqualTo(1);
    }

    /** Position of the nearest bf16 among all of them in ascending order, so that neighbours differ by 1. */
    private static int bf16Rank(float x) {
        int bits = Float.floatToIntBits(x);
        int rounded = (bits + 0x7fff + (bits >>> 16 & 1)) >> 16;
        return rounded >= 0 ? rounded : Short.MIN_VALUE - rounded;
    }
}
