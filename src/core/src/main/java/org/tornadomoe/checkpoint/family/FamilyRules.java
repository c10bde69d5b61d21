package org.tornadomoe.checkpoint.family;

import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/** What single families make of their config.json: routers of their own, and which layers are dense. */
final class FamilyRules {
    private FamilyRules() {}

    static RouterConfig deepSeekV2(FamilyReader family, JsonFile json, RouterConfig router) {
        String method = json.string("topk_method", "greedy");
        String scoring = json.string("scoring_func", "softmax");
        ScoringFunction function = switch (scoring) {
            case "softmax" -> ScoringFunction.SOFTMAX;
            case "sigmoid" -> ScoringFunction.SIGMOID;
            default -> throw json.wrong("scoring_func", "softmax or sigmoid");
        };
        double factor = router.routedScalingFactor();
        if (router.renormalize() && function == ScoringFunction.SOFTMAX) {
            // DeepSeek's own code divides and leaves the factor out, transformers doesn't divide, vLLM does both.
            throw new CheckpointException(
                    json.file(),
                    "'norm_topk_prob': expected false beside softmax, since implementations of the family read it in"
                            + " different ways, got true");
        }
        RouterConfig scored = RouterConfig.of(function, router.renormalize()).withRoutedScalingFactor(factor);
        return switch (method) {
            case "greedy" -> scored;
            case "group_limited_greedy" -> family.grouped(json, scored, json.integer("n_group"), 0);
            case "noaux_tc" -> family.grouped(json, scored.withCorrectionBias(), 0, 0);
            default -> throw json.wrong("topk_method", "greedy, group_limited_greedy or noaux_tc");
        };
    }

    static RouterConfig smallThinker(JsonFile json) {
        RouterConfig router = json.bool("moe_primary_router_apply_softmax", false)
                ? RouterConfig.topKThenSoftmax()
                : RouterConfig.topKThenSigmoid(true);
        return router.withOwnInput();
    }

    /** Experts take all tokens if they may take as many as there are. */
    static RouterConfig nllb(JsonFile json, RouterConfig router) {
        String field = "moe_eval_capacity_token_fraction";
        if (json.finite(field, 1) < 1) {
            throw json.wrong(field, "at least 1: with less, experts leave out tokens by what else is in a batch");
        }
        return router.withRoutedScalingFactor(1 - json.finite("moe_token_dropout", 0.2));
    }

    static RouterConfig phimoe(JsonFile json, RouterConfig router) {
        double margin = ScoringFunction.SPARSE_MIXER_MARGIN;
        if (2 * json.finite("router_jitter_noise", margin / 2) != margin) {
            throw json.wrong("router_jitter_noise", String.valueOf(margin / 2));
        }
        return router;
    }

    /** By the sum of absolute values or not at all. */
    static RouterConfig dbrx(JsonFile json) {
        String field = "moe_normalize_expert_weights";
        boolean divided = !json.fields().containsKey(field) || json.has(field);
        if (divided && json.finite(field, 1) != 1) {
            throw json.wrong(field, "1 or null");
        }
        return RouterConfig.of(ScoringFunction.SOFTMAX, divided);
    }

    static RouterConfig cohere(JsonFile json, RouterConfig router) {
        RouterConfig scored = switch (json.string("expert_selection_fn", "softmax")) {
            case "softmax" -> RouterConfig.topKThenSoftmax();
            case "sigmoid" -> RouterConfig.topKThenSigmoid(router.renormalize());
            default -> throw json.wrong("expert_selection_fn", "softmax or sigmoid");
        };
        return scored.withRoutedScalingFactor(cohereShare(json));
    }

    /** What routed and shared experts are multiplied by. */
    static double cohereShare(JsonFile json) {
        return switch (json.string("shared_expert_combination_strategy", "average")) {
            case "average" -> json.nonNegative("num_shared_experts", 0) > 0 ? 0.5 : 1;
            case "sum" -> 1;
            default -> throw json.wrong("shared_expert_combination_strategy", "average or sum");
        };
    }

    /** What experts and the dense block are multiplied by. */
    static double denseShare(JsonFile json) {
        return json.bool("residual_moe", false) ? Math.sqrt(0.5) : 1;
    }

    static @Nullable String whyLlama4Dense(JsonFile json, int layer) {
        if (json.has("moe_layers")) {
            List<Integer> sparse = json.integers("moe_layers");
            return sparse.contains(layer) ? null : "moe_layers is " + JsonFile.shown(sparse);
        }
        int step = json.positive("interleave_moe_layer_step", 1);
        return (layer + 1) % step == 0 ? null : "interleave_moe_layer_step is " + step;
    }

    static @Nullable String whyJambaDense(JsonFile json, int layer) {
        int period = json.positive("expert_layer_period", 2);
        int offset = json.requireInteger("expert_layer_offset", 1);
        return layer % period == offset
                ? null
                : "expert_layer_period is " + period + " and expert_layer_offset " + offset;
    }

    static @Nullable String whyErnieDense(JsonFile json, int layer) {
        int interval = json.positive("moe_layer_interval", 1);
        int start = json.integer("moe_layer_start_index", 1);
        int end = json.integer("moe_layer_end_index", -1);
        return (layer + 1) % interval == 0 && layer >= start && (end == -1 || layer <= end)
                ? null
                : "moe_layer_interval is " + interval + ", moe_layer_start_index " + start + " and moe_layer_end_index "
                        + end;
    }

    static @Nullable String whySmallThinkerDense(JsonFile json, int layer) {
        if (!json.has("moe_layer_layout")) {
            return null;
        }
        List<Integer> sparse = json.integers("moe_layer_layout");
        return layer < sparse.size() && sparse.get(layer) != 0 ? null : "moe_layer_layout is " + JsonFile.shown(sparse);
    }

    /** Every so many layers of the encoder and of the decoder, the second of as many. */
    static @Nullable String whySwitchDense(JsonFile json, int layer) {
        int encoder = json.positive("num_layers", 12);
        boolean decodes = layer >= encoder;
        int all = decodes ? json.positive("num_decoder_layers", encoder) : encoder;
        String field = decodes ? "num_sparse_decoder_layers" : "num_sparse_encoder_layers";
        int sparse = json.nonNegative(field, 3);
        int step = sparse == 0 ? all : all / sparse;
        int n = decodes ? layer - encoder : layer;
        return step > 0 && (n % step == 1 || step == 1) ? null : field + " is " + sparse + " of " + all;
    }

    /** The second of every so many layers. */
    static @Nullable String whyNomicDense(JsonFile json, int layer) {
        int step = json.nonNegative("moe_every_n_layers", 0);
        return step > 0 && layer % step == 1 ? null : "moe_every_n_layers is " + step;
    }

    /** The last of every so many layers. */
    static @Nullable String whyNllbDense(JsonFile json, int layer) {
        int encoder = json.positive("encoder_layers", 12);
        boolean decodes = layer >= encoder;
        String field = decodes ? "decoder_sparse_step" : "encoder_sparse_step";
        int step = json.nonNegative(field, 4);
        int n = decodes ? layer - encoder : layer;
        return step > 0 && (n + 1) % step == 0 ? null : field + " is " + step;
    }

    static @Nullable String whyStepDense(JsonFile json, int layer, int first) {
        if (!json.has("moe_layers_enum")) {
            return layer >= first
                    ? null
                    : "it has no moe_layers_enum, without which layers from " + first + " on have experts";
        }
        Object sparse = json.fields().get("moe_layers_enum");
        boolean listed = sparse instanceof List<?>
                ? json.integers("moe_layers_enum").contains(layer)
                : List.of(json.string("moe_layers_enum").split("[ ,]+")).contains(Integer.toString(layer));
        return listed ? null : "moe_layers_enum is " + JsonFile.shown(sparse);
    }

    static boolean isHashed(JsonFile json, int layer) {
        if (json.has("mlp_layer_types")) {
            List<String> types = json.strings("mlp_layer_types");
            String type = layer < types.size() ? types.get(layer) : "none";
            return switch (type) {
                case "hash_moe" -> true;
                case "moe" -> false;
                default -> throw json.wrong("mlp_layer_types", "hash_moe or moe for each layer");
            };
        }
        return layer < json.nonNegative("num_hash_layers", 3);
    }

    static List<String> nemotronLayers(JsonFile json) {
        if (json.fields().get("block_configs") instanceof List<?> blocks) {
            return blocks.stream()
                    .map(block -> block instanceof Map<?, ?> named ? String.valueOf(named.get("block_type")) : "none")
                    .toList();
        }
        if (json.has("hybrid_override_pattern")) {
            return json.string("hybrid_override_pattern")
                    .chars()
                    .mapToObj(c -> c == 'E' ? "moe" : String.valueOf((char) c))
                    .toList();
        }
        return json.has("layers_block_type")
                ? json.strings("layers_block_type")
                : List.of("linear_attention", "moe", "full_attention", "mlp");
    }
}
