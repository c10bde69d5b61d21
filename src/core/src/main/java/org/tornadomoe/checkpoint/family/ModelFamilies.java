package org.tornadomoe.checkpoint.family;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;

/** Finds the family of a config.json. */
public final class ModelFamilies {
    /** What a model that sees, too, has its language model's configuration in. */
    public static final List<String> LANGUAGE_MODEL = List.of("text_config", "llm_config", "language_config");

    /** Families that are known and not read, and what they compute that no layer here does. */
    private static final Map<String, String> NOT_READ =
            Map.of("doge", "its experts are single rows", "vitpose_backbone", "the data set chooses its experts");

    private ModelFamilies() {}

    /**
     * The language model's part of a configuration: models that see images, too, have it inside, and it counts before
     * what is beside it.
     */
    public static JsonFile textConfig(JsonFile json) {
        for (String outer : List.of("thinker_config", "ffn_config", "moe_config")) {
            if (json.fields().get(outer) instanceof Map<?, ?>) {
                // Qwen3-Omni's text model is inside of the first, DBRX's and Yuan's experts in the others, beside the
                // model's own fields.
                Map<String, @Nullable Object> all = new LinkedHashMap<>(json.fields());
                all.remove(outer);
                json.nested(outer).fields().forEach((name, value) -> {
                    if (!name.equals("model_type") && !name.equals("hidden_size")) {
                        all.put(
                                name,
                                value instanceof Map<?, ?> named && named.size() == 1 ? named.get("name") : value);
                    }
                });
                if (all.get("per_layer_experts_blocks") instanceof List<?> each) {
                    all.put("moe_num_experts", each); // as Yuan's code has it
                    all.remove("per_layer_experts_blocks");
                }
                return textConfig(new JsonFile(json.file(), all));
            }
        }
        if (json.fields().get("config") instanceof Map<?, ?> && ModelFamily.MOONDREAM3.isNamedBy(json)) {
            return ofMoondream(json);
        }
        String part = LANGUAGE_MODEL.stream().filter(json::has).findFirst().orElse(null);
        if (part == null) {
            return json;
        }
        JsonFile inside = json.nested(part);
        boolean whole = inside.has("model_type")
                || inside.has("hidden_size")
                || FamilyTraits.EXPERTS.stream().anyMatch(inside::has);
        if (!whole && json.has("hidden_size")) {
            return json;
        }
        Map<String, @Nullable Object> text = new LinkedHashMap<>(inside.fields());
        if (!inside.has("model_type") && json.has("model_type")) {
            text.put("model_type", json.string("model_type"));
        }
        JsonFile own = new JsonFile(json.file(), text);
        return text.get("moe_config") instanceof Map ? textConfig(own) : own;
    }

    /** Moondream's, which has its language model's in {@code config.text}, and in that its experts'. */
    private static JsonFile ofMoondream(JsonFile json) {
        Map<String, @Nullable Object> all = new LinkedHashMap<>();
        all.put("model_type", json.string("model_type"));
        JsonFile whole = json.nested("config");
        if (whole.has("text")) {
            JsonFile text = whole.nested("text");
            all.putAll(text.fields());
            if (text.has("moe")) {
                all.remove("moe");
                all.putAll(text.nested("moe").fields());
            }
        }
        return new JsonFile(json.file(), all);
    }

    /**
     * The family of a configuration, by its {@code model_type}, or where there is none by its fields.
     *
     * @throws CheckpointException if it is not known; the message tells what was looked for and what was found
     */
    public static ModelFamily of(JsonFile json) {
        if (json.has("model_type")) {
            String type = json.string("model_type");
            if (type.equals("bailing_moe") && "sigmoid".equals(json.fields().get("score_function"))) {
                return ModelFamily.BAILING_MOE_V2; // as Ling 2 and Ring 2 call themselves
            }
            if (type.equals("git") && json.has("residual_moe")) {
                return ModelFamily.GROK_2; // as its file calls it
            }
            for (ModelFamily family : ModelFamily.values()) {
                if (family.modelTypes().contains(type)) {
                    return family;
                }
            }
            if (NOT_READ.containsKey(type)) {
                throw new CheckpointException(
                        json.file(), "'model_type': " + type + " is not read: " + NOT_READ.get(type));
            }
            ModelFamily similar = byFields(json);
            throw new CheckpointException(
                    json.file(),
                    "'model_type': expected one of " + allTypes() + ", got '" + JsonFile.shown(type)
                            + "'; of an MoE layer's fields it has "
                            + moeFields(json)
                            + (similar == null ? "" : ", as " + similar + " does, but may compute something else"));
        }
        ModelFamily family = byFields(json);
        if (family == null) {
            throw new CheckpointException(
                    json.file(),
                    "has no 'model_type' (looked for one of " + allTypes()
                            + "), nor the fields of a family with experts; of an MoE layer's fields it has "
                            + moeFields(json));
        }
        return family;
    }

    /** By the fields that only one family has, the more telling first; null if they are nobody's. */
    private static @Nullable ModelFamily byFields(JsonFile json) {
        if (json.has("n_routed_experts")) {
            boolean sigmoid = json.has("scoring_func")
                    ? json.string("scoring_func").equals("sigmoid")
                    : json.has("topk_method") && json.string("topk_method").equals("noaux_tc");
            return sigmoid ? ModelFamily.DEEPSEEK_V3 : ModelFamily.DEEPSEEK_V2;
        }
        if (json.has("num_experts")) {
            if (json.has("experts_per_token") && json.has("swiglu_limit")) {
                return ModelFamily.GPT_OSS; // as OpenAI's own files have it
            }
            return json.has("expert_layer_period")
                    ? ModelFamily.JAMBA
                    : json.has("shared_expert_intermediate_size")
                            ? ModelFamily.QWEN2_MOE
                            : json.has("moe_intermediate_size") ? ModelFamily.QWEN3_MOE : ModelFamily.OLMOE;
        }
        if (json.has("num_local_experts")) {
            return json.has("interleave_moe_layer_step")
                    ? ModelFamily.LLAMA4
                    : json.has("swiglu_limit")
                            ? ModelFamily.GPT_OSS
                            : json.has("embedding_multiplier")
                                    ? ModelFamily.GRANITEMOE
                                    : json.has("input_jitter_noise")
                                            ? ModelFamily.PHIMOE
                                            : json.has("moe_intermediate_size")
                                                    ? ModelFamily.QWEN3_MOE
                                                    : ModelFamily.MIXTRAL;
        }
        return null;
    }

    private static List<String> allTypes() {
        return Arrays.stream(ModelFamily.values())
                .flatMap(family -> family.modelTypes().stream())
                .toList();
    }

    private static String moeFields(JsonFile json) {
        var found = json.fields().entrySet().stream()
                .filter(field -> field.getKey().contains("expert")
                        || field.getKey().contains("moe")
                        || field.getKey().contains("topk"))
                .collect(Collectors.toMap(
                        Map.Entry::getKey, field -> JsonFile.shown(field.getValue()), (a, _) -> a, TreeMap::new));
        return found.isEmpty() ? "none" : found.toString();
    }
}
