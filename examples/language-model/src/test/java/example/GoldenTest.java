package example;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestReporter;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.config.Int8Scheme;

/** The decoder beside Hugging Face transformers, on tiny checkpoints: {@code make_golden.py} makes them. */
class GoldenTest {
    /** What transformers computed: a prompt, 32 greedy tokens, and the logits after each but the last. */
    record Golden(int[] prompt, int[] greedy, float[] logits, int vocabulary) {
        static Golden of(String folder) {
            try (Safetensors file = Safetensors.open(path(folder).resolve("golden.safetensors"))) {
                return new Golden(
                        file.tensor("prompt").toInts(),
                        file.tensor("greedy").toInts(),
                        file.tensor("logits").toFloats(),
                        (int) file.tensor("logits").shape()[1]);
            }
        }

        /** Of the prompt's tokens and the greedy ones but the last. */
        int[] tokens() {
            int[] tokens = Arrays.copyOf(prompt, prompt.length + greedy.length - 1);
            System.arraycopy(greedy, 0, tokens, prompt.length, greedy.length - 1);
            return tokens;
        }
    }

    static Path path(String folder) {
        return Path.of("src/test/resources", folder);
    }

    private static CpuDecoder decoder(Model model, Int8Scheme scheme) {
        return new CpuDecoder(
                model, MoeOptions.DEFAULT.withBackend("cpu").withMaxTokens(64).withScheme(scheme));
    }

    static double relativeL2(float[] expected, int from, float[] actual, int length) {
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < length; i++) {
            double d = actual[i] - expected[from + i];
            difference += d * d;
            norm += (double) expected[from + i] * expected[from + i];
        }
        return Math.sqrt(difference / norm);
    }

    /**
     * Weights are what int8 holds exactly, but those of {@code -plain}, and activations stay floats in w8a16: then
     * every token is held to the limit (1e-6 was seen). Of {@code -plain} each of six matrices in turn has its 1.1e-2.
     * Elsewhere rounding may turn the router's choice between two experts over, most of all
     * in a model of random numbers, and that token's logits are far off: the median is held to it.
     */
    @ParameterizedTest
    @CsvSource({
        "qwen3_moe, W8A16_CHANNEL, 1e-4",
        "olmoe, W8A16_CHANNEL, 1e-4",
        "mixtral, W8A16_CHANNEL, 1e-4",
        "qwen3_moe/model.gguf, W8A16_CHANNEL, 1e-4",
        "mixtral/model.gguf, W8A16_CHANNEL, 1e-4",
        "qwen3_moe, W8A8_CHANNEL, 2.5e-2",
        "olmoe, W8A8_CHANNEL, 2.5e-2",
        "mixtral, W8A8_CHANNEL, 2.5e-2",
        "qwen3_moe-plain, W8A16_CHANNEL, 4e-2",
        "qwen3_moe-plain, W8A8_CHANNEL, 4e-2"
    })
    void logitsAndGreedyTokensAreThoseOfTransformers(
            String checkpoint, Int8Scheme scheme, double most, TestReporter reporter) {
        Golden golden = Golden.of(checkpoint.replace("/model.gguf", ""));
        int v = golden.vocabulary;
        int prompt = golden.prompt.length;
        try (Model model = Model.open(path(checkpoint).toString());
                CpuDecoder decoder = decoder(model, scheme)) {
            CpuDecoder.Cache sequence = decoder.start();
            float[] hidden = decoder.hidden(new CpuDecoder.Step(sequence, golden.prompt));
            float[] prefill = decoder.logits(hidden, prompt);
            List<float[]> logits = new ArrayList<>();
            for (int i = 0; i < prompt; i++) {
                logits.add(Arrays.copyOfRange(prefill, i * v, (i + 1) * v));
            }
            for (int i = 0; i < golden.greedy.length - 1; i++) {
                logits.add(decoder.append(sequence, golden.greedy[i]));
            }
            double[] errors = IntStream.range(0, logits.size())
                    .mapToDouble(i -> relativeL2(golden.logits, i * v, logits.get(i), v))
                    .toArray();
            for (int i = prompt - 1; i < errors.length; i++) {
                if (margin(golden.logits, i * v, v) > 4 * errors[i]) {
                    assertEquals(golden.greedy[i - prompt + 1], Sampler.greatest(logits.get(i)), "token " + i);
                }
            }
            double[] sorted = Arrays.stream(errors).sorted().toArray();
            reporter.publishEntry(
                    checkpoint + ", " + scheme,
                    "relative L2 of " + sorted.length
                            + " tokens: median %.2g, greatest %.2g"
                                    .formatted(sorted[sorted.length / 2], sorted[sorted.length - 1]));
            boolean exact = most < 1e-3;
            assertTrue(sorted[exact ? sorted.length - 1 : sorted.length / 2] <= most, () -> Arrays.toString(errors));
        }
    }

    /** Between the two greatest, beside the root mean square: what an error of that relative size could turn over. */
    private static double margin(float[] logits, int from, int count) {
        float first = Float.NEGATIVE_INFINITY;
        float second = first;
        double squares = 0;
        for (int i = from; i < from + count; i++) {
            squares += (double) logits[i] * logits[i];
            if (logits[i] > first) {
                second = first;
                first = logits[i];
            } else {
                second = Math.max(second, logits[i]);
            }
        }
        return (first - second) / Math.sqrt(squares / count);
    }

    /** In w8a16, where errors are a thousandth of any margin, no token is left out of the comparison. */
    @ParameterizedTest
    @ValueSource(strings = {"qwen3_moe", "olmoe", "mixtral"})
    void thirtyTwoGreedyTokens(String checkpoint) {
        Golden golden = Golden.of(checkpoint);
        try (Model model = Model.open(path(checkpoint).toString());
                Decoder decoder = decoder(model, Int8Scheme.W8A16_CHANNEL)) {
            Decoder.Sequence sequence = decoder.start();
            int[] greedy = new int[golden.greedy.length];
            greedy[0] = Sampler.greatest(decoder.append(sequence, golden.prompt));
            for (int i = 1; i < greedy.length; i++) {
                greedy[i] = decoder.appendGreedily(sequence, greedy[i - 1]);
            }
            assertArrayEquals(golden.greedy, greedy);
        }
    }

    /** A token at a time, all at once, in parts, among other sequences: the same bits. */
    @ParameterizedTest
    @CsvSource({"qwen3_moe, W8A8_CHANNEL", "olmoe, W8A16_CHANNEL", "mixtral, W8A8_CHANNEL"})
    void batchAndSingleAgreeToTheBit(String checkpoint, Int8Scheme scheme) {
        int[] tokens = Golden.of(checkpoint).tokens();
        try (Model model = Model.open(path(checkpoint).toString());
                CpuDecoder decoder = decoder(model, scheme)) {
            int h = model.sizes.hidden();
            float[] whole = decoder.hidden(new CpuDecoder.Step(decoder.start(), tokens));
            CpuDecoder.Cache single = decoder.start();
            for (int i = 0; i < tokens.length; i++) {
                float[] one = decoder.hidden(new CpuDecoder.Step(single, new int[] {tokens[i]}));
                assertArrayEquals(Arrays.copyOfRange(whole, i * h, (i + 1) * h), one, "token " + i);
            }
            CpuDecoder.Cache parts = decoder.start();
            decoder.hidden(new CpuDecoder.Step(parts, Arrays.copyOf(tokens, 7)));
            CpuDecoder.Cache other = decoder.start();
            float[] together = decoder.hidden(
                    new CpuDecoder.Step(other, new int[] {3, 1, 4}),
                    new CpuDecoder.Step(parts, Arrays.copyOfRange(tokens, 7, tokens.length)));
            assertArrayEquals(
                    Arrays.copyOfRange(whole, 7 * h, whole.length),
                    Arrays.copyOfRange(together, 3 * h, together.length));
        }
    }

    @Test
    void aSequenceIsNoLongerThanTheModelsContext() {
        try (Model model = Model.open(path("olmoe").toString());
                Decoder decoder = decoder(model, Int8Scheme.W8A8_CHANNEL)) {
            Decoder.Sequence sequence = decoder.start();
            for (int i = 0; i < 4; i++) {
                decoder.append(sequence, new int[64]);
            }
            assertEquals(256, sequence.length());
            IllegalArgumentException refused =
                    assertThrows(IllegalArgumentException.class, () -> decoder.append(sequence, 1));
            assertTrue(refused.getMessage().contains("at most 256"), refused.getMessage());
            assertEquals(256, sequence.length());
        }
    }
}
