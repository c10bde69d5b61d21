package org.tornadomoe.checkpoint.family;

import static org.tornadomoe.checkpoint.family.FamilyTraits.sizes;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.bailing;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.corrected;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.deepSeek;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.deepSeekV2;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.deepSeekV4;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.ernie;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.gatedShared;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.gptOss;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.granite;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.hunyuan;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.mixtral;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.nemotron;
import static org.tornadomoe.checkpoint.family.RelatedFamilies.qwen;

import java.util.List;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.LayerReader;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/**
 * The model families read: what their config.json says about an MoE layer (the model's own code in Hugging Face
 * transformers 5.17 is the source, its configuration classes for what a config.json leaves out; the publisher's own
 * code where transformers has none). How tensors are named is mostly no matter of the family: the readers of
 * layers try the names that families use. docs/checkpoints.md has the table.
 *
 * <p>A family is one constant, in the words of {@link FamilyTraits}; families that differ in no word but the sizes are
 * one each all the same, since what a config.json leaves out differs.
 */
public enum ModelFamily {
    // Softmax over all, the K best.
    MIXTRAL("mixtral", mixtral(sizes(32, 4096, 14336, 8, 2))),
    QWEN2_MOE("qwen2_moe", gatedShared(qwen(sizes(24, 2048, 1408, 60, 4), false), 5632)),
    QWEN3_MOE("qwen3_moe sdar_moe", qwen(sizes(24, 2048, 768, 128, 8), false)),
    RND1("rnd1", qwen(sizes(48, 2048, 768, 128, 8), true)),
    QWEN3_OMNI_MOE(
            "qwen3_omni_moe_text qwen3_omni_moe_thinker qwen3_omni_moe", qwen(sizes(28, 2048, 768, 128, 8), true)),
    QWEN3_OMNI_MOE_TALKER("qwen3_omni_moe_talker_text", gatedShared(qwen(sizes(20, 1024, 384, 128, 8), false), 768)),
    QWEN3_NEXT("qwen3_next", gatedShared(qwen(sizes(48, 2048, 512, 512, 10), true), 512)),
    QWEN4_EXP("qwen4_exp_text qwen4_exp", gatedShared(qwen(sizes(40, 2048, 512, 512, 10), true), 512)),
    /** Always divided: its configuration has no {@code norm_topk_prob}. */
    QWEN3_VL_MOE(
            "qwen3_vl_moe qwen3_vl_moe_text",
            qwen(sizes(24, 2048, 1408, 60, 4)).normalized().fields("norm_topk_prob=true")),
    /** Likewise. */
    QWEN3_5_MOE(
            "qwen3_5_moe_text qwen3_5_moe intern_s2_preview interns2_preview interns2_preview_text",
            gatedShared(qwen(sizes(40, 2048, 512, 256, 8)).normalized(), 512).fields("norm_topk_prob=true")),
    /** Intern-S2-Mobius: routers and experts in a few banks, of which the layers take turns. */
    INTERNS2_MOBIUS(
            "interns2_mobius_text interns2_mobius",
            gatedShared(qwen(sizes(40, 2048, 512, 256, 8)).normalized(), 512)
                    .banks("num_blocks", 4)
                    .fields("norm_topk_prob=true")),
    MINIMAX(
            "minimax minimax_m1 minimax_text_01",
            mixtral(sizes(32, 4096, 14336, 8, 2)).fields("shared_moe_mode shared_intermediate_size=0")),
    /** Of a size that has experts; others of the name have none. */
    MINICPM("minicpm", mixtral(sizes(40, 2304, 5760, 0, 0))),
    XVERSE_MOE(
            "xverse_moe xverse",
            sizes(28, 2560, 1728, 0, 0)
                    .width("intermediate_size")
                    .names("num_experts", "moe_top_k")
                    .normalized("norm_topk_prob", false)
                    .shared("num_shared_experts", 0)
                    .fields("scoring_func=softmax")),
    /** Likewise. Its code doesn't divide weights, whatever its configuration says. */
    LLADA_MOE(
            "llada llada_moe",
            sizes(16, 2048, 1024, 0, 0)
                    .width("expert_intermediate_size")
                    .every("moe_layer_freq")
                    .fields("norm_topk_prob=false moe_router_score_function=softmax"
                            + " moe_router_enable_expert_bias=false")),
    OLMOE(
            "olmoe",
            sizes(16, 2048, 2048, 64, 8)
                    .width("intermediate_size")
                    .normalized("norm_topk_prob", false)
                    .fields("scoring_func=softmax")),
    FLEX_OLMO(
            "flex_olmo",
            sizes(32, 4096, 11008, 7, 5)
                    .width("intermediate_size")
                    .normalized("norm_topk_prob", false)
                    .fields("scoring_func=softmax")),
    MELLUM(
            "mellum",
            sizes(28, 2304, 896, 64, 8)
                    .normalized("norm_topk_prob", true)
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("scoring_func=softmax")),
    JAMBA(
            "jamba",
            sizes(32, 4096, 14336, 16, 2)
                    .width("intermediate_size")
                    .dense(FamilyRules::whyJambaDense)
                    .fields("expert_layer_period expert_layer_offset norm_topk_prob=false scoring_func=softmax")),
    HUNYUAN_V1_MOE("hunyuan_v1_moe", hunyuan()),
    /** Hunyuan-Large, whose one expert a token has its score as its weight. */
    HUNYUAN(
            "hunyuan",
            hunyuan()
                    .routing((_, json, router) -> json.positive("moe_topk", 1) == 1
                            ? RouterConfig.of(ScoringFunction.SOFTMAX, false)
                            : router)
                    .fields("capacity_factor moe_layer_freq=1")),
    /** HunyuanImage 3, which writes and draws with the same experts. Its code weighs one expert a token in two ways. */
    HUNYUAN_IMAGE_3(
            "hunyuan_image_3_moe",
            hunyuan()
                    .width("moe_intermediate_size")
                    .perLayer("moe_intermediate_size")
                    .routing((_, json, router) -> {
                        if (json.positive("moe_topk", 1) == 1) {
                            throw json.wrong("moe_topk", "at least 2: implementations weigh one expert differently");
                        }
                        return router;
                    })
                    .fields("capacity_factor group_limited_greedy=false n_group topk_group routed_scaling_factor"
                            + " moe_impl")),
    ERNIE4_5_MOE(
            "ernie4_5_moe",
            ernie(sizes(28, 2560, 1536, 64, 6))
                    .dense(FamilyRules::whyErnieDense)
                    .fields("moe_layer_start_index moe_layer_end_index moe_layer_interval")),
    /** Tokens of text; those of pictures have a router and experts of their own. */
    ERNIE4_5_VL_MOE(
            "ernie4_5_vl_moe_text ernie4_5_vl_moe ernie4_5_moe_vl",
            ernie(sizes(28, 2560, 1536, 64, 6))
                    .firstOf("moe_intermediate_size", "moe_num_experts", "moe_layer_start_index", "moe_layer_end_index")
                    .dense(FamilyRules::whyErnieDense)
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("moe_layer_interval multimodal_inner_moe")),
    /** A smaller expert beside every two, of which their own code has the sizes. */
    GROVE_MOE(
            "grove_moe grovemoe",
            qwen(sizes(48, 2048, 768, 128, 8)).normalized().adjugates().fields("norm_topk_prob=true")),
    DBRX(
            "dbrx",
            sizes(24, 2048, 3584, 4, 1)
                    .modelNames("n_layers", "d_model")
                    .width("ffn_hidden_size")
                    .names("moe_num_experts", "moe_top_k")
                    .routing((_, json, _) -> FamilyRules.dbrx(json))
                    .activation("ffn_act_fn", "silu")
                    .fields("moe_normalize_expert_weights uniform_expert_assignment=false")),
    ARCTIC(
            "arctic",
            sizes(32, 4096, 4096, 8, 1)
                    .width("intermediate_size")
                    .normalized()
                    .lastOfEvery("moe_layer_frequency")
                    .tensors(Peculiarity.DENSE_ELSEWHERE)
                    .fields("use_residual moe_token_dropping=false moe_min_capacity moe_train_capacity_factor"
                            + " moe_eval_capacity_factor")),
    /** As xAI's own code: implementations differ in what they cut logits off at, and divide by. */
    GROK_1(
            "grok-1",
            sizes(64, 6144, 32768, 8, 2)
                    .width("intermediate_size")
                    .activates(MoeActivation.GELU_TANH, null, null)
                    .fields("hidden_act=gelu norm_topk_prob=false scoring_func=softmax")),
    /** A dense block beside the experts', half of the variance each; SGLang's code is the source. */
    GROK_2(
            "grok-2 grok_2",
            sizes(64, 8192, 16384, 8, 2)
                    .activates(MoeActivation.GELU_TANH, null, null)
                    .normalized("norm_topk_prob", false)
                    .routing((_, json, router) -> router.withLogitCap(json.finite("router_logit_softcapping", 30))
                            .withRoutedScalingFactor(FamilyRules.denseShare(json)))
                    .sharedScale(FamilyRules::denseShare)
                    .denseBeside("residual_moe", "intermediate_size", 32768)
                    .fields("router_logit_softcapping hidden_act=gelu scoring_func=softmax scaling_factor")),
    STEP3(
            "step3_text step3_vl",
            sizes(61, 7168, 5120, 48, 3)
                    .names("moe_num_experts", "moe_top_k")
                    .normalized("norm_expert_weight", false)
                    .sharedWidth("share_expert_dim", 5120)
                    .dense((json, layer) -> FamilyRules.whyStepDense(json, layer, 4))
                    .fields("hidden_act=silu moe_layers_enum share_q_dim")),
    /** Experts chosen by turns. */
    PHIMOE(
            "phimoe",
            sizes(32, 4096, 6400, 16, 2)
                    .width("intermediate_size")
                    .scored(ScoringFunction.SPARSE_MIXER)
                    .routing((_, json, router) -> FamilyRules.phimoe(json, router))
                    .fields("router_jitter_noise num_experts_per_tok=2")),
    /** Softmax scores of all, with a correction bias, among them those of experts that hand their token on. */
    LONGCAT_FLASH(
            "longcat_flash longcat_flash_ngram",
            sizes(28, 6144, 2048, 512, 12)
                    .modelNames("num_layers", "hidden_size")
                    .width("expert_ffn_hidden_size")
                    .names("n_routed_experts", "moe_topk")
                    .corrected()
                    .scaled("routed_scaling_factor", 6)
                    .zeroExperts("zero_expert_num", 256)
                    .fields("zero_expert_type=identity norm_topk_prob=false router_bias moe_intermediate_size")),

    /** Of every group of experts as many, and a factor an expert. */
    PANGU_PRO_MOE(
            "PanguProMoE pangu_pro_moe",
            sizes(48, 5120, 1344, 64, 8)
                    .routing((_, json, router) -> router.ofEachGroup(json.positive("num_experts_per_tok", 8)))
                    .sharedWidth("shared_expert_intermediate_size", 5376)
                    .denseIn("mlp_only_layers")
                    .tensors(Peculiarity.EXPERT_SCALES)
                    .fields("hidden_act=silu norm_topk_prob=false")),
    /** As Qwen3-MoE, of every group as many. */
    INTERNS1_PRO(
            "interns1_pro interns1_pro_text interns1_pro_moe",
            qwen(sizes(94, 4096, 1536, 128, 8), false)
                    .routing((_, json, router) -> {
                        int groups = json.has("router_n_groups") ? json.integer("router_n_groups") : -1;
                        return groups > 0 ? router.ofEachGroup(groups) : router;
                    })
                    .fields("router_n_groups")),
    /** An encoder, then a decoder. Experts take any number of tokens, as transformers 5 has it. */
    SWITCH_TRANSFORMERS(
            "switch_transformers",
            sizes(12, 768, 2048, 8, 1)
                    .modelNames("num_layers", "d_model")
                    .width("d_ff")
                    .decoder("num_decoder_layers", "d_ff")
                    .dense(FamilyRules::whySwitchDense)
                    .activation("dense_act_fn", "relu")
                    .withoutGate()
                    .fields("num_sparse_encoder_layers num_sparse_decoder_layers encoder_sparse_step"
                            + " decoder_sparse_step expert_capacity add_router_probs router_bias router_dtype"
                            + " router_ignore_padding_tokens feed_forward_proj is_gated_act=false"
                            + " router_type=tokens_masked")),
    /** Likewise; the share of tokens that training leaves out is left out of weights. */
    NLLB_MOE(
            "nllb-moe nllb_moe",
            sizes(12, 1024, 4096, 128, 2)
                    .modelNames("encoder_layers", "d_model")
                    .width("encoder_ffn_dim")
                    .decoder("decoder_layers", "decoder_ffn_dim")
                    .dense(FamilyRules::whyNllbDense)
                    .normalized()
                    .routing((_, json, router) -> FamilyRules.nllb(json, router))
                    .activation("activation_function", "relu")
                    .withoutGate()
                    .biased()
                    .fields("encoder_sparse_step decoder_sparse_step expert_capacity moe_token_dropout"
                            + " second_expert_policy=all normalize_router_prob_before_dropping add_router_probs"
                            + " batch_prioritized_routing moe_eval_capacity_token_fraction router_bias"
                            + " router_dtype router_ignore_padding_tokens")),

    // The K best logits, then softmax.
    /** ReLU-gated experts, and a router that reads the layer's input. */
    SMALLTHINKER(
            "smallthinker",
            sizes(52, 2560, 768, 64, 6)
                    .width("moe_ffn_hidden_size")
                    .names("moe_num_primary_experts", "moe_num_active_primary_experts")
                    .normalized()
                    .routing((_, json, _) -> FamilyRules.smallThinker(json))
                    .activates(MoeActivation.RELU, null, null)
                    .dense(FamilyRules::whySmallThinkerDense)
                    .fields("moe_primary_router_apply_softmax moe_enable_early_router=true moe_layer_layout"
                            + " hidden_act=relu moe_enable_secondary_experts=false moe_num_secondary_experts"
                            + " moe_num_active_secondary_experts moe_secondary_expert_size"
                            + " moe_secondary_router_apply_softmax norm_topk_prob=true")),
    GRANITEMOE("granitemoe granitemoeshared", granite()),
    GRANITEMOE_HYBRID("granitemoehybrid", granite()),
    GRANITEMOE_SWA("granitemoe_swa", granite()),
    /** What is added to every token is added by its experts, whose weights are 1 together. */
    JETMOE(
            "jetmoe",
            sizes(12, 2048, 5632, 8, 2)
                    .width("intermediate_size")
                    .chosenFirst()
                    .normalized()
                    .activation("activation_function", "silu")
                    .biased()
                    .tensors(Peculiarity.ONE_BIAS)),
    ARIA(
            "aria_text aria",
            sizes(32, 4096, 4096, 8, 2)
                    .width("intermediate_size")
                    .names("moe_num_experts", "moe_topk")
                    .chosenFirst()
                    .normalized()
                    .shared("moe_num_shared_experts", 2)
                    .fields("hidden_act=silu moe_aux_loss_coeff moe_z_loss_coeff")),
    /** What gates multiply is one more than the up projection. */
    MOONDREAM3(
            "moondream3 moondream3_text",
            sizes(24, 2048, 1024, 64, 8)
                    .modelNames("n_layers", "dim")
                    .width("expert_inner_dim")
                    .names("n_experts", "n_experts_per_tok")
                    .chosenFirst()
                    .normalized()
                    .activates(MoeActivation.GELU, null, null)
                    .biased()
                    .denseFirst("start_layer", 4)
                    .tensors(Peculiarity.UP_PLUS_ONE)),
    /** Gate and up interleaved, and an activation that isn't the {@code hidden_act} of its config.json. */
    GPT_OSS("gpt_oss", gptOss(sizes(36, 2880, 2880, 128, 4), MoeActivation.SWIGLUOAI)),
    /** One after the other. */
    OPENAI_PRIVACY_FILTER(
            "openai_privacy_filter", gptOss(sizes(8, 640, 640, 128, 4), MoeActivation.SWIGLUOAI_UNINTERLEAVE)),
    COHERE2_MOE(
            "cohere2_moe",
            sizes(40, 8192, 22528, 8, 2)
                    .width("intermediate_size")
                    .routing((_, json, router) -> FamilyRules.cohere(json, router))
                    .normalized("norm_topk_prob", true)
                    .shared("num_shared_experts", 0)
                    .sharedScale(FamilyRules::cohereShare)
                    .denseFirst("first_k_dense_replace", 0)
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("shared_expert_combination_strategy expert_selection_fn prefix_dense_intermediate_size")),
    /** The top logit's sigmoid, on the expert's input. */
    LLAMA4(
            "llama4_text llama4",
            sizes(48, 5120, 8192, 16, 1)
                    .width("intermediate_size")
                    .sigmoid()
                    .chosenFirst()
                    .oneShared()
                    .weighsInput()
                    .dense(FamilyRules::whyLlama4Dense)
                    .fields("n_shared_experts=1 moe_layers interleave_moe_layer_step norm_topk_prob=false"
                            + " scoring_func=sigmoid")),

    // Sigmoid scores and a correction bias.
    /** The first, DeepSeekMoE. */
    DEEPSEEK(
            "deepseek",
            sizes(30, 4096, 1407, 0, 0)
                    .normalized("norm_topk_prob", false)
                    .shared("n_shared_experts", 0)
                    .denseFirst("first_k_dense_replace", 0)
                    .every("moe_layer_freq")
                    .fields("scoring_func=softmax routed_scaling_factor=1 topk_method=greedy")),
    DEEPSEEK_V2("deepseek_v2", deepSeekV2().normalized("norm_topk_prob", false)),
    DEEPSEEK_OCR2("deepseek_ocr2_text deepseek_ocr2", deepSeekV2().fields("norm_topk_prob=false")),
    DEEPSEEK_V3("deepseek_v3 deepseek_v32 kimi_k2", deepSeek(sizes(61, 7168, 2048, 256, 8), 2.5, 8, 4, 3)),
    /** Its norm of the block's output is not the block's. */
    AXK1("axk1", deepSeek(sizes(61, 7168, 2048, 192, 8), 2.5, 8, 4, 1)),
    /** Experts of other groups are chosen before those of a score below 0, which this isn't: one group alone. */
    AXK2(
            "axk2",
            corrected(sizes(48, 2048, 512, 128, 8), 2.5)
                    .shared("n_shared_experts", 1)
                    .denseFirst("first_k_dense_replace", 1)
                    .every("moe_layer_freq")
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("n_group=1 topk_group=1")),
    /** A correction bias if the configuration says so. */
    PANGU_ULTRA_MOE(
            "pangu_ultra_moe",
            sizes(61, 7680, 2048, 256, 8)
                    .names("num_routed_experts", "num_experts_per_tok")
                    .sigmoid()
                    .normalized("norm_topk_prob", true)
                    .correctedIf("router_enable_expert_bias", false)
                    .scaled("routed_scaling_factor", 2.5)
                    .shared("num_shared_experts", 1)
                    .denseFirst("num_dense_layers", 3)
                    .fields("hidden_act=silu scoring_func=sigmoid")),
    /** openPangu 2.0 and Pro MoE V2; one group alone, as vLLM's code has it. */
    OPENPANGU_V2(
            "openpangu_v2 pangu_pro_moe_v2",
            sizes(46, 2560, 1024, 0, 0)
                    .sigmoid()
                    .normalized("norm_topk_prob", true)
                    .correctedIf("router_enable_expert_bias", false)
                    .scaled("routed_scaling_factor", 1)
                    .shared("n_shared_experts", 0)
                    .denseFirst("first_k_dense_replace", 0)
                    .fields("hidden_act=silu scoring_func=sigmoid n_group=1 topk_group=1 vanilla_mlp=false"
                            + " router_sliding_window")),
    GLM4_MOE("glm4_moe glm4v_moe glm4v_moe_text", deepSeek(sizes(46, 4096, 1408, 128, 8), 1, 1, 1, 1)),
    GLM4_MOE_LITE("glm4_moe_lite", deepSeek(sizes(47, 2048, 1536, 64, 4), 1.8, 1, 1, 1)),
    GLM_MOE_DSA("glm_moe_dsa", deepSeek(sizes(78, 6144, 2048, 256, 8), 2.5, 1, 1, 3)),
    GLM5_NEXT(
            "glm5_next_text glm5_next",
            deepSeek(sizes(45, 4096, 2048, 288, 8), 2.5, 1, 1, 3)
                    .limited("swiglu_limit", 10.0)
                    .perLayer("swiglu_limit")),
    HY_V4(
            "hy_v4",
            deepSeek(sizes(34, 2816, 768, 256, 8), 2.827, 1, 1, 1)
                    .limited("swiglu_limit", 10.0)
                    .perLayer("swiglu_limit")
                    .sharedUnlimited()),
    DOTS3_NOTE(
            "dots3_note dots3_note_text",
            deepSeek(sizes(46, 5120, 1536, 256, 8), 1, 1, 1, 1)
                    .fields("moe_gating_fp32=false use_dynamic_rsf=false moe_shared_expert_intermediate_size"
                            + " shared_experts_intermediate_size attention_gate_type swa_attention_gate_type")),
    /** A limit of 0 is none. */
    GIGACHAT3_5(
            "gigachat3_5",
            deepSeek(sizes(40, 7168, 2048, 256, 8), 2.5, 1, 1, 3)
                    .limited("swiglu_limit", 10.0)
                    .perLayer("swiglu_limit")
                    .unlimitedIf0()
                    .sharedGateIf("use_shared_expert_sigmoid")
                    .fields("layernorm_gating_weight")),
    SOLAR_OPEN("solar_open", deepSeek(sizes(48, 4096, 1280, 128, 8), 1, 1, 1, 0)),
    SOLAR_OPEN2("solar_open2", deepSeek(sizes(48, 4096, 1280, 320, 8), 1, 1, 1, 0)),
    MIMO_V2_FLASH(
            "mimo_v2_flash mimo_v2",
            deepSeek(sizes(48, 4096, 2048, 256, 8), 1, 1, 1, 1)
                    .shared("n_shared_experts", 0)
                    .unscaledIfNull()),
    DOTS1(
            "dots1",
            sizes(62, 4608, 1408, 0, 0)
                    .sigmoid()
                    .normalized("norm_topk_prob", false)
                    .corrected()
                    .scaled("routed_scaling_factor", 1)
                    .groups("n_group", "topk_group", 1, 1)
                    .shared("n_shared_experts", 0)
                    .denseFirst("first_k_dense_replace", 0)
                    .every("moe_layer_freq")
                    .fields("scoring_func=sigmoid topk_method=noaux_tc")),
    /** Softmax scores; groups count by their two best, as with a correction bias of zeros. */
    MISTRAL4(
            "mistral4",
            sizes(36, 4096, 2048, 128, 4)
                    .normalized("norm_topk_prob", true)
                    .scaled("routed_scaling_factor", 1)
                    .corrected()
                    .tensors(Peculiarity.CORRECTION_MAY_MISS)
                    .groups("n_group", "topk_group", 1, 1)
                    .shared("n_shared_experts", 1)
                    .denseFirst("first_k_dense_replace", 0)
                    .every("moe_layer_freq")
                    .fields("scoring_func=softmax")),
    EXAONE_MOE(
            "exaone_moe",
            corrected(sizes(32, 4096, 1024, 64, 8), 2.5)
                    .groups("n_group", "topk_group", 1, 1)
                    .shared("num_shared_experts", 1)
                    .denseFirst("first_k_dense_replace", 1)
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("is_moe_layer")),
    /** Kimi Linear, and Kimi K3, whose routed experts compute in a narrower space. */
    KIMI_LINEAR(
            "kimi_linear kimi_k3",
            sizes(27, 2304, 1024, 256, 8)
                    .names("num_experts", "num_experts_per_token")
                    .sigmoid()
                    .normalized("moe_renormalize", true)
                    .corrected()
                    .scaled("routed_scaling_factor", 2.446)
                    .groups("num_expert_group", "topk_group", 1, 1)
                    .shared("num_shared_experts", 1)
                    .denseFirst("first_k_dense_replace", 1)
                    .every("moe_layer_freq")
                    .layerTypes("mlp_layer_types", "sparse")
                    .situ("activation_situ_beta", "activation_situ_linear_beta")
                    .latent("routed_expert_hidden_size", "latent_moe_use_norm")
                    .fields("moe_router_activation_func=sigmoid use_grouped_topk")),
    NEMOTRON_H("nemotron_h", nemotron()),
    /** Layers of sizes of their own. */
    NEMOTRON_H_PUZZLE("nemotron_h_puzzle", nemotron().blocks("block_configs")),
    MINIMAX_M2(
            "minimax_m2",
            sizes(62, 3072, 1536, 256, 8)
                    .width("intermediate_size")
                    .sigmoid()
                    .normalized()
                    .corrected()
                    .fields("scoring_func=sigmoid use_routing_bias=true shared_intermediate_size=0 shared_moe_mode")),
    MINIMAX_M3_VL(
            "minimax_m3_vl_text minimax_m3_vl",
            sizes(60, 6144, 3072, 128, 4)
                    .width("intermediate_size")
                    .sigmoid()
                    .normalized()
                    .corrected()
                    .scaled("routed_scaling_factor", 2)
                    .sharedWidth("shared_intermediate_size", 3072)
                    .activates(MoeActivation.SWIGLUOAI_UNINTERLEAVE, 1.702, 1.0)
                    .alpha("swiglu_alpha")
                    .limited("swiglu_limit", 7.0)
                    .every("moe_layer_freq")
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("scoring_func=sigmoid use_routing_bias=true")),
    HY_V3(
            "hy_v3",
            sizes(80, 4096, 1536, 192, 8)
                    .sigmoid()
                    .normalized()
                    .corrected()
                    .scaled("router_scaling_factor", 2.826)
                    .shared("num_shared_experts", 1)
                    .denseFirst("first_k_dense_replace", 1)
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("enable_moe_fp32_combine route_norm=true moe_router_use_sigmoid=true"
                            + " moe_router_enable_expert_bias=true")),
    AFMOE(
            "afmoe",
            sizes(32, 2048, 1408, 64, 6)
                    .sigmoid()
                    .normalized()
                    .corrected()
                    .scaled("route_scale", 1)
                    .shared("num_shared_experts", 2)
                    .denseFirst("num_dense_layers", 1)
                    .fields("route_norm=true score_func=sigmoid n_group=1 topk_group=1 num_expert_groups=1"
                            + " num_limited_groups=1 load_balance_coeff use_grouped_mm")),
    LFM2_MOE(
            "lfm2_moe",
            sizes(32, 2048, 1792, 32, 4)
                    .sigmoid()
                    .normalized("norm_topk_prob", true)
                    .correctedIf("use_expert_bias", true)
                    .scaled("routed_scaling_factor", 1)
                    .denseFirst("num_dense_layers", 2)
                    .fields("hidden_act=silu")),
    LAGUNA(
            "laguna",
            sizes(40, 2048, 512, 256, 8)
                    .sigmoid()
                    .normalized()
                    .corrected()
                    .scaled("moe_routed_scaling_factor", 1)
                    .routing((_, json, router) -> router.withLogitCap(json.finite("moe_router_logit_softcapping", 0)))
                    .sharedWidth("shared_expert_intermediate_size", 512)
                    .denseFirst("num_dense_layers", 1)
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("gating moe_router_logit_softcapping moe_apply_router_weight_on_input=false")),
    STEP3P5(
            "step3p5 step3p7",
            sizes(45, 4096, 1280, 288, 8)
                    .names("moe_num_experts", "moe_top_k")
                    .sigmoid()
                    .normalized()
                    .corrected()
                    .scaled("moe_router_scaling_factor", 1)
                    .sharedWidth("share_expert_dim", 1280)
                    .stepLimits("swiglu_limits", "swiglu_limits_shared")
                    .dense((json, layer) -> FamilyRules.whyStepDense(json, layer, 3))
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("hidden_act=silu share_expert_dims moe_layers_enum moe_layer_offset=0 moe_every_n_layer=1"
                            + " moe_router_activation=sigmoid"
                            + " use_moe=true use_moe_router_bias=true norm_expert_weight=true")),
    /** The shared experts are among what weights are divided by. */
    INKLING(
            "inkling_text",
            sizes(66, 6144, 3072, 256, 6)
                    .sigmoid()
                    .normalized()
                    .corrected()
                    .scaled("route_scale", 8)
                    .shared("n_shared_experts", 2)
                    .normalizesShared()
                    .denseFirst("dense_mlp_idx", 0)
                    .layerTypes("mlp_layer_types", "sparse")
                    .fields("shared_expert_sink=true rms_norm_eps_moe_gate")),
    DEEPSEEK_V4(
            "deepseek_v4",
            deepSeekV4(sizes(43, 4096, 2048, 256, 6))
                    .tokenTable(FamilyRules::isHashed)
                    .fields("mlp_layer_types num_hash_layers")),
    /** No layer takes experts from a table; tokens of pictures have a correction bias of their own. */
    DEEPSEEK_V41(
            "deepseek_v41_text deepseek_v41",
            deepSeekV4(sizes(40, 5120, 2304, 384, 6))
                    .fields("num_hash_layers=0 dspark_n_routed_experts dspark_num_experts_per_tok")),

    // Others.
    /** A router that is a network, reads the one before it, and may choose no expert. */
    ZAYA("zaya", sizes(40, 2048, 2048, 16, 1).network("router_hidden_size", 256).fields("num_experts_per_tok=1")),
    /** Nomic Embed, an encoder. */
    NOMIC_BERT(
            "nomic_bert",
            sizes(12, 768, 3072, 8, 2)
                    .modelNames("n_layer", "n_embd")
                    .width("n_inner")
                    .names("num_experts", "moe_top_k")
                    .activation("activation_function", "gelu")
                    .withoutGate()
                    .dense(FamilyRules::whyNomicDense)
                    .fields("moe_every_n_layers moe_normalize_expert_weights=false expert_choice_router=false"
                            + " num_shared_experts=0 moe_impl moe_resid_pdrop ffn_div=1 norm_topk_prob=false"
                            + " router_aux_loss_coef")),
    /** Ling and Ring, of softmax scores. */
    BAILING_MOE(
            "bailing_moe",
            sizes(28, 2048, 1408, 64, 6)
                    .normalized("norm_topk_prob", true)
                    .shared("num_shared_experts", 0)
                    .denseFirst("first_k_dense_replace", 0)
                    .fields("multi_gate=false moe_router_enable_expert_bias=false routed_scaling_factor=1"
                            + " score_function=softmax")),
    /** Two numbers a token, by a softmax, weigh what the shared expert and the others compute. */
    KLEAR(
            "Klear",
            sizes(32, 2048, 896, 0, 0)
                    .sigmoid()
                    .normalized("norm_topk_prob", false)
                    .corrected()
                    .shared("n_shared_experts", 1)
                    .mixesShared()
                    .denseIn("mlp_only_layers")
                    .lastOfEvery("decoder_sparse_step")),
    /** The router reads what the layer before it read; several layers have the experts of the first of them. */
    MEGREZ_MOE(
            "megrez_moe",
            deepSeek(sizes(31, 2048, 1408, 64, 6), 1, 1, 1, 1)
                    .routing((_, json, router) -> json.bool("pre_gate", false) ? router.withOwnInput() : router)
                    .sharedByLayers("experts_shared_frequency", "first_k_dense_replace")
                    .fields("pre_gate")),
    /** Experts attend to each other before they are chosen. */
    YUAN(
            "yuan",
            sizes(24, 2048, 8192, 0, 0)
                    .width("ffn_hidden_size")
                    .names("moe_num_experts", "moe_top_k")
                    .scored(ScoringFunction.ATTENTION)
                    .normalized()
                    .tensors(Peculiarity.ATTENDS)
                    .dense((json, _) -> json.bool("use_moe", true) ? null : "use_moe is false")
                    .perLayer("moe_num_experts")
                    .fields("use_moe norm_topk_prob=true router_type=attn_router gated_linear_unit=true use_lf_gate")),
    /**
     * Ling 2 and 3, Ring 2. Ling 3's own code doesn't read the limits that its config.json has; it was trained with
     * them, and vLLM, SGLang and llama.cpp cut off at them.
     */
    BAILING_MOE_V2(
            "bailing_moe_v2 bailing_moe_linear bailing_hybrid bailing_moe_v3",
            bailing(sizes(20, 2048, 512, 256, 8), 1, 1)),
    SARVAM_MOE(
            "sarvam_moe sarvam_mla",
            sizes(19, 4096, 1024, 128, 6)
                    .sigmoid()
                    .normalized("norm_topk_prob", true)
                    .correctedIf("moe_router_enable_expert_bias", true)
                    .scaled("routed_scaling_factor", 2.5)
                    .groups("n_group", "topk_group", 0, 0)
                    .shared("num_shared_experts", 1)
                    .denseFirst("first_k_dense_replace", 1)
                    .fields("score_function=sigmoid router_dtype moe_shared_expert_intermediate_size")),
    /** Implementations choose groups in two ways: by a group's best expert, or its two best. */
    PARAM2MOE(
            "param2moe",
            sizes(20, 2048, 512, 256, 8)
                    .sigmoid()
                    .normalized("norm_topk_prob", true)
                    .correctedIf("moe_router_enable_expert_bias", true)
                    .scaled("routed_scaling_factor", 1)
                    .shared("num_shared_experts", 1)
                    .denseFirst("first_k_dense_replace", 1)
                    .fields("score_function=sigmoid n_group topk_group router_dtype"
                            + " moe_shared_expert_intermediate_size")
                    .routing((family, json, router) -> {
                        if (json.integer("n_group", 8) > 1) {
                            throw json.wrong("n_group", "1: implementations choose among groups in different ways");
                        }
                        return router;
                    })),
    LLADA2_MOE("llada2_moe", bailing(sizes(24, 1024, 0, 16, 2), 0, 0)),
    /** The router reads the token before the norm whose output the experts read, and has a factor an expert. */
    GEMMA4(
            "gemma4_text gemma4 diffusion_gemma_text",
            sizes(30, 2304, 0, 0, 0)
                    .names("num_experts", "top_k_experts")
                    .normalized()
                    .activation("hidden_activation", "gelu_pytorch_tanh")
                    .tensors(Peculiarity.GEMMA4_ROUTER, Peculiarity.DENSE_ELSEWHERE)
                    .dense((json, _) -> json.bool("enable_moe_block", false) ? null : "enable_moe_block is not true")
                    .fields("enable_moe_block use_double_wide_mlp"));

    /** What config.json may call it, with spaces between. */
    private final String modelTypes;

    @SuppressWarnings("ImmutableEnumChecker") // isn't changed once it is here
    private final FamilyTraits traits;

    @SuppressWarnings("ImmutableEnumChecker") // nor is this
    private final FamilyReader reader;

    ModelFamily(String modelTypes, FamilyTraits traits) {
        this.modelTypes = modelTypes;
        this.traits = traits;
        reader = traits.reader();
    }

    /** Fields that are read, and after = the one value that a field which isn't read may have. */
    public Set<String> fields() {
        return traits.fields();
    }

    /** Fields that E and K may stand in. */
    public List<String> sizeFields() {
        return traits.sizeFields();
    }

    /** What config.json may call it. */
    public List<String> modelTypes() {
        return List.of(modelTypes.split(" "));
    }

    /** Whether a configuration calls it by its name. */
    boolean isNamedBy(JsonFile json) {
        return json.fields().get("model_type") instanceof String type
                && modelTypes().contains(type);
    }

    /** The configuration of the first MoE layer. */
    public JsonFile ofFirstLayer(JsonFile json) {
        return reader.at(json, reader.firstSparse(json));
    }

    /**
     * The first MoE layer's configuration, for calls of one token; without biases unless the family always has them.
     *
     * @throws CheckpointException if a field is missing or wrong
     */
    public FusedMoeConfig config(JsonFile json) {
        return config(json, reader.firstSparse(json));
    }

    /** Likewise, a layer's; most models have one for all. */
    public FusedMoeConfig config(JsonFile json, int layer) {
        try {
            return reader.config(json, layer);
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(json.file(), String.valueOf(e.getMessage()), e);
        }
    }

    /** Layers of the model. */
    public int layers(JsonFile json) {
        return reader.layers(json);
    }

    /** What in the configuration makes that layer a dense one; null if it is an MoE layer. */
    public @Nullable String whyDense(JsonFile json, int layer) {
        return reader.whyDense(json, layer);
    }

    /** What {@link LayerReader} has to find in a layer. */
    public LayerShape shape(JsonFile json, int layer) {
        try {
            return reader.shape(json, layer);
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(json.file(), String.valueOf(e.getMessage()), e);
        }
    }

    /** The first name in {@code model_type}. */
    @Override
    public String toString() {
        return modelTypes().getFirst();
    }
}
