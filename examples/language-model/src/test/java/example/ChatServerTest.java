package example;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.tornadomoe.MoeOptions;
import tools.jackson.jr.ob.JSON;

/** The endpoint, asked as OpenAI's clients do. */
class ChatServerTest {
    private static final String ASKED =
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Which expert?\"}], \"max_tokens\": 12%s}";

    @Test
    void answersWholeAndAsAStream() throws Exception {
        try (Model model = Model.open(GoldenTest.path("qwen3_moe").toString());
                Text text = model.text();
                Decoder decoder = new CpuDecoder(model, MoeOptions.DEFAULT.withBackend("cpu"));
                ChatServer server = new ChatServer(new Chat(text, decoder), 0);
                HttpClient client = HttpClient.newHttpClient()) {
            Chat.Answer expected = new Chat(text, decoder)
                    .generate(
                            text.encode(List.of(new Text.Message("user", "Which expert?"))),
                            12,
                            new Sampler(0, 1, new SplittableRandom(0)),
                            piece -> {});
            HttpResponse<String> whole = ask(client, server, ASKED.formatted(""));
            assertEquals(200, whole.statusCode(), whole.body());
            Map<String, Object> answer = JSON.std.mapFrom(whole.body());
            Map<?, ?> choice = (Map<?, ?>) ((List<?>) answer.get("choices")).getFirst();
            assertEquals(expected.text(), ((Map<?, ?>) choice.get("message")).get("content"));
            assertEquals(expected.tokens(), ((Map<?, ?>) answer.get("usage")).get("completion_tokens"));

            HttpResponse<String> stream = ask(client, server, ASKED.formatted(", \"stream\": true"));
            StringBuilder streamed = new StringBuilder();
            List<String> events =
                    stream.body().lines().filter(line -> !line.isEmpty()).toList();
            for (String event : events.subList(0, events.size() - 1)) {
                Map<String, Object> chunk = JSON.std.mapFrom(event.substring("data: ".length()));
                Map<?, ?> first = (Map<?, ?>) ((List<?>) chunk.get("choices")).getFirst();
                Object piece = ((Map<?, ?>) first.get("delta")).get("content");
                streamed.append(piece == null ? "" : piece);
            }
            assertEquals(expected.text(), streamed.toString());
            assertEquals("data: [DONE]", events.getLast());

            for (String wrong :
                    List.of("{", "[]", "{}", "{\"messages\": [1]}", ASKED.formatted(", \"temperature\": -1"))) {
                HttpResponse<String> refused = ask(client, server, wrong);
                assertEquals(400, refused.statusCode(), wrong);
                assertTrue(refused.body().contains("error"), refused.body());
            }
        }
    }

    private static HttpResponse<String> ask(HttpClient client, ChatServer server, String body) throws Exception {
        return client.send(
                HttpRequest.newBuilder(URI.create("http://localhost:" + server.port() + "/v1/chat/completions"))
                        .POST(HttpRequest.BodyPublishers.ofString(body))
                        .build(),
                HttpResponse.BodyHandlers.ofString());
    }
}
