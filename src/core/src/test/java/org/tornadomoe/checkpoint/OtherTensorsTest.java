package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.assertj.core.api.InstanceOfAssertFactories;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.WeightRows;

/** What a program around the layers reads of a checkpoint: embeddings, projections, norms, fields. */
class OtherTensorsTest {
    private static final Path MODELS = Path.of("examples/language-model/src/test/resources");
    private static final Path CASES = Path.of("src/test/resources/cases");

    private static float[] row(WeightRows rows, int row) {
        float[] values = new float[rows.cols()];
        rows.row(row, values);
        return values;
    }

    /** One model in both formats. */
    @Test
    void tensorsOfSafetensorsAndOfGguf() {
        try (MoeCheckpoint hub = MoeCheckpoint.open(MODELS.resolve("qwen3_moe"));
                MoeCheckpoint gguf = MoeCheckpoint.open(MODELS.resolve("qwen3_moe/model.gguf"))) {
            Map<String, String> names = Map.of(
                    "model.embed_tokens.weight", "token_embd.weight",
                    "model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight",
                    "model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight");
            names.forEach((name, there) -> {
                assertThat(hub.names()).contains(name);
                assertThat(gguf.names()).contains(there);
                WeightRows one = hub.matrix(name);
                WeightRows other = gguf.matrix(there);
                assertThat(one.source()).contains("model.safetensors").contains(name);
                assertThat(List.of(one.rows(), one.cols())).isEqualTo(List.of(other.rows(), other.cols()));
                for (int r = 0; r < one.rows(); r++) {
                    assertThat(row(one, r)).isEqualTo(row(other, r));
                }
            });
            assertThat(hub.matrix("model.layers.0.input_layernorm.weight").rows())
                    .isEqualTo(1);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> hub.matrix("model.nothing.weight"))
                    .withMessageContaining("has no tensor 'model.nothing.weight'");
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> gguf.matrix("nothing.weight"))
                    .withMessageContaining("has no tensor 'nothing.weight'");
        }
    }

    /** A module that is quantised is read as its values, as the layer reads its experts. */
    @ParameterizedTest
    @ValueSource(strings = {"fp8-block", "gptq-4", "awq-4"})
    void modulesAreReadHoweverTheyAreStored(String name) {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(CASES.resolve(name))) {
            int layer = checkpoint.moeLayers().getFirst();
            ExpertWeights experts = checkpoint.layer(layer);
            String module = checkpoint.names().stream()
                    .filter(tensor -> tensor.contains(".experts.1.") && tensor.matches(".*\\.(down_proj|w2)\\..*"))
                    .findFirst()
                    .orElseThrow()
                    .replaceFirst("\\.[a-z_]+$", "");
            WeightRows down = checkpoint.matrix(module + ".weight");
            float[] expected = new float[down.cols()];
            for (int r = 0; r < down.rows(); r++) {
                experts.downRow(1, r, expected);
                assertThat(row(down, r)).isEqualTo(expected);
            }
        }
    }

    /** Blocks of GGUF's, whole tensors of all experts among them: the first dimensions are rows. */
    @Test
    void blocksOfGgufAreDecoded() {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(CASES.resolve("gguf-q4_k/model.gguf"))) {
            ExpertWeights experts = checkpoint.layer(0);
            WeightRows down = checkpoint.matrix("blk.0.ffn_down_exps.weight");
            int h = experts.config().hiddenDim();
            assertThat(down.rows()).isEqualTo(experts.config().numExperts() * h);
            float[] expected = new float[down.cols()];
            experts.downRow(1, 3, expected);
            assertThat(row(down, h + 3)).isEqualTo(expected);
        }
    }

    @Test
    void fieldsOfBothFormats() {
        try (MoeCheckpoint hub = MoeCheckpoint.open(MODELS.resolve("qwen3_moe"));
                MoeCheckpoint gguf = MoeCheckpoint.open(MODELS.resolve("qwen3_moe/model.gguf"))) {
            assertThat(hub.field("num_attention_heads")).isEqualTo(4);
            assertThat(hub.field("tie_word_embeddings")).isEqualTo(false);
            assertThat(hub.field("rope_parameters")).isInstanceOf(Map.class);
            assertThat(hub.field("sliding_window")).isNull();
            assertThat(hub.field("nothing")).isNull();
            assertThat(gguf.field("qwen3moe.attention.head_count")).isEqualTo(4L);
            assertThat(gguf.field("tokenizer.ggml.pre")).isEqualTo("qwen2");
            assertThat(gguf.field("tokenizer.ggml.tokens"))
                    .asInstanceOf(InstanceOfAssertFactories.LIST)
                    .hasSize(288)
                    .contains("<|im_start|>");
            assertThat(gguf.field("tokenizer.ggml.token_type"))
                    .asInstanceOf(InstanceOfAssertFactories.LIST)
                    .hasSize(288)
                    .contains(1L, 3L);
            assertThat(gguf.field("nothing")).isNull();
        }
    }

    /** The matrices of these checkpoints are whole numbers times a row's power of two, which int8 holds exactly. */
    @Test
    void aMatrixBecomesInt8() {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(MODELS.resolve("olmoe"));
                Arena arena = Arena.ofShared()) {
            WeightRows rows = checkpoint.matrix("model.layers.1.self_attn.o_proj.weight");
            Int8Tensor int8 = Int8Quantizer.quantize(rows, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), arena);
            assertThat(List.of(int8.experts(), int8.rows(), int8.cols()))
                    .isEqualTo(List.of(1, rows.rows(), rows.cols()));
            for (int r = 0; r < rows.rows(); r++) {
                float[] expected = row(rows, r);
                for (int c = 0; c < rows.cols(); c++) {
                    assertThat(int8.get(0, r, c) * int8.scale(0, r)).isEqualTo(expected[c]);
                }
            }
            WeightRows bad = new WeightRows() {
                @Override
                public int rows() {
                    return 2;
                }

                @Override
                public int cols() {
                    return 3;
                }

                @Override
                public void row(int row, float[] into) {
                    into[2] = row == 1 ? Float.NaN : 1;
                }

                @Override
                public String source() {
                    return "here";
                }
            };
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8Quantizer.quantize(bad, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), arena))
                    .withMessageContaining("row 1")
                    .withMessageContaining("here");
        }
    }
}
