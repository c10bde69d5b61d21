package example;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.langchain4j.data.message.ChatMessage;
import dev.langchain4j.data.message.SystemMessage;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.openai.OpenAiChatModel;
import dev.langchain4j.model.openai.OpenAiStreamingChatModel;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.tornadomoe.MoeOptions;
import tools.jackson.jr.ob.JSON;

/** The endpoint, asked by the JDK's client as OpenAI's clients do, and by LangChain4j. */
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

    @Test
    void langChain4jTalksToIt() throws Exception {
        try (Model model = Model.open(GoldenTest.path("qwen3_moe").toString());
                Text text = model.text();
                Decoder decoder = new CpuDecoder(model, MoeOptions.DEFAULT.withBackend("cpu"));
                ChatServer server = new ChatServer(new Chat(text, decoder), 0)) {
            int[] prompt =
                    text.encode(List.of(new Text.Message("system", "Be brief."), new Text.Message("user", "Which?")));
            Chat.Answer expected = new Chat(text, decoder)
                    .generate(prompt, 12, new Sampler(0, 1, new SplittableRandom(0)), piece -> {});
            List<ChatMessage> asked = List.of(SystemMessage.from("Be brief."), UserMessage.from("Which?"));
            String url = "http://localhost:" + server.port() + "/v1";
            ChatResponse whole = OpenAiChatModel.builder()
                    .baseUrl(url)
                    .apiKey("none")
                    .modelName("tornado-moe")
                    .temperature(0.0)
                    .maxTokens(12)
                    .build()
                    .chat(asked);
            assertEquals(expected.text(), whole.aiMessage().text());
            assertEquals(prompt.length, whole.tokenUsage().inputTokenCount());
            assertEquals(expected.tokens(), whole.tokenUsage().outputTokenCount());

            StringBuilder streamed = new StringBuilder();
            CompletableFuture<ChatResponse> ended = new CompletableFuture<>();
            OpenAiStreamingChatModel.builder()
                    .baseUrl(url)
                    .apiKey("none")
                    .modelName("tornado-moe")
                    .temperature(0.0)
                    .maxCompletionTokens(12)
                    .build()
                    .chat(asked, new StreamingChatResponseHandler() {
                        @Override
                        public void onPartialResponse(String piece) {
                            streamed.append(piece);
                        }

                        @Override
                        public void onCompleteResponse(ChatResponse response) {
                            ended.complete(response);
                        }

                        @Override
                        public void onError(Throwable failure) {
                            ended.completeExceptionally(failure);
                        }
                    });
            ChatResponse last = ended.get(1, TimeUnit.MINUTES);
            assertEquals(expected.text(), streamed.toString());
            assertEquals(expected.text(), last.aiMessage().text());
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
