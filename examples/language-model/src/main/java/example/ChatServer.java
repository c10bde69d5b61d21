package example;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.Executors;
import tools.jackson.core.JacksonException;
import tools.jackson.jr.ob.JSON;

/**
 * Serves {@code POST /v1/chat/completions} for OpenAI's clients and LangChain4j's {@code OpenAiChatModel}, as one
 * response or as a stream of events. Accepts connections from this machine only.
 */
final class ChatServer implements AutoCloseable {
    private static final int MOST_BYTES = 1 << 20;

    private final Chat chat;
    private final HttpServer server;

    ChatServer(Chat chat, int port) throws IOException {
        this.chat = chat;
        server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
        server.setExecutor(Executors.newVirtualThreadPerTaskExecutor());
        server.createContext("/v1/chat/completions", this::handle);
        server.start();
    }

    int port() {
        return server.getAddress().getPort();
    }

    private void handle(HttpExchange exchange) throws IOException {
        try (exchange) {
            try {
                if (!exchange.getRequestMethod().equals("POST")) {
                    throw new IllegalArgumentException("expected POST, got " + exchange.getRequestMethod());
                }
                byte[] body = exchange.getRequestBody().readNBytes(MOST_BYTES + 1);
                if (body.length > MOST_BYTES) {
                    throw new IllegalArgumentException("expected at most " + MOST_BYTES + " bytes");
                }
                answer(exchange, JSON.std.mapFrom(body));
            } catch (IllegalArgumentException | JacksonException wrong) {
                send(exchange, 400, Map.of("error", Map.of("message", wrong.getMessage())));
            }
        }
    }

    private void answer(HttpExchange exchange, Map<String, Object> request) throws IOException {
        List<Text.Message> messages = new ArrayList<>();
        if (!(request.get("messages") instanceof List<?> list) || list.isEmpty()) {
            throw new IllegalArgumentException("messages: expected a list, got " + request.get("messages"));
        }
        for (Object each : list) {
            if (!(each instanceof Map<?, ?> message)
                    || !(message.get("role") instanceof String role)
                    || !(message.get("content") instanceof String content)) {
                throw new IllegalArgumentException("messages: expected role and content, got " + each);
            }
            messages.add(new Text.Message(role, content));
        }
        String limit = request.containsKey("max_tokens") ? "max_tokens" : "max_completion_tokens"; // the newer name
        int most = (int) number(request, limit, 256, 1, 1 << 20);
        Sampler sampler = new Sampler(
                number(request, "temperature", 0, 0, 100),
                number(request, "top_p", 1, 0, 1),
                new SplittableRandom((long) number(request, "seed", 0, -1e15, 1e15)));
        int[] prompt = chat.text().encode(messages);
        if (!Boolean.TRUE.equals(request.get("stream"))) {
            Chat.Answer answer = chat.generate(prompt, most, sampler, piece -> {});
            Map<String, Object> usage = Map.of(
                    "prompt_tokens", answer.promptTokens(),
                    "completion_tokens", answer.tokens(),
                    "total_tokens", answer.promptTokens() + answer.tokens());
            Map<String, Object> choice = Map.of(
                    "index",
                    0,
                    "message",
                    Map.of("role", "assistant", "content", answer.text()),
                    "finish_reason",
                    answer.ended() ? "stop" : "length");
            send(exchange, 200, reply("chat.completion", choice, Map.of("usage", usage)));
            return;
        }
        exchange.getResponseHeaders().set("Content-Type", "text/event-stream");
        exchange.sendResponseHeaders(200, 0);
        OutputStream out = exchange.getResponseBody();
        Chat.Answer answer = chat.generate(prompt, most, sampler, piece -> event(out, Map.of("content", piece), ""));
        event(out, Map.of(), answer.ended() ? "stop" : "length");
        out.write("data: [DONE]\n\n".getBytes(StandardCharsets.UTF_8));
    }

    private static double number(Map<String, Object> request, String name, double absent, double least, double most) {
        Object value = request.get(name);
        double number = value == null ? absent : value instanceof Number given ? given.doubleValue() : Double.NaN;
        if (!(number >= least && number <= most)) {
            throw new IllegalArgumentException(name + ": expected " + least + " to " + most + ", got " + value);
        }
        return number;
    }

    /** Writes an event. If the client has disconnected, the write fails, which ends the answer. */
    private static void event(OutputStream out, Map<String, String> delta, String finish) {
        try {
            Map<String, Object> choice = finish.isEmpty()
                    ? Map.of("index", 0, "delta", delta)
                    : Map.of("index", 0, "delta", delta, "finish_reason", finish);
            String json = JSON.std.asString(reply("chat.completion.chunk", choice, Map.of()));
            out.write(("data: " + json + "\n\n").getBytes(StandardCharsets.UTF_8));
            out.flush();
        } catch (IOException gone) {
            throw new UncheckedIOException(gone);
        }
    }

    private static Map<String, Object> reply(String kind, Map<String, Object> choice, Map<String, Object> more) {
        Map<String, Object> reply = new LinkedHashMap<>();
        reply.put("id", "chat");
        reply.put("object", kind);
        reply.put("created", System.currentTimeMillis() / 1000);
        reply.put("model", "tornado-moe");
        reply.put("choices", List.of(choice));
        reply.putAll(more);
        return reply;
    }

    private static void send(HttpExchange exchange, int status, Map<String, Object> json) throws IOException {
        byte[] body = JSON.std.asBytes(json);
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
    }

    @Override
    public void close() {
        server.stop(0);
    }
}
