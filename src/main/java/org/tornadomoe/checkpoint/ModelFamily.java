package org.tornadomoe.checkpoint;

import java.util.Arrays;
import java.util.List;
import java.util.TreeMap;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/**
 * The model families read: what their config.json says about an MoE layer (the model's own code in Hugging Face transformers is
 * the source). How tensors are named and laid out is no matter of the family ({@link LayerTensors}).
 */
enum ModelFamily {
    /** Every layer; softmax, top-k, renormalised. */
    MIXTRAL("mixtral") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(json, "num_local_experts", "intermediate_size", softmax(true));
        }
    },

    /** Some layers may be dense; softmax, top-k; a shared expert weighed by a sigmoid of the token. */
    QWEN2_MOE("qwen2_moe") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            RouterConfig router = softmax(json.bool("norm_topk_prob", false));
            return build(
                    json,
                    experts(json),
                    "moe_intermediate_size",
                    sharedIntermediate(json) > 0 ? router.withSharedExpertGate() : router);
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return nonNegative(json, "shared_expert_intermediate_size");
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyQwenDense(json, layer);
        }
    },

    /** Some layers may be dense; softmax, top-k, renormalised if {@code norm_topk_prob}. */
    QWEN3_MOE("qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(json, experts(json), "moe_intermediate_size", softmax(json.bool("norm_topk_prob", false)));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyQwenDense(json, layer);
        }
    },

    /** Every layer; softmax, top-k, not renormalised unless {@code norm_topk_prob}. */
    OLMOE("olmoe") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(json, experts(json), "intermediate_size", softmax(json.bool("norm_topk_prob", false)));
        }
    },

    /** The first layers are dense; softmax, by groups or not, scaled; shared experts. */
    DEEPSEEK_V2("deepseek_v2") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            String method = json.has("topk_method") ? json.string("topk_method") : "greedy";
            if (!method.equals("greedy") && !method.equals("group_limited_greedy")) {
                throw new CheckpointException(
                        json.file(), "'topk_method': expected greedy or group_limited_greedy, got '" + method + "'");
            }
            RouterConfig router = softmax(json.bool("norm_topk_prob", false)).withRoutedScalingFactor(factor(json));
            return build(
                    json,
                    "n_routed_experts",
                    "moe_intermediate_size",
                    method.equals("greedy") ? router : grouped(json, router));
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return deepSeekShared(json);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyDeepSeekDense(json, layer);
        }
    },

    /** The first layers are dense; sigmoid, a correction bias, by groups, renormalised, scaled; shared experts. */
    DEEPSEEK_V3("deepseek_v3", "deepseek_v32", "kimi_k2") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return sigmoidWithCorrection(json);
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return deepSeekShared(json);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyDeepSeekDense(json, layer);
        }
    },

    /** As DeepSeek-V3, mostly of one group. */
    GLM4_MOE("glm4_moe", "glm4v_moe", "glm4v_moe_text") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return sigmoidWithCorrection(json);
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return deepSeekShared(json);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyDeepSeekDense(json, layer);
        }
    },

    /**
     * Every layer; top-k, then softmax; biases everywhere, gate and up interleaved, and an activation that isn't the {@code
     * hidden_act} of its config.json.
     */
    GPT_OSS("gpt_oss") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(json, "num_local_experts", "intermediate_size", RouterConfig.topKThenSoftmax()).toBuilder()
                    .activation(MoeActivation.SWIGLUOAI)
                    .swigluLimit(json.number("swiglu_limit"))
                    .hasBias(true)
                    .build();
        }
    },

    /** Some layers may be dense; the top logit's sigmoid, on the expert's input; a shared expert. */
    LLAMA4("llama4_text", "llama4") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            try {
                return build(json, "num_local_experts", "intermediate_size", RouterConfig.topKThenSigmoid()).toBuilder()
                        .applyRouterWeightOnInput(true)
                        .build();
            } catch (IllegalArgumentException e) {
                throw new CheckpointException(json.file(), String.valueOf(e.getMessage()), e);
            }
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return json.has("n_shared_experts") ? deepSeekShared(json) : json.integer("intermediate_size");
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            List<Integer> sparse = json.integers("moe_layers");
            if (!sparse.isEmpty()) {
                return sparse.contains(layer) ? null : "moe_layers is " + sparse;
            }
            int step = positive(json, "interleave_moe_layer_step", 1);
            return (layer + 1) % step == 0 ? null : "interleave_moe_layer_step is " + step;
        }
    },

    /** Every layer; top-k, then softmax. */
    GRANITEMOE("granitemoe") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(json, "num_local_experts", "intermediate_size", RouterConfig.topKThenSoftmax());
        }
    },

    /** Every layer; experts chosen by turns. */
    PHIMOE("phimoe") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            Double noise = json.number("router_jitter_noise");
            if (noise != null && 2 * noise != ScoringFunction.SPARSE_MIXER_MARGIN) {
                throw new CheckpointException(
                        json.file(),
                        "'router_jitter_noise': expected " + ScoringFunction.SPARSE_MIXER_MARGIN / 2 + ", got "
                                + noise);
            }
            RouterConfig router = RouterConfig.of(ScoringFunction.SPARSE_MIXER, false);
            return build(json, "num_local_experts", "intermediate_size", router);
        }
    },

    /** Some layers are dense; softmax, top-k, not renormalised. */
    JAMBA("jamba") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(json, "num_experts", "intermediate_size", softmax(false));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            int period = positive(json, "expert_layer_period", 2);
            int offset = json.integer("expert_layer_offset", 1);
            return layer % period == offset
                    ? null
                    : "expert_layer_period is " + period + " and expert_layer_offset " + offset;
        }
    };

    /** What config.json may call it, with spaces between. */
    private final String modelTypes;

    ModelFamily(String... modelTypes) {
        this.modelTypes = String.join(" ", modelTypes);
    }

    private List<String> modelTypes() {
        return List.of(modelTypes.split(" "));
    }

    /**
     * The MoE layers' configuration, for calls of one token; without biases unless the family always has them.
     *
     * @throws CheckpointException if a field is missing or wrong
     */
    abstract FusedMoeConfig config(JsonFile json);

    /** Width of the shared expert, 0 if there is none. */
    int sharedIntermediate(JsonFile json) {
        return 0;
    }

    /** What in the configuration makes that layer a dense one; null if it is an MoE layer. */
    @Nullable
    String whyDense(JsonFile json, int layer) {
        return null;
    }

    /** What {@link LayerTensors} has to find in a layer. */
    LayerTensors.Shape shape(JsonFile json) {
        FusedMoeConfig config = config(json);
        return new LayerTensors.Shape(
                config.numExperts(),
                config.hiddenDim(),
                config.intermediateSize(),
                sharedIntermediate(json),
                this == GPT_OSS,
                config.router().hasCorrectionBias());
    }

    /** The language model's part of a configuration: models that see images, too, have it inside. */
    static JsonFile textConfig(JsonFile json) {
        return json.has("text_config") && !json.has("hidden_size") ? json.nested("text_config") : json;
    }

    /**
     * The family of a configuration, by its {@code model_type}, or where there is none by its fields.
     *
     * @throws CheckpointException if it is not known; the message tells what was looked for and what was found
     */
    static ModelFamily of(JsonFile json) {
        if (json.has("model_type")) {
            String type = json.string("model_type");
            for (ModelFamily family : values()) {
                if (family.modelTypes().contains(type)) {
                    return family;
                }
            }
            ModelFamily similar = byFields(json);
            throw new CheckpointException(
                    json.file(),
                    "'model_type': expected one of " + allTypes() + ", got '" + type
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
            return sigmoid ? DEEPSEEK_V3 : DEEPSEEK_V2;
        }
        if (json.has("num_experts")) {
            return json.has("expert_layer_period")
                    ? JAMBA
                    : json.has("shared_expert_intermediate_size")
                            ? QWEN2_MOE
                            : json.has("moe_intermediate_size") ? QWEN3_MOE : OLMOE;
        }
        if (json.has("num_local_experts")) {
            return json.has("interleave_moe_layer_step")
                    ? LLAMA4
                    : json.has("swiglu_limit")
                            ? GPT_OSS
                            : json.has("embedding_multiplier")
                                    ? GRANITEMOE
                                    : json.has("input_jitter_noise")
                                            ? PHIMOE
                                            : json.has("moe_intermediate_size") ? QWEN3_MOE : MIXTRAL;
        }
        return null;
    }

    private static List<String> allTypes() {
        return Arrays.stream(values())
                .flatMap(family -> family.modelTypes().stream())
                .toList();
    }

    private static String moeFields(JsonFile json) {
        var found = json.fields().entrySet().stream()
                .filter(field -> field.getKey().contains("expert")
                        || field.getKey().contains("moe")
                        || field.getKey().contains("topk"))
                .collect(Collectors.toMap(
                        java.util.Map.Entry::getKey,
                        field -> String.valueOf(field.getValue()),
                        (a, _) -> a,
                        TreeMap::new));
        return found.isEmpty() ? "none" : found.toString();
    }

    /** The first name in {@code model_type}. */
    @Override
    public String toString() {
        return modelTypes().getFirst();
    }

    private static RouterConfig softmax(boolean renormalize) {
        return RouterConfig.of(ScoringFunction.SOFTMAX, renormalize);
    }

    /** The field that counts experts: transformers 5 saves num_local_experts where earlier ones had num_experts. */
    private static @Nullable String experts(JsonFile json) {
        return json.has("num_experts") ? "num_experts" : json.has("num_local_experts") ? "num_local_experts" : null;
    }

    private static double factor(JsonFile json) {
        Double factor = json.number("routed_scaling_factor");
        return factor == null ? 1 : factor;
    }

    private static RouterConfig grouped(JsonFile json, RouterConfig router) {
        int groups = json.integer("n_group", 1);
        try {
            return router.withGroups(groups, json.integer("topk_group", groups));
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(json.file(), String.valueOf(e.getMessage()), e);
        }
    }

    FusedMoeConfig sigmoidWithCorrection(JsonFile json) {
        String scoring = json.has("scoring_func") ? json.string("scoring_func") : "sigmoid";
        if (!scoring.equals("sigmoid")) {
            throw new CheckpointException(json.file(), "'scoring_func': expected sigmoid, got '" + scoring + "'");
        }
        RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, json.bool("norm_topk_prob", true))
                .withCorrectionBias()
                .withRoutedScalingFactor(factor(json));
        return build(json, "n_routed_experts", "moe_intermediate_size", grouped(json, router));
    }

    private static int deepSeekShared(JsonFile json) {
        int shared = nonNegative(json, "n_shared_experts");
        return shared == 0 ? 0 : Math.multiplyExact(shared, json.integer("moe_intermediate_size"));
    }

    private static @Nullable String whyDeepSeekDense(JsonFile json, int layer) {
        int dense = json.integer("first_k_dense_replace", 0);
        if (layer < dense) {
            return "first_k_dense_replace is " + dense;
        }
        int every = positive(json, "moe_layer_freq", 1);
        return layer % every == 0 ? null : "moe_layer_freq is " + every;
    }

    private static @Nullable String whyQwenDense(JsonFile json, int layer) {
        List<Integer> dense = json.integers("mlp_only_layers");
        if (dense.contains(layer)) {
            return "mlp_only_layers is " + dense;
        }
        int step = positive(json, "decoder_sparse_step", 1);
        return (layer + 1) % step == 0 ? null : "decoder_sparse_step is " + step;
    }

    private static int positive(JsonFile json, String field, int absent) {
        int value = json.integer(field, absent);
        if (value < 1) {
            throw new CheckpointException(json.file(), "'" + field + "': expected a positive number, got " + value);
        }
        return value;
    }

    private static int nonNegative(JsonFile json, String field) {
        int value = json.integer(field, 0);
        if (value < 0) {
            throw new CheckpointException(json.file(), "'" + field + "': expected at least 0, got " + value);
        }
        return value;
    }

    FusedMoeConfig build(JsonFile json, @Nullable String experts, String intermediateField, RouterConfig router) {
        int intermediate = positive(json, intermediateField, json.integer(intermediateField));
        int shared = sharedIntermediate(json);
        try {
            return FusedMoeConfig.builder()
                    .numExperts(json.integer(experts == null ? "num_experts" : experts))
                    .expertsPerToken(json.integer("num_experts_per_tok"))
                    .hiddenDim(json.integer("hidden_size"))
                    .intermediateSize(intermediate)
                    .numFusedSharedExperts((shared + intermediate - 1) / intermediate)
                    .activation(
                            json.has("hidden_act")
                                    ? MoeActivation.fromString(json.string("hidden_act"))
                                    : MoeActivation.SILU)
                    .router(router)
                    .maxNumTokens(1)
                    .build();
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(json.file(), String.valueOf(e.getMessage()), e);
        }
    }
}
