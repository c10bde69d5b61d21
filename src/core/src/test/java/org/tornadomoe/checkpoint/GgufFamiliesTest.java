package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.tornadomoe.checkpoint.PublishedModel.map;
import static org.tornadomoe.checkpoint.PublishedModel.only;
import static org.tornadomoe.checkpoint.PublishedModel.softmax;
import static org.tornadomoe.checkpoint.PublishedModel.top;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.PublishedModel.Expert;
import org.tornadomoe.checkpoint.PublishedModel.Plain;
import org.tornadomoe.checkpoint.PublishedModel.Router;
import org.tornadomoe.checkpoint.family.ModelFamilies;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.GgmlType;
import org.tornadomoe.checkpoint.file.GgufWriter;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/** A layer of every family, as llama.cpp's converter writes it, computes what the family's own code computes. */
class GgufFamiliesTest {
    private static final int TOKENS = 9;
    private static final Router SOFTMAX = (logits, _) -> {
        double[] p = softmax(logits);
        return only(p, top(p, 2), false, 1);
    };
    private static final Router RENORMALIZED = (logits, _) -> {
        double[] p = softmax(logits);
        return only(p, top(p, 2), true, 1);
    };
    private static final Router TOP_K_THEN_SOFTMAX = RENORMALIZED; // the same numbers

    @TempDir
    Path directory;

    private static float[][][] parts(PublishedModel model, Function<Expert, float[][]> of) {
        return Arrays.stream(model.experts).map(of).toArray(float[][][]::new);
    }

    private static float[][] vectors(PublishedModel model, Function<Expert, float[]> of) {
        return Arrays.stream(model.experts).map(of).toArray(float[][]::new);
    }

    /** Block 1 with the router and the routed experts, and the shared one if it has a width. */
    private static PublishedModel block(int shared) {
        PublishedModel model = new PublishedModel(4, shared);
        model.add("blk.1.ffn_gate_inp.weight", model.router)
                .add("blk.1.ffn_gate_exps.weight", parts(model, Expert::gate))
                .add("blk.1.ffn_up_exps.weight", parts(model, Expert::up))
                .add("blk.1.ffn_down_exps.weight", model.down());
        return shared == 0
                ? model
                : model.add("blk.1.ffn_gate_shexp.weight", model.shared.gate())
                        .add("blk.1.ffn_up_shexp.weight", model.shared.up())
                        .add("blk.1.ffn_down_shexp.weight", model.shared.down());
    }

    private Path write(PublishedModel model, String architecture, int topK, Consumer<GgufWriter> metadata) {
        GgufWriter writer = new GgufWriter()
                .text("general.architecture", architecture)
                .number(architecture + ".block_count", 2)
                .number(architecture + ".embedding_length", PublishedModel.H)
                .number(architecture + ".expert_count", PublishedModel.E)
                .number(architecture + ".expert_used_count", topK);
        metadata.accept(writer);
        model.tensors.forEach(
                (name, values) -> writer.tensor(name, GgmlType.F32, values, requireNonNull(model.shapes.get(name))));
        Path file = directory.resolve(architecture + ".gguf");
        writer.write(file);
        return file;
    }

    private void assertComputes(
            String family,
            PublishedModel model,
            String architecture,
            int topK,
            Plain plain,
            Consumer<GgufWriter> metadata) {
        Path file = write(model, architecture, topK, metadata);
        Random random = new Random(7);
        float[] hidden = new float[TOKENS * PublishedModel.H];
        for (int i = 0; i < hidden.length; i++) {
            hidden[i] = (float) random.nextGaussian();
        }
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            assertThat(checkpoint.modelType()).isEqualTo(family);
            assertThat(checkpoint.moeLayers()).containsExactly(1);
            double[] actual =
                    Reference.forward(checkpoint.layer(1), hidden, TOKENS).output();
            assertThat(Numerics.relativeL2(actual, model.forward(hidden, plain)))
                    .isLessThan(1e-6);
        }
    }

    @Test
    void plainFamilies() {
        assertComputes("mixtral", block(0), "llama", 2, Plain.of(RENORMALIZED), w -> {});
        assertComputes("olmoe", block(0), "olmoe", 2, Plain.of(SOFTMAX), w -> {});
        assertComputes("jamba", block(0), "jamba", 2, Plain.of(SOFTMAX), w -> {});
        assertComputes("qwen3_moe", block(0), "qwen3moe", 2, Plain.of(RENORMALIZED), w -> {});
        assertComputes("qwen3_moe", block(0), "qwen3vlmoe", 2, Plain.of(RENORMALIZED), w -> {});
        assertComputes("granitemoe", block(0), "granitemoe", 2, Plain.of(TOP_K_THEN_SOFTMAX), w -> {});
        assertComputes("granitemoe", block(0), "granitehybrid", 2, Plain.of(TOP_K_THEN_SOFTMAX), w -> {});
        assertComputes("mixtral", block(0), "dbrx", 2, Plain.of(RENORMALIZED), w -> {});
        assertComputes("minicpm", block(0), "minicpm", 2, Plain.of(RENORMALIZED), w -> {});
        assertComputes("mixtral", block(0), "mistral3", 2, Plain.of(RENORMALIZED), w -> {});
        assertComputes("qwen3_moe", block(0), "rnd1", 2, Plain.of(RENORMALIZED), w -> {});
        assertComputes("olmoe", block(0), "llada-moe", 2, Plain.of(SOFTMAX), w -> {});
        assertRefused(block(0), "llada-moe", w -> w.bool("llada-moe.expert_weights_norm", true), "expected false");
    }

    @ParameterizedTest
    @ValueSource(ints = {8, 20})
    void qwen2Moe(int shared) {
        PublishedModel model = block(shared);
        // A vector there; a matrix of one row in a checkpoint.
        model.add("blk.1.ffn_gate_inp_shexp.weight", model.sharedGate[0]);
        assertComputes("qwen2_moe", model, "qwen2moe", 2, Plain.of(SOFTMAX).withShared(true), w -> {});
    }

    private static Router sigmoidByGroups(int groups, double factor) {
        return (logits, correction) -> {
            double[] scores = map(logits, PublishedModel::sigmoid);
            double[] corrected = IntStream.range(0, 6)
                    .mapToDouble(e -> scores[e] + correction[e])
                    .toArray();
            List<Integer> best = top(
                    IntStream.range(0, groups)
                            .mapToDouble(g -> IntStream.range(0, 6)
                                    .filter(e -> e / (6 / groups) == g)
                                    .mapToDouble(e -> corrected[e])
                                    .map(v -> -v)
                                    .sorted()
                                    .limit(2)
                                    .map(v -> -v)
                                    .sum())
                            .toArray(),
                    Math.min(groups, 2));
            for (int e = 0; e < 6; e++) {
                corrected[e] = best.contains(e / (6 / groups)) ? corrected[e] : Double.NEGATIVE_INFINITY;
            }
            return only(scores, top(corrected, 2), true, factor);
        };
    }

    @Test
    void deepSeekV3() {
        PublishedModel model = block(8);
        model.add("blk.1.exp_probs_b.bias", model.correction);
        assertComputes(
                "deepseek_v3",
                model,
                "deepseek2",
                2,
                Plain.of(sigmoidByGroups(3, 2.5)).withShared(false),
                w -> w.number("deepseek2.expert_gating_func", 2)
                        .number("deepseek2.expert_group_count", 3)
                        .number("deepseek2.expert_group_used_count", 2)
                        .number("deepseek2.expert_shared_count", 1)
                        .real("deepseek2.expert_weights_scale", 2.5f)
                        .bool("deepseek2.expert_weights_norm", true));
    }

    @Test
    void glm4Moe() {
        PublishedModel model = block(8);
        model.add("blk.1.exp_probs_b.bias", model.correction);
        assertComputes(
                "glm4_moe",
                model,
                "glm4moe",
                2,
                Plain.of(sigmoidByGroups(1, 1)).withShared(false),
                w -> w.number("glm4moe.expert_gating_func", 2).bool("glm4moe.expert_weights_norm", true));
    }

    /** Sigmoid scores and a correction bias; those that are always divided, and those whose file says so. */
    @ParameterizedTest
    @CsvSource({
        "minimax_m2, minimax-m2, 0, false",
        "minimax_m2, mimo2, 0, false",
        "glm4_moe, afmoe, 8, true",
        "glm4_moe, glm-dsa, 8, true",
        "lfm2_moe, lfm2moe, 0, false",
        "dots1, dots1, 8, true",
        "exaone_moe, exaone-moe, 8, true",
        "axk2, axk2, 8, true",
        "dots3_note, dots3note, 8, true",
        "bailing_moe_v2, bailingmoe2, 8, true"
    })
    void sigmoidsWithACorrectionBias(String type, String architecture, int shared, boolean scaled) {
        PublishedModel model = block(shared);
        model.add("blk.1.exp_probs_b.bias", model.correction);
        Plain plain = Plain.of(sigmoidByGroups(1, scaled ? 2.5 : 1));
        assertComputes(type, model, architecture, 2, shared > 0 ? plain.withShared(false) : plain, w -> {
            w.number(architecture + ".expert_gating_func", 2);
            if (scaled) {
                w.bool(architecture + ".expert_weights_norm", true)
                        .real(architecture + ".expert_weights_scale", 2.5f)
                        .number(architecture + ".expert_group_count", 1)
                        .number(architecture + ".expert_shared_count", 1);
            }
        });
        assertRefused(model, architecture, w -> w.number(architecture + ".expert_gating_func", 1), "got 1");
        assertRefused(block(shared), architecture, w -> {}, "blk.1.exp_probs_b.bias is missing");
    }

    @Test
    void softmaxWithSharedExperts() {
        assertComputes(
                "hunyuan_v1_moe",
                block(8),
                "hunyuan-moe",
                2,
                Plain.of(RENORMALIZED).withShared(false),
                w -> {});
        assertComputes(
                "bailing_moe",
                block(16),
                "bailingmoe",
                2,
                Plain.of(SOFTMAX).withShared(false),
                w -> w.number("bailingmoe.expert_shared_count", 2));
        assertComputes(
                "bailing_moe",
                block(16),
                "deepseek",
                2,
                Plain.of(SOFTMAX).withShared(false),
                w -> w.number("deepseek.expert_shared_count", 2).real("deepseek.expert_weights_scale", 1));
        for (String next : List.of("qwen3next", "qwen35moe")) {
            PublishedModel model = block(20);
            model.add("blk.1.ffn_gate_inp_shexp.weight", model.sharedGate[0]);
            String type = next.equals("qwen3next") ? "qwen3_next" : "qwen3_5_moe_text";
            assertComputes(type, model, next, 2, Plain.of(RENORMALIZED).withShared(true), w -> {});
        }
        PublishedModel ernie = block(16);
        ernie.add("blk.1.exp_probs_b.bias", ernie.correction);
        Router corrected = (logits, correction) -> {
            double[] p = PublishedModel.softmax(logits);
            double[] keys =
                    IntStream.range(0, 6).mapToDouble(e -> p[e] + correction[e]).toArray();
            return only(p, top(keys, 2), true, 1);
        };
        assertComputes(
                "ernie4_5_moe", ernie, "ernie4_5-moe", 2, Plain.of(corrected).withShared(false), w -> {});
    }

    /** Softmax scores that are divided and scaled, as llama.cpp has Mistral Large 3. */
    @Test
    void dividedSoftmaxOfDeepSeeksArchitecture() {
        Router scaled = (logits, _) -> {
            double[] p = PublishedModel.softmax(logits);
            return only(p, top(p, 2), true, 2.5);
        };
        assertComputes(
                "mistral4",
                block(8),
                "deepseek2",
                2,
                Plain.of(scaled).withShared(false),
                w -> w.number("deepseek2.expert_gating_func", 1)
                        .bool("deepseek2.expert_weights_norm", true)
                        .real("deepseek2.expert_weights_scale", 2.5f)
                        .number("deepseek2.expert_shared_count", 1));
    }

    /** One group is none; of more the best are chosen by their greatest score. */
    @Test
    void groupsOfDeepSeeksArchitecture() {
        assertComputes(
                "mistral4",
                block(0),
                "deepseek2",
                2,
                Plain.of(RENORMALIZED),
                w -> w.bool("deepseek2.expert_weights_norm", true).number("deepseek2.expert_group_count", 1));
        Path file = write(
                block(0),
                "deepseek2",
                2,
                w -> w.number("deepseek2.expert_group_count", 3).number("deepseek2.expert_group_used_count", 2));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            RouterConfig router = checkpoint.layer(1).config().router();
            assertThat(router.numExpertGroup()).isEqualTo(3);
            assertThat(router.topkGroup()).isEqualTo(2);
            assertThat(router.hasCorrectionBias()).isFalse();
        }
    }

    /** A softmax over the chosen gives what one over all gives, divided by the sum of the chosen. */
    @Test
    void theSoftmaxMayBeOverTheChosen() {
        assertComputes(
                "mixtral",
                block(0),
                "llama",
                2,
                Plain.of(TOP_K_THEN_SOFTMAX),
                w -> w.number("llama.expert_gating_func", 3));
        for (String architecture : List.of("qwen3moe", "minimax-m2", "smallthinker")) {
            assertRefused(
                    block(0),
                    architecture,
                    w -> w.number(architecture + ".expert_gating_func", 4),
                    architecture + ".expert_gating_func: expected");
        }
        assertRefused(
                block(0),
                "qwen3moe",
                w -> w.number("qwen3moe.expert_gating_func", 3),
                "qwen3moe.expert_gating_func: expected 1, got 3");
        assertRefused(
                block(0),
                "minimax-m2",
                w -> w.number("minimax-m2.expert_gating_func", 1),
                "minimax-m2.expert_gating_func: expected 2, got 1");
        // A sigmoid is smallthinker's other choice, and no other's.
        assertRefused(
                block(0),
                "grovemoe",
                w -> w.number("grovemoe.expert_gating_func", 2),
                "grovemoe.expert_gating_func: expected 1, got 2");
    }

    /** Nemotron's without a norm between the projections, Kimi K3's with one, whose names have changed since. */
    @ParameterizedTest
    @CsvSource({
        "nemotron_h_latent, nemotron_h_moe, ffn_latent",
        "kimi_k3, kimi-k3, ffn_latent",
        "kimi_k3, kimi-k3, ffn_routed",
        "kimi_k3_plain, kimi-k3, ffn_latent"
    })
    void expertsInANarrowerSpace(String family, String architecture, String latent) {
        Path golden = Path.of("src/test/resources/golden/families").resolve(family);
        JsonFile config = ModelFamilies.textConfig(JsonFile.read(golden.resolve("config.json")));
        boolean kimi = architecture.equals("kimi-k3");
        int experts = config.integer(kimi ? "num_experts" : "n_routed_experts");
        int shared = config.integer(kimi ? "num_shared_experts" : "n_shared_experts");
        String a = architecture + ".";
        GgufWriter writer = new GgufWriter()
                .text("general.architecture", architecture)
                .number(a + "block_count", 2)
                .number(a + "embedding_length", config.integer("hidden_size"))
                .number(a + "expert_count", experts)
                .number(a + "expert_used_count", config.integer(kimi ? "num_experts_per_token" : "num_experts_per_tok"))
                .number(a + "expert_shared_count", shared)
                .number(a + "expert_gating_func", 2)
                .bool(a + "expert_weights_norm", true)
                .real(a + "expert_weights_scale", (float) config.finite("routed_scaling_factor", 1));
        if (kimi) {
            writer.number(a + "expert_latent_length", config.integer("routed_expert_hidden_size"))
                    .real(a + "activation.situ_beta", (float) config.finite("activation_situ_beta", 1))
                    .real(a + "activation.situ_linear_beta", (float) config.finite("activation_situ_linear_beta", 0))
                    .real(a + "attention.layer_norm_rms_epsilon", (float) config.finite("rms_norm_eps", 0));
        } else {
            writer.number(a + "moe_latent_size", config.integer("moe_latent_size"));
        }
        String block = kimi ? "language_model.model.layers.1.block_sparse_moe." : "backbone.layers.1.mixer.";
        try (Safetensors model = Safetensors.open(golden);
                Safetensors numbers = Safetensors.open(golden.resolve("golden.safetensors"))) {
            Map<String, List<String>> names = new LinkedHashMap<>();
            names.put("ffn_gate_inp.weight", List.of(block + "gate.weight"));
            names.put("exp_probs_b.bias", List.of(block + "gate.e_score_correction_bias"));
            names.put(
                    latent + "_down.weight",
                    List.of(block + (kimi ? "routed_expert_down_proj.weight" : "fc1_latent_proj.weight")));
            names.put(
                    latent + "_up.weight",
                    List.of(block + (kimi ? "routed_expert_up_proj.weight" : "fc2_latent_proj.weight")));
            names.put(latent + "_norm.weight", List.of(block + "routed_expert_norm.weight"));
            for (String part : List.of("gate", "up", "down")) {
                String own =
                        kimi ? Map.of("gate", "w1", "up", "w3", "down", "w2").get(part) : part + "_proj";
                names.put(
                        "ffn_" + part + "_exps.weight",
                        IntStream.range(0, experts)
                                .mapToObj(e -> block + "experts." + e + "." + own + ".weight")
                                .toList());
                names.put("ffn_" + part + "_shexp.weight", List.of(block + "shared_experts." + part + "_proj.weight"));
            }
            names.forEach((name, parts) -> {
                List<Tensor> found =
                        parts.stream().map(model::find).filter(Objects::nonNull).toList();
                if (!found.isEmpty()) {
                    long[] each = found.getFirst().shape();
                    long[] shape = parts.size() == 1 ? each : new long[] {parts.size(), each[0], each[1]};
                    float[] all =
                            new float[parts.size() * (int) found.getFirst().elements()];
                    for (int i = 0; i < found.size(); i++) {
                        float[] one = found.get(i).toFloats();
                        System.arraycopy(one, 0, all, i * one.length, one.length);
                    }
                    writer.tensor("blk.1." + name, GgmlType.F32, all, shape);
                }
            });
            Path file = directory.resolve("latent.gguf");
            writer.write(file);
            Tensor hidden = numbers.tensor("hidden_states");
            try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
                double[] output = Reference.forward(checkpoint.layer(1), hidden.toFloats(), (int) hidden.shape()[0])
                        .output();
                double[] expected = Numerics.widen(numbers.tensor("output").toFloats());
                assertThat(Numerics.relativeL2(output, expected)).isLessThan(2e-6);
            }
        }
    }

    @Test
    void limitsAndScalesOfSingleFamilies() {
        assertRefused(block(0), "step35", w -> {}, "step35.expert_weights_norm: expected true, got none");
        Consumer<GgufWriter> limits =
                w -> w.number("deepseek4.hash_layer_count", 0).reals("deepseek4.swiglu_clamp_exp", 7, 7);
        assertRefused(
                block(0),
                "deepseek4",
                limits.andThen(w -> w.reals("deepseek4.swiglu_clamp_shexp", 7, 8)),
                "deepseek4.swiglu_clamp_shexp: expected none, or what deepseek4.swiglu_clamp_exp has, got [7.0, 8.0]");
        Path same = write(block(0), "deepseek4", 2, limits.andThen(w -> w.reals("deepseek4.swiglu_clamp_shexp", 7, 7)));
        MoeCheckpoint.open(same).close();
        assertRefused(
                block(0),
                "hy_v4",
                w -> w.reals("hy_v4.swiglu_clamp_exp", 7, 7).reals("hy_v4.swiglu_clamp_shexp", 0, 7),
                "hy_v4.swiglu_clamp_shexp: expected none, got [0.0, 7.0]");
        assertRefused(block(0), "minimax-m3", w -> {}, "minimax-m3.expert_weights_norm: expected true, got none");
        assertRefused(block(0), "kimi-k3", w -> {}, "activationSituBeta: SITU requires activation_situ_beta");
        assertRefused(
                block(0),
                "grovemoe",
                w -> w.real("grovemoe.expert_group_scale", 0.1f),
                "grovemoe.expert_group_scale: expected 0.05");
        assertRefused(
                block(0),
                "grovemoe",
                w -> w.number("grovemoe.experts_per_group", 3),
                "grovemoe.experts_per_group: expected 2.0, got 3");
        Path fits = write(
                block(0),
                "grovemoe",
                2,
                w -> w.real("grovemoe.expert_group_scale", 0.05f).number("grovemoe.experts_per_group", 2));
        MoeCheckpoint.open(fits).close();
    }

    @Test
    void expertsThatAreNotThereAreMissed() {
        PublishedModel model = new PublishedModel(4, 0);
        model.add("blk.1.ffn_gate_inp.weight", model.router).add("blk.11.attn_norm.weight", new float[] {1});
        assertRefused(
                model,
                "qwen3moe",
                w -> {},
                "layer 1: the experts are missing: looked for [ffn_gate_exps, ffn_gate.0, ffn_up_exps,"
                        + " ffn_gate_up_exps].weight under blk.1; found [blk.1.ffn_gate_inp.weight]");
    }

    /** As old files have them; a matrix may be one of one. */
    @Test
    void expertsMayHaveTensorsOfTheirOwn() {
        PublishedModel model = new PublishedModel(4, 0);
        model.add("blk.1.ffn_gate_inp.weight", model.router).add("blk.11.attn_norm.weight", new float[] {1});
        for (int e = 0; e < PublishedModel.E; e++) {
            Expert expert = model.experts[e];
            model.add("blk.1.ffn_gate." + e + ".weight", new float[][][] {expert.gate()})
                    .add("blk.1.ffn_up." + e + ".weight", expert.up());
            if (e < PublishedModel.E - 1) {
                model.add("blk.1.ffn_down." + e + ".weight", expert.down());
            }
        }
        assertRefused(
                model,
                "llama",
                w -> {},
                "layer 1: blk.1.ffn_down_exps.weight is missing; found [blk.1.ffn_gate_inp.weight, blk.1.ffn_gate.0");
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory.resolve("llama.gguf"))) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(1))
                    .withMessageNotContaining("blk.11");
        }
        String last = "blk.1.ffn_down." + (PublishedModel.E - 1) + ".weight";
        Expert expert = model.experts[PublishedModel.E - 1];
        model.add(last, expert.down());
        assertComputes("mixtral", model, "llama", 2, Plain.of(RENORMALIZED), w -> {});
        model.add(last, new float[][][] {expert.down(), expert.down()});
        assertRefused(model, "llama", w -> {}, "tensor '" + last + "': expected shape [");
        model.add(last, new float[][][] {expert.up()}); // of other rows and columns
        assertRefused(model, "llama", w -> {}, "tensor '" + last + "': expected shape [");
    }

    /** A dense block of the layer beside the experts: another input's with Arctic, half of Grok-2's output. */
    @Test
    void denseBlocksBesideExperts() {
        PublishedModel model = block(0);
        model.add("blk.1.ffn_norm_exps.weight", new float[PublishedModel.H]);
        PublishedModel dense = new PublishedModel(4, 20);
        dense.add("blk.1.ffn_gate.weight", dense.shared.gate())
                .add("blk.1.ffn_up.weight", dense.shared.up())
                .add("blk.1.ffn_down.weight", dense.shared.down());
        model.tensors.putAll(dense.tensors);
        model.shapes.putAll(dense.shapes);
        assertComputes("arctic", model, "arctic", 2, Plain.of(RENORMALIZED), w -> {});
        assertRefused(model, "mellum", w -> {}, "is part of its MoE block, and not understood");

        PublishedModel grok = block(0);
        assertComputes("grok-2", grok, "grok", 2, Plain.of(RENORMALIZED).gelu(), w -> {});
        PublishedModel both = new PublishedModel(4, 20);
        both.tensors.putAll(grok.tensors);
        both.tensors.putAll(dense.tensors);
        both.shapes.putAll(grok.shapes);
        both.shapes.putAll(dense.shapes);
        Router half = (logits, _) -> {
            double[] p = softmax(logits);
            return only(p, top(p, 2), true, Math.sqrt(0.5));
        };
        for (float[] row : both.shared.down()) {
            for (int c = 0; c < row.length; c++) {
                row[c] *= (float) Math.sqrt(0.5);
            }
        }
        assertComputes(
                "grok-2",
                both,
                "grok",
                2,
                Plain.of(half).gelu().withShared(false),
                w -> w.real("grok.router_logit_softcapping", 30f).number("grok.expert_feed_forward_length", 8));
    }

    /** Kimi-K2's files have one group, and others none; a config.json without a number of groups has 8 of 4. */
    @ParameterizedTest
    @ValueSource(strings = {"deepseek2", "bailingmoe2"})
    void groupsThatAFileHasNotAreNone(String architecture) {
        PublishedModel model = block(0);
        for (int groups = 0; groups < 2; groups++) {
            GgufWriter writer = new GgufWriter()
                    .text("general.architecture", architecture)
                    .number(architecture + ".block_count", 2)
                    .number(architecture + ".embedding_length", PublishedModel.H)
                    .number(architecture + ".expert_count", 384)
                    .number(architecture + ".expert_used_count", 8)
                    .number(architecture + ".expert_gating_func", 2);
            if (groups > 0) {
                writer.number(architecture + ".expert_group_count", groups);
            }
            model.tensors.forEach((name, values) ->
                    writer.tensor(name, GgmlType.F32, values, requireNonNull(model.shapes.get(name))));
            Path file = directory.resolve(groups + ".gguf");
            writer.write(file);
            assertThat(MoeCheckpoint.config(file).router().numExpertGroup()).isZero();
        }
    }

    @Test
    void gptOss() {
        PublishedModel model = block(0);
        model.add("blk.1.ffn_gate_inp.bias", model.routerBias)
                .add("blk.1.ffn_gate_exps.bias", vectors(model, Expert::gateBias))
                .add("blk.1.ffn_up_exps.bias", vectors(model, Expert::upBias))
                .add("blk.1.ffn_down_exps.bias", vectors(model, Expert::downBias));
        assertComputes(
                "gpt_oss", model, "gpt-oss", 2, Plain.of(TOP_K_THEN_SOFTMAX).gptOss(), w -> {});
    }

    @Test
    void gptOssWithGateAndUpInOneTensor() {
        PublishedModel model = new PublishedModel(4, 0);
        model.add("blk.1.ffn_gate_inp.weight", model.router)
                .add("blk.1.ffn_gate_inp.bias", model.routerBias)
                .add("blk.1.ffn_gate_up_exps.weight", model.gateUp(false))
                .add("blk.1.ffn_gate_up_exps.bias", model.gateUpBias(false))
                .add("blk.1.ffn_down_exps.weight", model.down())
                .add("blk.1.ffn_down_exps.bias", vectors(model, Expert::downBias));
        Plain plain = Plain.of(TOP_K_THEN_SOFTMAX).gptOss();
        assertComputes("gpt_oss", model, "gpt-oss", 2, plain, w -> {});
        model.add("blk.1.ffn_gate_exps.bias", vectors(model, Expert::gateBias));
        assertRefused(
                model,
                "gpt-oss",
                w -> {},
                "blk.1.ffn_gate_up_exps.bias: expected no other bias of gate and up, found blk.1.ffn_gate_exps.bias");
        model.tensors.remove("blk.1.ffn_gate_up_exps.bias");
        model.add("blk.1.ffn_up_exps.bias", vectors(model, Expert::upBias));
        assertComputes("gpt_oss", model, "gpt-oss", 2, plain, w -> {});
    }

    private void assertRefused(
            PublishedModel model, String architecture, Consumer<GgufWriter> metadata, String message) {
        Path file = write(model, architecture, 2, metadata);
        assertThatExceptionOfType(CheckpointException.class)
                .as(message)
                .isThrownBy(() -> {
                    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
                        checkpoint.layer(1);
                    }
                })
                .withMessageStartingWith(file.toString())
                .withMessageContaining(message);
    }

    /** What the metadata doesn't say is what llama.cpp takes for it. */
    @Test
    void absentKeysMeanWhatTheyMeanThere() {
        PublishedModel model = block(8);
        assertComputes(
                "deepseek_v2",
                model,
                "deepseek2",
                2,
                Plain.of(SOFTMAX).withShared(false),
                w -> w.number("deepseek2.expert_gating_func", 0).real("deepseek2.expert_weights_scale", 0));
        model.add("blk.1.exp_probs_b", model.correction);
        Router router = (logits, correction) -> {
            double[] scores = map(logits, PublishedModel::sigmoid);
            double[] corrected = IntStream.range(0, 6)
                    .mapToDouble(e -> scores[e] + correction[e])
                    .toArray();
            return only(scores, top(corrected, 2), false, 1);
        };
        assertComputes("glm4_moe", model, "glm4moe", 2, Plain.of(router).withShared(false), w -> {});
        // The first files of GLM-4.7-Flash don't say that their scores are sigmoids.
        String[] blocks = IntStream.range(0, 47)
                .mapToObj(n -> "blk." + n + ".attn_norm.weight")
                .toArray(String[]::new);
        for (String name : blocks) {
            model.add(name, new float[] {1});
        }
        assertComputes(
                "deepseek_v3",
                model,
                "deepseek2",
                2,
                Plain.of(router).withShared(false),
                w -> w.number("deepseek2.block_count", 47).number("deepseek2.vocab_size", 154_880));
        assertComputes( // its vocabulary may be told by the tokens alone
                "deepseek_v3",
                model,
                "deepseek2",
                2,
                Plain.of(router).withShared(false),
                w -> w.number("deepseek2.block_count", 47)
                        .texts("tokenizer.ggml.tokens", Collections.nCopies(154_880, "")));
        assertComputes(
                "deepseek_v3",
                model,
                "deepseek2",
                2,
                Plain.of(router).withShared(false),
                w -> w.number("deepseek2.block_count", 47)
                        .number("deepseek2.vocab_size", 154_880)
                        .texts("tokenizer.ggml.tokens", List.of("", "")));
        for (int[] other : new int[][] {{46, 154_880}, {47, 154_881}}) { // known by both its sizes
            assertRefused(
                    model,
                    "deepseek2",
                    w -> w.number("deepseek2.block_count", other[0]).number("deepseek2.vocab_size", other[1]),
                    "deepseek2.expert_gating_func: expected 2 (sigmoid)");
        }
        assertRefused(
                model,
                "deepseek2",
                w -> {},
                "deepseek2.expert_gating_func: expected 2 (sigmoid), since there are tensors blk.*.exp_probs_b, got"
                        + " none, which means 1 (softmax)");
        assertRefused(
                block(8),
                "deepseek2",
                w -> w.number("deepseek2.expert_gating_func", 2),
                "blk.1.exp_probs_b.bias is missing");
    }

    @Test
    void keysThatChangeNumbersAreNotPassedOver() {
        PublishedModel model = block(0);
        assertRefused(model, "llama", w -> w.bool("llama.expert_weights_norm", false), "expected true, got false");
        assertRefused(model, "jamba", w -> w.bool("jamba.expert_weights_norm", true), "expected false, got true");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.number("qwen3moe.expert_weights_norm", 1),
                "qwen3moe.expert_weights_norm: expected true or false, got 1");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.real("qwen3moe.expert_weights_scale", 2.5f),
                "qwen3moe.expert_weights_scale: expected 1, got 2.5");
        assertRefused(
                model,
                "deepseek2",
                w -> w.text("deepseek2.expert_weights_scale", "1"),
                "deepseek2.expert_weights_scale: expected a number, got 1");
        assertRefused(
                model,
                "deepseek2",
                w -> w.real("deepseek2.expert_weights_scale", Float.NaN),
                "deepseek2.expert_weights_scale: expected a finite number, got NaN");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.number("qwen3moe.expert_gating_func", 2),
                "qwen3moe.expert_gating_func: expected 1, got 2");
        assertRefused(model, "deepseek2", w -> w.number("deepseek2.expert_gating_func", 4), "expected 1 or 2, got 4");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.number("qwen3moe.expert_group_count", 2),
                "qwen3moe.expert_group_count: expected at most 1, got 2");
        assertRefused(
                model,
                "deepseek2",
                w -> w.number("deepseek2.expert_group_count", 2),
                "has no 'deepseek2.expert_group_used_count'");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.number("qwen3moe.expert_feed_forward_length", 16),
                "qwen3moe.expert_feed_forward_length: expected 8, as layer 1's experts have it, got 16");
        assertRefused(
                model,
                "deepseek2",
                w -> w.number("deepseek2.expert_shared_count", 1),
                "deepseek2.expert_shared_count: expected 0, since there is no blk.1.ffn_gate_shexp.weight, got 1");
        assertRefused(
                block(8),
                "deepseek2",
                w -> w.number("deepseek2.expert_shared_count", 2),
                "tensor 'blk.1.ffn_gate_shexp.weight': expected 2 * 8 rows");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.real("qwen3moe.router_logit_softcapping", 30),
                "qwen3moe.router_logit_softcapping: is about experts and not understood: expected none, got 30.0");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.texts("qwen3moe.swiglu_clamp_exp", List.of("a", "b")),
                "qwen3moe.swiglu_clamp_exp: is about experts and not understood: expected none, got a list of 2");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.reals("qwen3moe.expert_offsets", 0, 1),
                "qwen3moe.expert_offsets: is about experts and not understood: expected none, got a list of 2");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.text("qwen3moe.router_function", "x".repeat(5000)),
                "qwen3moe.router_function: is about experts and not understood: expected none, got a string of 5000");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.text("qwen3moe.hidden_activation", "gelu"),
                "qwen3moe.hidden_activation: expected silu, got gelu");
        // A key that names a layer by what it is not, and one of the wrong kind.
        assertRefused(model, "qwen3moe", w -> w.number("general.architecture", 1), "expected a string, got 1");
        assertRefused(
                model,
                "qwen3moe",
                w -> w.text("qwen3moe.expert_used_count", "2"),
                "qwen3moe.expert_used_count: expected an integer, got 2");
        assertRefused(
                block(8),
                "qwen2moe",
                w -> w.number("qwen2moe.expert_shared_feed_forward_length", 4),
                "qwen2moe.expert_shared_feed_forward_length: expected 8, as blk.1.ffn_gate_shexp.weight have it, got"
                        + " 4");
        for (String architecture : List.of("olmoe", "glm4moe")) {
            assertRefused(
                    model,
                    architecture,
                    w -> w.number(architecture + ".expert_gating_func", 3),
                    architecture + ".expert_gating_func: expected");
        }
        assertRefused(
                model,
                "qwen3moe",
                w -> w.number("qwen3moe.block_count", Integer.MAX_VALUE),
                "qwen3moe.block_count: expected no more layers than tensors, 4, got 2147483647");
        assertComputes(
                "qwen3_moe",
                model,
                "qwen3moe",
                2,
                Plain.of(SOFTMAX),
                w -> w.bool("qwen3moe.expert_weights_norm", false)
                        .number("qwen3moe.expert_group_count", 1)
                        .number("qwen3moe.expert_shared_count", 0)
                        .number("qwen3moe.moe_latent_size", 0)
                        .number("qwen3moe.block_count", 4) // as many as tensors
                        .reals("qwen3moe.expert_offsets", 0, 0)
                        .texts("qwen3moe.expert_feed_forward_length", List.of("8", "8"))
                        .real("qwen3moe.expert_weights_scale", 1));
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "ffn_gate_up_exps.input_scale",
                "ffn_gate_inp.scale",
                "ffn_gate_shexp.bias",
                "ffn_norm_exps.weight",
                "ffn_gate.weight",
                "ffn_up.3.weight",
                "ffn_down_exps.weight.lora_a",
                "ffn_gate_up_exps.weight",
                "ffn_gate_up_exps.scale",
                "ffn_gate_chexps.weight",
                "ffn_gate_tid2eid.weight",
                "exp_probs_b",
                "exp_probs_b.bias"
            })
    void aTensorOfTheBlockThatNothingReadsIsNamed(String name) {
        PublishedModel model = block(0);
        model.add("blk.0." + name, new float[6]); // another layer's is no matter
        model.add("blk.1.ffn_norm.weight", new float[12]);
        model.add("blk.1.post_attention_norm.weight", new float[12]);
        assertComputes("qwen3_moe", model, "qwen3moe", 2, Plain.of(RENORMALIZED), w -> {});
        model.add("blk.1." + name, new float[6]);
        assertRefused(
                model,
                "qwen3moe",
                w -> {},
                "layer 1: the tensor 'blk.1." + name + "' is part of its MoE block, and not understood");
    }

    @Test
    void sharedExpertsHaveScalesToo() {
        PublishedModel model = block(8);
        model.add("blk.1.ffn_gate_shexp.scale", new float[] {2})
                .add("blk.1.ffn_up_shexp.scale", new float[] {-0.5f})
                .add("blk.1.ffn_down_shexp.scale", new float[] {4});
        float[][] gate = model.shared.gate();
        scale(gate, 2);
        scale(model.shared.up(), -0.5f);
        scale(model.shared.down(), 4);
        assertComputes("deepseek_v2", model, "deepseek2", 2, Plain.of(SOFTMAX).withShared(false), w -> {});
        model.add("blk.1.ffn_up_shexp.scale", new float[] {1, 1});
        assertRefused(model, "deepseek2", w -> {}, "tensor 'blk.1.ffn_up_shexp.scale': expected 1 values");
        model.add("blk.1.ffn_up_shexp.scale", new float[] {Float.NaN});
        assertRefused(
                model, "deepseek2", w -> {}, "tensor 'blk.1.ffn_up_shexp.scale': expected finite values, got NaN");
    }

    private static void scale(float[][] matrix, float factor) {
        for (float[] row : matrix) {
            for (int i = 0; i < row.length; i++) {
                row[i] *= factor;
            }
        }
    }

    @Test
    void llama4() {
        assertComputes(
                "llama4_text",
                block(8),
                "llama4",
                1,
                Plain.of((logits, _) -> only(map(logits, PublishedModel::sigmoid), top(logits, 1), false, 1))
                        .onInput()
                        .withShared(false),
                w -> w.number("llama4.expert_gating_func", 2));
    }

    @Test
    void phiMoe() {
        assertComputes(
                "phimoe",
                block(0),
                "phimoe",
                2,
                Plain.of((logits, _) -> {
                    double[] weights = new double[6];
                    List<Integer> best = top(logits, 2);
                    for (int slot = 0; slot < 2; slot++) {
                        int chosen = best.get(slot);
                        double sum = 0;
                        for (int e = 0; e < 6; e++) {
                            double margin =
                                    (logits[chosen] - logits[e]) / Math.max(Math.abs(logits[e]), logits[chosen]);
                            boolean gone = slot == 1 && e == best.getFirst();
                            sum += gone || margin > 0.02 ? 0 : Math.exp(logits[e]);
                        }
                        weights[chosen] = Math.exp(logits[chosen]) / sum;
                    }
                    return weights;
                }),
                w -> {});
    }

    /** Granite models with a shared expert have the same architecture's name there. */
    @Test
    void sharedExpertsThatTheFamilyHasNotAreNotLeftOut() {
        Path file = write(block(8), "granitemoe", 2, w -> {});
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(1))
                    .withMessageContaining(
                            "layer 1: expected no shared expert, since the configuration tells of none, found"
                                    + " blk.1.ffn_gate_shexp.weight");
        }
    }
}
