package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.tornadomoe.checkpoint.PublishedModel.map;
import static org.tornadomoe.checkpoint.PublishedModel.only;
import static org.tornadomoe.checkpoint.PublishedModel.softmax;
import static org.tornadomoe.checkpoint.PublishedModel.top;
import static org.tornadomoe.checkpoint.PublishedModel.transposed;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.PublishedModel.Plain;
import org.tornadomoe.checkpoint.PublishedModel.Router;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/** A layer of every family, in its published layout, computes what the family's own code computes. */
class PublishedFamiliesTest {
    private static final int TOKENS = 9;
    private static final String SIZES = "\"num_hidden_layers\": 2, \"hidden_size\": 12, \"num_experts_per_tok\": 2, ";
    private static final Router SOFTMAX_RENORMALIZED = (logits, _) -> {
        double[] p = softmax(logits);
        return only(p, top(p, 2), true, 1);
    };
    private static final Router SOFTMAX = (logits, _) -> {
        double[] p = softmax(logits);
        return only(p, top(p, 2), false, 1);
    };

    @TempDir
    Path directory;

    private static float[] hidden() {
        Random random = new Random(7);
        float[] hidden = new float[TOKENS * PublishedModel.H];
        for (int i = 0; i < hidden.length; i++) {
            hidden[i] = (float) random.nextGaussian();
        }
        return hidden;
    }

    private void assertComputes(PublishedModel model, String config, Plain plain) {
        model.write(directory, config);
        float[] hidden = hidden();
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            ExpertWeights weights = checkpoint.layer(1);
            double[] actual = Reference.forward(weights, hidden, TOKENS).output();
            assertThat(Numerics.relativeL2(actual, model.forward(hidden, plain)))
                    .isLessThan(1e-6);
        }
    }

    /** Layer 1's block under a prefix, with the router at that name. */
    private static PublishedModel layer(String block, String router, int shared) {
        PublishedModel model = new PublishedModel(3, shared);
        return model.add(block + router, model.router);
    }

    @Test
    void mixtral() {
        String block = "model.layers.1.block_sparse_moe.";
        assertComputes(
                layer(block, "gate.weight", 0).perExpert(block, "w1", "w3", "w2"),
                "{\"model_type\": \"mixtral\", " + SIZES + "\"num_local_experts\": 6, \"intermediate_size\": 8}",
                Plain.of(SOFTMAX_RENORMALIZED));
    }

    @ParameterizedTest
    @CsvSource({"8, false", "16, true", "20, false", "5, false"})
    void qwen2Moe(int shared, boolean renormalize) {
        String block = "model.layers.1.mlp.";
        PublishedModel model =
                layer(block, "gate.weight", shared).perExpert(block, "gate_proj", "up_proj", "down_proj");
        model.mlp(block + "shared_expert.", model.shared, "gate_proj", "up_proj", "down_proj")
                .add(block + "shared_expert_gate.weight", model.sharedGate);
        assertComputes(
                model,
                "{\"model_type\": \"qwen2_moe\", " + SIZES + "\"num_experts\": 6, \"moe_intermediate_size\": 8,"
                        + " \"intermediate_size\": 99, \"shared_expert_intermediate_size\": " + shared
                        + ", \"norm_topk_prob\": " + renormalize + ", \"decoder_sparse_step\": 1,"
                        + " \"mlp_only_layers\": [], \"hidden_act\": \"silu\"}",
                Plain.of(renormalize ? SOFTMAX_RENORMALIZED : SOFTMAX).withShared(true));
    }

    /** Qwen3-VL: the language model's configuration and tensors are inside, the experts fused and transposed. */
    @Test
    void qwen3MoeInsideAModelThatSees() {
        String block = "model.language_model.layers.1.mlp.";
        PublishedModel model = layer(block, "gate.weight", 0);
        model.add(block + "experts.gate_up_proj", transposed(model.gateUp(false)))
                .add(block + "experts.down_proj", transposed(model.down()))
                .add("model.visual.blocks.1.mlp.linear_fc1.weight", model.router);
        assertComputes(
                model,
                "{\"model_type\": \"qwen3_vl_moe\", \"text_config\": {\"model_type\": \"qwen3_vl_moe_text\", " + SIZES
                        + "\"num_experts\": 6, \"moe_intermediate_size\": 8, \"norm_topk_prob\": true}}",
                Plain.of(SOFTMAX_RENORMALIZED));
    }

    /** As transformers 5 has experts in memory: fused, not transposed. */
    @Test
    void qwen3MoeFused() {
        String block = "model.layers.1.mlp.";
        PublishedModel model = layer(block, "gate.weight", 0);
        model.add(block + "experts.gate_up_proj", model.gateUp(false)).add(block + "experts.down_proj", model.down());
        assertComputes(
                model,
                "{\"model_type\": \"qwen3_moe\", " + SIZES
                        + "\"num_experts\": 6, \"moe_intermediate_size\": 8, \"norm_topk_prob\": true}",
                Plain.of(SOFTMAX_RENORMALIZED));
    }

    @Test
    void olmoe() {
        String block = "model.layers.1.mlp.";
        assertComputes(
                layer(block, "gate.weight", 0).perExpert(block, "gate_proj", "up_proj", "down_proj"),
                "{\"model_type\": \"olmoe\", " + SIZES
                        + "\"num_experts\": 6, \"intermediate_size\": 8, \"norm_topk_prob\": false}",
                Plain.of(SOFTMAX));
    }

    private static PublishedModel deepSeek(int sharedExperts) {
        String block = "model.layers.1.mlp.";
        PublishedModel model =
                layer(block, "gate.weight", 8 * sharedExperts).perExpert(block, "gate_proj", "up_proj", "down_proj");
        return sharedExperts == 0
                ? model
                : model.mlp(block + "shared_experts.", model.shared, "gate_proj", "up_proj", "down_proj");
    }

    @Test
    void deepSeekV2() {
        assertComputes(
                deepSeek(2),
                "{\"model_type\": \"deepseek_v2\", " + SIZES
                        + "\"n_routed_experts\": 6, \"n_shared_experts\": 2, \"moe_intermediate_size\": 8,"
                        + " \"first_k_dense_replace\": 1, \"moe_layer_freq\": 1, \"topk_method\": \"greedy\","
                        + " \"n_group\": 1, \"topk_group\": 1, \"norm_topk_prob\": false, \"scoring_func\":"
                        + " \"softmax\", \"routed_scaling_factor\": 16.0}",
                Plain.of((logits, _) -> {
                            double[] p = softmax(logits);
                            return only(p, top(p, 2), false, 16);
                        })
                        .withShared(false));
    }

    /** The n best groups of 2 experts each, by the greatest of scores or the sum of them. */
    private static double[] inBestGroups(double[] scores, int n, boolean sum) {
        double[] ofGroups = IntStream.range(0, 3)
                .mapToDouble(g -> sum ? scores[2 * g] + scores[2 * g + 1] : Math.max(scores[2 * g], scores[2 * g + 1]))
                .toArray();
        List<Integer> best = top(ofGroups, n);
        return IntStream.range(0, 6)
                .mapToDouble(e -> best.contains(e / 2) ? scores[e] : Double.NEGATIVE_INFINITY)
                .toArray();
    }

    @Test
    void deepSeekV2ByGroups() {
        assertComputes(
                deepSeek(1),
                "{\"model_type\": \"deepseek_v2\", " + SIZES
                        + "\"n_routed_experts\": 6, \"n_shared_experts\": 1, \"moe_intermediate_size\": 8,"
                        + " \"topk_method\": \"group_limited_greedy\", \"n_group\": 3, \"topk_group\": 1,"
                        + " \"routed_scaling_factor\": 16.0}",
                Plain.of((logits, _) -> {
                            double[] p = softmax(logits);
                            return only(p, top(inBestGroups(p, 1, false), 2), false, 16);
                        })
                        .withShared(false));
    }

    private static Router sigmoidByGroups(int groups, double factor) {
        return (logits, correction) -> {
            double[] scores = map(logits, PublishedModel::sigmoid);
            double[] corrected = IntStream.range(0, 6)
                    .mapToDouble(e -> scores[e] + correction[e])
                    .toArray();
            return only(scores, top(groups == 1 ? corrected : inBestGroups(corrected, 2, true), 2), true, factor);
        };
    }

    @Test
    void deepSeekV3() {
        PublishedModel model = deepSeek(1);
        model.add("model.layers.1.mlp.gate.e_score_correction_bias", model.correction);
        assertComputes(
                model,
                "{\"model_type\": \"deepseek_v3\", " + SIZES
                        + "\"n_routed_experts\": 6, \"n_shared_experts\": 1, \"moe_intermediate_size\": 8,"
                        + " \"first_k_dense_replace\": 1, \"topk_method\": \"noaux_tc\", \"scoring_func\": \"sigmoid\","
                        + " \"n_group\": 3, \"topk_group\": 2, \"norm_topk_prob\": true,"
                        + " \"routed_scaling_factor\": 2.5}",
                Plain.of(sigmoidByGroups(3, 2.5)).withShared(false));
    }

    /** Where routed experts have none. */
    @Test
    void sharedExpertsHaveBiasesOfTheirOwn() {
        PublishedModel model = deepSeek(2);
        for (PublishedModel.Expert expert : model.experts) {
            List.of(expert.gateBias(), expert.upBias(), expert.downBias()).forEach(bias -> Arrays.fill(bias, 0));
        }
        String shared = "model.layers.1.mlp.shared_experts.";
        model.add(shared + "gate_proj.bias", model.shared.gateBias())
                .add(shared + "up_proj.bias", model.shared.upBias())
                .add(shared + "down_proj.bias", model.shared.downBias());
        assertComputes(
                model,
                "{\"model_type\": \"deepseek_v2\", " + SIZES
                        + "\"n_routed_experts\": 6, \"n_shared_experts\": 2, \"moe_intermediate_size\": 8,"
                        + " \"first_k_dense_replace\": 1, \"mlp_bias\": true}",
                Plain.of(SOFTMAX).withShared(false).biased());
    }

    @Test
    void glm4Moe() {
        PublishedModel model = deepSeek(1);
        model.add("model.layers.1.mlp.gate.e_score_correction_bias", model.correction);
        assertComputes(
                model,
                "{\"model_type\": \"glm4_moe\", " + SIZES
                        + "\"n_routed_experts\": 6, \"n_shared_experts\": 1, \"moe_intermediate_size\": 8,"
                        + " \"first_k_dense_replace\": 1, \"n_group\": 1, \"topk_group\": 1,"
                        + " \"norm_topk_prob\": true, \"routed_scaling_factor\": 1.0}",
                Plain.of(sigmoidByGroups(1, 1)).withShared(false));
    }

    /** Ling 2 and Ring 2, as their publisher's code has them. */
    @Test
    void bailingMoeV2() {
        PublishedModel model = deepSeek(1);
        model.add("model.layers.1.mlp.gate.expert_bias", model.correction);
        assertComputes(
                model,
                "{\"model_type\": \"bailing_moe_v2\", " + SIZES
                        + "\"num_experts\": 6, \"num_shared_experts\": 1, \"moe_intermediate_size\": 8,"
                        + " \"first_k_dense_replace\": 1, \"score_function\": \"sigmoid\", \"n_group\": 3,"
                        + " \"topk_group\": 2, \"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5}",
                Plain.of(sigmoidByGroups(3, 2.5)).withShared(false));
    }

    /** Ling and Ring. */
    @Test
    void bailingMoe() {
        assertComputes(
                deepSeek(1),
                "{\"model_type\": \"bailing_moe\", " + SIZES
                        + "\"num_experts\": 6, \"num_shared_experts\": 1, \"moe_intermediate_size\": 8,"
                        + " \"norm_topk_prob\": true, \"multi_gate\": false}",
                Plain.of(SOFTMAX_RENORMALIZED).withShared(false));
    }

    /** LLaDA 2, whose shared experts are none unless it says so. */
    @Test
    void llada2Moe() {
        PublishedModel model = deepSeek(0);
        model.add("model.layers.1.mlp.gate.expert_bias", model.correction);
        assertComputes(
                model,
                "{\"model_type\": \"llada2_moe\", " + SIZES
                        + "\"num_experts\": 6, \"moe_intermediate_size\": 8, \"score_function\": \"sigmoid\","
                        + " \"n_group\": 3, \"topk_group\": 2, \"norm_topk_prob\": true, \"router_dtype\": \"fp32\"}",
                Plain.of(sigmoidByGroups(3, 2.5)));
    }

    /** DeepSeekMoE, the first of the kind. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void deepSeek(boolean renormalize) {
        assertComputes(
                deepSeek(2),
                "{\"model_type\": \"deepseek\", " + SIZES
                        + "\"n_routed_experts\": 6, \"n_shared_experts\": 2, \"moe_intermediate_size\": 8,"
                        + " \"first_k_dense_replace\": 1, \"moe_layer_freq\": 1, \"scoring_func\": \"softmax\","
                        + " \"aux_loss_alpha\": 0.001, \"norm_topk_prob\": " + renormalize + "}",
                Plain.of(renormalize ? SOFTMAX_RENORMALIZED : SOFTMAX).withShared(false));
    }

    @Test
    void grok1() {
        String block = "model.layers.1.moe_block.";
        assertComputes(
                layer(block, "gate.weight", 0).perExpert(block, "linear", "linear_v", "linear_1"),
                "{\"model_type\": \"grok-1\", " + SIZES
                        + "\"num_experts\": 6, \"intermediate_size\": 8, \"max_attn_value\": 30.0,"
                        + " \"attn_output_multiplier\": 0.088, \"output_router_logits\": false,"
                        + " \"router_aux_loss_coef\": 0.001}",
                Plain.of(SOFTMAX).gelu());
    }

    /** The shared expert is beside the block, and which layers have experts is a list or a text. */
    @ParameterizedTest
    @ValueSource(strings = {"\"1,2\"", "[1, 2]"})
    void step3(String sparse) {
        String block = "model.layers.1.moe.";
        PublishedModel model = layer(block, "gate.weight", 16);
        model.add(block + "gate_proj.weight", parts(model, PublishedModel.Expert::gate))
                .add(block + "up_proj.weight", parts(model, PublishedModel.Expert::up))
                .add(block + "down_proj.weight", model.down())
                .mlp("model.layers.1.share_expert.", model.shared, "gate_proj", "up_proj", "down_proj");
        assertComputes(
                model,
                "{\"model_type\": \"step3_vl\", \"text_config\": {\"model_type\": \"step3_text\","
                        + " \"num_hidden_layers\": 3, \"hidden_size\": 12, \"moe_top_k\": 2,"
                        + " \"moe_num_experts\": 6, \"moe_intermediate_size\": 8, \"share_expert_dim\": 16,"
                        + " \"norm_expert_weight\": true, \"moe_layers_enum\": " + sparse + "}}",
                Plain.of(SOFTMAX_RENORMALIZED).withShared(false));
    }

    private static float[][][] parts(PublishedModel model, Function<PublishedModel.Expert, float[][]> part) {
        return Arrays.stream(model.experts).map(part).toArray(float[][][]::new);
    }

    /** Every second layer; a dense one is beside the block. */
    @Test
    void arctic() {
        String block = "model.layers.1.block_sparse_moe.";
        PublishedModel model = layer(block, "gate.weight", 0).perExpert(block, "w1", "w3", "w2");
        model.add("model.layers.1.residual_mlp.w1.weight", model.router);
        assertComputes(
                model,
                "{\"model_type\": \"arctic\", " + SIZES + "\"num_local_experts\": 6, \"intermediate_size\": 8,"
                        + " \"moe_layer_frequency\": 2, \"use_residual\": true, \"moe_token_dropping\": false}",
                Plain.of(SOFTMAX_RENORMALIZED));
    }

    private static final Router TOP_K_THEN_SOFTMAX = (logits, _) -> {
        List<Integer> best = top(logits, 2);
        double[] p = softmax(best.stream().mapToDouble(e -> logits[e]).toArray());
        double[] weights = new double[logits.length];
        weights[best.get(0)] = p[0];
        weights[best.get(1)] = p[1];
        return weights;
    };

    @Test
    void gptOss() {
        String block = "model.layers.1.mlp.";
        PublishedModel model = layer(block, "router.weight", 0);
        model.add(block + "router.bias", model.routerBias)
                .add(block + "experts.gate_up_proj", transposed(model.gateUp(true)))
                .add(block + "experts.gate_up_proj_bias", model.gateUpBias(true))
                .add(block + "experts.down_proj", transposed(model.down()))
                .add(block + "experts.down_proj_bias", model.downBias());
        assertComputes(
                model,
                "{\"model_type\": \"gpt_oss\", " + SIZES
                        + "\"num_local_experts\": 6, \"intermediate_size\": 8, \"hidden_act\": \"silu\","
                        + " \"swiglu_limit\": 7.0}",
                Plain.of(TOP_K_THEN_SOFTMAX).gptOss());
    }

    @Test
    void llama4() {
        String block = "language_model.model.layers.1.feed_forward.";
        PublishedModel model = layer(block, "router.weight", 8);
        model.add(block + "experts.gate_up_proj", transposed(model.gateUp(false)))
                .add(block + "experts.down_proj", transposed(model.down()))
                .mlp(block + "shared_expert.", model.shared, "gate_proj", "up_proj", "down_proj");
        assertComputes(
                model,
                "{\"model_type\": \"llama4\", \"text_config\": {\"model_type\": \"llama4_text\", "
                        + SIZES.replace("tok\": 2", "tok\": 1")
                        + "\"num_local_experts\": 6, \"intermediate_size\": 8, \"intermediate_size_mlp\": 99,"
                        + " \"interleave_moe_layer_step\": 2, \"hidden_act\": \"silu\"}}",
                Plain.of((logits, _) -> only(map(logits, PublishedModel::sigmoid), top(logits, 1), false, 1))
                        .onInput()
                        .withShared(false));
    }

    @Test
    void graniteMoe() {
        String block = "model.layers.1.block_sparse_moe.";
        PublishedModel model = layer(block, "router.layer.weight", 0);
        model.add(block + "input_linear.weight", model.gateUp(false)).add(block + "output_linear.weight", model.down());
        assertComputes(
                model,
                "{\"model_type\": \"granitemoe\", " + SIZES
                        + "\"num_local_experts\": 6, \"intermediate_size\": 8, \"embedding_multiplier\": 12.0}",
                Plain.of(TOP_K_THEN_SOFTMAX));
    }

    /**
     * The closer logits are, the more of them share the softmax: weights all 1 would pass a test with logits far apart.
     */
    @Test
    void phiMoe() {
        String block = "model.layers.1.block_sparse_moe.";
        PublishedModel model = layer(block, "gate.weight", 0);
        for (int e = 1; e < 5; e++) { // nearly the same
            for (int h = 0; h < PublishedModel.H; h++) {
                model.router[e][h] = model.router[0][h] * (1 + e / 200f);
            }
        }
        model.add(block + "gate.weight", model.router).perExpert(block, "w1", "w3", "w2");
        assertComputes(
                model,
                "{\"model_type\": \"phimoe\", " + SIZES
                        + "\"num_local_experts\": 6, \"intermediate_size\": 8, \"router_jitter_noise\": 0.01,"
                        + " \"input_jitter_noise\": 0.01}",
                Plain.of((logits, _) -> {
                    double[] weights = new double[6];
                    int first = top(logits, 1).getFirst();
                    int second = top(logits, 2).get(1);
                    weights[first] = mixed(logits, first, -1);
                    weights[second] = mixed(logits, second, first);
                    return weights;
                }));
    }

    private static double mixed(double[] logits, int best, int without) {
        double sum = 0;
        for (int e = 0; e < logits.length; e++) {
            double margin = (logits[best] - logits[e]) / Math.max(Math.abs(logits[e]), logits[best]);
            if (e != without && !(margin > 0.02)) {
                sum += Math.exp(logits[e]);
            }
        }
        return Math.exp(logits[best]) / sum;
    }

    @Test
    void jamba() {
        String block = "model.layers.1.feed_forward.";
        assertComputes(
                layer(block, "router.weight", 0).perExpert(block, "gate_proj", "up_proj", "down_proj"),
                "{\"model_type\": \"jamba\", " + SIZES
                        + "\"num_experts\": 6, \"intermediate_size\": 8, \"expert_layer_period\": 2,"
                        + " \"expert_layer_offset\": 1}",
                Plain.of(SOFTMAX));
    }

    /** An expert's projections by number or by job, all in one tensor, as they are or transposed; and any prefix. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "model. | mlp | gate",
                "`` | block_sparse_moe | gate",
                "language_model.model. | feed_forward | router",
                "model.language_model. | mlp | gate",
                "thinker.model. | moe | gate",
                "transformer. | ffn | router.layer",
            })
    void anyLayoutUnderAnyPrefix(String prefix, String block, String router) {
        String at = prefix + "layers.1." + block + ".";
        List<Consumer<PublishedModel>> layouts = List.of(
                model -> model.perExpert(at, "w1", "w3", "w2"),
                model -> model.perExpert(at, "gate_proj", "up_proj", "down_proj"),
                model -> model.add(at + "experts.gate_up_proj", model.gateUp(false))
                        .add(at + "experts.down_proj", model.down()),
                model -> model.add(at + "experts.gate_up_proj", transposed(model.gateUp(false)))
                        .add(at + "experts.down_proj", transposed(model.down())),
                model -> model.add(at + "experts.gate_up_proj.weight", model.gateUp(false))
                        .add(at + "experts.down_proj.weight", model.down()),
                model -> model.add(at + "experts.w13", model.gateUp(false)).add(at + "experts.w2", model.down()),
                model -> model.add(at + "input_linear.weight", model.gateUp(false))
                        .add(at + "output_linear.weight", model.down()));
        for (Consumer<PublishedModel> layout : layouts) {
            PublishedModel model = layer(at, router + ".weight", 0);
            // A second stack of layers, which isn't the language model's.
            model.add("vision.layers.1.mlp.gate.weight", model.correction);
            layout.accept(model);
            assertComputes(
                    model,
                    "{\"model_type\": \"mixtral\", " + SIZES + "\"num_local_experts\": 6, \"intermediate_size\": 8}",
                    Plain.of(SOFTMAX_RENORMALIZED));
        }
    }

    @Test
    void sharedExpertsThatTheConfigurationHasNotAreNotLeftOut() {
        String block = "model.layers.1.mlp.";
        PublishedModel model = layer(block, "gate.weight", 8).perExpert(block, "gate_proj", "up_proj", "down_proj");
        model.mlp(block + "shared_expert.", model.shared, "gate_proj", "up_proj", "down_proj");
        model.write(
                directory, "{\"model_type\": \"olmoe\", " + SIZES + "\"num_experts\": 6, \"intermediate_size\": 8}");
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(1))
                    .withMessage(
                            directory + ": layer 1: expected no shared expert, since the configuration tells of none,"
                                    + " found " + block + "shared_expert.*");
        }
    }

    /** Families that aren't read, by name or by their fields, are told from those that are. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'model_type': 'seer', 'experts_config': {'number': 16} | , got 'seer'; of an MoE layer's fields"
                        + " it has {experts_config={number=16}}",
                "'model_type': 'ernie5', 'moe_num_experts': 64, 'moe_k': 6 | , got 'ernie5'; of an MoE"
                        + " layer's fields it has {moe_k=6, moe_num_experts=64}",
                "'model_type': 'klear3', 'num_experts': 6, 'moe_intermediate_size': 8 | fields it has"
                        + " {moe_intermediate_size=8, num_experts=6, num_experts_per_tok=2}, as qwen3_moe does, but may"
                        + " compute something else",
                "'moe_num_experts': 64 | has no 'model_type' (looked for one of [mixtral, qwen2_moe, qwen3_moe,",
            })
    void aFamilyThatIsNotKnownIsAnsweredWithWhatWasLookedForAndFound(String fields, String message) {
        String sizes = fields.contains("num_experts': 6,") ? SIZES : "";
        new PublishedModel(1, 0)
                .add("model.layers.0.mlp.gate.weight", new float[2][2])
                .write(directory, "{" + sizes + fields.replace('\'', '"') + "}");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> MoeCheckpoint.open(directory))
                .withMessageContaining(message);
    }

    /** Each configuration without its model_type, recognised by its fields. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "mixtral | 'num_local_experts': 6, 'intermediate_size': 8",
                "qwen2_moe | 'num_experts': 6, 'moe_intermediate_size': 8, 'shared_expert_intermediate_size': 8",
                "qwen3_moe | 'num_experts': 6, 'moe_intermediate_size': 8",
                "olmoe | 'num_experts': 6, 'intermediate_size': 8",
                "deepseek_v2 | 'n_routed_experts': 6, 'moe_intermediate_size': 8, 'scoring_func': 'softmax'",
                "deepseek_v3 | 'n_routed_experts': 6, 'moe_intermediate_size': 8, 'topk_method': 'noaux_tc'",
                "gpt_oss | 'num_local_experts': 6, 'intermediate_size': 8, 'swiglu_limit': 7.0",
                "llama4_text | 'num_local_experts': 6, 'intermediate_size': 8, 'interleave_moe_layer_step': 1",
                "granitemoe | 'num_local_experts': 6, 'intermediate_size': 8, 'embedding_multiplier': 12.0",
                "phimoe | 'num_local_experts': 6, 'intermediate_size': 8, 'input_jitter_noise': 0.01",
                "jamba | 'num_experts': 6, 'intermediate_size': 8, 'expert_layer_period': 2",
            })
    void fieldsTellTheFamily(String family, String fields) {
        boolean llama4 = family.equals("llama4_text"); // one expert a token alone
        String config =
                "{" + SIZES.replace("tok\": 2", llama4 ? "tok\": 1" : "tok\": 2") + fields.replace('\'', '"') + "}";
        new PublishedModel(1, 0)
                .add("model.layers.0.mlp.gate.weight", new float[2][2])
                .write(directory, config);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.modelType()).isEqualTo(family);
        }
    }

    @Test
    void moeLayersAreListed() {
        new PublishedModel(1, 0)
                .add("model.layers.0.mlp.gate.weight", new float[2][2])
                .write(
                        directory,
                        "{\"model_type\": \"deepseek_v2\", "
                                + SIZES.replace("layers\": 2", "layers\": 5")
                                + "\"n_routed_experts\": 6, \"moe_intermediate_size\": 8,"
                                + " \"first_k_dense_replace\": 2}");
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.moeLayers()).isEqualTo(Arrays.asList(2, 3, 4));
        }
    }
}
