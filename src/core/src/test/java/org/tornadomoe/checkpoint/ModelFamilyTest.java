package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.family.ExpertFields;
import org.tornadomoe.checkpoint.family.ModelFamilies;
import org.tornadomoe.checkpoint.family.ModelFamily;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.weights.QuantizationConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/** What a config.json means. */
class ModelFamilyTest {
    private static final RouterConfig SOFTMAX = RouterConfig.of(ScoringFunction.SOFTMAX, false);
    private static final RouterConfig CORRECTED =
            RouterConfig.of(ScoringFunction.SIGMOID, true).withCorrectionBias();

    @TempDir
    Path directory;

    /** @param json with ' for " */
    private FusedMoeConfig config(String json) throws IOException {
        Files.writeString(directory.resolve("config.json"), json.replace('\'', '"'));
        return MoeCheckpoint.config(directory);
    }

    private void assertRefused(String json, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .as(json)
                .isThrownBy(() -> config(json))
                .withMessageStartingWith(directory.resolve("config.json") + ": ")
                .withMessageContaining(message);
    }

    /**
     * The fields of published models that say or seem to say anything of experts, as their config.json files have them.
     */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "Mixtral-8x7B | 8 | 2 | 4096 | 14336 | 0 | 'model_type': 'mixtral', 'hidden_act': 'silu',"
                        + " 'hidden_size': 4096, 'intermediate_size': 14336, 'num_experts_per_tok': 2,"
                        + " 'num_local_experts': 8, 'output_router_logits': false, 'router_aux_loss_coef': 0.02,"
                        + " 'sliding_window': null",
                "Qwen1.5-MoE-A2.7B | 60 | 4 | 2048 | 1408 | 4 | 'model_type': 'qwen2_moe', 'decoder_sparse_step': 1,"
                    + " 'hidden_act': 'silu', 'hidden_size': 2048, 'intermediate_size': 5632, 'moe_intermediate_size':"
                    + " 1408, 'norm_topk_prob': false, 'num_experts': 60, 'num_experts_per_tok': 4,"
                    + " 'output_router_logits': false, 'router_aux_loss_coef': 0.001,"
                    + " 'shared_expert_intermediate_size': 5632",
                "Qwen3-30B-A3B | 128 | 8 | 2048 | 768 | 0 | 'model_type': 'qwen3_moe', 'attention_bias': false,"
                    + " 'decoder_sparse_step': 1, 'hidden_act': 'silu', 'hidden_size': 2048, 'intermediate_size':"
                    + " 6144, 'max_window_layers': 48, 'mlp_only_layers': [], 'moe_intermediate_size': 768,"
                    + " 'norm_topk_prob': true, 'num_experts': 128, 'num_experts_per_tok': 8, 'output_router_logits':"
                    + " false, 'rope_scaling': null, 'router_aux_loss_coef': 0.001",
                "Qwen3-VL-30B-A3B | 128 | 8 | 2048 | 768 | 0 | 'model_type': 'qwen3_vl_moe', 'image_token_id': 151655,"
                        + " 'text_config': {'model_type': 'qwen3_vl_moe_text', 'decoder_sparse_step': 1, 'hidden_act':"
                        + " 'silu', 'hidden_size': 2048, 'intermediate_size': 6144, 'mlp_only_layers': [],"
                        + " 'moe_intermediate_size': 768, 'norm_topk_prob': true, 'num_experts': 128,"
                        + " 'num_experts_per_tok': 8, 'rope_scaling': {'rope_type': 'default'}}, 'vision_config':"
                        + " {'hidden_act': 'gelu_pytorch_tanh', 'hidden_size': 1152}",
                "OLMoE-1B-7B | 64 | 8 | 2048 | 1024 | 0 | 'model_type': 'olmoe', 'clip_qkv': null, 'hidden_act':"
                        + " 'silu', 'hidden_size': 2048, 'intermediate_size': 1024, 'norm_topk_prob': false,"
                        + " 'num_experts': 64, 'num_experts_per_tok': 8, 'output_router_logits': false,"
                        + " 'router_aux_loss_coef': 0.01",
                "DeepSeek-V2-Lite | 64 | 6 | 2048 | 1408 | 2 | 'model_type': 'deepseek_v2', 'aux_loss_alpha': 0.001,"
                    + " 'ep_size': 1, 'first_k_dense_replace': 1, 'hidden_act': 'silu', 'hidden_size': 2048,"
                    + " 'intermediate_size': 10944, 'moe_intermediate_size': 1408, 'moe_layer_freq': 1, 'n_group': 1,"
                    + " 'n_routed_experts': 64, 'n_shared_experts': 2, 'norm_topk_prob': false, 'num_experts_per_tok':"
                    + " 6, 'pretraining_tp': 1, 'routed_scaling_factor': 1.0, 'scoring_func': 'softmax', 'seq_aux':"
                    + " true, 'topk_group': 1, 'topk_method': 'greedy'",
                "DeepSeek-V2 | 160 | 6 | 5120 | 1536 | 2 | 'model_type': 'deepseek_v2', 'first_k_dense_replace': 1,"
                    + " 'hidden_act': 'silu', 'hidden_size': 5120, 'moe_intermediate_size': 1536, 'moe_layer_freq': 1,"
                    + " 'n_group': 8, 'n_routed_experts': 160, 'n_shared_experts': 2, 'norm_topk_prob': false,"
                    + " 'num_experts_per_tok': 6, 'routed_scaling_factor': 16.0, 'scoring_func': 'softmax',"
                    + " 'topk_group': 3, 'topk_method': 'group_limited_greedy'",
                "DeepSeek-V3 | 256 | 8 | 7168 | 2048 | 1 | 'model_type': 'deepseek_v3', 'ep_size': 1,"
                    + " 'first_k_dense_replace': 3, 'hidden_act': 'silu', 'hidden_size': 7168, 'intermediate_size':"
                    + " 18432, 'moe_intermediate_size': 2048, 'moe_layer_freq': 1, 'n_group': 8, 'n_routed_experts':"
                    + " 256, 'n_shared_experts': 1, 'norm_topk_prob': true, 'num_experts_per_tok': 8,"
                    + " 'num_nextn_predict_layers': 1, 'routed_scaling_factor': 2.5, 'scoring_func': 'sigmoid',"
                    + " 'topk_group': 4, 'topk_method': 'noaux_tc'",
                "DeepSeek-V3.2 | 256 | 8 | 7168 | 2048 | 1 | 'model_type': 'deepseek_v32', 'ep_size': 1,"
                    + " 'first_k_dense_replace': 3, 'hidden_act': 'silu', 'hidden_size': 7168, 'index_head_dim': 128,"
                    + " 'index_n_heads': 64, 'index_topk': 2048, 'moe_intermediate_size': 2048, 'moe_layer_freq': 1,"
                    + " 'n_group': 8, 'n_routed_experts': 256, 'n_shared_experts': 1, 'norm_topk_prob': true,"
                    + " 'num_experts_per_tok': 8, 'routed_scaling_factor': 2.5, 'scoring_func': 'sigmoid',"
                    + " 'topk_group': 4, 'topk_method': 'noaux_tc'",
                "Kimi-K2 | 384 | 8 | 7168 | 2048 | 1 | 'model_type': 'kimi_k2', 'aux_loss_alpha': 0.001, 'ep_size': 1,"
                    + " 'first_k_dense_replace': 1, 'hidden_act': 'silu', 'hidden_size': 7168,"
                    + " 'moe_intermediate_size': 2048, 'moe_layer_freq': 1, 'n_group': 1, 'n_routed_experts': 384,"
                    + " 'n_shared_experts': 1, 'norm_topk_prob': true, 'num_experts_per_tok': 8,"
                    + " 'routed_scaling_factor': 2.827, 'scoring_func': 'sigmoid', 'seq_aux': true, 'topk_group': 1,"
                    + " 'topk_method': 'noaux_tc'",
                "GLM-4.5-Air | 128 | 8 | 4096 | 1408 | 1 | 'model_type': 'glm4_moe', 'first_k_dense_replace': 1,"
                    + " 'hidden_act': 'silu', 'hidden_size': 4096, 'intermediate_size': 10944,"
                    + " 'moe_intermediate_size': 1408, 'n_group': 1, 'n_routed_experts': 128, 'n_shared_experts': 1,"
                    + " 'norm_topk_prob': true, 'num_experts_per_tok': 8, 'num_nextn_predict_layers': 1,"
                    + " 'partial_rotary_factor': 0.5, 'routed_scaling_factor': 1.0, 'topk_group': 1, 'use_qk_norm':"
                    + " false",
                "gpt-oss-20b | 32 | 4 | 2880 | 2880 | 0 | 'model_type': 'gpt_oss', 'experts_per_token': 4,"
                    + " 'hidden_act': 'silu', 'hidden_size': 2880, 'initial_context_length': 4096,"
                    + " 'intermediate_size': 2880, 'num_experts_per_tok': 4, 'num_local_experts': 32,"
                    + " 'output_router_logits': false, 'rope_scaling': {'factor': 32.0}, 'router_aux_loss_coef': 0.9,"
                    + " 'swiglu_limit': 7.0",
                "Llama-4-Scout | 16 | 1 | 5120 | 8192 | 1 | 'model_type': 'llama4', 'text_config': {'model_type':"
                    + " 'llama4_text', 'attn_scale': 0.1, 'attn_temperature_tuning': 4, 'for_llm_compressor': false,"
                    + " 'hidden_act': 'silu', 'hidden_size': 5120, 'interleave_moe_layer_step': 1,"
                    + " 'intermediate_size': 8192, 'intermediate_size_mlp': 16384, 'moe_layers': [0, 1],"
                    + " 'num_experts_per_tok': 1, 'num_local_experts': 16, 'output_router_logits': false,"
                    + " 'router_aux_loss_coef': 0.001, 'router_jitter_noise': 0.0, 'use_qk_norm': true}",
                "granite-3.0-1b-a400m | 32 | 8 | 1024 | 512 | 0 | 'model_type': 'granitemoe', 'attention_multiplier':"
                        + " 0.015625, 'embedding_multiplier': 12.0, 'hidden_act': 'silu', 'hidden_size': 1024,"
                        + " 'intermediate_size': 512, 'logits_scaling': 6.0, 'num_experts_per_tok': 8,"
                        + " 'num_local_experts': 32, 'output_router_logits': false, 'residual_multiplier': 0.22,"
                        + " 'router_aux_loss_coef': 0.0",
                "Phi-3.5-MoE | 16 | 2 | 4096 | 6400 | 0 | 'model_type': 'phimoe', 'hidden_act': 'silu',"
                    + " 'hidden_dropout': 0.0, 'hidden_size': 4096, 'input_jitter_noise': 0.01, 'intermediate_size':"
                    + " 6400, 'lm_head_bias': true, 'num_experts_per_tok': 2, 'num_local_experts': 16,"
                    + " 'output_router_logits': false, 'router_aux_loss_coef': 0.0, 'router_jitter_noise': 0.01",
                "Jamba-v0.1 | 16 | 2 | 4096 | 14336 | 0 | 'model_type': 'jamba', 'attn_layer_offset': 4,"
                    + " 'attn_layer_period': 8, 'expert_layer_offset': 1, 'expert_layer_period': 2, 'hidden_act':"
                    + " 'silu', 'hidden_size': 4096, 'intermediate_size': 14336, 'mamba_d_state': 16, 'mamba_dt_rank':"
                    + " 256, 'n_ctx': 262144, 'num_experts': 16, 'num_experts_per_tok': 2, 'output_router_logits':"
                    + " false, 'router_aux_loss_coef': 0.001, 'use_mamba_kernels': true",
                "Qwen3-Next-80B-A3B | 512 | 10 | 2048 | 512 | 1 | 'model_type': 'qwen3_next', 'decoder_sparse_step': 1,"
                        + " 'full_attention_interval': 4, 'hidden_act': 'silu', 'hidden_size': 2048,"
                        + " 'intermediate_size': 5120, 'linear_num_key_heads': 16, 'mlp_only_layers': [],"
                        + " 'moe_intermediate_size': 512, 'norm_topk_prob': true, 'num_experts': 512,"
                        + " 'num_experts_per_tok': 10, 'shared_expert_intermediate_size': 512",
                "LongCat-Flash | 512 | 12 | 6144 | 2048 | 0 | 'model_type': 'longcat_flash', 'attention_method': 'MLA',"
                        + " 'expert_ffn_hidden_size': 2048, 'ffn_hidden_size': 12288, 'hidden_size': 6144, 'moe_topk':"
                        + " 12, 'n_routed_experts': 512, 'num_layers': 28, 'routed_scaling_factor': 6.0,"
                        + " 'zero_expert_num': 256, 'zero_expert_type': 'identity'",
                "ERNIE-4.5-21B-A3B | 64 | 6 | 2560 | 1536 | 2 | 'model_type': 'ernie4_5_moe', 'hidden_act': 'silu',"
                        + " 'hidden_size': 2560, 'intermediate_size': 12288, 'moe_capacity': [64, 64, 64], 'moe_gate':"
                        + " 'topk', 'moe_intermediate_size': 1536, 'moe_k': 6, 'moe_layer_end_index': -1,"
                        + " 'moe_layer_interval': 1, 'moe_layer_start_index': 1, 'moe_num_experts': 64,"
                        + " 'moe_num_shared_experts': 2, 'moe_use_aux_free': true, 'num_hidden_layers': 28",
                "Hunyuan-A13B | 64 | 8 | 4096 | 3072 | 1 | 'model_type': 'hunyuan_v1_moe', 'hidden_act': 'silu',"
                        + " 'hidden_size': 4096, 'intermediate_size': 3072, 'moe_intermediate_size': [3072, 3072],"
                        + " 'moe_topk': [8, 8], 'num_experts': 64, 'num_hidden_layers': 2, 'num_shared_expert': [1, 1],"
                        + " 'use_mixed_mlp_moe': true",
                "DBRX | 16 | 4 | 6144 | 10752 | 0 | 'model_type': 'dbrx', 'd_model': 6144, 'ffn_config':"
                        + " {'ffn_hidden_size': 10752, 'moe_jitter_eps': 0, 'moe_loss_weight': 0.05,"
                        + " 'moe_num_experts': 16, 'moe_top_k': 4}, 'n_layers': 40",
                "MiniMax-M2 | 256 | 8 | 3072 | 1536 | 0 | 'model_type': 'minimax_m2', 'hidden_act': 'silu',"
                        + " 'hidden_size': 3072, 'intermediate_size': 1536, 'num_experts_per_tok': 8,"
                        + " 'num_local_experts': 256, 'scoring_func': 'sigmoid', 'shared_intermediate_size': 0,"
                        + " 'use_routing_bias': true",
                "Nemotron-3-Nano | 128 | 6 | 2688 | 1856 | 2 | 'model_type': 'nemotron_h', 'hidden_size': 2688,"
                        + " 'hybrid_override_pattern': 'MEMEM*EMEM', 'intermediate_size': 1856, 'mamba_hidden_act':"
                        + " 'silu', 'mlp_hidden_act': 'relu2', 'moe_intermediate_size': 1856,"
                        + " 'moe_shared_expert_intermediate_size': 3712, 'n_group': 1, 'n_groups': 8,"
                        + " 'n_routed_experts': 128, 'n_shared_experts': 1, 'norm_topk_prob': true,"
                        + " 'num_experts_per_tok': 6, 'num_hidden_layers': 10, 'routed_scaling_factor': 2.5,"
                        + " 'topk_group': 1",
                "Ling-mini-2.0 | 256 | 8 | 2048 | 512 | 1 | 'model_type': 'bailing_moe_v2', 'first_k_dense_replace': 1,"
                        + " 'hidden_act': 'silu', 'hidden_size': 2048, 'intermediate_size': 5120,"
                        + " 'moe_intermediate_size': 512, 'moe_router_enable_expert_bias': true, 'n_group': 8,"
                        + " 'norm_topk_prob': true, 'num_experts': 256, 'num_experts_per_tok': 8,"
                        + " 'num_shared_experts': 1, 'routed_scaling_factor': 2.5, 'score_function': 'sigmoid',"
                        + " 'topk_group': 4",
                "Ling-3.0-flash | 256 | 8 | 2560 | 768 | 1 | 'model_type': 'bailing_hybrid',"
                        + " 'expert_swiglu_limit_list': [0, 0, 4.0], 'first_k_dense_replace': 1, 'hidden_act': 'silu',"
                        + " 'hidden_size': 2560, 'kda_safe_gate': true, 'moe_intermediate_size': 768,"
                        + " 'moe_router_enable_expert_bias': true, 'moe_shared_expert_intermediate_size': 768,"
                        + " 'n_group': 8, 'norm_topk_prob': true, 'num_experts': 256, 'num_experts_per_tok': 8,"
                        + " 'num_hidden_layers': 3, 'num_shared_experts': 1, 'routed_scaling_factor': 2.5,"
                        + " 'router_dtype': 'fp32', 'scale_router_input': false, 'score_function': 'sigmoid',"
                        + " 'scoring_func': 'sigmoid', 'share_expert_swiglu_limit_list': null, 'topk_group': 4,"
                        + " 'topk_method': 'noaux_tc'",
                "Solar-Open2-250B | 320 | 8 | 4096 | 1280 | 1 | 'model_type': 'solar_open2', 'gqa_layers': [0],"
                        + " 'use_gqa_gate': true",
                "Hunyuan-Large | 16 | 1 | 6400 | 18304 | 1 | 'model_type': 'hunyuan', 'hidden_size': 6400,"
                        + " 'intermediate_size': 18304, 'num_experts': 16, 'moe_topk': 1, 'num_shared_expert': 1,"
                        + " 'use_mixed_mlp_moe': true, 'capacity_factor': 1.0, 'moe_drop_tokens': false,"
                        + " 'moe_random_routing_dropped_token': false",
                "Kimi-K3 | 896 | 16 | 7168 | 3072 | 2 | 'model_type': 'kimi_k3', 'text_config': {'model_type':"
                        + " 'kimi_linear', 'first_k_dense_replace': 1, 'moe_layer_freq': 1, 'num_experts': 896,"
                        + " 'num_experts_per_token': 16, 'num_shared_experts': 2, 'hidden_size': 7168,"
                        + " 'routed_expert_hidden_size': 3584, 'moe_intermediate_size': 3072, 'moe_renormalize': true,"
                        + " 'moe_router_activation_func': 'sigmoid', 'num_expert_group': 1, 'topk_group': 1,"
                        + " 'hidden_act': 'situ', 'activation_situ_beta': 4.0, 'activation_situ_linear_beta': 25.0,"
                        + " 'routed_scaling_factor': 1.0, 'latent_moe_use_norm': true, 'rms_norm_eps': 1e-05}",
                "moondream3-preview | 64 | 8 | 2048 | 1024 | 0 | 'model_type': 'moondream3', 'config': {}",
                "openPangu-2.0-Flash | 256 | 8 | 2560 | 1024 | 1 | 'model_type': 'openpangu_v2', 'hidden_size': 2560,"
                        + " 'intermediate_size': 9216, 'moe_intermediate_size': 1024, 'n_routed_experts': 256,"
                        + " 'n_shared_experts': 1, 'num_experts_per_tok': 8, 'first_k_dense_replace': 2,"
                        + " 'norm_topk_prob': true, 'routed_scaling_factor': 2.5, 'router_enable_expert_bias': true,"
                        + " 'router_sliding_window': 3, 'n_group': null, 'topk_group': 1",
                "LFM2-8B-A1B | 32 | 4 | 2048 | 1792 | 0 | 'model_type': 'lfm2_moe', 'hidden_size': 2048,"
                        + " 'intermediate_size': 7168, 'moe_intermediate_size': 1792, 'norm_topk_prob': true,"
                        + " 'num_dense_layers': 2, 'num_experts': 32, 'num_experts_per_tok': 4,"
                        + " 'routed_scaling_factor': 1.0, 'use_expert_bias': true",
            })
    void publishedModelsAreUnderstood(
            String name, int experts, int topK, int hidden, int intermediate, int shared, String fields)
            throws IOException {
        FusedMoeConfig config = config("{" + fields + ", 'torch_dtype': 'bfloat16', 'top_k': 50}");
        assertThat(List.of(
                        config.numExperts(),
                        config.expertsPerToken(),
                        config.hiddenDim(),
                        config.intermediateSize(),
                        config.numFusedSharedExperts()))
                .as(name)
                .containsExactly(experts, topK, hidden, intermediate, shared);
    }

    /** Nothing but a name: what transformers' class of it says. */
    @ParameterizedTest
    @CsvSource({
        "mixtral, 8, 2, 4096, 14336, 0",
        "qwen2_moe, 60, 4, 2048, 1408, 4",
        "qwen3_moe, 128, 8, 2048, 768, 0",
        "qwen3_vl_moe, 60, 4, 2048, 1408, 0",
        "olmoe, 64, 8, 2048, 2048, 0",
        "deepseek_v3, 256, 8, 7168, 2048, 1",
        "deepseek_v32, 256, 8, 7168, 2048, 1",
        "glm4_moe, 128, 8, 4096, 1408, 1",
        "glm4v_moe_text, 128, 8, 4096, 1408, 1",
        "gpt_oss, 128, 4, 2880, 2880, 0",
        "llama4_text, 16, 1, 5120, 8192, 1",
        "granitemoe, 8, 2, 4096, 11008, 0",
        "phimoe, 16, 2, 4096, 6400, 0",
        "jamba, 16, 2, 4096, 14336, 0",
        "aria_text, 8, 2, 4096, 4096, 2",
        "axk1, 192, 8, 7168, 2048, 1",
        "ernie4_5_moe, 64, 6, 2560, 1536, 2",
        "glm4_moe_lite, 64, 4, 2048, 1536, 1",
        "glm_moe_dsa, 256, 8, 6144, 2048, 1",
        "hy_v3, 192, 8, 4096, 1536, 1",
        "hy_v4, 256, 8, 2816, 768, 1",
        "inkling_text, 256, 6, 6144, 3072, 2",
        "kimi_linear, 256, 8, 2304, 1024, 1",
        "longcat_flash, 512, 12, 6144, 2048, 0",
        "mellum, 64, 8, 2304, 896, 0",
        "mimo_v2_flash, 256, 8, 4096, 2048, 0",
        "minimax_m3_vl_text, 128, 4, 6144, 3072, 1",
        "nemotron_h, 8, 2, 4096, 7688, 1",
        "openai_privacy_filter, 128, 4, 640, 640, 0",
        "qwen3_5_moe_text, 256, 8, 2048, 512, 1",
        "qwen3_next, 512, 10, 2048, 512, 1",
        "solar_open, 128, 8, 4096, 1280, 1",
        "moondream3, 64, 8, 2048, 1024, 0",
        "interns2_mobius, 256, 8, 2048, 512, 1",
    })
    void absentFieldsMeanWhatTheFamilysClassSays(
            String type, int experts, int topK, int hidden, int intermediate, int shared) throws IOException {
        publishedModelsAreUnderstood(type, experts, topK, hidden, intermediate, shared, "'model_type': '" + type + "'");
    }

    @Test
    void absentFieldsOfTheRouterMeanWhatTheFamilysClassSays() throws IOException {
        assertThat(config("{'model_type': 'deepseek_v3'}").router())
                .isEqualTo(CORRECTED.withGroups(8, 4).withRoutedScalingFactor(2.5));
        assertThat(config("{'model_type': 'deepseek_v3', 'n_group': 1}").router())
                .isEqualTo(CORRECTED.withRoutedScalingFactor(2.5));
        assertThat(config("{'model_type': 'glm4_moe'}").router()).isEqualTo(CORRECTED);
        assertThat(config("{'model_type': 'deepseek_v2', 'num_experts_per_tok': 6}")
                        .router())
                .isEqualTo(SOFTMAX);
        assertThat(config("{'model_type': 'qwen3_moe'}").router()).isEqualTo(SOFTMAX);
        assertThat(config("{'model_type': 'qwen3_vl_moe_text'}").router())
                .isEqualTo(RouterConfig.of(ScoringFunction.SOFTMAX, true));
        assertThat(config("{'model_type': 'qwen2_moe'}").router()).isEqualTo(SOFTMAX.withSharedExpertGate());
        FusedMoeConfig oss = config("{'model_type': 'gpt_oss'}");
        assertThat(oss.activation()).isEqualTo(MoeActivation.SWIGLUOAI);
        assertThat(oss.swigluLimit()).isEqualTo(7);
    }

    @ParameterizedTest
    @CsvSource({
        "mixtral, 32, 32, ",
        "qwen3_moe, 24, 24, ",
        "deepseek_v3, 61, 58, ",
        "deepseek_v2, 32, 32, ",
        "glm4_moe, 46, 45, ",
        "llama4, 48, 48, ",
        "jamba, 32, 16, ",
        "glm4_moe_lite, 47, 46, ",
        "ernie4_5_moe, 28, 27, ",
        "deepseek_v4, 43, 43, ",
        "step3p5, 45, 42, ",
        "afmoe, 32, 31, ",
        "nemotron_h, 4, 1, ",
        "longcat_flash, 28, 28, ",
        "'mimo_v2_flash', 3, 2, '''moe_layer_freq'': [0, 1, 1]'",
        "'minimax_m3_vl_text', 2, 1, '''mlp_layer_types'': [''dense'', ''sparse'']'",
        "'deepseek_v32', 3, 1, '''mlp_layer_types'': [''dense'', ''dense'', ''sparse'']'",
        "llama4, 48, 2, '''moe_layers'': [3, 5]'",
        "llama4, 48, 0, '''moe_layers'': []'",
    })
    void layersAreTheFamilysToo(String type, int layers, int moeLayers, String fields) throws IOException {
        new SafetensorsWriter().add("a", new float[] {1}, 1).write(directory.resolve("model.safetensors"));
        config("{'model_type': '" + type + "', 'num_experts_per_tok': 1, "
                + (fields == null ? "" : fields + ", 'num_hidden_layers': " + layers + ",") + "'x': 1}");
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.layers()).isEqualTo(layers);
            assertThat(checkpoint.moeLayers()).hasSize(moeLayers);
        }
    }

    /** DeepSeek-VL2's language model is such a one. */
    @Test
    void deepSeekV2ScoresAsItsConfigurationSays() throws IOException {
        String v2 = "{'model_type': 'deepseek_v2', 'num_experts_per_tok': 6, ";
        assertThat(config(v2 + "'scoring_func': 'sigmoid', 'topk_method': 'noaux_tc', 'n_group': 1, 'topk_group': 1,"
                                + " 'norm_topk_prob': true, 'routed_scaling_factor': 2.0}")
                        .router())
                .isEqualTo(CORRECTED.withRoutedScalingFactor(2));
        assertThat(config(v2 + "'scoring_func': 'sigmoid'}").router())
                .isEqualTo(RouterConfig.of(ScoringFunction.SIGMOID, false));
        assertThat(config(v2 + "'topk_method': 'group_limited_greedy', 'n_group': 8, 'topk_group': 3}")
                        .router())
                .isEqualTo(SOFTMAX.withGroups(8, 3));
        assertRefused(v2 + "'norm_topk_prob': true}", "'norm_topk_prob': expected false beside softmax");
        assertRefused(v2 + "'scoring_func': 'tanh'}", "'scoring_func': expected softmax or sigmoid, got tanh");
        assertRefused(v2 + "'topk_method': 'x'}", "'topk_method': expected greedy, group_limited_greedy or noaux_tc");
        assertRefused(v2 + "'topk_method': 'group_limited_greedy'}", "has no 'n_group'");
        assertRefused("{'model_type': 'deepseek_v2'}", "has no 'num_experts_per_tok'");
    }

    @Test
    void nullIsPythonsNone() throws IOException {
        String v3 = "{'model_type': 'deepseek_v3', ";
        assertThat(config(v3 + "'norm_topk_prob': null, 'n_group': null}").router())
                .isEqualTo(RouterConfig.of(ScoringFunction.SIGMOID, false)
                        .withCorrectionBias()
                        .withRoutedScalingFactor(2.5));
        assertThat(config(v3 + "'n_shared_experts': null}").numFusedSharedExperts())
                .isZero();
        assertRefused(
                v3 + "'routed_scaling_factor': null}", "'routed_scaling_factor': expected a finite number, got null");
        assertRefused(v3 + "'num_experts_per_tok': null}", "'num_experts_per_tok': expected an integer, got null");
        assertRefused(v3 + "'hidden_size': null}", "'hidden_size': expected an integer, got null");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "mixtral | 'norm_topk_prob': false | 'norm_topk_prob': expected true, since mixtral computes as if it"
                        + " were, got false",
                "qwen3_vl_moe_text | 'norm_topk_prob': false | 'norm_topk_prob': expected true, since qwen3_vl_moe",
                "jamba | 'norm_topk_prob': true | 'norm_topk_prob': expected false",
                "qwen3_moe | 'scoring_func': 'sigmoid' | 'scoring_func': expected softmax, since qwen3_moe computes as"
                        + " if it were, got sigmoid",
                "deepseek_v3 | 'scoring_func': 'softmax' | 'scoring_func': expected sigmoid",
                "glm4_moe | 'topk_method': 'greedy' | 'topk_method': expected noaux_tc",
                "llama4 | 'n_shared_experts': 2 | 'n_shared_experts': expected 1",
                "gpt_oss | 'swiglu_alpha': 1.5 | 'swiglu_alpha': expected 1.702",
                "qwen3_moe | 'routed_scaling_factor': 2.0 | 'routed_scaling_factor': not known of qwen3_moe and may"
                        + " change what its experts compute, got 2.0",
                "qwen3_moe | 'n_group': 4 | 'n_group': not known of qwen3_moe",
                "qwen3_moe | 'n_shared_experts': 1 | 'n_shared_experts': not known of qwen3_moe",
                "qwen3_moe | 'swiglu_limit': 7.0 | 'swiglu_limit': not known of qwen3_moe",
                "mixtral | 'router_temperature': 2.0 | 'router_temperature': not known of mixtral",
                "mixtral | 'expert_act_limit': 2.0 | 'expert_act_limit': not known of mixtral",
                "mixtral | 'hidden_activation': 'gelu' | 'hidden_activation': not known of mixtral",
                "olmoe | 'zero_expert_num': 2 | 'zero_expert_num': not known of olmoe",
                "deepseek_v3 | 'gate_temperature': 2 | 'gate_temperature': not known of deepseek_v3",
                "axk2 | 'n_group': 4 | 'n_group': expected 1, since axk2 computes as if it were, got 4",
                "dbrx | 'moe_normalize_expert_weights': 2.0 | 'moe_normalize_expert_weights': expected 1 or null",
                "cohere2_moe | 'expert_selection_fn': 'tanh' | 'expert_selection_fn': expected softmax or sigmoid",
                "cohere2_moe | 'shared_expert_combination_strategy': 'max' | 'shared_expert_combination_strategy':"
                        + " expected average or sum",
                "longcat_flash | 'zero_expert_type': 'copy' | 'zero_expert_type': expected identity",
                "laguna | 'moe_apply_router_weight_on_input': true | 'moe_apply_router_weight_on_input': expected"
                        + " false",
                "inkling_text | 'shared_expert_sink': false | 'shared_expert_sink': expected true",
                "nllb-moe | 'moe_eval_capacity_token_fraction': 0.5 | 'moe_eval_capacity_token_fraction': expected at"
                        + " least 1: with less, experts leave out tokens by what else is in a batch, got 0.5",
                "nllb-moe | 'second_expert_policy': 'random' | 'second_expert_policy': expected all",
                "switch_transformers | 'is_gated_act': true | 'is_gated_act': expected false",
                "smallthinker | 'moe_enable_early_router': false | 'moe_enable_early_router': expected true",
                "smallthinker | 'moe_enable_secondary_experts': true | 'moe_enable_secondary_experts': expected false",
                "PanguProMoE | 'num_experts_per_tok': 7 | router: expected a number of groups that divides 64 experts"
                        + " and the 7 of a token, got 7",
                "openpangu_v2 | 'n_routed_experts': 8, 'num_experts_per_tok': 2, 'n_group': 4 | 'n_group': expected 1",
                "openpangu_v2 | 'hidden_size': 64 | has no 'num_experts'",
                "interns1_pro | 'router_n_groups': 3 | router: expected a number of groups that divides 128 experts",
                "nomic_bert | 'moe_normalize_expert_weights': true | 'moe_normalize_expert_weights': expected false",
                "nomic_bert | 'num_shared_experts': 1 | 'num_shared_experts': expected 0",
                "llada | 'num_experts': 64, 'num_experts_per_tok': 8, 'norm_topk_prob': true | 'norm_topk_prob':"
                        + " expected false",
                "minicpm | 'hidden_size': 2304 | has no 'num_experts'",
                "sarvam_moe | 'score_function': 'softmax' | 'score_function': expected sigmoid",
                "param2moe | 'n_group': 4 | 'n_group': expected 1: implementations choose among groups in different"
                        + " ways, got 4",
                "param2moe | 'hidden_size': 64 | 'n_group': expected 1",
                "kimi_linear | 'hidden_act': 'situ' | activationSituBeta: SITU requires",
                "kimi_linear | 'activation_situ_beta': 4.0, 'hidden_act': 'situ', 'activation_situ_linear_beta': 0 |"
                        + " activationSituLinearBeta: expected a positive number",
                "deepseek_v3 | 'hidden_act': 'situ' | 'hidden_act': expected silu, swish, gelu",
                "doge | 'num_experts': 4 | 'model_type': doge is not read: its experts are single rows",
                "yuan | 'moe_config': {'moe_num_experts': 4, 'moe_top_k': 2, 'router_type': 'linear'} | 'router_type':"
                        + " expected attn_router",
                "yuan | 'moe_config': {'moe_top_k': 2} | has no 'moe_num_experts'",
                "yuan | 'moe_config': {'per_layer_experts_blocks': [], 'moe_top_k': 2}, 'num_hidden_layers': 2 |"
                        + " 'moe_num_experts': expected a value for each of 2 layers",
                "hunyuan_image_3_moe | 'moe_topk': 1 | 'moe_topk': expected at least 2",
                "hunyuan_v1_moe | 'moe_topk': [] | 'moe_topk': expected a value for each of 32 layers",
                "phimoe | 'router_jitter_noise': 0.1 | 'router_jitter_noise': expected 0.01, got 0.1",
                "mixtral | 'num_experts': 4, 'num_local_experts': 8 | 'num_local_experts': expected as many as"
                        + " 'num_experts' = 4, got 8",
                "gpt_oss | 'num_experts_per_tok': 4, 'experts_per_token': 2 | 'experts_per_token': expected as many as"
                        + " 'num_experts_per_tok' = 4, got 2",
                "deepseek_v3 | 'n_group': 100000000 | 'n_group': expected a divisor of the 256 experts with at least 2"
                        + " a group, got 100000000",
                "deepseek_v3 | 'n_group': 7 | 'n_group': expected a divisor of the 256 experts",
                "deepseek_v3 | 'n_group': 256 | 'n_group': expected a divisor of the 256 experts",
                "deepseek_v3 | 'n_group': -1 | 'n_group': expected at least 0, got -1",
                "deepseek_v3 | 'n_group': 2 | 'topk_group': expected 1 to n_group = 2, got 4",
                "deepseek_v3 | 'topk_group': 9 | 'topk_group': expected 1 to n_group = 8, got 9",
                "deepseek_v3 | 'n_shared_experts': 2147483647 | 'n_shared_experts': expected fewer of 2048 rows each",
                "deepseek_v3 | 'n_shared_experts': 100000 | numFusedSharedExperts: expected 0 to 24",
                "deepseek_v3 | 'routed_scaling_factor': NaN | 'routed_scaling_factor': expected a finite number, got"
                        + " NaN",
                "deepseek_v3 | 'routed_scaling_factor': {'__float__': 'Infinity'} | 'routed_scaling_factor': expected"
                        + " a finite number, got {__float__=Infinity}",
                "hy_v4 | 'swiglu_limit': Infinity | 'swiglu_limit': expected a finite number, got Infinity",
                "minimax_m2 | 'shared_intermediate_size': 64 | 'shared_intermediate_size': expected 0, since"
                        + " minimax_m2",
                "phimoe | 'num_experts_per_tok': 1 | 'num_experts_per_tok': expected 2, since phimoe computes as if it",
                "lfm2_moe | 'hidden_act': 'gelu' | 'hidden_act': expected silu",
                "step3p5 | 'hidden_act': 'gelu' | 'hidden_act': expected silu",
                "glm4_moe | 'topk_group': 0 | 'topk_group': expected 1 to n_group = 1, got 0",
                "deepseek_v3 | 'routed_scaling_factor': null | 'routed_scaling_factor': expected a finite number, got"
                        + " null",
                "gpt_oss | 'swiglu_limit': 5.0 | 'swiglu_limit': expected 7, since gpt_oss computes as if it were",
                "hy_v4 | 'swiglu_limit': 0 | 'swiglu_limit': expected a positive number, got 0",
                "hy_v4 | 'hidden_act': 'gelu' | 'hidden_act': expected silu beside a 'swiglu_limit' of 10.0, got gelu",
                "aria_text | 'hidden_act': 'gelu' | 'hidden_act': expected silu, since aria_text computes as if it",
                "mixtral | 'hidden_act': 'silu_no_mul' | 'hidden_act': expected silu, swish, gelu,",
                "mixtral | 'num_local_experts': 1025 | 'num_local_experts': expected 1 to 1024, got 1025",
            })
    void whatWouldChangeTheNumbersIsRefusedByName(String type, String fields, String message) {
        assertRefused("{'model_type': '" + type + "', " + fields + "}", message);
    }

    /** Fields of configurations as their publishers write them, beside those that transformers knows. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "minimax_m2 | 'shared_intermediate_size': 0, 'shared_moe_mode': 'sigmoid', 'use_mtp': true,"
                        + " 'scoring_func': 'sigmoid', 'use_routing_bias': true, 'router_jitter_noise': 0.0",
                "minimax | 'model_type': 'minimax_m1', 'shared_intermediate_size': 0, 'shared_moe_mode': 'sigmoid',"
                        + " 'postnorm': true, 'layernorm_mlp_alpha': 3.5",
                "step3p5 | 'use_moe': true, 'moe_layer_offset': 0, 'moe_every_n_layer': 1, 'need_fp32_gate': true,"
                        + " 'use_head_wise_attn_gate': true, 'norm_expert_weight': true, 'share_expert_dims': 1280",
                "bailing_moe_v2 | 'model_type': 'bailing_moe', 'score_function': 'sigmoid', 'router_dtype': 'fp32',"
                        + " 'moe_router_enable_expert_bias': true, 'moe_shared_expert_intermediate_size': 512",
                "bailing_moe_v2 | 'model_type': 'bailing_moe_linear', 'moe_router_enable_shared_expert': true,"
                        + " 'score_function': 'sigmoid', 'layer_group_size': 5",
                "mimo_v2_flash | 'model_type': 'mimo_v2', 'n_shared_experts': null, 'attention_value_scale': 0.7,"
                        + " 'add_swa_attention_sink_bias': true, 'n_group': 1, 'topk_group': 1",
                "smallthinker | 'moe_enable_early_router': true, 'moe_enable_secondary_experts': false,"
                        + " 'moe_ffn_hidden_size': 768, 'moe_num_active_primary_experts': 6, 'moe_num_primary_experts':"
                        + " 64, 'moe_num_secondary_experts': 0, 'moe_primary_router_apply_softmax': false,"
                        + " 'moe_secondary_expert_size': 0, 'moe_secondary_router_apply_softmax': false",
                "switch_transformers | 'd_ff': 2048, 'dense_act_fn': 'relu', 'feed_forward_proj': 'relu',"
                        + " 'encoder_sparse_step': 2, 'decoder_sparse_step': 2, 'is_gated_act': false,"
                        + " 'num_sparse_encoder_layers': 6, 'num_sparse_decoder_layers': 6, 'router_type':"
                        + " 'tokens_masked', 'router_bias': false, 'router_dtype': 'float32', 'add_router_probs':"
                        + " false, 'router_ignore_padding_tokens': false, 'expert_capacity': 64",
                "nllb-moe | 'router_dtype': 'float32', 'router_bias': false, 'batch_prioritized_routing': false,"
                        + " 'normalize_router_prob_before_dropping': false, 'second_expert_policy': 'all',"
                        + " 'moe_eval_capacity_token_fraction': 1.0, 'moe_token_dropout': 0.2, 'expert_capacity': 64",
                "nomic_bert | 'activation_function': 'gelu', 'expert_choice_router': false, 'ffn_div': 1, 'moe_impl':"
                        + " 'megablocks', 'moe_every_n_layers': 2, 'moe_normalize_expert_weights': false, 'moe_top_k':"
                        + " 2, 'num_shared_experts': 0, 'summary_activation': null, 'reorder_and_upcast_attn': false",
                "deepseek_v4 | 'expert_dtype': 'fp4', 'scoring_func': 'sqrtsoftplus', 'index_topk': 512",
                "dbrx | 'ffn_config': {'moe_jitter_eps': 0.01, 'moe_loss_weight': 0.05, 'uniform_expert_assignment':"
                        + " false, 'top_k': 50, 'output_scores': false}",
            })
    void whatPublishersWriteIsNoReasonToRefuse(String type, String fields) throws IOException {
        boolean named = fields.contains("'model_type'");
        assertThat(config("{" + (named ? "" : "'model_type': '" + type + "', ") + fields + "}"))
                .isEqualTo(config("{'model_type': '" + type + "'}"));
    }

    /** As their publishers write them. */
    @Test
    void nullAndEmptyListsWhereTheirModulesTakeThem() throws IOException {
        assertThat(config("{'model_type': 'mimo_v2_flash', 'routed_scaling_factor': null}"))
                .isEqualTo(config("{'model_type': 'mimo_v2_flash'}"));
        assertThat(config("{'model_type': 'step3p5', 'swiglu_limits': [], 'swiglu_limits_shared': []}"))
                .isEqualTo(config("{'model_type': 'step3p5'}"));
    }

    /** Fields of other families that say that there is nothing of what they are about. */
    @ParameterizedTest
    @ValueSource(
            strings = {
                "'n_group': 1, 'topk_group': 1",
                "'n_group': 0, 'topk_group': 0",
                "'n_shared_experts': 0, 'num_shared_experts': 0, 'shared_expert_intermediate_size': 0",
                "'routed_scaling_factor': 1.0, 'apply_router_weight_on_input': false",
                "'first_k_dense_replace': 0, 'moe_layer_freq': 1, 'decoder_sparse_step': 1"
            })
    void whatSaysThatThereIsNothingIsNotRefused(String fields) throws IOException {
        assertThat(config("{'model_type': 'mixtral', " + fields + "}")).isEqualTo(config("{'model_type': 'mixtral'}"));
    }

    @ParameterizedTest
    @CsvSource({"silu, SILU", "swish, SILU", "gelu, GELU", "gelu_new, GELU_TANH", "gelu_pytorch_tanh, GELU_TANH"})
    void activationsHaveTransformersNames(String name, MoeActivation activation) throws IOException {
        assertThat(config("{'model_type': 'mixtral', 'hidden_act': '" + name + "'}")
                        .activation())
                .isEqualTo(activation);
        assertThat(config("{'model_type': 'gpt_oss', 'hidden_act': '" + name + "'}")
                        .activation())
                .isEqualTo(MoeActivation.SWIGLUOAI);
    }

    /** Sizes of the language model and of the whole, one beside the other. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'model_type': 'qwen3_vl_moe', 'hidden_size': 99, 'num_experts_per_tok': 7, 'text_config':"
                        + " {'hidden_size': 64, 'num_experts_per_tok': 3} | qwen3_vl_moe | 64 | 3",
                "'model_type': 'qwen3_vl_moe', 'hidden_size': 99, 'text_config': {'model_type': 'qwen3_moe',"
                        + " 'num_experts_per_tok': 3} | qwen3_moe | 2048 | 3",
                "'model_type': 'mixtral', 'hidden_size': 64, 'num_experts_per_tok': 3, 'text_config': {'max_length':"
                        + " 20} | mixtral | 64 | 3",
                "'model_type': 'mixtral', 'hidden_size': 64, 'num_experts_per_tok': 3, 'text_config': {} | mixtral |"
                        + " 64 | 3",
                "'model_type': 'mixtral', 'hidden_size': 64, 'text_config': null | mixtral | 64 | 2",
                "'model_type': 'qwen3_vl_moe', 'text_config': {} | qwen3_vl_moe | 2048 | 4",
                "'model_type': 'seer', 'text_config': {'model_type': 'deepseek_v3', 'hidden_size': 64} | deepseek_v3 |"
                        + " 64 | 8",
                "'model_type': 'qwen3_omni_moe', 'thinker_config': {'model_type': 'qwen3_omni_moe_thinker',"
                        + " 'text_config': {'model_type': 'qwen3_omni_moe_text', 'hidden_size': 64}}, 'talker_config':"
                        + " {'text_config': {'hidden_size': 99}} | qwen3_omni_moe_text | 64 | 8",
                "'model_type': 'internvl_chat', 'llm_config': {'model_type': 'qwen3_moe', 'hidden_size': 64} |"
                        + " qwen3_moe | 64 | 8",
                "'model_type': 'deepseek_vl_v2', 'language_config': {'model_type': 'deepseek_v2', 'hidden_size': 64,"
                        + " 'num_experts_per_tok': 6} | deepseek_v2 | 64 | 6",
                "'model_type': 'kimi_k25', 'text_config': {'model_type': 'kimi_k2', 'hidden_size': 64} | deepseek_v3 |"
                        + " 64 | 8",
            })
    void theLanguageModelsPartCounts(String fields, String type, int hidden, int topK) throws IOException {
        FusedMoeConfig config = config("{" + fields + "}");
        assertThat(config.hiddenDim()).isEqualTo(hidden);
        assertThat(config.expertsPerToken()).isEqualTo(topK);
        new SafetensorsWriter().add("a", new float[] {1}, 1).write(directory.resolve("model.safetensors"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.modelType()).isEqualTo(type);
        }
    }

    /** Any value in any field that is read ends in a configuration or in an exception that names the file. */
    @Test
    @Timeout(value = 600, unit = TimeUnit.SECONDS)
    void noValueIsAnythingButReadOrRefused() throws IOException {
        List<String> values = List.of(
                "2147483647",
                "-2147483648",
                "0",
                "-1",
                "1",
                "99999999999999999999999",
                "1e308",
                "NaN",
                "Infinity",
                "null",
                "true",
                "'x'",
                "''",
                "[]",
                "[2147483647]",
                "{}",
                "['sparse']");
        int read = 0;
        int refused = 0;
        for (ModelFamily family : ModelFamily.values()) {
            Set<String> all = new LinkedHashSet<>(family.sizeFields());
            family.fields().forEach(field -> all.add(field.split("=", 2)[0]));
            all.addAll(List.of(
                    "hidden_size",
                    "intermediate_size",
                    "moe_intermediate_size",
                    "num_hidden_layers",
                    "hidden_act",
                    "text_config",
                    "quantization_config",
                    "model_type"));
            for (String field : all) {
                for (String value : values) {
                    String json = "{'model_type': '" + family + "', 'num_experts_per_tok': 2, '" + field + "': " + value
                            + "}";
                    if (field.equals("model_type") || field.equals("num_experts_per_tok")) {
                        json = "{'" + field + "': " + value + "}";
                    }
                    Path file = Files.writeString(directory.resolve("config.json"), json.replace('\'', '"'));
                    try {
                        JsonFile whole = JsonFile.read(file);
                        JsonFile text = ModelFamilies.textConfig(whole);
                        ModelFamily found = ModelFamilies.of(text);
                        ExpertFields.requireUnderstood(found, text);
                        found.shape(text, 0);
                        int layers = found.layers(text);
                        found.whyDense(text, 0);
                        found.whyDense(text, layers - 1);
                        QuantizationConfig.of(whole);
                        read++;
                    } catch (CheckpointException e) {
                        assertThat(e).as(json).message().startsWith(file.toString());
                        refused++;
                    }
                }
            }
        }
        assertThat(read).isPositive();
        assertThat(refused).isPositive();
        assertThatCode(() -> config("{'model_type': 'mixtral', 'num_hidden_layers': 10000}"))
                .doesNotThrowAnyException();
    }

    /** The README names four and counts the others; the changelog counts their names, too. */
    @Test
    void pagesCountTheFamilies() throws IOException {
        List<ModelFamily> families = List.of(ModelFamily.values());
        assertThat(Files.readString(Path.of("README.md")))
                .contains(", gpt-oss and " + (families.size() - 4) + " other families");
        int names =
                families.stream().mapToInt(family -> family.modelTypes().size()).sum();
        assertThat(Files.readString(Path.of("CHANGELOG.md")))
                .contains("- " + families.size() + " families of models instead of 13, " + names + " by `model_type`");
    }
}
