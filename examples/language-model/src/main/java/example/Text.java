package example;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import tools.jackson.jr.ob.JSON;

/**
 * Converts text to tokens and back with Hugging Face's tokenizers: with a folder's {@code tokenizer.json}, or with one
 * made from a GGUF file's vocabulary. It recognises known chat templates by strings in them and runs no template
 * language.
 */
final class Text implements AutoCloseable {
    /** @param role system, user or assistant */
    record Message(String role, String content) {}

    private final HuggingFaceTokenizer tokenizer;
    private final String template;
    private final String begin;
    private final String end;

    /** Tokens that end the generation. */
    final Set<Integer> ends;

    /** The tokenizer of a model. */
    static Text of(CheckpointModel model) throws IOException {
        return model.checkpoint.field("general.architecture") == null ? ofFolder(model.path, model) : ofGguf(model);
    }

    private Text(byte[] tokenizerJson, String template, String begin, String end, Set<Integer> ends)
            throws IOException {
        // The jar contains the library for CPUs; on a machine with a GPU, djl would look for another.
        System.setProperty("RUST_FLAVOR", System.getProperty("RUST_FLAVOR", "cpu"));
        tokenizer = HuggingFaceTokenizer.newInstance(
                new ByteArrayInputStream(tokenizerJson), Map.of("truncation", "false", "padding", "false"));
        this.template = template;
        this.begin = begin;
        this.end = end;
        this.ends = ends;
    }

    private static Text ofFolder(Path folder, CheckpointModel model) throws IOException {
        Map<String, Object> config = json(folder.resolve("tokenizer_config.json"));
        Path own = folder.resolve("chat_template.jinja");
        Object template = Files.exists(own) ? Files.readString(own) : config.get("chat_template");
        Set<Integer> ends = new HashSet<>();
        addTo(ends, model.checkpoint.field("eos_token_id"));
        addTo(ends, json(folder.resolve("generation_config.json")).get("eos_token_id"));
        return new Text(
                Files.readAllBytes(folder.resolve("tokenizer.json")),
                template instanceof String text ? text : "",
                content(config.get("bos_token")),
                content(config.get("eos_token")),
                ends);
    }

    private static Map<String, Object> json(Path file) throws IOException {
        return Files.exists(file) ? JSON.std.mapFrom(Files.readString(file)) : Map.of();
    }

    /** A special token is a string, or an object that contains it. */
    private static String content(Object token) {
        Object text = token instanceof Map<?, ?> map ? map.get("content") : token;
        return text instanceof String string ? string : "";
    }

    private static void addTo(Set<Integer> ends, Object ids) {
        for (Object id : ids instanceof List<?> list ? list : Arrays.asList(ids)) {
            if (id instanceof Number number) {
                ends.add(number.intValue());
            }
        }
    }

    private static Text ofGguf(CheckpointModel model) throws IOException {
        GgufVocabulary vocabulary = new GgufVocabulary(model);
        Set<Integer> ends = new HashSet<>();
        addTo(ends, model.checkpoint.field("tokenizer.ggml.eos_token_id"));
        addTo(ends, model.checkpoint.field("tokenizer.ggml.eot_token_id"));
        Object template = model.checkpoint.field("tokenizer.chat_template");
        return new Text(
                JSON.std.asBytes(vocabulary.tokenizerJson()),
                template instanceof String text ? text : "",
                vocabulary.token("bos"),
                vocabulary.token("eos"),
                ends);
    }

    /** Encodes a text with the tokens that the tokenizer adds around it, such as a token for its beginning. */
    int[] encode(String text) {
        return encode(text, true);
    }

    private int[] encode(String text, boolean special) {
        return Arrays.stream(tokenizer.encode(text, special, false).getIds())
                .mapToInt(Math::toIntExact)
                .toArray();
    }

    /** Decodes tokens, without special tokens. */
    String decode(List<Integer> tokens) {
        return tokenizer.decode(tokens.stream().mapToLong(Integer::longValue).toArray(), true);
    }

    boolean hasTemplate() {
        return !template.isEmpty();
    }

    /** Encodes a conversation whose next message is the model's. */
    int[] encode(List<Message> messages) {
        return encode(render(messages), false);
    }

    /**
     * Renders a conversation in the format with which the model was trained.
     *
     * @throws IllegalArgumentException if the template is unknown
     */
    String render(List<Message> messages) {
        StringBuilder text = new StringBuilder();
        if (template.contains("<|im_start|>")) {
            messages.forEach(message -> text.append("<|im_start|>")
                    .append(message.role)
                    .append('\n')
                    .append(message.content)
                    .append("<|im_end|>\n"));
            return text.append("<|im_start|>assistant\n").toString();
        }
        if (template.contains("<|assistant|>")) {
            text.append(begin);
            messages.forEach(message -> text.append("<|")
                    .append(message.role)
                    .append("|>\n")
                    .append(message.content)
                    .append(message.role.equals("assistant") ? end : "")
                    .append('\n'));
            return text.append("<|assistant|>\n").toString();
        }
        if (template.contains("[INST]")) {
            text.append(begin);
            String system = "";
            for (Message message : messages) {
                switch (message.role) {
                    case "system" -> system = message.content + "\n\n";
                    case "user" -> {
                        text.append(" [INST] ")
                                .append(system)
                                .append(message.content)
                                .append(" [/INST]");
                        system = "";
                    }
                    default -> text.append(' ').append(message.content).append(end);
                }
            }
            return text.toString();
        }
        throw new IllegalArgumentException("template: expected one that writes <|im_start|>, <|assistant|> or [INST], "
                + (template.isEmpty() ? "got none" : "got " + template));
    }

    @Override
    public void close() {
        tokenizer.close();
    }
}
