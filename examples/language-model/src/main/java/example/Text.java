package example;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
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

    private static final String QWEN2 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
            + "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

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
        List<String> tokens = strings(model, "tokenizer.ggml.tokens");
        Set<Integer> ends = new HashSet<>();
        addTo(ends, model.checkpoint.field("tokenizer.ggml.eos_token_id"));
        addTo(ends, model.checkpoint.field("tokenizer.ggml.eot_token_id"));
        Object template = model.checkpoint.field("tokenizer.chat_template");
        String begin = token(model, tokens, "tokenizer.ggml.bos_token_id");
        String json = JSON.std.asString(tokenizerJson(model, tokens, begin));
        return new Text(
                json.getBytes(StandardCharsets.UTF_8),
                template instanceof String text ? text : "",
                begin,
                token(model, tokens, "tokenizer.ggml.eos_token_id"),
                ends);
    }

    private static String token(CheckpointModel model, List<String> tokens, String key) {
        return model.checkpoint.field(key) instanceof Number id ? tokens.get(id.intValue()) : "";
    }

    private static List<String> strings(CheckpointModel model, String key) {
        if (model.checkpoint.field(key) instanceof List<?> list) {
            return list.stream().map(String.class::cast).toList();
        }
        throw new IllegalArgumentException(model.path + ": expected a list " + key + ", got none");
    }

    /**
     * Makes a tokenizer.json from a GGUF file's vocabulary: a BPE over bytes, like GPT-2's, or over characters, like
     * Llama's.
     */
    private static Map<String, Object> tokenizerJson(CheckpointModel model, List<String> tokens, String begin) {
        Object kind = model.checkpoint.field("tokenizer.ggml.model");
        boolean bytes = "gpt2".equals(kind);
        if (!bytes && !"llama".equals(kind)) {
            throw new IllegalArgumentException(model.path + ": expected a vocabulary of gpt2 or llama, got " + kind);
        }
        List<?> types = (List<?>) model.checkpoint.field("tokenizer.ggml.token_type");
        Map<String, Integer> ids = new LinkedHashMap<>();
        List<Map<String, Object>> special = new ArrayList<>();
        for (int i = 0; i < tokens.size(); i++) {
            ids.put(tokens.get(i), i);
            long type = types == null ? 1 : ((Number) types.get(i)).longValue();
            if (type >= 2 && type <= 4) { // unknown, control, the user's own
                special.add(Map.of(
                        "id", i,
                        "content", tokens.get(i),
                        "special", type < 4,
                        "single_word", false,
                        "lstrip", false,
                        "rstrip", false,
                        "normalized", false));
            }
        }
        Map<String, Object> bpe = new HashMap<>();
        bpe.put("type", "BPE");
        bpe.put("vocab", ids);
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("version", "1.0");
        json.put("added_tokens", special);
        json.put("model", bpe);
        if (bytes) {
            bpe.put("merges", strings(model, "tokenizer.ggml.merges"));
            Map<String, Object> level =
                    Map.of("type", "ByteLevel", "add_prefix_space", false, "trim_offsets", true, "use_regex", true);
            Object pre = model.checkpoint.field("tokenizer.ggml.pre");
            if ("qwen2".equals(pre)) {
                json.put("normalizer", Map.of("type", "NFC"));
                Map<String, Object> split = Map.of(
                        "type", "Split", "pattern", Map.of("Regex", QWEN2), "behavior", "Isolated", "invert", false);
                Map<String, Object> plain = new HashMap<>(level);
                plain.put("use_regex", false);
                json.put("pre_tokenizer", Map.of("type", "Sequence", "pretokenizers", List.of(split, plain)));
            } else if (pre == null || Set.of("olmo", "gpt-2", "default").contains(pre)) {
                json.put("pre_tokenizer", level);
            } else {
                throw new IllegalArgumentException(
                        model.path + ": tokenizer.ggml.pre: expected qwen2, olmo or gpt-2, got " + pre);
            }
            json.put("decoder", level);
        } else {
            bpe.put("merges", merges(tokens, ids, (List<?>) model.checkpoint.field("tokenizer.ggml.scores")));
            bpe.put("unk_token", tokens.getFirst());
            bpe.put("fuse_unk", true);
            bpe.put("byte_fallback", true);
            Map<String, Object> spaces =
                    Map.of("type", "Replace", "pattern", Map.of("String", " "), "content", "\u2581");
            Map<String, Object> first = Map.of("type", "Prepend", "prepend", "\u2581");
            json.put("normalizer", Map.of("type", "Sequence", "normalizers", List.of(first, spaces)));
            json.put(
                    "decoder",
                    Map.of(
                            "type",
                            "Sequence",
                            "decoders",
                            List.of(
                                    Map.of("type", "Replace", "pattern", Map.of("String", "\u2581"), "content", " "),
                                    Map.of("type", "ByteFallback"),
                                    Map.of("type", "Fuse"),
                                    Map.of("type", "Strip", "content", " ", "start", 1, "stop", 0))));
        }
        Object adds = model.checkpoint.field("tokenizer.ggml.add_bos_token");
        if (!begin.isEmpty() && (adds == null ? !bytes : adds.equals(true))) {
            Map<String, Object> start = Map.of("SpecialToken", Map.of("id", begin, "type_id", 0));
            json.put(
                    "post_processor",
                    Map.of(
                            "type",
                            "TemplateProcessing",
                            "single",
                            List.of(start, Map.of("Sequence", Map.of("id", "A", "type_id", 0))),
                            "pair",
                            List.of(
                                    start,
                                    Map.of("Sequence", Map.of("id", "A", "type_id", 0)),
                                    Map.of("Sequence", Map.of("id", "B", "type_id", 1))),
                            "special_tokens",
                            Map.of(
                                    begin,
                                    Map.of("id", begin, "ids", List.of(ids.get(begin)), "tokens", List.of(begin)))));
        }
        return json;
    }

    /** SentencePiece has scores instead of merges: the merge whose token has the better score comes first. */
    private static List<String> merges(List<String> tokens, Map<String, Integer> ids, List<?> scores) {
        record Merge(String left, String right, double score) {}
        List<Merge> merges = new ArrayList<>();
        for (int i = 0; i < tokens.size(); i++) {
            String token = tokens.get(i);
            for (int cut = 1; cut < token.length(); cut++) {
                String left = token.substring(0, cut);
                String right = token.substring(cut);
                if (ids.containsKey(left) && ids.containsKey(right)) {
                    merges.add(new Merge(left, right, ((Number) scores.get(i)).doubleValue()));
                }
            }
        }
        merges.sort(Comparator.comparingDouble((Merge merge) -> -merge.score)
                .thenComparingInt(merge -> -merge.left.length()));
        return merges.stream().map(merge -> merge.left + " " + merge.right).toList();
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
