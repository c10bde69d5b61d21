package org.tornadomoe.checkpoint;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/**
 * The model families read: what their config.json says about an MoE layer (the model's own code in Hugging Face
 * transformers 5.17 is the source, its configuration classes for what a config.json leaves out). How tensors are named
 * and laid out is no matter of the family ({@link LayerTensors}). docs/checkpoints.md has the table.
 */
enum ModelFamily {
    /** Every layer; softmax, top-k, renormalised. */
    MIXTRAL(new Defaults(32, 4096, 14336, 8, 2), "norm_topk_prob=true scoring_func=softmax", "mixtral") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, softmax(true));
        }
    },

    /** Some layers may be dense; softmax, top-k; a shared expert weighed by a sigmoid of the token. */
    QWEN2_MOE(
            new Defaults(24, 2048, 1408, 60, 4),
            "norm_topk_prob shared_expert_intermediate_size scoring_func=softmax",
            "qwen2_moe") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            RouterConfig router = softmax(renormalizes(json, false));
            return build(json, sharedIntermediate(json) > 0 ? router.withSharedExpertGate() : router);
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return json.nonNegative("shared_expert_intermediate_size", 5632);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyQwenDense(json, layer);
        }
    },

    /** Some layers may be dense; softmax, top-k, renormalised if {@code norm_topk_prob}. */
    QWEN3_MOE(new Defaults(24, 2048, 768, 128, 8), "norm_topk_prob scoring_func=softmax", "qwen3_moe") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, softmax(renormalizes(json, false)));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyQwenDense(json, layer);
        }
    },

    /** As Qwen3, always renormalised: its configuration has no {@code norm_topk_prob}. */
    QWEN3_VL_MOE(
            new Defaults(24, 2048, 1408, 60, 4),
            "norm_topk_prob=true scoring_func=softmax",
            "qwen3_vl_moe",
            "qwen3_vl_moe_text") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, softmax(true));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyQwenDense(json, layer);
        }
    },

    /** Every layer; softmax, top-k, not renormalised unless {@code norm_topk_prob}. */
    OLMOE(new Defaults(16, 2048, 2048, 64, 8), "norm_topk_prob scoring_func=softmax", "olmoe") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, softmax(renormalizes(json, false)));
        }
    },

    /**
     * The first layers are dense; softmax (or what {@code scoring_func} says), by groups or not, scaled; shared
     * experts.
     */
    DEEPSEEK_V2(
            new Defaults(32, 4096, 1407, 64, 0),
            "norm_topk_prob scoring_func topk_method n_group topk_group routed_scaling_factor n_shared_experts"
                    + " moe_layer_freq",
            "deepseek_v2") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            String method = json.string("topk_method", "greedy");
            String scoring = json.string("scoring_func", "softmax");
            ScoringFunction function = switch (scoring) {
                case "softmax" -> ScoringFunction.SOFTMAX;
                case "sigmoid" -> ScoringFunction.SIGMOID;
                default -> throw json.wrong("scoring_func", "softmax or sigmoid");
            };
            double factor = factor(json, 1);
            boolean renormalize = renormalizes(json, false);
            if (renormalize && function == ScoringFunction.SOFTMAX && factor != 1) {
                // DeepSeek's own code leaves the factor out then, transformers the division, vLLM does both.
                throw new CheckpointException(
                        json.file(),
                        "'norm_topk_prob': expected false beside a 'routed_scaling_factor' of " + factor
                                + " and softmax, which implementations of the family read in different ways, got true");
            }
            RouterConfig router = RouterConfig.of(function, renormalize).withRoutedScalingFactor(factor);
            return build(
                    json,
                    switch (method) {
                        case "greedy" -> router;
                        case "group_limited_greedy" -> grouped(json, router, json.integer("n_group"), 0);
                        case "noaux_tc" -> grouped(json, router.withCorrectionBias(), 0, 0);
                        default -> throw json.wrong("topk_method", "greedy, group_limited_greedy or noaux_tc");
                    });
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return deepSeekShared(json, 2);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyDeepSeekDense(json, layer, 0);
        }
    },

    /** The first layers are dense; sigmoid, a correction bias, by groups, renormalised, scaled; shared experts. */
    DEEPSEEK_V3(
            new Defaults(61, 7168, 2048, 256, 8),
            "norm_topk_prob n_group topk_group routed_scaling_factor n_shared_experts moe_layer_freq"
                    + " scoring_func=sigmoid topk_method=noaux_tc",
            "deepseek_v3",
            "deepseek_v32",
            "kimi_k2") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return sigmoidWithCorrection(json, 2.5, 8, 4);
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return deepSeekShared(json, 1);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyDeepSeekDense(json, layer, 3);
        }
    },

    /** As DeepSeek-V3, mostly of one group. */
    GLM4_MOE(
            new Defaults(46, 4096, 1408, 128, 8),
            "norm_topk_prob n_group topk_group routed_scaling_factor n_shared_experts moe_layer_freq"
                    + " scoring_func=sigmoid topk_method=noaux_tc",
            "glm4_moe",
            "glm4v_moe",
            "glm4v_moe_text") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return sigmoidWithCorrection(json, 1, 1, 1);
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return deepSeekShared(json, 1);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            return whyDeepSeekDense(json, layer, 1);
        }
    },

    /**
     * Every layer; top-k, then softmax; biases everywhere, gate and up interleaved, and an activation that isn't the
     * {@code hidden_act} of its config.json.
     */
    GPT_OSS(
            new Defaults(36, 2880, 2880, 128, 4),
            "swiglu_limit swiglu_alpha=1.702 norm_topk_prob=true scoring_func=softmax",
            "gpt_oss") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, RouterConfig.topKThenSoftmax()).toBuilder()
                    .activation(MoeActivation.SWIGLUOAI)
                    .swigluLimit(json.finite("swiglu_limit", 7))
                    .hasBias(true)
                    .build();
        }
    },

    /** Some layers may be dense; the top logit's sigmoid, on the expert's input; a shared expert. */
    LLAMA4(
            new Defaults(48, 5120, 8192, 16, 1),
            "n_shared_experts=1 moe_layers interleave_moe_layer_step norm_topk_prob=false scoring_func=sigmoid",
            "llama4_text",
            "llama4") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, RouterConfig.topKThenSigmoid()).toBuilder()
                    .applyRouterWeightOnInput(true)
                    .build();
        }

        @Override
        int sharedIntermediate(JsonFile json) {
            return json.has("n_shared_experts") ? deepSeekShared(json, 1) : intermediate(json);
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            if (json.has("moe_layers")) {
                List<Integer> sparse = json.integers("moe_layers");
                return sparse.contains(layer) ? null : "moe_layers is " + JsonFile.shown(sparse);
            }
            int step = json.positive("interleave_moe_layer_step", 1);
            return (layer + 1) % step == 0 ? null : "interleave_moe_layer_step is " + step;
        }
    },

    /** Every layer; top-k, then softmax. */
    GRANITEMOE(new Defaults(32, 4096, 11008, 8, 2), "norm_topk_prob=true scoring_func=softmax", "granitemoe") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, RouterConfig.topKThenSoftmax());
        }
    },

    /** Every layer; experts chosen by turns. */
    PHIMOE(new Defaults(32, 4096, 6400, 16, 2), "router_jitter_noise", "phimoe") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            double margin = ScoringFunction.SPARSE_MIXER_MARGIN;
            if (2 * json.finite("router_jitter_noise", margin / 2) != margin) {
                throw json.wrong("router_jitter_noise", String.valueOf(margin / 2));
            }
            return build(json, RouterConfig.of(ScoringFunction.SPARSE_MIXER, false));
        }
    },

    /** Some layers are dense; softmax, top-k, not renormalised. */
    JAMBA(
            new Defaults(32, 4096, 14336, 16, 2),
            "expert_layer_period expert_layer_offset norm_topk_prob=false scoring_func=softmax",
            "jamba") {
        @Override
        FusedMoeConfig read(JsonFile json) {
            return build(json, softmax(false));
        }

        @Override
        @Nullable
        String whyDense(JsonFile json, int layer) {
            int period = json.positive("expert_layer_period", 2);
            int offset = json.requireInteger("expert_layer_offset", 1);
            return layer % period == offset
                    ? null
                    : "expert_layer_period is " + period + " and expert_layer_offset " + offset;
        }
    };

    /** No published model has a tenth of them. */
    private static final int MAX_LAYERS = 10_000;

    /** What config.json may call the number of experts: earlier and later releases of transformers differ. */
    static final List<String> EXPERTS = List.of("num_experts", "num_local_experts", "n_routed_experts");

    /** What config.json may call K. */
    static final List<String> TOP_K = List.of("num_experts_per_tok", "experts_per_token");

    /** Which of a layer's numbers a config.json without them means. {@code topK} is 0 if there must be one. */
    private record Defaults(int layers, int hidden, int intermediate, int experts, int topK) {}

    @SuppressWarnings("ImmutableEnumChecker") // a record of numbers
    private final Defaults defaults;

    /** Fields that are read, and after = the one value that a field which isn't read may have; with spaces between. */
    private final String fields;

    /** What config.json may call it, with spaces between. */
    private final String modelTypes;

    ModelFamily(Defaults defaults, String fields, String... modelTypes) {
        this.defaults = defaults;
        this.fields = fields;
        this.modelTypes = String.join(" ", modelTypes);
    }

    /** Fields that are read, and after = the one value that a field which isn't read may have. */
    List<String> fields() {
        return List.of(fields.split(" "));
    }

    /** What config.json may call it. */
    List<String> modelTypes() {
        return List.of(modelTypes.split(" "));
    }

    /**
     * The MoE layers' configuration, for calls of one token; without biases unless the family always has them.
     *
     * @throws CheckpointException if a field is missing or wrong
     */
    final FusedMoeConfig config(JsonFile json) {
        try {
            return read(json);
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(json.file(), String.valueOf(e.getMessage()), e);
        }
    }

    /** {@link #config}, or an IllegalArgumentException where numbers don't fit together. */
    abstract FusedMoeConfig read(JsonFile json);

    /** Layers of the model. */
    int layers(JsonFile json) {
        int layers = json.positive("num_hidden_layers", defaults.layers);
        if (layers > MAX_LAYERS) {
            throw json.wrong("num_hidden_layers", "at most " + MAX_LAYERS);
        }
        return layers;
    }

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

    /** The first name in {@code model_type}. */
    @Override
    public String toString() {
        return modelTypes().getFirst();
    }

    private static RouterConfig softmax(boolean renormalize) {
        return RouterConfig.of(ScoringFunction.SOFTMAX, renormalize);
    }

    /** Whether weights are divided by their sum; Python takes null for false. */
    private static boolean renormalizes(JsonFile json, boolean absent) {
        return json.bool("norm_topk_prob", absent && !json.fields().containsKey("norm_topk_prob"));
    }

    private static double factor(JsonFile json, double absent) {
        return json.finite("routed_scaling_factor", absent);
    }

    /**
     * By the best groups of {@code n_group}; null and 0 are none. Groups that the family has and that don't fit are
     * none either.
     */
    RouterConfig grouped(JsonFile json, RouterConfig router, int absentGroups, int absentTaken) {
        boolean given = json.fields().containsKey("n_group");
        int groups = given ? json.nonNegative("n_group", 0) : absentGroups;
        int experts = experts(json);
        int smallest = router.hasCorrectionBias() ? 2 : 1; // a group's score is the sum of so many
        boolean fits = groups < 2 || (experts % groups == 0 && experts / groups >= smallest);
        if (given && !fits) {
            throw json.wrong(
                    "n_group", "a divisor of the " + experts + " experts with at least " + smallest + " a group");
        }
        if (groups < 2 || !fits) {
            return router;
        }
        int taken = json.fields().containsKey("topk_group") ? json.nonNegative("topk_group", 0) : absentTaken;
        if (taken < 1 || taken > groups) {
            throw new CheckpointException(
                    json.file(), "'topk_group': expected 1 to n_group = " + groups + ", got " + taken);
        }
        return router.withGroups(groups, taken);
    }

    FusedMoeConfig sigmoidWithCorrection(JsonFile json, double factor, int groups, int taken) {
        RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, renormalizes(json, true))
                .withCorrectionBias()
                .withRoutedScalingFactor(factor(json, factor));
        return build(json, grouped(json, router, groups, taken));
    }

    /** Null is none, as in DeepSeek's own code. */
    int deepSeekShared(JsonFile json, int absent) {
        int shared = json.nonNegative("n_shared_experts", json.fields().containsKey("n_shared_experts") ? 0 : absent);
        long width = (long) shared * intermediate(json);
        if (width > Integer.MAX_VALUE) {
            throw json.wrong("n_shared_experts", "fewer of " + intermediate(json) + " rows each");
        }
        return (int) width;
    }

    private static @Nullable String whyDeepSeekDense(JsonFile json, int layer, int absentFirst) {
        if (json.has("mlp_layer_types")) {
            List<String> types = json.strings("mlp_layer_types");
            return layer < types.size() && types.get(layer).equals("sparse")
                    ? null
                    : "mlp_layer_types is " + JsonFile.shown(types);
        }
        int dense = json.nonNegative(
                "first_k_dense_replace", json.fields().containsKey("first_k_dense_replace") ? 0 : absentFirst);
        if (layer < dense) {
            return "first_k_dense_replace is " + dense;
        }
        int every = json.positive("moe_layer_freq", 1);
        return layer % every == 0 ? null : "moe_layer_freq is " + every;
    }

    private static @Nullable String whyQwenDense(JsonFile json, int layer) {
        List<Integer> dense = json.integers("mlp_only_layers");
        if (dense.contains(layer)) {
            return "mlp_only_layers is " + JsonFile.shown(dense);
        }
        int step = json.positive("decoder_sparse_step", 1);
        return (layer + 1) % step == 0 ? null : "decoder_sparse_step is " + step;
    }

    /** The number under any of these names, which must agree. */
    private static int oneOf(JsonFile json, List<String> names, int absent) {
        List<String> there = names.stream().filter(json.fields()::containsKey).toList();
        if (there.isEmpty() && absent == 0) {
            throw new CheckpointException(json.file(), "has no '" + names.getFirst() + "'");
        }
        int value = there.isEmpty() ? absent : json.requireInteger(there.getFirst(), absent);
        for (String other : there) {
            if (json.requireInteger(other, absent) != value) {
                throw json.wrong(other, "as many as '" + there.getFirst() + "' = " + value);
            }
        }
        return value;
    }

    private int experts(JsonFile json) {
        int experts = oneOf(json, EXPERTS, defaults.experts);
        if (experts < 1 || experts > FusedMoeConfig.MAX_EXPERTS) {
            throw json.wrong(
                    EXPERTS.stream().filter(json::has).findFirst().orElseThrow(), "1 to " + FusedMoeConfig.MAX_EXPERTS);
        }
        return experts;
    }

    /** I, in the field that the family has it in. */
    int intermediate(JsonFile json) {
        boolean own = List.of(MIXTRAL, OLMOE, GPT_OSS, LLAMA4, GRANITEMOE, PHIMOE, JAMBA)
                .contains(this);
        return json.positive(own ? "intermediate_size" : "moe_intermediate_size", defaults.intermediate);
    }

    /** By the names that transformers has for them. */
    private MoeActivation activation(JsonFile json) {
        return switch (json.string("hidden_act", "silu")) {
            case "silu", "swish" -> MoeActivation.SILU;
            case "gelu" -> MoeActivation.GELU;
            case "gelu_pytorch_tanh", "gelu_new" -> MoeActivation.GELU_TANH;
            case "relu2" -> MoeActivation.RELU2;
            default -> throw json.wrong("hidden_act", "silu, swish, gelu, gelu_new, gelu_pytorch_tanh or relu2");
        };
    }

    FusedMoeConfig build(JsonFile json, RouterConfig router) {
        int intermediate = intermediate(json);
        return FusedMoeConfig.builder()
                .numExperts(experts(json))
                .expertsPerToken(oneOf(json, TOP_K, defaults.topK))
                .hiddenDim(json.positive("hidden_size", defaults.hidden))
                .intermediateSize(intermediate)
                .numFusedSharedExperts(Math.ceilDiv(sharedIntermediate(json), intermediate))
                .activation(this == GPT_OSS ? MoeActivation.SWIGLUOAI : activation(json))
                .router(router)
                .maxNumTokens(1)
                .build();
    }
}
