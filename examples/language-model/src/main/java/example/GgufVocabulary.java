package example;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A GGUF file's vocabulary as Hugging Face's tokenizers read it: a BPE over bytes, like GPT-2's, or over characters,
 * like Llama's.
 */
final class GgufVocabulary {
    private static final String QWEN2 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
            + "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

    private final CheckpointModel model;
    private final List<String> tokens;
    private final Map<String, Integer> ids = new LinkedHashMap<>();

    GgufVocabulary(CheckpointModel model) {
        this.model = model;
        tokens = strings("tokens");
        for (int i = 0; i < tokens.size(); i++) {
            ids.put(tokens.get(i), i);
        }
    }

    private Object field(String name) {
        return model.checkpoint.field("tokenizer.ggml." + name);
    }

    private List<String> strings(String name) {
        if (field(name) instanceof List<?> list) {
            return list.stream().map(String.class::cast).toList();
        }
        throw new IllegalArgumentException(
                model.path + ": expected a list tokenizer.ggml." + name + ", got " + field(name));
    }

    /** A special token by its kind, such as {@code bos}; empty if there is none. */
    String token(String kind) {
        return field(kind + "_token_id") instanceof Number id ? tokens.get(id.intValue()) : "";
    }

    /** The contents of a {@code tokenizer.json}. */
    Map<String, Object> tokenizerJson() {
        Map<String, Object> bpe = new HashMap<>();
        bpe.put("type", "BPE");
        bpe.put("vocab", ids);
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("version", "1.0");
        json.put("added_tokens", special());
        json.put("model", bpe);
        boolean bytes = "gpt2".equals(field("model"));
        if (bytes) {
            overBytes(json, bpe);
        } else if ("llama".equals(field("model"))) {
            overCharacters(json, bpe);
        } else {
            throw new IllegalArgumentException(
                    model.path + ": expected a vocabulary of gpt2 or llama, got " + field("model"));
        }
        String begin = token("bos");
        Object adds = field("add_bos_token");
        if (!begin.isEmpty() && (adds == null ? !bytes : adds.equals(true))) {
            json.put("post_processor", begins(begin));
        }
        return json;
    }

    /** Tokens that no text is split into: unknown, control, the user's own. */
    private List<Map<String, Object>> special() {
        List<Map<String, Object>> special = new ArrayList<>();
        if (field("token_type") instanceof List<?> types) {
            for (int i = 0; i < tokens.size(); i++) {
                long type = ((Number) types.get(i)).longValue();
                if (type >= 2 && type <= 4) {
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
        }
        return special;
    }

    private void overBytes(Map<String, Object> json, Map<String, Object> bpe) {
        bpe.put("merges", strings("merges"));
        Map<String, Object> level =
                Map.of("type", "ByteLevel", "add_prefix_space", false, "trim_offsets", true, "use_regex", true);
        Object pre = field("pre");
        if ("qwen2".equals(pre)) {
            json.put("normalizer", Map.of("type", "NFC"));
            Map<String, Object> split =
                    Map.of("type", "Split", "pattern", Map.of("Regex", QWEN2), "behavior", "Isolated", "invert", false);
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
    }

    private void overCharacters(Map<String, Object> json, Map<String, Object> bpe) {
        bpe.put("merges", merges());
        bpe.put("unk_token", tokens.getFirst());
        bpe.put("fuse_unk", true);
        bpe.put("byte_fallback", true);
        Map<String, Object> spaces = Map.of("type", "Replace", "pattern", Map.of("String", " "), "content", "\u2581");
        Map<String, Object> first = Map.of("type", "Prepend", "prepend", "\u2581");
        json.put("normalizer", Map.of("type", "Sequence", "normalizers", List.of(first, spaces)));
        List<Map<String, Object>> decoders = List.of(
                Map.of("type", "Replace", "pattern", Map.of("String", "\u2581"), "content", " "),
                Map.of("type", "ByteFallback"),
                Map.of("type", "Fuse"),
                Map.of("type", "Strip", "content", " ", "start", 1, "stop", 0));
        json.put("decoder", Map.of("type", "Sequence", "decoders", decoders));
    }

    /** SentencePiece has scores instead of merges: the merge whose token has the better score comes first. */
    private List<String> merges() {
        record Merge(String left, String right, double score) {}
        if (!(field("scores") instanceof List<?> scores)) {
            throw new IllegalArgumentException(
                    model.path + ": expected a list tokenizer.ggml.scores, got " + field("scores"));
        }
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

    /** Puts a token before each text. */
    private Map<String, Object> begins(String begin) {
        Map<String, Object> start = Map.of("SpecialToken", Map.of("id", begin, "type_id", 0));
        Map<String, Object> first = Map.of("Sequence", Map.of("id", "A", "type_id", 0));
        Map<String, Object> second = Map.of("Sequence", Map.of("id", "B", "type_id", 1));
        Map<String, Object> token = Map.of("id", begin, "ids", List.of(ids.get(begin)), "tokens", List.of(begin));
        return Map.of(
                "type",
                "TemplateProcessing",
                "single",
                List.of(start, first),
                "pair",
                List.of(start, first, second),
                "special_tokens",
                Map.of(begin, token));
    }
}
