package org.tornadomoe.checkpoint;

import java.util.Arrays;
import java.util.List;
import java.util.function.Predicate;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/** The model families read: what their config.json says about an MoE layer, and how they name its tensors. */
enum ModelFamily {
    /** Mixtral: every layer is an MoE layer; softmax, top-k, renormalise. */
    MIXTRAL("mixtral", "block_sparse_moe", "w1", "w3", "w2") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(
                    json,
                    json.integer("num_local_experts"),
                    json.integer("intermediate_size"),
                    RouterConfig.of(ScoringFunction.SOFTMAX, true));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return null;
        }
    },

    /** Qwen3-MoE: some layers may be dense; softmax, top-k, renormalise if {@code norm_topk_prob}. */
    QWEN3_MOE("qwen3_moe", "mlp", "gate_proj", "up_proj", "down_proj") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            // transformers 5 saves num_local_experts, earlier ones num_experts.
            String experts = json.has("num_experts") ? "num_experts" : "num_local_experts";
            return build(
                    json,
                    json.integer(experts),
                    json.integer("moe_intermediate_size"),
                    RouterConfig.of(ScoringFunction.SOFTMAX, json.bool("norm_topk_prob", false)));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            List<Integer> dense = json.integers("mlp_only_layers");
            if (dense.contains(layer)) {
                return "mlp_only_layers is " + dense;
            }
            int step = json.integer("decoder_sparse_step", 1);
            if (step < 1) {
                throw new CheckpointException(
                        json.file(), "'decoder_sparse_step': expected a positive number, got " + step);
            }
            return (layer + 1) % step == 0 ? null : "decoder_sparse_step is " + step;
        }
    },

    /** DeepSeek-V3: the first layers are dense; sigmoid with a bias, by groups. Its configuration only. */
    DEEPSEEK_V3("deepseek_v3") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(
                    json,
                    json.integer("n_routed_experts"),
                    json.integer("moe_intermediate_size"),
                    deepSeekRouter(json));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            int dense = json.integer("first_k_dense_replace", 0);
            return layer < dense ? "first_k_dense_replace is " + dense : null;
        }
    },

    /** gpt-oss: biases, and an activation that isn't the {@code hidden_act} of its config.json. Its configuration only. */
    GPT_OSS("gpt_oss") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(
                            json,
                            json.integer("num_local_experts"),
                            json.integer("intermediate_size"),
                            RouterConfig.topKThenSoftmax())
                    .toBuilder()
                    .activation(MoeActivation.SWIGLUOAI)
                    .swigluLimit(json.number("swiglu_limit"))
                    .hasBias(true)
                    .build();
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return null;
        }
    },

    /** Llama 4: some layers may be dense; the top logit's sigmoid, on the expert's input. Its configuration only. */
    LLAMA4("llama4_text") {
        @Override
        FusedMoeConfig config(JsonFile json) {
            return build(
                    json,
                    json.integer("num_local_experts"),
                    json.integer("intermediate_size"),
                    RouterConfig.topKThenSigmoid());
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            List<Integer> sparse = json.integers("moe_layers");
            return sparse.isEmpty() || sparse.contains(layer) ? null : "moe_layers is " + sparse;
        }
    };

    private final String modelType;
    private final boolean readable;
    private final String block;
    private final String gate;
    private final String up;
    private final String down;

    /** One whose tensors can't be read. */
    ModelFamily(String modelType) {
        this(modelType, false, "", "", "", "");
    }

    ModelFamily(String modelType, String block, String gate, String up, String down) {
        this(modelType, true, block, gate, up, down);
    }

    ModelFamily(String modelType, boolean readable, String block, String gate, String up, String down) {
        this.modelType = modelType;
        this.readable = readable;
        this.block = block;
        this.gate = gate;
        this.up = up;
        this.down = down;
    }

    /** The MoE layers' configuration, for calls of one token. */
    abstract FusedMoeConfig config(JsonFile json);

    /** What in the configuration makes that layer a dense one; null if it is an MoE layer. */
    abstract @Nullable String whyDense(JsonFile json, int layer);

    /** The family of a checkpoint, its tensors included. */
    static ModelFamily of(JsonFile json) {
        return of(json, family -> family.readable);
    }

    /** The configuration of a family whose tensors need not be known. */
    static FusedMoeConfig configOf(JsonFile json) {
        // Models that see images, too, have the language model's configuration inside.
        boolean nested = json.has("text_config") && !json.has("hidden_size");
        JsonFile text = nested ? new JsonFile(json.file(), json.object("text_config")) : json;
        return of(text, family -> true).config(text);
    }

    private static ModelFamily of(JsonFile json, Predicate<ModelFamily> known) {
        String type = json.string("model_type");
        List<ModelFamily> families = Arrays.stream(values()).filter(known).toList();
        return families.stream()
                .filter(family -> family.modelType.equals(type))
                .findFirst()
                .orElseThrow(() -> new CheckpointException(
                        json.file(),
                        "'model_type': expected one of "
                                + families.stream().map(ModelFamily::modelType).toList() + ", got '" + type + "'"));
    }

    String modelType() {
        return modelType;
    }

    /** The router's weight [E, H]. */
    String router(int layer) {
        return prefix(layer) + "gate.weight";
    }

    /** The gate projection [I, H] of an expert, which may also be a pattern for messages. */
    String gate(int layer, Object expert) {
        return projection(layer, expert, gate);
    }

    /** The up projection [I, H]. */
    String up(int layer, Object expert) {
        return projection(layer, expert, up);
    }

    /** The down projection [H, I]. */
    String down(int layer, Object expert) {
        return projection(layer, expert, down);
    }

    private String projection(int layer, Object expert, String name) {
        return prefix(layer) + "experts." + expert + "." + name + ".weight";
    }

    private String prefix(int layer) {
        return "model.layers." + layer + "." + block + ".";
    }

    private static RouterConfig deepSeekRouter(JsonFile json) {
        String scoring = json.has("scoring_func") ? json.string("scoring_func") : "sigmoid";
        Double factor = json.number("routed_scaling_factor");
        int groups = json.integer("n_group", 0);
        try {
            RouterConfig router = RouterConfig.of(
                            ScoringFunction.fromString(scoring), json.bool("norm_topk_prob", true))
                    .withCorrectionBias()
                    .withRoutedScalingFactor(factor == null ? 1 : factor);
            return groups == 0 ? router : router.withGroups(groups, json.integer("topk_group", groups));
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(json.file(), String.valueOf(e.getMessage()), e);
        }
    }

    private static FusedMoeConfig build(JsonFile json, int experts, int intermediate, RouterConfig router) {
        try {
            return FusedMoeConfig.builder()
                    .numExperts(experts)
                    .expertsPerToken(json.integer("num_experts_per_tok"))
                    .hiddenDim(json.integer("hidden_size"))
                    .intermediateSize(intermediate)
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
