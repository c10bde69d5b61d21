package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;

/** Checkpoints that are int8 already, laid out the way their writers do, are read as they are. */
class QuantizedCheckpointTest {
    private static final int E = 2;
    private static final int H = 16;
    private static final int I = 8;
    private static final String BLOCK = "model.layers.0.mlp.";
    private static final String CHANNEL =
            "{'num_bits': 8, 'type': 'int', 'symmetric': true, 'strategy': 'channel'," + " 'dynamic': false}";
    private static final String TOKEN =
            "{'num_bits': 8, 'type': 'int', 'symmetric': true, 'strategy': 'token'," + " 'dynamic': true}";

    @TempDir
    Path directory;

    /** A matrix as its writer means it: weight = (value - zero) * scale. */
    private record Meant(byte[][] values, float[][] scales, int[][] zeros, int rowsPerScale, int colsPerScale) {
        float weight(int r, int c) {
            int sr = r / rowsPerScale;
            int sc = c / colsPerScale;
            return (values[r][c] - zeros[sr][sc]) * scales[sr][sc];
        }
    }

    private final Random random = new Random(11);
    private final Map<String, Meant> meant = new TreeMap<>();
    private SafetensorsWriter writer = new SafetensorsWriter();

    private Meant meant(String name) {
        return Objects.requireNonNull(meant.get(name));
    }

    private Meant meant(int rows, int cols, int rowsPerScale, int colsPerScale, boolean zeros) {
        byte[][] values = new byte[rows][cols];
        for (byte[] row : values) {
            random.nextBytes(row);
        }
        float[][] scales = new float[Math.ceilDiv(rows, rowsPerScale)][Math.ceilDiv(cols, colsPerScale)];
        int[][] zero = new int[scales.length][scales[0].length];
        for (int r = 0; r < scales.length; r++) {
            for (int c = 0; c < scales[0].length; c++) {
                scales[r][c] = random.nextFloat() + 0.5f;
                zero[r][c] = zeros ? random.nextInt(-128, 128) : 0;
            }
        }
        return new Meant(values, scales, zero, rowsPerScale, colsPerScale);
    }

    @FunctionalInterface
    private interface Layout {
        void write(String module, Meant matrix);
    }

    private static float[] flat(float[][] rows) {
        float[] flat = new float[rows.length * rows[0].length];
        for (int r = 0; r < rows.length; r++) {
            System.arraycopy(rows[r], 0, flat, r * rows[0].length, rows[0].length);
        }
        return flat;
    }

    private void values(String module, Meant m) {
        int rows = m.values.length;
        int cols = m.values[0].length;
        byte[] flat = new byte[rows * cols];
        for (int r = 0; r < rows; r++) {
            System.arraycopy(m.values[r], 0, flat, r * cols, cols);
        }
        writer.add(module + ".weight", flat, rows, cols);
    }

    private void intQuantized(String module, Meant m) {
        values(module, m);
        if (m.rowsPerScale >= m.values.length) {
            writer.add(module + ".weight_scale", flat(m.scales), 1);
        } else {
            writer.add(module + ".weight_scale", flat(m.scales), m.scales.length, m.scales[0].length);
        }
    }

    /**
     * compressed-tensors' pack-quantized: value + 128, four to a word along the columns; zero points along the rows.
     */
    private void packQuantized(String module, Meant m, boolean zeros) {
        int rows = m.values.length;
        int cols = m.values[0].length;
        int[] words = new int[rows * cols / 4];
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < cols; c++) {
                words[(r * cols + c) / 4] |= (m.values[r][c] + 128) << (8 * (c % 4));
            }
        }
        writer.add(module + ".weight_packed", words, rows, cols / 4);
        writer.add(module + ".weight_shape", new int[] {rows, cols}, 2);
        writer.add(module + ".weight_scale", flat(m.scales), rows, m.scales[0].length);
        if (zeros) {
            int groups = m.scales[0].length;
            int[] packed = new int[rows / 4 * groups];
            for (int r = 0; r < rows; r++) {
                for (int g = 0; g < groups; g++) {
                    packed[r / 4 * groups + g] |= (m.zeros[r][g] + 128) << (8 * (r % 4));
                }
            }
            writer.add(module + ".weight_zero_point", packed, rows / 4, groups);
        }
    }

    /**
     * GPTQ: transposed, value + 128, four to a word along the input; zero points along the output, less {@code less}.
     */
    private void gptq(String module, Meant m, int less, boolean shuffled) {
        int cols = m.values[0].length;
        gptq(
                module,
                m,
                less,
                IntStream.range(0, cols)
                        .map(c -> (shuffled ? cols - 1 - c : c) / m.colsPerScale)
                        .toArray());
    }

    private void gptq(String module, Meant m, int less, int[] order) {
        int rows = m.values.length;
        int cols = m.values[0].length;
        int groups = m.scales[0].length;
        int[] words = new int[cols / 4 * rows];
        int[] zeros = new int[groups * rows / 4];
        float[] scales = new float[groups * rows];
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < cols; c++) {
                words[c / 4 * rows + r] |= (m.values[r][c] + 128) << (8 * (c % 4));
            }
            for (int g = 0; g < groups; g++) {
                zeros[(g * rows + r) / 4] |= ((m.zeros[r][g] + 128 - less) & 0xff) << (8 * (r % 4));
                scales[g * rows + r] = m.scales[r][g];
            }
        }
        writer.add(module + ".qweight", words, cols / 4, rows)
                .add(module + ".qzeros", zeros, groups, rows / 4)
                .add(module + ".scales", scales, groups, rows)
                .add(module + ".g_idx", order, cols);
    }

    private void checkpoint(String quantization, int rowsPerScale, int colsPerScale, boolean zeros, Layout layout)
            throws IOException {
        writer = new SafetensorsWriter();
        float[] router = new float[E * H];
        for (int i = 0; i < router.length; i++) {
            router[i] = i;
        }
        writer.add(BLOCK + "gate.weight", router, E, H);
        for (int e = 0; e < E; e++) {
            for (String name : new String[] {"gate_proj", "up_proj", "down_proj"}) {
                int rows = name.equals("down_proj") ? H : I;
                int cols = name.equals("down_proj") ? I : H;
                Meant m = meant(rows, cols, Math.min(rows, rowsPerScale), Math.min(cols, colsPerScale), zeros);
                if (rowsPerScale > H && name.equals("up_proj")) { // one scale for both halves of w13
                    m.scales[0][0] = meant(e + "gate_proj").scales[0][0];
                }
                meant.put(e + name, m);
                layout.write(BLOCK + "experts." + e + "." + name, m);
            }
        }
        write(quantization);
    }

    private void write(String quantization) throws IOException {
        Files.writeString(
                directory.resolve("config.json"),
                ("{'model_type': 'olmoe', 'num_hidden_layers': 1, 'hidden_size': 16, 'num_experts_per_tok': 1,"
                                + " 'num_experts': 2, 'intermediate_size': 8, 'quantization_config': " + quantization
                                + "}")
                        .replace('\'', '"'));
        writer.write(directory.resolve("model.safetensors"));
    }

    private static String compressed(String format, String weights, String activations) {
        return "{'quant_method': 'compressed-tensors', 'format': '" + format + "', 'config_groups': {'group_0': {"
                + "'targets': ['Linear'], 'weights': " + weights + ", 'input_activations': " + activations
                + "}}, 'ignore': ['lm_head', 're:.*mlp.gate$']}";
    }

    private void assertKept(Int8Scheme scheme) {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            ExpertWeights weights = checkpoint.layer(0);
            assertThat(weights.quantization().scheme()).isEqualTo(scheme);
            float[] row = new float[H];
            assertThat(((StoredInt8) weights).isExact()).isTrue();
            List<Long> told = new ArrayList<>();
            Progress progress = (done, of) -> {
                told.add(done);
                assertThat(of).isEqualTo(E * (2L * I + H));
            };
            try (Int8Experts kept = QuantizedWeights.int8(weights, scheme, progress)) {
                assertThat(told).containsExactly(2L * I + H, E * (2L * I + H));
                assertThat(kept.scheme()).isEqualTo(scheme);
                for (int e = 0; e < E; e++) {
                    for (int r = 0; r < 2 * I; r++) {
                        Meant m = meant(e + (r < I ? "gate_proj" : "up_proj"));
                        weights.gateUpRow(e, r, row);
                        assertRow(m, r % I, row, kept.w13(), e, r);
                    }
                    for (int r = 0; r < H; r++) {
                        weights.downRow(e, r, row);
                        assertRow(meant(e + "down_proj"), r, row, kept.w2(), e, r);
                    }
                }
            }
        }
    }

    private static void assertRow(Meant m, int r, float[] row, Int8Tensor kept, int e, int keptRow) {
        for (int c = 0; c < m.values[0].length; c++) {
            assertThat(row[c]).isEqualTo(m.weight(r, c));
            assertThat(kept.get(e, keptRow, c)).isEqualTo(m.values[r][c]);
            assertThat(kept.scale(e, keptRow, c)).isEqualTo(m.scales[r / m.rowsPerScale][c / m.colsPerScale]);
            assertThat((int) kept.zeroPoint(e, keptRow, c)).isEqualTo(m.zeros[r / m.rowsPerScale][c / m.colsPerScale]);
        }
    }

    @Test
    void channelsAndTokens() throws IOException {
        checkpoint(compressed("int-quantized", CHANNEL, TOKEN), 1, 99, false, this::intQuantized);
        assertKept(Int8Scheme.W8A8_CHANNEL);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory);
                // The same integers, activations left as they are.
                Int8Experts other =
                        QuantizedWeights.int8(checkpoint.layer(0), Int8Scheme.W8A16_CHANNEL, Progress.NONE)) {
            assertThat(other.w13().get(1, 3, 4)).isEqualTo(meant("1gate_proj").values[3][4]);
            assertThat(other.scheme()).isEqualTo(Int8Scheme.W8A16_CHANNEL);
        }
    }

    /** As llm-compressor saves a model of bfloat16. */
    @Test
    void scalesMayBeBf16() throws IOException {
        checkpoint(compressed("int-quantized", CHANNEL, TOKEN), 1, 99, false, (module, m) -> {
            MemorySegment scales = MemorySegment.ofArray(new byte[2 * m.scales.length]);
            for (int r = 0; r < m.scales.length; r++) {
                int upper = Float.floatToRawIntBits(m.scales[r][0]) >>> 16;
                m.scales[r][0] = Float.intBitsToFloat(upper << 16);
                scales.set(ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN), 2L * r, (short) upper);
            }
            values(module, m);
            writer.add(module + ".weight_scale", DType.BF16, scales, m.scales.length, 1);
        });
        assertKept(Int8Scheme.W8A8_CHANNEL);
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void tensorsWithScalesOfActivationsOrWithout(boolean fixed) throws IOException {
        String tensor = CHANNEL.replace("channel", "tensor");
        checkpoint(
                compressed("int-quantized", tensor, fixed ? tensor : tensor.replace("false", "true")),
                99,
                99,
                false,
                (module, m) -> {
                    intQuantized(module, m);
                    if (fixed) {
                        float scale = module.contains("experts.1.") ? 0.5f : 0.25f;
                        writer.add(
                                module + ".input_scale",
                                new float[] {module.endsWith("down_proj") ? 2 * scale : scale},
                                1);
                    }
                });
        assertKept(Int8Scheme.W8A8_TENSOR);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory);
                Int8Experts kept = QuantizedWeights.int8(checkpoint.layer(0), Int8Scheme.W8A8_TENSOR, Progress.NONE)) {
            assertThat(kept.a1Scales()).isEqualTo(fixed ? new float[] {0.25f, 0.5f} : null);
            assertThat(kept.a2Scales()).isEqualTo(fixed ? new float[] {0.5f, 1f} : null);
        }
    }

    @Test
    void blocks() throws IOException {
        checkpoint(
                compressed(
                        "int-quantized",
                        CHANNEL.replace("'channel'", "'block', 'block_structure': [4, 8]"),
                        TOKEN.replace("'token'", "'group', 'group_size': 8")),
                4,
                8,
                false,
                this::intQuantized);
        assertKept(Int8Scheme.W8A8_BLOCK);
    }

    @ParameterizedTest
    @CsvSource({"4, false", "4, true", "8, true", "-1, false", "-1, true"})
    void packedWords(int group, boolean zeros) throws IOException {
        String weights = CHANNEL.replace("'symmetric': true", "'symmetric': " + !zeros)
                .replace("'channel'", group == -1 ? "'channel'" : "'group', 'group_size': " + group);
        checkpoint(
                compressed("pack-quantized", weights, "null"),
                1,
                group == -1 ? 99 : group,
                zeros,
                (module, m) -> packQuantized(module, m, zeros));
        assertKept(group == -1 && !zeros ? Int8Scheme.W8A16_CHANNEL : Int8Scheme.W8A16_GROUP);
    }

    @ParameterizedTest
    @CsvSource({"4, false, gptq", "4, true, gptq", "8, true, gptq_v2", "-1, false, gptq"})
    void gptqWords(int group, boolean zeros, String format) throws IOException {
        checkpoint(
                "{'quant_method': 'gptq', 'bits': 8, 'group_size': " + group + ", 'sym': " + !zeros
                        + ", 'desc_act': false, 'checkpoint_format': '" + format + "'}",
                1,
                group == -1 ? 99 : group,
                zeros,
                (module, m) -> gptq(module, m, format.equals("gptq") ? 1 : 0, false));
        assertKept(group == -1 ? Int8Scheme.W8A16_CHANNEL : Int8Scheme.W8A16_GROUP);
    }

    /**
     * Some writers of the second version call their files the first: symmetric is symmetric, and other zero points are
     * refused.
     */
    @ParameterizedTest
    @CsvSource({"gptq, 0", "gptq, 1", "gptq_v2, 0", "gptq_v2, 1"})
    void symmetricWordsOfEitherVersion(String format, int less) throws IOException {
        String config = "{'quant_method': 'gptq', 'bits': 8, 'group_size': 4, 'sym': true, 'desc_act': false,"
                + " 'checkpoint_format': '" + format + "'}";
        checkpoint(config, 1, 4, false, (module, m) -> gptq(module, m, less, false));
        assertKept(Int8Scheme.W8A16_GROUP);
    }

    @Test
    void symmetricWordsWithZeroPointsAreRefused() throws IOException {
        checkpoint(
                "{'quant_method': 'gptq', 'bits': 8, 'group_size': 4, 'sym': true, 'desc_act': false}",
                1,
                4,
                true,
                (module, m) -> gptq(module, m, 1, false));
        assertRefused("tensor 'model.layers.0.mlp.experts.0.gate_proj.qzeros': expected zero points of 127 or of 128");
    }

    private void assertRefused(String... message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> {
                    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
                        checkpoint.layer(0);
                    }
                })
                .withMessageContainingAll(message);
    }

    /** As "act order" leaves them: each column has the scale and zero point of its group, wherever that is. */
    @Test
    void columnsOutOfOrderAreRead() throws IOException {
        checkpoint(
                "{'quant_method': 'gptq', 'bits': 8, 'group_size': 4, 'sym': false, 'desc_act': true}",
                1,
                4,
                true,
                (module, m) -> gptq(module, m, 1, true));
        meant.replaceAll((name, m) -> {
            for (float[] scales : m.scales) { // the order is the reverse, and groups are whole
                for (int a = 0, z = scales.length - 1; a < z; a++, z--) {
                    float scale = scales[a];
                    scales[a] = scales[z];
                    scales[z] = scale;
                }
            }
            for (int[] zeros : m.zeros) {
                for (int a = 0, z = zeros.length - 1; a < z; a++, z--) {
                    int zero = zeros[a];
                    zeros[a] = zeros[z];
                    zeros[z] = zero;
                }
            }
            return m;
        });
        assertKept(Int8Scheme.W8A16_GROUP);
    }

    /** -1 is no group: a tensor of nothing else says nothing, one with some is damaged. */
    @Test
    void columnsWithoutAGroupAreRefused() throws IOException {
        String config = "{'quant_method': 'gptq', 'bits': 8, 'group_size': 4, 'sym': true, 'desc_act': true}";
        checkpoint(config, 1, 4, false, (module, m) -> {
            int[] order = new int[m.values[0].length];
            Arrays.fill(order, -1);
            gptq(module, m, 1, order);
        });
        assertKept(Int8Scheme.W8A16_GROUP);
        checkpoint(config, 1, 4, false, (module, m) -> {
            int[] order = new int[m.values[0].length];
            order[3] = -1;
            gptq(module, m, 1, order);
        });
        assertRefused("experts.0.gate_proj.g_idx': expected groups from 0 to 3, got -1 for column 3");
    }

    /** As many scales as there should be, but a row's don't stand together: another tool's order, maybe. */
    @Test
    void scalesAndZeroPointsOfAnotherShapeAreRefused() throws IOException {
        String weights = CHANNEL.replace("'channel'", "'group', 'group_size': 4");
        checkpoint(compressed("int-quantized", weights, "null"), 1, 4, false, (module, m) -> {
            values(module, m);
            writer.add(module + ".weight_scale", flat(m.scales), m.scales[0].length, m.scales.length);
        });
        assertRefused("tensor 'model.layers.0.mlp.experts.0.gate_proj.weight_scale': expected 8 x 4 scales, got ");
        checkpoint(
                compressed("int-quantized", weights.replace("'symmetric': true", "'symmetric': false"), "null"),
                1,
                4,
                false,
                (module, m) -> {
                    values(module, m);
                    int rows = m.scales.length;
                    int groups = m.scales[0].length;
                    writer.add(module + ".weight_scale", flat(m.scales), rows, groups, 1)
                            .add(module + ".weight_zero_point", new byte[rows * groups], groups, rows);
                });
        assertRefused("tensor 'model.layers.0.mlp.experts.0.gate_proj.weight_zero_point': expected 8 x 4 zero points");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'dynamic': true | 'dynamic': false | For INT8 Fused MoE layers, we require channelwise, dynamic per"
                        + " token quantization. Found static input scales.",
                "'strategy': 'token' | 'strategy': 'tensor' | For INT8 Fused MoE layers, we require channelwise,"
                        + " dynamic per token quantization. Found int8 symmetric static per channel, int8 symmetric"
                        + " dynamic per tensor",
                "'symmetric': true, 'strategy': 'token' | 'symmetric': false, 'strategy': 'token' | For INT8 Fused MoE"
                        + " layers, we require channelwise, dynamic per token quantization. Found",
                "'type': 'int', 'symmetric': true, 'strategy': 'token' | 'type': 'float', 'symmetric': true,"
                    + " 'strategy': 'token' | Unsupported FusedMoe scheme: int8 symmetric static per channel, float8"
                    + " symmetric dynamic per token",
                "'num_bits': 8, 'type': 'int', 'symmetric': true, 'strategy': 'channel' | 'num_bits': 16, 'type':"
                    + " 'int', 'symmetric': true, 'strategy': 'channel' | Unsupported FusedMoe scheme: int16 symmetric"
                    + " static per channel",
                "'quant_method': 'compressed-tensors' | 'quant_method': 'hqq' | quant_method: expected"
                        + " compressed-tensors, gptq, awq, auto-round, fp8, fbgemm_fp8, mxfp4, mxfp8, modelopt, quark,"
                        + " bitsandbytes, w8a8_int8, blockwise_int8 or w4afp8 (or no quantisation), got 'hqq'",
                "'ignore': ['lm_head', | 'ignore': ['re:.*down_proj$', | tensor"
                        + " 'model.layers.0.mlp.experts.0.down_proj.weight': expected dtype F64 or F32 or F16 or BF16,"
                        + " got I8",
                "'ignore': ['lm_head', | 'ignore': ['re:(', | 're:(' is not a regular expression",
            })
    void otherSchemesAreRefusedInVllmsWords(String right, String wrong, String message) throws IOException {
        String good = compressed("int-quantized", CHANNEL, TOKEN);
        assertThat(good).contains(right);
        checkpoint(good.replace(right, wrong), 1, 99, false, this::intQuantized);
        assertRefused(directory.toString(), message);
    }

    @Test
    void missingOrWrongScalesAreNamed() throws IOException {
        checkpoint(compressed("int-quantized", CHANNEL, TOKEN), 1, 99, false, (module, m) -> {
            if (module.endsWith("experts.1.up_proj")) {
                writer.add(module + ".weight", new byte[I * H], I, H);
            } else {
                intQuantized(module, m);
            }
        });
        assertRefused("has no tensor 'model.layers.0.mlp.experts.1.up_proj.weight_scale'");
        writer.add(BLOCK + "experts.1.up_proj.weight_scale", new float[3], 3, 1)
                .write(directory.resolve("model.safetensors"));
        assertRefused("tensor 'model.layers.0.mlp.experts.1.up_proj.weight_scale': expected 8 x 1 scales");
    }

    @Test
    void expertsThatAreIgnoredAreFloats() throws IOException {
        String config = compressed("int-quantized", CHANNEL, TOKEN).replace("'lm_head'", "'re:.*experts.*'");
        PublishedModel model = new PublishedModel(1, 0);
        model.add(BLOCK + "gate.weight", model.router).perExpert(BLOCK, "gate_proj", "up_proj", "down_proj");
        model.write(
                directory,
                ("{'model_type': 'olmoe', 'num_hidden_layers': 1, 'hidden_size': 12, 'num_experts_per_tok': 2,"
                                + " 'num_experts': 6, 'intermediate_size': 8, 'quantization_config': " + config + "}")
                        .replace('\'', '"'));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.layer(0)).isNotInstanceOf(QuantizedWeights.class);
        }
    }
}
