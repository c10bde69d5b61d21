package org.tornadomoe.checkpoint.family;

import static org.tornadomoe.checkpoint.family.FamilyTraits.sizes;

import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.ScoringFunction;

/** The words that several families share; {@link ModelFamily} adds each one's own. */
final class RelatedFamilies {
    private RelatedFamilies() {}

    static FamilyTraits mixtral(FamilyTraits sizes) {
        return sizes.width("intermediate_size").normalized().fields("norm_topk_prob=true scoring_func=softmax");
    }

    /** Some layers may be dense. */
    static FamilyTraits qwen(FamilyTraits sizes) {
        return sizes.denseIn("mlp_only_layers")
                .lastOfEvery("decoder_sparse_step")
                .fields("scoring_func=softmax");
    }

    static FamilyTraits qwen(FamilyTraits sizes, boolean normalized) {
        return qwen(sizes).normalized("norm_topk_prob", normalized);
    }

    static FamilyTraits gatedShared(FamilyTraits family, int width) {
        return family.sharedWidth("shared_expert_intermediate_size", width).sharedGate();
    }

    static FamilyTraits granite() {
        return sizes(32, 4096, 11008, 8, 2)
                .width("intermediate_size")
                .chosenFirst()
                .normalized()
                .fields("norm_topk_prob=true scoring_func=softmax");
    }

    static FamilyTraits gptOss(FamilyTraits sizes, MoeActivation activation) {
        return sizes.width("intermediate_size")
                .chosenFirst()
                .normalized()
                .activates(activation, 1.702, 1.0)
                .limited(7.0)
                .biased()
                .fields("swiglu_limit=7 swiglu_alpha=1.702 norm_topk_prob=true scoring_func=softmax");
    }

    static FamilyTraits hunyuan() {
        return sizes(32, 4096, 11008, 1, 1)
                .width("intermediate_size")
                .names("num_experts", "moe_topk")
                .normalized()
                .oneShared()
                .perLayer("num_experts", "moe_topk", "num_shared_expert")
                .fields("norm_topk_prob=true use_mixed_mlp_moe=true num_shared_expert=1 moe_layer_num_skipped=0"
                        + " moe_drop_tokens=false moe_random_routing_dropped_token=false");
    }

    static FamilyTraits ernie(FamilyTraits sizes) {
        return sizes.names("moe_num_experts", "moe_k")
                .normalized()
                .corrected()
                .shared("moe_num_shared_experts", 2)
                .fields("moe_norm_min=1e-12 moe_gate=topk moe_use_aux_free=true moe_capacity");
    }

    /** Divided if {@code norm_topk_prob}, scaled. */
    static FamilyTraits corrected(FamilyTraits sizes, double factor) {
        return sizes.sigmoid()
                .normalized("norm_topk_prob", true)
                .corrected()
                .scaled("routed_scaling_factor", factor)
                .fields("scoring_func=sigmoid topk_method=noaux_tc");
    }

    static FamilyTraits deepSeek(FamilyTraits sizes, double factor, int groups, int taken, int dense) {
        return corrected(sizes, factor)
                .groups("n_group", "topk_group", groups, taken)
                .shared("n_shared_experts", 1)
                .denseFirst("first_k_dense_replace", dense)
                .every("moe_layer_freq")
                .layerTypes("mlp_layer_types", "sparse");
    }

    static FamilyTraits deepSeekV2() {
        return sizes(32, 4096, 1407, 64, 0)
                .scaled("routed_scaling_factor", 1)
                .routing(FamilyRules::deepSeekV2)
                .shared("n_shared_experts", 2)
                .denseFirst("first_k_dense_replace", 0)
                .every("moe_layer_freq")
                .layerTypes("mlp_layer_types", "sparse")
                .fields("scoring_func topk_method n_group topk_group");
    }

    static FamilyTraits nemotron() {
        return sizes(4, 4096, 7688, 8, 2)
                .sigmoid()
                .normalized("norm_topk_prob", true)
                .corrected()
                .scaled("routed_scaling_factor", 1)
                .groups("n_group", "topk_group", 1, 1)
                .sharedWidth("moe_shared_expert_intermediate_size", 7688)
                .activation("mlp_hidden_act", "relu2")
                .withoutGate()
                .tensors(Peculiarity.LATENT)
                .layerList(FamilyRules::nemotronLayers, "moe")
                .fields("moe_latent_size n_shared_experts=1 n_groups layers_block_type hybrid_override_pattern"
                        + " moe_shared_expert_overlap");
    }

    static FamilyTraits deepSeekV4(FamilyTraits sizes) {
        return sizes.scored(ScoringFunction.SQRTSOFTPLUS)
                .normalized()
                .corrected()
                .scaled("routed_scaling_factor", 1.5)
                .shared("n_shared_experts", 1)
                .limited("swiglu_limit", 10.0)
                .perLayer("swiglu_limit")
                .tensors(Peculiarity.ROUTER_BIAS_CORRECTS)
                .fields("scoring_func=sqrtsoftplus norm_topk_prob=true topk_method=noaux_tc n_group=1 topk_group=1");
    }

    static FamilyTraits bailing(FamilyTraits sizes, int shared, int dense) {
        return sizes.sigmoid()
                .normalized("norm_topk_prob", true)
                .corrected()
                .scaled("routed_scaling_factor", 2.5)
                .groups("n_group", "topk_group", 8, 4)
                .shared("num_shared_experts", shared)
                .denseFirst("first_k_dense_replace", dense)
                .stepLimits("expert_swiglu_limit_list", "share_expert_swiglu_limit_list")
                .fields("score_function=sigmoid scoring_func=sigmoid topk_method=noaux_tc scale_router_input=false"
                        + " moe_router_enable_expert_bias=true moe_router_topk_scaling_factor"
                        + " moe_router_enable_shared_expert=true moe_shared_expert_intermediate_size"
                        + " router_dtype");
    }
}
