package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RoutingMethodType;

class CaseFileTest {
    private static final Path CASES = Path.of("src/test/resources/golden/vllm");

    @TempDir
    Path directory;

    /** The smallest case with one tensor renamed (or, to nothing, left out), and one metadata pair changed. */
    private Path changed(String tensor, String to, String key, String value) {
        Path file = directory.resolve("case.safetensors");
        try (Safetensors original = Safetensors.open(CASES.resolve("w8a8_channel_m1.safetensors"))) {
            SafetensorsWriter writer = new SafetensorsWriter();
            Map<String, String> metadata = new TreeMap<>(original.metadata());
            metadata.put(key, value);
            metadata.values().remove("");
            metadata.forEach(writer::metadata);
            for (String name : original.names()) {
                Tensor t = original.tensor(name);
                if (!name.equals(tensor)) {
                    writer.add(name, t.dtype(), t.data(), t.shape());
                } else if (!to.isEmpty()) {
                    writer.add(to, t.dtype(), t.data(), t.shape());
                }
            }
            writer.write(file);
        }
        return file;
    }

    private static void assertRefused(Path file, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> CaseFile.read(file).close())
                .withMessageStartingWith(file.toString())
                .withMessageContaining(message);
    }

    @Test
    void aCaseIsReadWhole() {
        CaseFile c = CaseFile.read(CASES.resolve("w8a8_channel_m33.safetensors"));
        try (c) {
            assertThat(c.scheme()).isEqualTo(Int8Scheme.W8A8_CHANNEL);
            assertThat(c.tokens()).isEqualTo(33);
            assertThat(c.config().numExperts()).isEqualTo(8);
            assertThat(c.config().maxNumTokens()).isEqualTo(33);
            assertThat(c.config().hasBias()).isFalse();
            assertThat(c.hiddenStates()).hasSize(33 * 256);
            assertThat(c.gemm1()).hasSize(66 * 256);
            assertThat(c.gemm2()).hasSize(66 * 256);
            assertThat(c.act()).hasSize(66 * 128);
            assertThat(c.a1()).isNotNull();
            assertThat(c.experts().hasRouter()).isFalse();
            assertThat(c.experts().w2().cols()).isEqualTo(128);
        }
        assertThatIllegalStateException().isThrownBy(() -> c.experts().w13());
    }

    @Test
    void weightOnlyCasesHaveNoQuantizedActivations() {
        try (CaseFile c = CaseFile.read(CASES.resolve("w8a16_channel_m33.safetensors"))) {
            assertThat(c.scheme()).isEqualTo(Int8Scheme.W8A16_CHANNEL);
            assertThat(c.a1()).isNull();
            assertThat(c.a2()).isNull();
        }
    }

    @ParameterizedTest
    @CsvSource({
        "scheme, w4a16, 'not supported yet: scheme: expected one of [w8a8_channel, w8a8_tensor, w8a8_block,"
                + " w8a16_channel, w8a16_group], got ''w4a16'''",
        "activation, tanh, 'Unknown MoE activation: ''tanh'''",
        "apply_router_weight_on_input, True, 'not supported yet: apply_router_weight_on_input: expected False, got"
                + " True'",
        "ep, '[1, 3]', 'not supported yet: ep: expected None, got [1, 3]'",
        "apply_router_weight_on_input, maybe, 'not supported yet: apply_router_weight_on_input: expected False, got"
                + " maybe'",
        "tokens, '', 'metadata: has no ''tokens'': not a case file'",
        "tokens, x, 'metadata: ''tokens'': expected a positive number, got ''x'''",
        "hidden, -256, 'metadata: ''hidden'': expected a positive number, got ''-256'''",
        "hidden, 255, 'expected shape [1, 255], got [1, 256]'",
        "E, 2000, 'numExperts: expected 1 to 1024, got 2000'",
        "E, 7, 'expected shape [1, 7], got [1, 8]'",
    })
    void metadataThatDoesNotFitIsNamed(String key, String value, String message) {
        assertRefused(changed("", "", key, value), message);
    }

    @ParameterizedTest
    @ValueSource(strings = {"w13_bias", "w2_bias"})
    void aBiasOfAnotherKindIsNamed(String tensor) {
        assertRefused(changed("w13_weight", tensor, "seed", "1"), "tensor '" + tensor + "'");
    }

    @Test
    void biasesAndScalesOfActivationsAreRead() {
        try (CaseFile c = CaseFile.read(CASES.resolve("w8a8_channel_bias_swigluoai.safetensors"))) {
            assertThat(c.config().activation()).isEqualTo(MoeActivation.SWIGLUOAI);
            assertThat(c.config().hasBias()).isTrue();
            assertThat(c.experts().w13Bias()).hasSize(8 * 256);
            assertThat(c.experts().w2Bias()).hasSize(8 * 128);
        }
        try (CaseFile c = CaseFile.read(CASES.resolve("w8a8_tensor_m16.safetensors"))) {
            assertThat(c.experts().a1Scale()).isPositive();
            assertThat(c.experts().activationKey()).isEqualTo(QuantKey.INT8_STATIC_TENSOR_SYM);
            assertThat(c.experts().w13().isPerExpert()).isTrue();
        }
        try (CaseFile c = CaseFile.read(CASES.resolve("w8a8_block_m33.safetensors"))) {
            assertThat(c.experts().quantization()).hasToString("w8a8_block 128x128");
            assertThat(c.experts().w13().scales()).hasSize(8 * 2 * 2);
            assertThat(c.experts().w13Bias()).isNull();
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "hidden_states",
                "router_logits",
                "topk_ids",
                "topk_weights",
                "a1_q",
                "a2_scale",
                "gemm1",
                "gemm2",
                "act",
                "output",
                "sorted_token_ids",
                "expert_ids",
                "num_tokens_post_padded",
                "w13_weight",
                "w2_weight_scale",
            })
    void aMissingTensorIsNamed(String tensor) {
        assertRefused(changed(tensor, "", "seed", "1"), "has no tensor '" + tensor + "'");
    }

    /** The case of one token, with another first number in a tensor of whole numbers. */
    @ParameterizedTest
    @CsvSource({
        "topk_ids, -1, 'expected expert ids from 0 to 7, got -1'",
        "topk_ids, 8, 'expected expert ids from 0 to 7, got 8'",
        "topk_ids, 7, ''",
        "topk_ids, 0, ''",
        "num_tokens_post_padded, -16, 'expected a multiple of 16 from 0 to 32, got -16'",
        "num_tokens_post_padded, 17, 'expected a multiple of 16 from 0 to 32, got 17'",
        "num_tokens_post_padded, 48, 'expected a multiple of 16 from 0 to 32, got 48'",
        "num_tokens_post_padded, 32, ''",
        "num_tokens_post_padded, 0, ''",
    })
    void numbersOfExpertsAndTokensAreChecked(String tensor, int first, String message) {
        Path file = directory.resolve("numbers.safetensors");
        try (Safetensors original = Safetensors.open(CASES.resolve("w8a8_channel_m1.safetensors"))) {
            SafetensorsWriter writer = new SafetensorsWriter();
            original.metadata().forEach(writer::metadata);
            for (String name : original.names()) {
                Tensor t = original.tensor(name);
                if (name.equals(tensor)) {
                    int[] values = t.toInts();
                    values[0] = first;
                    writer.add(name, values, t.shape());
                } else {
                    writer.add(name, t.dtype(), t.data(), t.shape());
                }
            }
            writer.write(file);
        }
        if (message.isEmpty()) {
            CaseFile.read(file).close();
        } else {
            assertRefused(file, "tensor '" + tensor + "': " + message);
        }
    }

    @Test
    void aFileThatIsNoCaseSaysSo() {
        assertRefused(
                Path.of("src/test/resources/golden/hf/mixtral/golden.safetensors"),
                "metadata: has no 'scheme': not a case file (it has [])");
        assertRefused(directory.resolve("none"), "no such file or directory");
    }

    /** With one expert a token, whose weight the file has; the router that gives such weights is found by them. */
    @ParameterizedTest
    @CsvSource({
        "1, 1, 1, RENORMALIZE_NAIVE",
        "0.8808, 0.8808, 0.0759, DEFAULT",
        "0.7311, 0.8808, 0.6225, LLAMA4",
    })
    void theRouterOfWeightsOnTheInputIsFoundByThem(float first, float second, float third, RoutingMethodType routing) {
        SafetensorsWriter writer = new SafetensorsWriter();
        Map.of(
                        "scheme", "w8a16_channel",
                        "top_k", "1",
                        "intermediate", "16",
                        "activation", "silu",
                        "E", "2",
                        "hidden", "16",
                        "tokens", "3",
                        "ep", "None",
                        "apply_router_weight_on_input", "True")
                .forEach(writer::metadata);
        writer.add("router_logits", new float[] {1, -1, 0, 2, 3, 0.5f}, 3, 2)
                .add("topk_ids", new int[] {0, 1, 1}, 3, 1)
                .add("topk_weights", new float[] {first, second, third}, 3, 1)
                .add("hidden_states", new float[48], 3, 16)
                .add("sorted_token_ids", new int[32], 32)
                .add("expert_ids", new int[2], 2)
                .add("num_tokens_post_padded", new int[] {32}, 1)
                .add("gemm1", new float[96], 3, 1, 32)
                .add("act", new float[48], 3, 16)
                .add("gemm2", new float[48], 3, 1, 16)
                .add("output", new float[48], 3, 16)
                .add("w13_weight", new byte[1024], 2, 32, 16)
                .add("w13_weight_scale", new float[64], 2, 32, 1)
                .add("w2_weight", new byte[512], 2, 16, 16)
                .add("w2_weight_scale", new float[32], 2, 16, 1);
        Path file = directory.resolve("top1.safetensors");
        writer.write(file);
        try (CaseFile c = CaseFile.read(file)) {
            assertThat(c.config().routingMethod()).isEqualTo(routing);
            assertThat(c.toString()).startsWith(file + " w8a16_channel ");
        }
    }
}
