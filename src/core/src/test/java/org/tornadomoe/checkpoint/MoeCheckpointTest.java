package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.quant.ExpertWeights;

class MoeCheckpointTest {
    private static final String MIXTRAL = """
        {"model_type": "mixtral", "num_hidden_layers": 3, "num_local_experts": 2, "num_experts_per_tok": 1,
         "hidden_size": 3, "intermediate_size": 2, "hidden_act": "silu"}\
        """;
    private static final String QWEN3 = """
        {"model_type": "qwen3_moe", "num_hidden_layers": 4, "num_experts": 2, "num_experts_per_tok": 2,
         "hidden_size": 3, "intermediate_size": 99, "moe_intermediate_size": 2, "norm_topk_prob": true,
         "decoder_sparse_step": 2, "mlp_only_layers": [3]}\
        """;

    @TempDir
    Path directory;

    private void config(String json) throws IOException {
        Files.writeString(directory.resolve("config.json"), json);
    }

    /** Layer 1 with E 2, H 3, I 2; every weight differs from every other. */
    private static SafetensorsWriter layer(
            String block, String gate, String up, String down, UnaryOperator<String> names) {
        SafetensorsWriter writer = new SafetensorsWriter();
        String prefix = "model.layers.1." + block + ".";
        writer.add(names.apply(prefix + "gate.weight"), new float[] {1, 2, 3, 4, 5, 6}, 2, 3);
        for (int e = 0; e < 2; e++) {
            String expert = prefix + "experts." + e + ".";
            writer.add(names.apply(expert + gate + ".weight"), numbers(100 * e + 10), 2, 3);
            writer.add(names.apply(expert + up + ".weight"), numbers(100 * e + 20), 2, 3);
            writer.add(names.apply(expert + down + ".weight"), numbers(100 * e + 30), 3, 2);
        }
        return writer;
    }

    private static float[] numbers(int from) {
        return new float[] {from, from + 1, from + 2, from + 3, from + 4, from + 5};
    }

    private void mixtral() throws IOException {
        config(MIXTRAL);
        layer("block_sparse_moe", "w1", "w3", "w2", n -> n).write(directory.resolve("model.safetensors"));
    }

    private void qwen3() throws IOException {
        config(QWEN3);
        layer("mlp", "gate_proj", "up_proj", "down_proj", n -> n).write(directory.resolve("model.safetensors"));
    }

    @Test
    void aLayerHasAFormatAndBytes() throws IOException {
        qwen3();
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.format()).isEqualTo("safetensors");
            // the router's [2, 3], and of 2 experts three matrices of 6 values
            assertThat(checkpoint.bytes(1)).containsExactly(Map.entry("F32", 4L * (6 + 2 * 3 * 6)));
            int layers = checkpoint.layers();
            assertThatExceptionOfType(CheckpointException.class).isThrownBy(() -> checkpoint.bytes(layers));
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.bytes(0))
                    .withMessageContaining("layer 0 is not an MoE layer: decoder_sparse_step is 2");
        }
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Path.of("src/test/resources/cases/gptq-4"))) {
            assertThat(checkpoint.format()).isEqualTo("safetensors, gptq");
            assertThat(checkpoint.bytes(0)).containsKey("I32");
        }
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Path.of("src/test/resources/cases/gguf-q4_k/model.gguf"))) {
            assertThat(checkpoint.format()).isEqualTo("GGUF");
            assertThat(checkpoint.bytes(0)).containsKeys("F32", "Q4_K");
        }
    }

    private static void assertRows(ExpertWeights weights) {
        float[] row = new float[3];
        weights.gateUpRow(0, 1, row);
        assertThat(row).containsExactly(13, 14, 15);
        weights.gateUpRow(1, 2, row);
        assertThat(row).containsExactly(120, 121, 122);
        float[] down = new float[2];
        weights.downRow(1, 2, down);
        assertThat(down).containsExactly(134, 135);
        assertThat(weights.router().weight()).containsExactly(1, 2, 3, 4, 5, 6);
        assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> weights.gateUpRow(0, 4, row));
        assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> weights.gateUpRow(2, 0, row));
        assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> weights.downRow(0, -1, row));
    }

    private void assertRefused(String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> MoeCheckpoint.open(directory).close())
                .withMessageStartingWith(directory.toString())
                .withMessageContaining(message);
    }

    private static void assertLayerRefused(MoeCheckpoint checkpoint, int layer, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> checkpoint.layer(layer))
                .withMessageContaining(message);
    }

    @Test
    void mixtralNamesItsProjectionsByNumber() throws IOException {
        mixtral();
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.modelType()).isEqualTo("mixtral");
            assertThat(checkpoint.layers()).isEqualTo(3);
            ExpertWeights weights = checkpoint.layer(1, 77);
            assertRows(weights);
            assertThat(weights.config().hasBias()).isFalse();
            assertThat(weights.w13Bias()).isNull();
            assertThat(weights.config().numExperts()).isEqualTo(2);
            assertThat(weights.config().expertsPerToken()).isEqualTo(1);
            assertThat(weights.config().hiddenDim()).isEqualTo(3);
            assertThat(weights.config().intermediateSize()).isEqualTo(2);
            assertThat(weights.config().routingMethod()).isEqualTo(RoutingMethodType.RENORMALIZE_NAIVE);
            assertThat(weights.config().maxNumTokens()).isEqualTo(77);
            assertThat(checkpoint.layer(1).config().maxNumTokens()).isEqualTo(4096);
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> checkpoint.layer(1, 0))
                    .withMessageContaining("maxNumTokens");
        }
    }

    @Test
    void qwen3NamesItsProjectionsByJob() throws IOException {
        qwen3();
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertRows(checkpoint.layer(1));
            assertThat(checkpoint.layer(1).config().intermediateSize()).isEqualTo(2);
            assertThat(checkpoint.layer(1).config().routingMethod()).isEqualTo(RoutingMethodType.RENORMALIZE_NAIVE);
        }
        for (String not : new String[] {"\"norm_topk_prob\": false", "\"other\": 1"}) {
            config(QWEN3.replace("\"norm_topk_prob\": true", not));
            try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
                assertThat(checkpoint.layer(1).config().routingMethod()).isEqualTo(RoutingMethodType.DEFAULT);
            }
        }
        config(QWEN3.replace("num_experts\"", "num_local_experts\""));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertRows(checkpoint.layer(1));
        }
    }

    @Test
    void aLayerThatIsNotThereOrNotMoeIsToldApart() throws IOException {
        qwen3();
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertLayerRefused(checkpoint, 4, "layer: expected 0 to 3, got 4");
            assertLayerRefused(checkpoint, -1, "layer: expected 0 to 3, got -1");
            assertLayerRefused(checkpoint, 0, "layer 0 is not an MoE layer: decoder_sparse_step is 2");
            assertLayerRefused(checkpoint, 3, "layer 3 is not an MoE layer: mlp_only_layers is [3]");
        }
    }

    @Test
    void missingTensorsAreListedWithWhatWasLookedFor() throws IOException {
        mixtral();
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(2))
                    .withMessage(directory
                            + ": layer 2: the router is missing; looked for"
                            + " *layers.2.{mlp,block_sparse_moe,feed_forward,moe,moe_block,ffn,mixer,layer.1.mlp,"
                            + "layer.2.mlp}.{gate,router,router.layer,router.gate,router.classifier,router.proj,"
                            + "gate.wg,primary_router}.weight;"
                            + " found no tensor of this layer");
        }
        layer("block_sparse_moe", "w1", "w3", "w2", n -> n.endsWith("1.w3.weight") ? "elsewhere" : n)
                .write(directory.resolve("model.safetensors"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertLayerRefused(
                    checkpoint,
                    1,
                    "layer 1: model.layers.1.block_sparse_moe.experts.1.w3.weight is missing; looked for"
                            + " model.layers.1.block_sparse_moe.experts.{0..1}.w1.weight,"
                            + " model.layers.1.block_sparse_moe.experts.{0..1}.w3.weight,"
                            + " model.layers.1.block_sparse_moe.experts.{0..1}.w2.weight; found"
                            + " model.layers.1.block_sparse_moe.gate.weight,");
        }
    }

    @Test
    void aMissingSharedExpertIsNamedAsItsTensorsWouldBe() throws IOException {
        qwen3();
        config(QWEN3.replace("\"qwen3_moe\"", "\"qwen2_moe\", \"shared_expert_intermediate_size\": 2"));
        layer("mlp", "gate_proj", "up_proj", "down_proj", n -> n)
                .add("model.layers.1.mlp.shared_expert_gate.weight", new float[3], 1, 3)
                .write(directory.resolve("model.safetensors"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertLayerRefused(
                    checkpoint,
                    1,
                    "layer 1: the shared expert is missing; looked for"
                            + " model.layers.1.mlp.shared_experts.{gate_proj,up_proj,down_proj},"
                            + " model.layers.1.mlp.shared_expert.{gate_proj,up_proj,down_proj},");
        }
    }

    @Test
    void aWrongShapeOrTypeNamesFileAndTensor() throws IOException {
        mixtral();
        Path file = directory.resolve("model.safetensors");
        config(MIXTRAL.replace("\"intermediate_size\": 2", "\"intermediate_size\": 4"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(1))
                    .withMessage(file + ": tensor 'model.layers.1.block_sparse_moe.experts.0.w1.weight':"
                            + " expected shape [4, 3], got [2, 3]");
        }
        mixtral();
        layer("block_sparse_moe", "w1", "w3", "w2", n -> n.endsWith("0.w2.weight") ? "elsewhere" : n)
                .add("model.layers.1.block_sparse_moe.experts.0.w2.weight", new byte[6], 3, 2)
                .write(file);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(1))
                    .withMessage(file + ": tensor 'model.layers.1.block_sparse_moe.experts.0.w2.weight':"
                            + " expected dtype F64 or F32 or F16 or BF16, got I8");
        }
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "\"mixtral\" | \"llama\" | 'model_type': expected one of [mixtral, qwen2_moe, qwen3_moe,",
                "\"mixtral\" | 7 | 'model_type': expected a string, got 7",
                "\"num_hidden_layers\": 3 | \"num_hidden_layers\": 0 | 'num_hidden_layers': expected a positive"
                        + " number, got 0",
                "\"num_hidden_layers\": 3 | \"num_hidden_layers\": 3.5 | 'num_hidden_layers': expected an integer, got"
                        + " 3.5",
                "\"num_local_experts\": 2 | \"num_local_experts\": -2 | 'num_local_experts': expected 1 to 1024, got"
                        + " -2",
                "\"num_local_experts\": 2 | \"num_local_experts\": null | 'num_local_experts': expected an integer,"
                        + " got null",
                "\"num_local_experts\": 2 | \"num_local_experts\": 99999999999 | 'num_local_experts': expected an"
                        + " integer, got 99999999999",
                "\"num_experts_per_tok\": 1 | \"num_experts_per_tok\": 3 | expertsPerToken: expected at most"
                        + " numExperts = 2, got 3",
                "\"hidden_size\": 3 | \"hidden_size\": \"3\" | 'hidden_size': expected an integer, got 3",
                "\"hidden_size\": 3 | \"hidden_size\": NaN | 'hidden_size': expected an integer, got NaN",
                "\"silu\" | \"softplus\" | 'hidden_act': expected silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu"
                        + " or relu2, got softplus",
            })
    void aWrongConfigurationNamesItsField(String right, String wrong, String message) throws IOException {
        mixtral();
        assertThat(MIXTRAL).contains(right);
        config(MIXTRAL.replace(right, wrong));
        assertRefused(message);
    }

    @Test
    void wrongQwen3FieldsAreNamed() throws IOException {
        qwen3();
        config(QWEN3.replace("true", "1"));
        assertRefused("'norm_topk_prob': expected true or false, got 1");
        config(QWEN3.replace("[3]", "[true]"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertLayerRefused(checkpoint, 1, "'mlp_only_layers': expected a list of integers, got [true]");
        }
        config(QWEN3.replace("step\": 2", "step\": 0"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertLayerRefused(checkpoint, 1, "'decoder_sparse_step': expected a positive number, got 0");
        }
    }

    @Test
    void whatIsMissingIsNamed() throws IOException {
        assertRefused("config.json: cannot be read: no such file or directory");
        config("{");
        assertRefused("config.json: is not valid JSON");
        config(MIXTRAL);
        assertRefused("holds neither model.safetensors nor model.safetensors.index.json");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> MoeCheckpoint.open(directory.resolve("nowhere")))
                .withMessage(directory.resolve("nowhere") + ": no such checkpoint");
        Path file = directory.resolve("config.json");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> MoeCheckpoint.open(file))
                .withMessageStartingWith(
                        file + ": is neither a directory with config.json and safetensors nor a GGUF file");
    }

    @Test
    void aLayerEndsWithItsCheckpoint() throws IOException {
        mixtral();
        MoeCheckpoint checkpoint = MoeCheckpoint.open(directory);
        ExpertWeights weights = checkpoint.layer(1);
        checkpoint.close();
        checkpoint.close();
        assertThatIllegalStateException().isThrownBy(() -> weights.downRow(0, 0, new float[2]));
        assertThatIllegalStateException().isThrownBy(() -> checkpoint.layer(1)).withMessageContaining("is closed");
    }

    /** Another stack of layers has a router of its own: the language model's is taken, and else the one that fits. */
    @Test
    void theLanguageModelsStackIsTaken() throws IOException {
        config(QWEN3);
        layer("mlp", "gate_proj", "up_proj", "down_proj", name -> name)
                .add("audio.layers.1.mlp.gate.weight", new float[6], 2, 3)
                .write(directory.resolve("model.safetensors"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertRows(checkpoint.layer(1));
        }
        layer("mlp", "gate_proj", "up_proj", "down_proj", name -> name.replace("model.", "decoder."))
                .add("audio.layers.1.mlp.gate.weight", new float[12], 4, 3)
                .write(directory.resolve("model.safetensors"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertRows(checkpoint.layer(1));
        }
        layer("mlp", "gate_proj", "up_proj", "down_proj", name -> name.replace("model.", "decoder."))
                .add("audio.layers.1.mlp.gate.weight", new float[6], 2, 3)
                .write(directory.resolve("model.safetensors"));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertLayerRefused(checkpoint, 1, "layer 1: expected one router, found ");
        }
    }
}
