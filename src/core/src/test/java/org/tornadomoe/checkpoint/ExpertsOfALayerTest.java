package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;

/** Some experts of a layer, as a layer of their own. */
class ExpertsOfALayerTest {
    private static final Path MODELS = Path.of("src/test/resources/golden/hf");

    @TempDir
    Path directory;

    private static byte[] values(Int8Tensor tensor, int expert) {
        byte[] all = new byte[tensor.rows() * tensor.cols()];
        byte[] row = new byte[tensor.cols()];
        for (int r = 0; r < tensor.rows(); r++) {
            tensor.row(expert, r, row);
            System.arraycopy(row, 0, all, r * row.length, row.length);
        }
        return all;
    }

    private static float @Nullable [] part(float @Nullable [] all, int experts, int expert) {
        if (all == null) {
            return null;
        }
        int length = all.length / experts;
        return Arrays.copyOfRange(all, expert * length, (expert + 1) * length);
    }

    private static void assertSame(Int8Tensor part, Int8Tensor whole, int expert, int of) {
        assertThat(values(part, expert)).isEqualTo(values(whole, of));
        assertThat(part(part.scales(), part.experts(), expert)).isEqualTo(part(whole.scales(), whole.experts(), of));
    }

    private static void assertBits(Path model, Int8Quantization quantization, int... ids) {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(model)) {
            ExpertWeights layer = checkpoint.layer(0);
            ExpertWeights some = checkpoint.experts(0, ids);
            try (Int8Experts whole = QuantizedWeights.int8(layer, quantization, Progress.NONE);
                    Int8Experts part = QuantizedWeights.int8(some, quantization, Progress.NONE)) {
                int experts = layer.config().globalNumExperts();
                assertThat(part.config().numExperts()).isEqualTo(ids.length);
                assertThat(part.hasRouter()).isFalse();
                for (int i = 0; i < ids.length; i++) {
                    assertSame(part.w13(), whole.w13(), i, ids[i]);
                    assertSame(part.w2(), whole.w2(), i, ids[i]);
                    assertThat(part(part.w13Bias(), ids.length, i)).isEqualTo(part(whole.w13Bias(), experts, ids[i]));
                    assertThat(part(part.w2Bias(), ids.length, i)).isEqualTo(part(whole.w2Bias(), experts, ids[i]));
                }
            }
        }
    }

    /** Biases (gpt_oss), interleaved rows, a shared expert (deepseek_v3 has E = 16, llama4 8). */
    @ParameterizedTest
    @CsvSource({"mixtral, 7", "gpt_oss, 7", "deepseek_v3, 16", "llama4, 8"})
    void theyHaveTheBitsThatTheyHaveInTheLayer(String model, int last) {
        assertBits(MODELS.resolve(model), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), last, 2, 5);
    }

    /** Not requantised, which would not give the same scales. */
    @ParameterizedTest
    @EnumSource(names = {"W8A8_CHANNEL", "W8A8_BLOCK", "W8A16_GROUP"})
    void storedInt8IsTakenAsItIs(Int8Scheme scheme) {
        Int8Quantization quantization = Int8Quantization.of(scheme);
        if (scheme != Int8Scheme.W8A8_CHANNEL) {
            quantization = quantization.withGrid(new GroupShape(scheme == Int8Scheme.W8A8_BLOCK ? 32 : 1, 32));
        }
        Path stored = directory.resolve("int8");
        CheckpointQuantizer.quantize(MODELS.resolve("deepseek_v3"), stored, quantization, null, Progress.NONE);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(stored)) {
            assertThat(checkpoint.experts(0, 3)).isInstanceOf(QuantizedWeights.class);
        }
        assertBits(stored, quantization, 3, 16, 0);
    }

    /** Numbers that nothing can be made of, in the tensors of expert 4. */
    @Test
    void nothingIsReadOfTheOthers() {
        PublishedModel model = new PublishedModel(3, 0);
        for (float[] row : model.experts[4].up()) {
            Arrays.fill(row, Float.NaN);
        }
        model.add("model.layers.0.block_sparse_moe.gate.weight", model.router)
                .perExpert("model.layers.0.block_sparse_moe.", "w1", "w3", "w2")
                .write(
                        directory,
                        "{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"hidden_size\": 12,"
                                + " \"num_experts_per_tok\": 2, \"num_local_experts\": 6, \"intermediate_size\": 8}");
        load(directory, 0, 1, 2, 3, 5);
        assertThatThrownBy(() -> load(directory, 3, 4)).hasMessageContaining("expert 1");
    }

    private static void load(Path model, int... ids) {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(model);
                Int8Experts part =
                        QuantizedWeights.int8(checkpoint.experts(0, ids), Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            assertThat(part.w13().experts()).isEqualTo(ids.length);
        }
    }

    /** Llama 4 Maverick: 10.7 · 10^9 weights of gates and up projections, more than one rank's kernels can index. */
    @Test
    void aLayerThatIsTooLargeForOneRankCanBePartitioned() throws IOException {
        Path file = directory.resolve("config.json");
        Files.writeString(
                file,
                "{\"model_type\": \"llama4_text\", \"num_hidden_layers\": 48, \"hidden_size\": 5120,"
                        + " \"intermediate_size\": 8192, \"intermediate_size_mlp\": 16384, \"num_local_experts\": 128,"
                        + " \"num_experts_per_tok\": 1}");
        FusedMoeConfig config = MoeCheckpoint.config(file);
        assertThat(config.globalNumExperts()).isEqualTo(129);
        assertThatThrownBy(() -> Int8MoeOracle.installed()
                        .select(config, QuantKey.INT8_STATIC_CHANNEL_SYM, QuantKey.INT8_DYNAMIC_TOKEN_SYM, null))
                .hasMessageContaining("give the layer fewer experts (expert parallelism)");
    }

    @Test
    void idsThatDoNotFitAreNamed() {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(MODELS.resolve("mixtral"))) {
            for (int[] ids : new int[][] {{}, {8}, {-1, 0}, {1, 2, 1}}) {
                assertThatThrownBy(() -> checkpoint.experts(0, ids))
                        .hasMessage("ids: expected experts from 0 to 7, each once, got " + Arrays.toString(ids));
            }
        }
    }
}
