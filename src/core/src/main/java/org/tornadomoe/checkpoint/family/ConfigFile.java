package org.tornadomoe.checkpoint.family;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;

/** The configuration in a checkpoint's directory: {@code config.json}, or Mistral's own {@code params.json}. */
public final class ConfigFile {
    public static final String CONFIG = "config.json";
    public static final String PARAMS = "params.json";

    /** What {@code params.json} may say of experts: the names that {@link ModelFamily#MISTRAL4} has for it. */
    private static final Map<String, String> OF_EXPERTS = Map.of(
            "num_experts", "n_routed_experts",
            "num_experts_per_tok", "num_experts_per_tok",
            "expert_hidden_dim", "moe_intermediate_size",
            "num_shared_experts", "n_shared_experts",
            "routed_scale", "routed_scaling_factor",
            "first_k_dense_replace", "first_k_dense_replace",
            "route_every_n", "moe_layer_freq",
            "num_expert_groups", "n_group",
            "num_expert_groups_per_tok", "topk_group");

    /** Of how it was trained. */
    private static final Set<String> WITHOUT_EFFECT = Set.of("expert_parallel", "expert_model_parallel");

    private ConfigFile() {}

    /** Whether a directory has one. */
    public static boolean isIn(Path directory) {
        return Files.exists(directory.resolve(CONFIG)) || Files.exists(directory.resolve(PARAMS));
    }

    /**
     * Reads it; Mistral's as the config.json that the same model has elsewhere.
     *
     * @throws CheckpointException if it can't be read, or says of experts what is not known
     */
    public static JsonFile of(Path directory) {
        Path params = directory.resolve(PARAMS);
        return Files.exists(params) && !Files.exists(directory.resolve(CONFIG))
                ? ofMistral(JsonFile.read(params))
                : JsonFile.read(directory.resolve(CONFIG));
    }

    /** As vLLM's and llama.cpp's code has it: the first Mixtral's, or the later models', of softmax scores. */
    private static JsonFile ofMistral(JsonFile json) {
        if (!json.has("moe")) {
            throw new CheckpointException(json.file(), "has no 'moe': the model has no experts");
        }
        Map<String, @Nullable Object> fields = new LinkedHashMap<>();
        fields.put("hidden_size", json.fields().get("dim"));
        fields.put("num_hidden_layers", json.fields().get("n_layers"));
        fields.put("hidden_act", json.string("activation", "silu"));
        JsonFile moe = json.nested("moe");
        boolean first = !moe.has("expert_hidden_dim");
        fields.put("model_type", first ? "mixtral" : "mistral4");
        if (first) {
            fields.put("intermediate_size", json.fields().get("hidden_dim"));
        }
        moe.fields().forEach((name, value) -> {
            String known = OF_EXPERTS.get(name);
            if (known == null && !WITHOUT_EFFECT.contains(name)) {
                throw new CheckpointException(
                        json.file(),
                        "'moe." + name + "': not known, and may change what experts compute, got "
                                + JsonFile.shown(value));
            }
            if (known != null) {
                fields.put(first && name.equals("num_experts") ? "num_local_experts" : known, value);
            }
        });
        if (moe.integer("num_expert_groups", 1) > 1) {
            // Of several groups vLLM takes those of the best expert, and transformers those of the two best.
            throw moe.wrong("num_expert_groups", "1: implementations choose among groups in different ways");
        }
        if (json.has("quantization_config")) {
            fields.put("quantization_config", json.fields().get("quantization_config"));
        } else if (json.has("quantization")) {
            JsonFile own = json.nested("quantization");
            if (!own.string("qformat_weight", "").startsWith("fp8")) {
                throw own.wrong("qformat_weight", "fp8_e4m3");
            }
            fields.put("quantization_config", Map.of("quant_method", "fp8"));
        }
        return new JsonFile(json.file(), fields);
    }
}
