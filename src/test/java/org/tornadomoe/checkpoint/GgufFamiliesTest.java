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
import java.util.List;
import java.util.Random;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.PublishedModel.Expert;
import org.tornadomoe.checkpoint.PublishedModel.Plain;
import org.tornadomoe.checkpoint.PublishedModel.Router;
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
            assertThat(Reference.relativeL2(actual, model.forward(hidden, plain)))
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
