package org.tornadomoe.cli;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.moe;

import java.nio.file.Path;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.checkpoint.CaseFile;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Activations;
import org.tornadomoe.reference.Alignment;
import org.tornadomoe.reference.Alignments;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.QuantizedTokens;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.ReferenceGemm;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;

/**
 * Cases with one expert a token whose weight multiplies the first GEMM's output, as vLLM's {@code fused_experts} has
 * it, made here stage by stage from the definition.
 */
class CaseOnInputTest {
    private static final int EXPERTS = 4;
    private static final int HIDDEN = 128;
    private static final int INTERMEDIATE = 128;
    private static final int TOKENS = 9;

    @TempDir
    Path directory;

    @ParameterizedTest
    @CsvSource({
        "W8A8_CHANNEL, sigmoid, false, reference",
        "W8A8_CHANNEL, sigmoid, true, reference",
        "W8A8_CHANNEL, sigmoid, true, cpu",
        "W8A8_CHANNEL, softmax, false, triton",
        "W8A8_CHANNEL, renormalised, false, cpu",
        "W8A16_CHANNEL, sigmoid, true, cpu",
        "W8A16_CHANNEL, sigmoid, false, triton",
        "W8A8_BLOCK, softmax, false, cpu",
        "W8A8_TENSOR, sigmoid, false, reference",
        "W8A8_TENSOR, sigmoid, false, cpu",
    })
    void everyStagePasses(Int8Scheme scheme, String routing, boolean biases, String backend) {
        Path file = write(scheme, routing, biases, true);

        Ran ran = moe("verify", "--case", file, "--backend", backend);

        assertThat(ran.status()).as(ran.out() + ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.out()).contains("gemm 1", "end to end").doesNotContain("NOT OK");
    }

    @Test
    void weightsElsewhereAreNo() {
        Ran ran = moe(
                "verify",
                "--case",
                write(Int8Scheme.W8A8_CHANNEL, "sigmoid", false, false),
                "--backend",
                "reference",
                "--json");

        assertThat(ran.status()).isEqualTo(Moe.NO);
        assertThat(ran.out()).contains("\"stage\":\"gemm 1\"");
    }

    /** @param weighed whether the first GEMM's output is multiplied, as the file says */
    private Path write(Int8Scheme scheme, String routing, boolean biases, boolean weighed) {
        RandomLayer layer = RandomLayer.of(EXPERTS, 1, HIDDEN, INTERMEDIATE, TOKENS, 7)
                .routedBy(
                        switch (routing) {
                            case "sigmoid" -> RouterConfig.topKThenSigmoid();
                            case "softmax" -> RouterConfig.of(ScoringFunction.SOFTMAX, false);
                            default -> RouterConfig.of(ScoringFunction.SOFTMAX, true);
                        });
        FusedMoeConfig config = layer.config();
        SplittableRandom random = new SplittableRandom(11);
        float[] hidden = bf16(gaussian(random, TOKENS * HIDDEN));
        float[] logits = narrow(gaussian(random, TOKENS * EXPERTS));
        float[] w13Bias = biases ? narrow(gaussian(random, EXPERTS * 2 * INTERMEDIATE)) : null;
        float[] w2Bias = biases ? narrow(gaussian(random, EXPERTS * HIDDEN)) : null;
        Routing routed = Router.route(config, layer.router(), Numerics.widen(logits), TOKENS);
        double[] weights = routed.weights();
        try (Int8Experts experts = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
            double[] x = Numerics.widen(hidden);
            QuantizedTokens a1 = Reference.quantize(experts, null, x, TOKENS, HIDDEN);
            double[] gemm1 = a1 == null
                    ? ReferenceGemm.multiply(x, 1, routed.ids(), experts.w13(), w13Bias)
                    : ReferenceGemm.multiply(a1, 1, routed.ids(), experts.w13(), w13Bias);
            float[] stored1 = bf16(weighed ? Reference.weigh(gemm1, weights) : gemm1);
            double[] act = Activations.apply(config, Numerics.widen(stored1), TOKENS);
            float[] storedAct = narrow(act);
            QuantizedTokens a2 = Reference.quantize(experts, null, act, TOKENS, INTERMEDIATE);
            float[] stored2 = bf16(
                    a2 == null
                            ? ReferenceGemm.multiply(Numerics.widen(storedAct), 1, routed.ids(), experts.w2(), w2Bias)
                            : ReferenceGemm.multiply(a2, 1, routed.ids(), experts.w2(), w2Bias));
            Alignment alignment = Alignments.align(routed.ids(), EXPERTS, CaseFile.BLOCK_SIZE);
            SafetensorsWriter file = new SafetensorsWriter()
                    .metadata("producer", "the definition")
                    .metadata("scheme", scheme.toString())
                    .metadata("activation", "silu")
                    .metadata("apply_router_weight_on_input", "True")
                    .metadata("ep", "None")
                    .metadata("tokens", "" + TOKENS)
                    .metadata("top_k", "1")
                    .metadata("hidden", "" + HIDDEN)
                    .metadata("intermediate", "" + INTERMEDIATE)
                    .metadata("E", "" + EXPERTS)
                    .add("hidden_states", hidden, TOKENS, HIDDEN)
                    .add("router_logits", logits, TOKENS, EXPERTS)
                    .add("topk_weights", narrow(weights), TOKENS, 1)
                    .add("topk_ids", routed.ids(), TOKENS, 1)
                    .add("sorted_token_ids", alignment.sortedTokenIds(), alignment.sortedTokenIds().length)
                    .add("expert_ids", alignment.expertIds(), alignment.expertIds().length)
                    .add("num_tokens_post_padded", new int[] {alignment.sortedTokenIds().length}, 1)
                    .add("gemm1", stored1, TOKENS, 1, 2 * INTERMEDIATE)
                    .add("act", storedAct, TOKENS, INTERMEDIATE)
                    .add("gemm2", stored2, TOKENS, 1, HIDDEN)
                    .add("output", stored2, TOKENS, HIDDEN);
            addWeights(file, "w13_weight", scheme, experts.w13());
            addWeights(file, "w2_weight", scheme, experts.w2());
            addQuantized(file, "a1", scheme, a1, HIDDEN);
            addQuantized(file, "a2", scheme, a2, INTERMEDIATE);
            if (w13Bias != null && w2Bias != null) {
                file.add("w13_bias", w13Bias, EXPERTS, 2 * INTERMEDIATE).add("w2_bias", w2Bias, EXPERTS, HIDDEN);
            }
            Path path = directory.resolve("case.safetensors");
            file.write(path);
            return path;
        }
    }

    private static void addWeights(SafetensorsWriter file, String name, Int8Scheme scheme, Int8Tensor tensor) {
        int cols = tensor.cols();
        byte[] values = new byte[EXPERTS * tensor.rows() * cols];
        byte[] row = new byte[cols];
        for (int r = 0; r < EXPERTS * tensor.rows(); r++) {
            tensor.row(r / tensor.rows(), r % tensor.rows(), row);
            System.arraycopy(row, 0, values, r * cols, cols);
        }
        file.add(name, values, EXPERTS, tensor.rows(), cols);
        if (scheme == Int8Scheme.W8A8_TENSOR) {
            file.add(name + "_scale", tensor.scales(), EXPERTS);
        } else {
            file.add(name + "_scale", tensor.scales(), EXPERTS, tensor.scaleRows(), tensor.scaleCols());
        }
    }

    private static void addQuantized(
            SafetensorsWriter file, String name, Int8Scheme scheme, @Nullable QuantizedTokens tokens, int width) {
        if (tokens == null) {
            return;
        }
        float[] scales = requireNonNull(tokens.scales());
        file.add(name + "_q", tokens.values(), TOKENS, width);
        if (scheme == Int8Scheme.W8A8_TENSOR) {
            file.add(name + "_scale", new float[] {scales[0]}, 1);
        } else {
            file.add(name + "_scale", scales, TOKENS, scales.length / TOKENS);
        }
    }

    private static double[] gaussian(SplittableRandom random, int count) {
        double[] values = new double[count];
        for (int i = 0; i < count; i++) {
            values[i] = random.nextGaussian();
        }
        return values;
    }

    private static float[] narrow(double[] values) {
        float[] floats = new float[values.length];
        for (int i = 0; i < values.length; i++) {
            floats[i] = (float) values[i];
        }
        return floats;
    }

    /** Rounded to nearest, ties to even. */
    private static float[] bf16(double[] values) {
        float[] rounded = narrow(values);
        for (int i = 0; i < rounded.length; i++) {
            int bits = Float.floatToRawIntBits(rounded[i]);
            rounded[i] = Float.intBitsToFloat((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000);
        }
        return rounded;
    }
}
