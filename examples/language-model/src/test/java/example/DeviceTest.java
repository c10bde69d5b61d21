package example;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.Int8Scheme;

/** The decoder as TornadoVM's tasks, on a device where there is one, else on the interpreter. */
class DeviceTest {
    private static final String DEVICE = System.getProperty("device");

    /** A prompt in chunks or not, layers in one graph or in two: the logits and the tokens of transformers. */
    @ParameterizedTest
    @CsvSource({"qwen3_moe, 8, 1", "olmoe, 8, 2", "mixtral, 1, 1"})
    void logitsAndGreedyTokensAreThoseOfTransformers(String checkpoint, int maxTokens, int layersAGraph) {
        GoldenTest.Golden golden = GoldenTest.Golden.of(checkpoint);
        int v = golden.vocabulary();
        int steps = DEVICE == null ? 3 : golden.greedy().length;
        try (Model model = Model.open(GoldenTest.path(checkpoint).toString());
                DeviceDecoder decoder =
                        new DeviceDecoder(model, DEVICE, Int8Scheme.W8A16_CHANNEL, maxTokens, 64, layersAGraph, true)) {
            for (int round = 0; round < 2; round++) { // the second writes over what the first left in the cache
                Decoder.Sequence sequence = decoder.start();
                float[] logits = decoder.append(sequence, golden.prompt());
                int at = (golden.prompt().length - 1) * v;
                double error = GoldenTest.relativeL2(golden.logits(), at, logits, v);
                // On tensor cores w8a16 rounds activations to halves.
                double most = DEVICE == null || maxTokens == 1 ? 1e-4 : 1e-3;
                assertTrue(error <= most, () -> "prompt: " + error);
                int[] greedy = new int[steps];
                greedy[0] = Sampler.greatest(logits);
                for (int i = 1; i < steps; i++) {
                    greedy[i] = decoder.appendGreedily(sequence, greedy[i - 1]);
                }
                assertArrayEquals(Arrays.copyOf(golden.greedy(), steps), greedy);
                assertEquals(golden.prompt().length + steps - 1, sequence.length());
            }
        }
    }

    @Test
    void oneSequenceAtATimeAndNoLongerThanTheCache() {
        try (Model model = Model.open(GoldenTest.path("olmoe").toString());
                DeviceDecoder decoder = new DeviceDecoder(model, DEVICE, Int8Scheme.W8A8_CHANNEL, 4, 8, 2, true)) {
            decoder.warmUp(1);
            Decoder.Sequence first = decoder.start();
            decoder.append(first, 1, 2, 3, 4, 5);
            assertThrows(IllegalArgumentException.class, () -> decoder.append(first, 1, 2, 3, 4));
            assertEquals(5, first.length());
            decoder.start();
            assertThrows(IllegalStateException.class, () -> decoder.append(first, 1));
        }
    }
}
