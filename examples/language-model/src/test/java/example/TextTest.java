package example;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import tools.jackson.jr.ob.JSON;

/** Tokens, templates and choices. */
class TextTest {
    private static int[] ids(Object list) {
        return ((List<?>) list)
                .stream().mapToInt(id -> ((Number) id).intValue()).toArray();
    }

    /** As Python's tokenizers have it, and Jinja; a GGUF file's vocabulary gives the same tokens. */
    @ParameterizedTest
    @ValueSource(strings = {"qwen3_moe", "olmoe", "mixtral", "qwen3_moe/model.gguf", "mixtral/model.gguf"})
    void tokensAndTemplates(String checkpoint) throws Exception {
        Map<String, Object> golden = JSON.std.mapFrom(Files.readString(
                GoldenTest.path(checkpoint.replace("/model.gguf", "")).resolve("golden.json")));
        try (Model model = Model.open(GoldenTest.path(checkpoint).toString());
                Text text = model.text()) {
            for (Object each : (List<?>) golden.get("texts")) {
                Map<?, ?> of = (Map<?, ?>) each;
                int[] ids = text.encode((String) of.get("text"));
                assertArrayEquals(ids(of.get("ids")), ids);
                assertEquals(
                        of.get("decoded"),
                        text.decode(Arrays.stream(ids).boxed().toList()));
            }
            List<Text.Message> chat = ((List<?>) golden.get("chat"))
                    .stream()
                            .map(message -> new Text.Message((String) ((Map<?, ?>) message).get("role"), (String)
                                    ((Map<?, ?>) message).get("content")))
                            .toList();
            assertEquals(golden.get("rendered"), text.render(chat));
            assertArrayEquals(ids(golden.get("chat_ids")), text.encode(chat));
            assertEquals(1, text.ends.size());
        }
    }

    @Test
    void greedyIsTheGreatestAndTopPTheLikeliest() {
        float[] logits = {0, 3, 1, 2.9f, -5};
        assertEquals(1, new Sampler(0, 1, new SplittableRandom(1)).choose(logits));
        int[] narrow = new int[5];
        int[] wide = new int[5];
        Sampler likely = new Sampler(1, 0.8, new SplittableRandom(2));
        Sampler any = new Sampler(1, 1, new SplittableRandom(3));
        for (int i = 0; i < 20_000; i++) {
            narrow[likely.choose(logits)]++;
            wide[any.choose(logits)]++;
        }
        assertEquals(20_000, narrow[1] + narrow[3]);
        double all =
                Arrays.stream(new double[] {0, 3, 1, 2.9f, -5}).map(Math::exp).sum();
        for (int i = 0; i < 5; i++) {
            assertEquals(Math.exp(logits[i]) / all, wide[i] / 20_000.0, 0.02);
        }
        assertEquals(3, new Sampler(1, 0, new SplittableRandom(1)).choose(new float[] {0, 1, 2, 3}));
    }

    /** A field that changes what attention computes and that the decoder hasn't. */
    @Test
    void whatWouldComputeSomethingElseIsRefused(@TempDir Path folder) throws Exception {
        Path mixtral = GoldenTest.path("mixtral");
        String config = Files.readString(mixtral.resolve("config.json"));
        Files.copy(mixtral.resolve("model.safetensors"), folder.resolve("model.safetensors"));
        for (String other : List.of(
                config.replace("\"sliding_window\": null", "\"sliding_window\": 16"),
                config.replace("\"rope_type\": \"default\"", "\"rope_type\": \"yarn\""),
                config.replace("mixtral", "minimax"))) {
            Files.writeString(folder.resolve("config.json"), other);
            assertThrows(
                    IllegalArgumentException.class,
                    () -> Model.open(folder.toString()).close());
        }
        Files.writeString(folder.resolve("config.json"), config);
        Model.open(folder.toString()).close();
    }
}
