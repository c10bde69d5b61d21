package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.GgmlType;
import org.tornadomoe.checkpoint.file.GgufWriter;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/** What transformers computes of a layer is what comes of it under llama.cpp's names, read and written. */
class GgufGoldensTest {
    @TempDir
    Path directory;

    /** What transformers' module makes of a layer is what comes of it under llama.cpp's names. */
    @ParameterizedTest
    @CsvSource({
        "mellum, mellum, 0",
        "cohere2_moe_sigmoid, cohere2moe, 1",
        "nemotron_h, nemotron_h_moe, 1",
        "hy_v3, hy_v3, 1",
        "laguna, laguna, 1",
        "kimi_linear, kimi-linear, 1",
        "deepseek_v32, deepseek32, 1",
        "deepseek_ocr2_text, deepseek2-ocr, 1",
        "mistral4, mistral4, 1",
        "mistral4_groups, mistral4, 1",
        "deepseek_v4, deepseek4, 1",
        "deepseek_v4_hash, deepseek4, 0",
        "smallthinker, smallthinker, 1",
        "nomic_bert, nomic-bert-moe, 1",
        "grove_moe, grovemoe, 0",
        "step3p5, step35, 1",
        "bailing_moe_v3, bailingmoe3, 1",
        "step3p5_plain, step35, 1",
        "hy_v4, hy_v4, 1",
        "hy_v4_limits, hy_v4, 1",
        "glm5_next_text, glm5next, 1",
        "gigachat3_5, gigachat35, 1",
        "deepseek_v41, deepseek41, 1",
        "dots3_note, dots3note, 1",
        "minimax, minimax-01, 0",
        "minimax_m3_vl_text, minimax-m3, 0",
        "qwen4_exp_text, qwen4exp, 0",
        "gemma4_text, gemma4, 1"
    })
    void goldenLayers(String family, String architecture, int layer) {
        Path golden = Path.of("src/test/resources/golden/families").resolve(family);
        Path file = directory.resolve("golden.gguf");
        try (MoeCheckpoint source = MoeCheckpoint.open(golden);
                Safetensors raw = Safetensors.open(golden)) {
            GgufWriter writer = golden(source, architecture, layer);
            if (family.equals("gemma4_text")) {
                String prefix = "layers.1.";
                Map.of(
                                "ffn_gate_inp.weight", "router.proj.weight",
                                "ffn_gate_inp.scale", "router.scale",
                                "pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight",
                                "ffn_down_exps.weight", "experts.down_proj",
                                "ffn_down_exps.scale", "router.per_expert_scale",
                                "ffn_gate_up_exps.weight", "experts.gate_up_proj",
                                "ffn_gate.weight", "mlp.gate_proj.weight",
                                "ffn_up.weight", "mlp.up_proj.weight",
                                "ffn_down.weight", "mlp.down_proj.weight")
                        .forEach((name, from) -> {
                            Tensor tensor = raw.tensor(prefix + from);
                            writer.tensor("blk.1." + name, GgmlType.F32, tensor.toFloats(), tensor.shape());
                        });
            } else if (family.equals("grove_moe")) {
                writeGrove(writer, source.tensors(layer));
            } else {
                write(writer, source.tensors(layer), layer, family.startsWith("cohere2") ? 2 : 1);
            }
            writer.write(file);
        }
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file);
                Safetensors expected = Safetensors.open(golden.resolve("golden.safetensors"))) {
            Tensor hidden = expected.tensor("hidden_states");
            double[] actual = Reference.forward(
                            checkpoint.layer(layer),
                            hidden.toFloats(),
                            (int) hidden.shape()[0],
                            TransformersFamiliesTest.inputs(expected))
                    .output();
            assertThat(Numerics.relativeL2(
                            actual, Numerics.widen(expected.tensor("output").toFloats())))
                    .isLessThan(2e-6);
        }
    }

    /** What would be multiplied twice, or has no place in a file, isn't written. */
    @ParameterizedTest
    @CsvSource({
        "cohere2_moe_sigmoid, cohere2moe, shared experts have a factor that llama.cpp knows of",
        "nemotron_h, nemotron_h_moe, experts have no gate"
    })
    void layersThatAreNotWritten(String family, String architecture, String why) {
        Path golden = Path.of("src/test/resources/golden/families").resolve(family);
        Path file = directory.resolve("golden.gguf");
        try (MoeCheckpoint source = MoeCheckpoint.open(golden)) {
            GgufWriter writer = golden(source, architecture, 1);
            write(writer, source.tensors(1), 1, 1);
            writer.write(file);
        }
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> GgufQuantizer.quantize(file, directory.resolve("out.gguf"), null, Progress.NONE))
                .withMessage(file + ": layer 1: is not written to GGUF: its " + why);
        assertThat(directory.resolve("out.gguf")).doesNotExist();
    }

    /** The metadata of a layer of transformers', as llama.cpp's converter has it. */
    private static GgufWriter golden(MoeCheckpoint source, String architecture, int layer) {
        FusedMoeConfig config = source.layer(layer).config();
        RouterConfig router = config.router();
        GgufWriter writer = new GgufWriter()
                .text("general.architecture", architecture)
                .number(architecture + ".block_count", 2)
                .number(architecture + ".embedding_length", config.hiddenDim())
                .number(architecture + ".expert_count", config.numExperts())
                .number(architecture + ".expert_used_count", config.expertsPerToken());
        if (List.of(
                        "cohere2moe",
                        "nemotron_h_moe",
                        "hy_v3",
                        "laguna",
                        "deepseek32",
                        "step35",
                        "mistral4",
                        "deepseek4",
                        "deepseek41",
                        "dots3note",
                        "gigachat35",
                        "glm5next",
                        "hy_v4",
                        "minimax-m3",
                        "bailingmoe3")
                .contains(architecture)) {
            writer.bool(architecture + ".expert_weights_norm", true)
                    .number(
                            architecture + ".expert_gating_func",
                            switch (architecture) {
                                case "mistral4" -> 1;
                                case "deepseek4", "deepseek41" -> 4;
                                default -> 2;
                            });
        }
        switch (architecture) {
            case "deepseek4" -> {
                float limit = requireNonNull(config.swigluLimit()).floatValue();
                writer.number("deepseek4.hash_layer_count", layer == 0 ? 1 : 0)
                        .reals("deepseek4.swiglu_clamp_exp", limit, limit);
            }
            case "deepseek41", "gigachat35", "glm5next", "hy_v4" -> {
                Double limit = config.swigluLimit();
                float each = limit == null ? 0 : limit.floatValue();
                writer.reals(architecture + ".swiglu_clamp_exp", each, each);
                if (!architecture.equals("hy_v4")) {
                    writer.reals(architecture + ".swiglu_clamp_shexp", each, each);
                }
            }
            case "smallthinker" -> writer.number("smallthinker.expert_gating_func", 2);
            case "grovemoe" ->
                writer.number("grovemoe.expert_chunk_feed_forward_length", 128)
                        .number("grovemoe.experts_per_group", 2)
                        .real("grovemoe.expert_group_scale", 0.05f);
            default -> {}
        }
        if (List.of("step35", "bailingmoe3").contains(architecture)) {
            Double limit = config.swigluLimit();
            Double shared = config.sharedSwigluLimit();
            writer.reals(architecture + ".swiglu_clamp_exp", 0, limit == null ? 0 : limit.floatValue())
                    .reals(architecture + ".swiglu_clamp_shexp", 0, shared == null ? 0 : shared.floatValue());
        }
        if (router.routedScalingFactor() != 1 && !architecture.equals("cohere2moe")) {
            writer.real(architecture + ".expert_weights_scale", (float) router.routedScalingFactor());
        }
        if (router.numExpertGroup() > 1) {
            writer.number(architecture + ".expert_group_count", router.numExpertGroup())
                    .number(architecture + ".expert_group_used_count", router.topkGroup());
        }
        return writer;
    }

    private static void write(GgufWriter writer, LayerTensors tensors, int layer, float sharedFactor) {
        String block = "blk." + layer + ".";
        RouterWeights router = tensors.router();
        int experts = tensors.experts().size();
        int hidden = router.weight().length / experts;
        writer.tensor(block + "ffn_gate_inp.weight", GgmlType.F32, router.weight(), experts, hidden);
        float[] correction = router.correctionBias();
        if (correction != null && Arrays.equals(correction, new float[experts])) {
            correction = null; // as if there were none
        }
        if (correction != null) {
            writer.tensor(block + "exp_probs_b.bias", GgmlType.F32, correction, experts);
        }
        float[] sharedGate = router.sharedExpertGate();
        if (sharedGate != null) {
            writer.tensor(block + "ffn_gate_inp_shexp.weight", GgmlType.F32, sharedGate, hidden);
        }
        int[] table = router.expertsOfToken();
        if (table != null) {
            ByteBuffer ids = ByteBuffer.allocate(4 * table.length).order(ByteOrder.LITTLE_ENDIAN);
            ids.asIntBuffer().put(table);
            writer.raw(block + "ffn_gate_tid2eid.weight", GgmlType.I32, ids.array(), table.length / 2, 2);
        }
        boolean gated = tensors.experts().getFirst().isGated();
        for (String name : gated ? List.of("gate", "up", "down") : List.of("up", "down")) {
            List<Matrix> each =
                    tensors.experts().stream().map(e -> named(e, name)).toList();
            int rows = each.getFirst().rows();
            int cols = each.getFirst().cols();
            float[] all = new float[experts * rows * cols];
            for (int e = 0; e < experts; e++) {
                System.arraycopy(floats(each.get(e), 1), 0, all, e * rows * cols, rows * cols);
            }
            writer.tensor(block + "ffn_" + name + "_exps.weight", GgmlType.F32, all, experts, rows, cols);
            Projections shared = tensors.shared();
            if (shared != null) {
                Matrix matrix = named(shared, name);
                float[] values = floats(matrix, name.equals("down") ? sharedFactor : 1);
                writer.tensor(
                        block + "ffn_" + name + "_shexp.weight", GgmlType.F32, values, matrix.rows(), matrix.cols());
            }
        }
    }

    /** An expert's own rows and columns, and behind them those of the one beside every two. */
    private static void writeGrove(GgufWriter writer, LayerTensors tensors) {
        int hidden = tensors.experts().getFirst().down().rows();
        int both = tensors.experts().getFirst().gate().rows();
        int own = both - 128;
        int experts = tensors.experts().size();
        writer.tensor(
                "blk.0.ffn_gate_inp.weight", GgmlType.F32, tensors.router().weight(), experts, hidden);
        for (String name : List.of("gate", "up", "down")) {
            boolean down = name.equals("down");
            float[] first = new float[experts * own * hidden];
            float[] beside = new float[experts / 2 * 128 * hidden];
            for (int e = 0; e < experts; e++) {
                float[] all = floats(named(tensors.experts().get(e), name), 1);
                for (int i = 0; i < all.length; i++) {
                    int at = down ? i % both : i / hidden; // a row of gate and up, a column of down
                    int other = down ? i / both : i % hidden;
                    boolean isOwn = at < own;
                    int width = isOwn ? own : 128;
                    int place = isOwn ? at : at - own;
                    int index = (isOwn ? e : e / 2) * width * hidden
                            + (down ? other * width + place : place * hidden + other);
                    (isOwn ? first : beside)[index] = all[i] * (name.equals("up") && !isOwn ? 20 : 1);
                }
            }
            long[] size = down ? new long[] {experts, hidden, own} : new long[] {experts, own, hidden};
            long[] besides = down ? new long[] {experts / 2, hidden, 128} : new long[] {experts / 2, 128, hidden};
            writer.tensor("blk.0.ffn_" + name + "_exps.weight", GgmlType.F32, first, size)
                    .tensor("blk.0.ffn_" + name + "_chexps.weight", GgmlType.F32, beside, besides);
        }
    }

    private static Matrix named(Projections expert, String name) {
        return switch (name) {
            case "gate" -> expert.gate();
            case "up" -> expert.up();
            default -> expert.down();
        };
    }

    private static float[] floats(Matrix matrix, float factor) {
        float[] all = new float[matrix.rows() * matrix.cols()];
        float[] row = new float[matrix.cols()];
        for (int r = 0; r < matrix.rows(); r++) {
            matrix.row(r, row);
            for (int c = 0; c < row.length; c++) {
                all[r * row.length + c] = row[c] * factor;
            }
        }
        return all;
    }
}
