package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/**
 * Weights of fewer than 8 bits and of 8-bit floats, laid out the way their writers do: read as the numbers that they
 * stand for, run without loss where these lie on a grid, and close to them where not. What they stand for is computed
 * here from the codes by the formats' definitions.
 */
class StoredFormatsTest {
    private static final int E = 2;
    private static final int H = 64;
    private static final int I = 32;
    private static final String BLOCK = "model.layers.0.mlp.";

    /** Of 4 bits in AWQ's words: the i-th place holds value ORDER[i]. */
    private static final int[] ORDER = {0, 2, 4, 6, 1, 3, 5, 7};

    private static final int[] ORDER_OF_8_BITS = {0, 2, 1, 3};
    private static final double[] E2M1 = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

    @TempDir
    Path directory;

    private final Random random = new Random(17);
    private final SafetensorsWriter writer = new SafetensorsWriter();

    /** By expert and name. */
    private final Map<String, double[][]> meant = new HashMap<>();

    /** Writes a module's tensors, and returns what they stand for. */
    @FunctionalInterface
    private interface Layout {
        double[][] write(String module, int rows, int cols);
    }

    private void checkpoint(String quantization, Layout layout) throws IOException {
        for (int e = 0; e < E; e++) {
            for (String name : List.of("gate_proj", "up_proj", "down_proj")) {
                boolean down = name.equals("down_proj");
                meant.put(e + name, layout.write(BLOCK + "experts." + e + "." + name, down ? H : I, down ? I : H));
            }
        }
        write("'model_type': 'olmoe', 'intermediate_size': " + I, quantization);
    }

    private void write(String family, String quantization) throws IOException {
        writer.add(BLOCK + "gate.weight", scales(E * H), E, H).write(directory.resolve("model.safetensors"));
        Files.writeString(
                directory.resolve("config.json"),
                ("{" + family + ", 'num_hidden_layers': 1, 'hidden_size': " + H + ", 'num_experts_per_tok': 1,"
                                + " 'num_experts': 2" + quantization + "}")
                        .replace('\'', '"'));
    }

    private static String compressed(String weights) {
        return ", 'quantization_config': {'quant_method': 'compressed-tensors', 'config_groups': {'group_0': {"
                + "'targets': ['Linear'], 'weights': {" + weights + "}, 'input_activations': {'num_bits': 4, 'type':"
                + " 'float', 'dynamic': 'local', 'strategy':"
                + " 'tensor_group', 'group_size': 16}}}, 'ignore':"
                + " ['lm_head']}";
    }

    /** @param loss the greatest relative L2 error of a matrix as it is run */
    private void assertRead(String scheme, double loss) {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            ExpertWeights weights = checkpoint.layer(0);
            assertThat(weights.quantization()).hasToString(scheme);
            try (Int8Experts run = QuantizedWeights.int8(weights, weights.quantization(), Progress.NONE)) {
                float[] row = new float[H];
                for (int e = 0; e < E; e++) {
                    int expert = e;
                    for (int r = 0; r < 2 * I; r++) {
                        weights.gateUpRow(e, r, row);
                        assertRow(meant(e, r < I ? "gate_proj" : "up_proj")[r % I], row);
                    }
                    for (int r = 0; r < H; r++) {
                        weights.downRow(e, r, row);
                        assertRow(meant(e, "down_proj")[r], row);
                    }
                    assertThat(error(meant(e, "gate_proj"), run.w13(), e, 0)).isLessThanOrEqualTo(loss);
                    assertThat(error(meant(e, "up_proj"), run.w13(), e, I)).isLessThanOrEqualTo(loss);
                    assertThat(error(meant(expert, "down_proj"), run.w2(), e, 0))
                            .isLessThanOrEqualTo(loss);
                }
            }
        }
    }

    private double[][] meant(int expert, String name) {
        return Objects.requireNonNull(meant.get(expert + name));
    }

    private static void assertRow(double[] expected, float[] row) {
        for (int c = 0; c < expected.length; c++) {
            assertThat((double) row[c])
                    .isBetween(expected[c] - 1e-6 * Math.abs(expected[c]), expected[c] + 1e-6 * Math.abs(expected[c]));
        }
    }

    private static double error(double[][] expected, Int8Tensor run, int expert, int firstRow) {
        double error = 0;
        double square = 0;
        for (int r = 0; r < expected.length; r++) {
            for (int c = 0; c < expected[0].length; c++) {
                int row = firstRow + r;
                double is =
                        (run.get(expert, row, c) - run.zeroPoint(expert, row, c)) * (double) run.scale(expert, row, c);
                error += Math.pow(is - expected[r][c], 2);
                square += Math.pow(expected[r][c], 2);
            }
        }
        return Math.sqrt(error / square);
    }

    // 8-bit floats

    private static double float8(int bits, int mantissaBits) {
        int exponent = (bits & 0x7f) >> mantissaBits;
        int bias = mantissaBits == 3 ? 7 : 15;
        double mantissa = (bits & (1 << mantissaBits) - 1) / (double) (1 << mantissaBits);
        double magnitude =
                exponent == 0 ? mantissa * Math.pow(2, 1 - bias) : (1 + mantissa) * Math.pow(2, exponent - bias);
        return bits < 128 ? magnitude : -magnitude;
    }

    /** Codes of finite values. */
    private byte[] codes8(int count, DType dtype) {
        byte[] codes = new byte[count];
        int most = dtype == DType.F8_E4M3 ? 0x7e : 0x7b;
        for (int i = 0; i < count; i++) {
            codes[i] = (byte) (random.nextInt(most + 1) | random.nextInt(2) << 7);
        }
        return codes;
    }

    /** [rows, cols] of 8-bit floats and scales of blocks; {@code shape} is the scales'. */
    private double[][] float8(
            String module, DType dtype, int rows, int cols, int r, int c, String scale, long... shape) {
        byte[] codes = codes8(rows * cols, dtype);
        float[] scales = scales(Math.ceilDiv(rows, r) * Math.ceilDiv(cols, c));
        writer.add(module + ".weight", dtype, MemorySegment.ofArray(codes), rows, cols)
                .add(module + scale, scales, shape);
        int mantissaBits = dtype == DType.F8_E4M3 ? 3 : 2;
        return values(
                rows,
                cols,
                (i, j) -> float8(codes[i * cols + j] & 0xff, mantissaBits)
                        * scales[i / r * Math.ceilDiv(cols, c) + j / c]);
    }

    private float[] scales(int count) {
        float[] scales = new float[count];
        for (int i = 0; i < count; i++) {
            scales[i] = random.nextFloat() / 100 + 0.001f;
        }
        return scales;
    }

    @FunctionalInterface
    private interface Value {
        double at(int row, int col);
    }

    private static double[][] values(int rows, int cols, Value value) {
        return IntStream.range(0, rows)
                .mapToObj(r -> IntStream.range(0, cols)
                        .mapToDouble(c -> value.at(r, c))
                        .toArray())
                .toArray(double[][]::new);
    }

    @ParameterizedTest
    @CsvSource({"F8_E4M3, 16, 24", "F8_E5M2, 16, 24", "F8_E4M3, 24, 40"})
    void blocksOfAnySizeWithRaggedEnds(DType dtype, int r, int c) throws IOException {
        checkpoint(
                ", 'quantization_config': {'quant_method': 'fp8', 'fmt': 'e4m3', 'activation_scheme': 'dynamic',"
                        + " 'weight_block_size': [" + r + ", " + c + "], 'modules_to_not_convert': ['lm_head']}",
                (module, rows, cols) -> float8(
                        module,
                        dtype,
                        rows,
                        cols,
                        r,
                        c,
                        ".weight_scale_inv",
                        Math.ceilDiv(rows, r),
                        Math.ceilDiv(cols, c)));
        assertRead("w8a8_block " + Matrix.gcd(I, r) + "x" + c + " to the nearest", 0.02);
    }

    @Test
    void blocksThatNothingIsSaidOfAreOf128() throws IOException {
        checkpoint(
                "",
                (module, rows, cols) -> float8(module, DType.F8_E4M3, rows, cols, 128, 128, ".weight_scale_inv", 1, 1));
        assertRead("w8a8_channel", 0.02); // as small a matrix has one scale
    }

    @Test
    void scalesOfChannelsAndTensors() throws IOException {
        checkpoint(
                compressed("'num_bits': 8, 'type': 'float', 'strategy': 'channel'"),
                (module, rows, cols) -> float8(module, DType.F8_E4M3, rows, cols, 1, cols, ".weight_scale", rows, 1));
        assertRead("w8a8_channel", 0.02);
    }

    @Test
    void scalesOfActivationsAreNoneOfTheWeights() throws IOException {
        checkpoint(
                ", 'quantization_config': {'quant_method': 'modelopt', 'quant_algo': 'FP8', 'ignore': ['lm_head']}",
                (module, rows, cols) -> {
                    writer.add(module + ".input_scale", new float[] {3}, new long[0]);
                    return float8(module, DType.F8_E4M3, rows, cols, rows, cols, ".weight_scale", new long[0]);
                });
        assertRead("w8a8_channel", 0.02);
    }

    @ParameterizedTest
    @CsvSource({"false", "true"})
    void tensorsOfAllExperts(boolean transposed) throws IOException {
        for (String name : List.of("gate_up_proj", "down_proj")) {
            boolean down = name.equals("down_proj");
            int rows = down ? H : 2 * I;
            int cols = down ? I : H;
            byte[] codes = codes8(E * rows * cols, DType.F8_E4M3);
            // By blocks, or transposed as Llama 4 has them, by channel.
            int scaleCols = transposed ? 1 : Math.ceilDiv(cols, 24);
            int perScale = transposed ? 1 : 16;
            float[] scales = scales(E * rows / perScale * scaleCols);
            long[] shape = transposed ? new long[] {E, cols, rows} : new long[] {E, rows, cols};
            writer.add(BLOCK + "experts." + name, DType.F8_E4M3, MemorySegment.ofArray(codes), shape)
                    .add(
                            BLOCK + "experts." + name + (transposed ? "_scale" : "_scale_inv"),
                            scales,
                            transposed ? new long[] {E, 1, rows} : new long[] {E, rows / perScale, scaleCols});
            for (int e = 0; e < E; e++) {
                int start = e * rows * cols;
                int firstScale = e * rows / perScale * scaleCols;
                double[][] all = values(
                        rows,
                        cols,
                        (r, c) -> float8(codes[start + (transposed ? c * rows + r : r * cols + c)] & 0xff, 3)
                                * scales[firstScale + r / perScale * scaleCols + (transposed ? 0 : c / 24)]);
                if (down) {
                    meant.put(e + name, all);
                } else {
                    meant.put(e + "gate_proj", Arrays.copyOf(all, I));
                    meant.put(e + "up_proj", Arrays.copyOfRange(all, I, 2 * I));
                }
            }
        }
        write(
                "'model_type': 'olmoe', 'intermediate_size': " + I,
                transposed
                        ? ", 'quantization_config': {'quant_method': 'fbgemm_fp8', 'activation_scale_ub': 1200.0}"
                        : ", 'quantization_config': {'quant_method': 'fp8', 'weight_block_size': [16, 24]}");
        assertRead(transposed ? "w8a8_channel" : "w8a8_block 16x24 to the nearest", 0.02);
    }

    /** By tools that quantise whatever is a linear layer. */
    @Test
    void routersAndGatesMayBeStoredAsExpertsAre() throws IOException {
        Layout layout =
                (module, rows, cols) -> float8(module, DType.F8_E4M3, rows, cols, 1, cols, ".weight_scale", rows, 1);
        for (String expert : List.of("experts.0.", "experts.1.", "shared_expert.")) {
            layout.write(BLOCK + expert + "gate_proj", I, H);
            layout.write(BLOCK + expert + "up_proj", I, H);
            layout.write(BLOCK + expert + "down_proj", H, I);
        }
        double[][] router = layout.write(BLOCK + "gate", E, H);
        double[][] gate = layout.write(BLOCK + "shared_expert_gate", 1, H);
        writer.write(directory.resolve("model.safetensors"));
        Files.writeString(
                directory.resolve("config.json"),
                ("{'model_type': 'qwen2_moe', 'moe_intermediate_size': 32, 'shared_expert_intermediate_size': 32,"
                    + " 'num_hidden_layers': 1, 'hidden_size': 64, 'num_experts': 2, 'num_experts_per_tok': 1"
                                + compressed("'num_bits': 8, 'type': 'float', 'strategy': 'channel'") + "}")
                        .replace('\'', '"'));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            RouterWeights read = checkpoint.layer(0).router();
            for (int e = 0; e < E; e++) {
                assertRow(router[e], Arrays.copyOfRange(read.weight(), e * H, (e + 1) * H));
            }
            assertRow(gate[0], Objects.requireNonNull(read.sharedExpertGate()));
        }
    }

    /** A packed tensor of one dimension or without rows, as a router's and as any other module's. */
    @Test
    void aPackedTensorThatIsNoMatrixIsRefused() throws IOException {
        writer.add(BLOCK + "gate.qweight", new int[8], 8)
                .add("other.weight", new byte[8], 8)
                .add("empty.weight", DType.F8_E4M3, MemorySegment.ofArray(new byte[0]), 0, 8)
                .add("empty.weight_scale", new float[1], 1)
                .add("told.weight_packed", new int[0], 0, 8)
                .add("told.weight_shape", new int[] {0, 64}, 2);
        writer.write(directory.resolve("model.safetensors"));
        Files.writeString(
                directory.resolve("config.json"),
                ("{'model_type': 'olmoe', 'intermediate_size': 32, 'num_hidden_layers': 1, 'hidden_size': 64,"
                                + " 'num_experts': 2, 'num_experts_per_tok': 1, 'quantization_config':"
                                + " {'quant_method': 'gptq', 'bits': 4, 'group_size': 32}}")
                        .replace('\'', '"'));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(0))
                    .withMessageContaining("'" + BLOCK + "gate.qweight': expected rows and columns, got ");
            for (String name : List.of("other.weight", "empty.weight", "told.weight_shape")) {
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(() -> checkpoint.matrix(name.replace("_shape", "")))
                        .withMessageContaining("'" + name + "': expected rows and columns, got ");
            }
        }
    }

    /** Each of all experts' transposed matrices has one scale. */
    @Test
    void oneScaleAnExpert() throws IOException {
        for (String name : List.of("gate_up_proj", "down_proj")) {
            boolean down = name.equals("down_proj");
            int rows = down ? H : 2 * I;
            int cols = down ? I : H;
            byte[] codes = codes8(E * rows * cols, DType.F8_E4M3);
            float[] scales = scales(E);
            writer.add(BLOCK + "experts." + name, DType.F8_E4M3, MemorySegment.ofArray(codes), E, cols, rows)
                    .add(BLOCK + "experts." + name + "_weight_scale", scales, E);
            for (int e = 0; e < E; e++) {
                int start = e * rows * cols;
                float scale = scales[e];
                double[][] all = values(rows, cols, (r, c) -> float8(codes[start + c * rows + r] & 0xff, 3) * scale);
                meant.put(e + (down ? name : "gate_proj"), down ? all : Arrays.copyOf(all, I));
                meant.put(e + (down ? name : "up_proj"), down ? all : Arrays.copyOfRange(all, I, 2 * I));
            }
        }
        write(
                "'model_type': 'olmoe', 'intermediate_size': " + I,
                ", 'quantization_config': {'quant_method': 'modelopt', 'quant_algo': 'FP8'}");
        assertRead("w8a8_channel", 0.02);
    }

    // 4-bit floats

    /** @param factor what is multiplied by the scale of a group */
    private double[][] float4(String module, String values, int rows, int cols, int group, @Nullable Float factor) {
        byte[] packed = new byte[rows * cols / 2];
        random.nextBytes(packed);
        byte[] scales = new byte[rows * cols / group];
        for (int i = 0; i < scales.length; i++) {
            scales[i] = (byte) (group == 32 ? 110 + random.nextInt(20) : 1 + random.nextInt(0x7e));
        }
        writer.add(module + values, DType.U8, MemorySegment.ofArray(packed), rows, cols / 2)
                .add(
                        module + ".weight_scale",
                        group == 32 ? DType.U8 : DType.F8_E4M3,
                        MemorySegment.ofArray(scales),
                        rows,
                        cols / group);
        return values(rows, cols, (r, c) -> {
            int code = (packed[(r * cols + c) / 2] >> (4 * (c % 2))) & 15;
            int scale = scales[(r * cols + c) / group] & 0xff;
            return (code < 8 ? 1 : -1)
                    * E2M1[code & 7]
                    * (group == 32 ? Math.pow(2, scale - 127) : float8(scale, 3))
                    * (factor == null ? 1 : factor);
        });
    }

    @Test
    void mxfp4() throws IOException {
        checkpoint(
                compressed("'num_bits': 4, 'type': 'float', 'strategy': 'group', 'group_size': 32"),
                (module, rows, cols) -> float4(module, ".weight_packed", rows, cols, 32, null));
        assertRead("w8a16_group of 32", 1e-6);
    }

    /** As many scales as there should be, but a row's don't stand together. */
    @Test
    void mxfp4WithScalesOfAnotherShapeIsRefused() throws IOException {
        checkpoint(
                compressed("'num_bits': 4, 'type': 'float', 'strategy': 'group', 'group_size': 32"),
                (module, rows, cols) -> {
                    MemorySegment values = MemorySegment.ofArray(new byte[rows * cols / 2]);
                    MemorySegment scales = MemorySegment.ofArray(new byte[rows * cols / 32]);
                    writer.add(module + ".weight_packed", DType.U8, values, rows, cols / 2)
                            .add(module + ".weight_scale", DType.U8, scales, cols / 32, rows);
                    return new double[0][];
                });
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(0))
                    .withMessageContaining("experts.0.gate_proj.weight_scale': expected a scale for each group");
        }
    }

    /** gpt-oss: of all experts in one tensor, gates and ups in turns; exponents are bytes, and nothing else. */
    @ParameterizedTest
    @CsvSource({"U8, false", "F8_E8M0, false", "F32, true", "F8_E4M3, true"})
    void mxfp4OfAllExperts(DType dtype, boolean refused) throws IOException {
        double[][] gateUp = blocks("gate_up_proj", 2 * I, H, dtype);
        double[][] down = blocks("down_proj", H, I, dtype);
        writer.add(BLOCK + "router.weight", scales(E * H), E, H)
                .add(BLOCK + "router.bias", scales(E), E)
                .write(directory.resolve("model.safetensors"));
        Files.writeString(
                directory.resolve("config.json"),
                ("{'model_type': 'gpt_oss', 'num_hidden_layers': 1, 'hidden_size': " + H + ", 'intermediate_size': " + I
                                + ", 'num_local_experts': " + E + ", 'num_experts_per_tok': 1,"
                                + " 'quantization_config': {'quant_method': 'mxfp4'}}")
                        .replace('\'', '"'));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            if (refused) {
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(() -> checkpoint.layer(0))
                        .withMessageContaining(
                                "experts.gate_up_proj_scales': expected dtype U8 or F8_E8M0, got " + dtype);
                return;
            }
            ExpertWeights weights = checkpoint.layer(0);
            assertThat(weights.quantization()).hasToString("w8a16_group of 32");
            float[] row = new float[H];
            for (int r = 0; r < E * 2 * I; r++) {
                weights.gateUpRow(r / (2 * I), r % (2 * I), row);
                assertRow(gateUp[r], row);
            }
            for (int r = 0; r < E * H; r++) {
                weights.downRow(r / H, r % H, row);
                assertRow(down[r], row);
            }
        }
    }

    /** A tensor of every expert's matrix [rows, cols] in blocks of 32, and what it stands for. */
    private double[][] blocks(String name, int rows, int cols, DType dtype) {
        byte[] packed = new byte[E * rows * cols / 2];
        random.nextBytes(packed);
        byte[] scales = new byte[E * rows * cols / 32];
        for (int i = 0; i < scales.length; i++) {
            scales[i] = (byte) (110 + random.nextInt(20));
        }
        String tensor = BLOCK + "experts." + name;
        MemorySegment exponents = MemorySegment.ofArray(dtype == DType.F32 ? new byte[4 * scales.length] : scales);
        writer.add(tensor + "_blocks", DType.U8, MemorySegment.ofArray(packed), E, rows, cols / 32, 16)
                .add(tensor + "_scales", dtype, exponents, E, rows, cols / 32)
                .add(tensor + "_bias", new float[E * rows], E, rows);
        return values(E * rows, cols, (r, c) -> {
            int code = (packed[(r * cols + c) / 2] >> (4 * (c % 2))) & 15;
            return (code < 8 ? 1 : -1) * E2M1[code & 7] * Math.pow(2, (scales[(r * cols + c) / 32] & 0xff) - 127);
        });
    }

    @Test
    void nvfp4DividedByTheScaleOfAll() throws IOException {
        checkpoint(
                compressed("'num_bits': 4, 'type': 'float', 'strategy': 'tensor_group', 'group_size': 16"),
                (module, rows, cols) -> {
                    writer.add(module + ".weight_global_scale", new float[] {8}, 1)
                            .add(module + ".input_global_scale", new float[] {3}, 1);
                    return float4(module, ".weight_packed", rows, cols, 16, 1 / 8f);
                });
        assertRead("w8a16_group of 16", 1e-6);
    }

    @Test
    void nvfp4TimesTheScaleOfAll() throws IOException {
        checkpoint(
                ", 'quantization_config': {'quant_method': 'modelopt', 'quant_algo': 'NVFP4', 'group_size': 16}",
                (module, rows, cols) -> {
                    writer.add(module + ".weight_scale_2", new float[] {0.37f}, new long[0])
                            .add(module + ".input_scale", new float[] {3}, new long[0]);
                    return float4(module, ".weight", rows, cols, 16, 0.37f);
                });
        assertRead("w8a16_group of 16", 1e-6);
    }

    @Test
    void nvfp4WithoutTheScaleOfAllIsRefused() throws IOException {
        checkpoint(
                compressed("'num_bits': 4, 'type': 'float', 'strategy': 'tensor_group', 'group_size': 16"),
                (module, rows, cols) -> float4(module, ".weight_packed", rows, cols, 16, null));
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(0))
                    .withMessageContaining("experts.0.gate_proj.weight_scale': expected one scale above those of the"
                            + " groups, " + BLOCK + "experts.0.gate_proj.weight_scale_2 or weight_global_scale");
        }
    }

    @Test
    void nvfp4WithTwoScalesOfAllIsRefused() throws IOException {
        checkpoint(", 'quantization_config': {'quant_method': 'modelopt'}", (module, rows, cols) -> {
            writer.add(module + ".weight_scale_2", new float[] {0.37f}, 1)
                    .add(module + ".weight_global_scale", new float[] {3}, 1);
            return float4(module, ".weight", rows, cols, 16, 0.37f);
        });
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(0))
                    .withMessageContaining("experts.0.gate_proj.weight_global_scale': expected one scale above those of"
                            + " the groups, found " + BLOCK + "experts.0.gate_proj.weight_scale_2, too");
        }
    }

    /** Loaded without a word about the scheme, what lies on an int8 grid is what is stored. */
    @Test
    void nothingIsLostUnlessAsked() throws IOException {
        checkpoint(
                ", 'quantization_config': {'quant_method': 'gptq', 'bits': 4, 'group_size': 16, 'sym': false}",
                (module, rows, cols) -> gptqModule(module, rows, cols, 4, 16, false, false, "gptq"));
        float[] hidden = scales(3 * H);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory);
                MoeLayer layer = MoeLayer.load(directory, 0, MoeOptions.DEFAULT.withBackend("cpu"))) {
            assertThat(layer.scheme()).isEqualTo(Int8Scheme.W8A16_GROUP);
            double[] stored = Reference.forward(checkpoint.layer(0), hidden, 3).output();
            assertThat(Numerics.relativeL2(Numerics.widen(layer.forward(hidden)), stored))
                    .isLessThan(1e-6);
        }
        try (MoeLayer layer = MoeLayer.load(
                directory, 0, MoeOptions.DEFAULT.withBackend("cpu").withScheme(Int8Scheme.W8A8_CHANNEL))) {
            assertThat(layer.scheme()).isEqualTo(Int8Scheme.W8A8_CHANNEL);
        }
    }

    /** As mixed models are published: another format for the shared expert, which is half as wide again. */
    @ParameterizedTest
    @CsvSource({"nvfp4, w8a16_group of 16", "fp8, w8a8_block 16x24 to the nearest", "gptq, w8a16_group of 16"})
    void sharedExpertsInAnotherFormat(String routed, String scheme) throws IOException {
        for (int e = 0; e < E; e++) {
            for (String name : List.of("gate_proj", "up_proj", "down_proj")) {
                boolean down = name.equals("down_proj");
                int rows = down ? H : I;
                int cols = down ? I : H;
                String module = BLOCK + "experts." + e + "." + name;
                meant.put(
                        e + name,
                        switch (routed) {
                            case "nvfp4" -> {
                                writer.add(module + ".weight_scale_2", new float[] {0.37f}, 1);
                                yield float4(module, ".weight", rows, cols, 16, 0.37f);
                            }
                            case "fp8" ->
                                float8(
                                        module,
                                        DType.F8_E4M3,
                                        rows,
                                        cols,
                                        16,
                                        24,
                                        ".weight_scale_inv",
                                        Math.ceilDiv(rows, 16),
                                        Math.ceilDiv(cols, 24));
                            default -> gptqModule(module, rows, cols, 4, 16, true, false, "gptq");
                        });
            }
        }
        int wide = I + I / 2;
        double[][][] shared = {
            sharedMatrix("gate_proj", wide, H, routed),
            sharedMatrix("up_proj", wide, H, routed),
            sharedMatrix("down_proj", H, wide, routed)
        };
        writer.add(BLOCK + "shared_expert_gate.weight", scales(H), 1, H);
        write(
                "'model_type': 'qwen2_moe', 'moe_intermediate_size': " + I + ", 'shared_expert_intermediate_size': "
                        + wide,
                switch (routed) {
                    case "nvfp4" ->
                        ", 'quantization_config': {'quant_method': 'modelopt', 'quant_algo': 'MIXED_PRECISION'}";
                    case "fp8" ->
                        ", 'quantization_config': {'quant_method': 'fp8', 'weight_block_size': [16, 24],"
                                + " 'modules_to_not_convert': ['shared_expert']}";
                    default -> ", 'quantization_config': {'quant_method': 'gptq', 'bits': 4, 'group_size': 16}";
                });
        assertRead(scheme, routed.equals("fp8") ? 0.02 : 1e-6);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            ExpertWeights weights = checkpoint.layer(0);
            float[] row = new float[H];
            for (int n = 0; n < 2; n++) {
                for (int r = 0; r < 2 * I; r++) {
                    weights.gateUpRow(E + n, r, row);
                    int of = n * I + r % I;
                    assertRow(of < wide ? shared[r / I][of] : new double[H], row);
                }
                for (int r = 0; r < H; r++) {
                    weights.downRow(E + n, r, row);
                    assertRow(
                            Arrays.copyOf(Arrays.copyOfRange(shared[2][r], n * I, wide), Math.min(I, wide - n * I)),
                            row);
                }
            }
        }
    }

    /** FP8 by channel beside NVFP4, floats beside the others. */
    private double[][] sharedMatrix(String name, int rows, int cols, String routed) {
        String module = BLOCK + "shared_expert." + name;
        if (routed.equals("nvfp4")) {
            return float8(module, DType.F8_E4M3, rows, cols, 1, cols, ".weight_scale", rows, 1);
        }
        float[] all = scales(rows * cols);
        writer.add(module + ".weight", all, rows, cols);
        return values(rows, cols, (r, c) -> all[r * cols + c]);
    }

    /** Four bits a value as well, but whole numbers: other scales, other numbers. */
    @Test
    void bytesWithScalesInFloatsAreRefused() throws IOException {
        checkpoint(
                ", 'quantization_config': {'quant_method': 'modelopt', 'quant_algo': 'W4A16_AWQ'}",
                (module, rows, cols) -> {
                    writer.add(
                                    module + ".weight",
                                    DType.U8,
                                    MemorySegment.ofArray(new byte[rows * cols / 2]),
                                    rows,
                                    cols / 2)
                            .add(module + ".weight_scale", scales(rows), rows, 1);
                    return new double[0][0];
                });
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> assertRead("", 0))
                .withMessageContaining("gate_proj.weight_scale': expected dtype F8_E4M3 or F8_E8M0 or U8, got F32");
    }

    // whole numbers

    /** Whole numbers of a few bits with zero points, before they are laid out. */
    private record Numbers(int[][] values, int[][] zeros, float[][] scales, int[] groups) {
        double[][] weights() {
            return StoredFormatsTest.values(
                    values.length,
                    values[0].length,
                    (r, c) -> (values[r][c] - zeros[r][groups[c]]) * (double) scales[r][groups[c]]);
        }
    }

    /** @param zero of all, or -1 for one each */
    private Numbers numbers(int bits, int rows, int cols, int group, int zero, boolean shuffled) {
        int count = Math.ceilDiv(cols, group);
        int[][] values = new int[rows][cols];
        int[][] zeros = new int[rows][count];
        float[][] scales = new float[rows][count];
        for (int r = 0; r < rows; r++) {
            Arrays.setAll(values[r], i -> random.nextInt(1 << bits));
            Arrays.setAll(zeros[r], i -> zero >= 0 ? zero : random.nextInt(1 << bits));
            for (int g = 0; g < count; g++) {
                scales[r][g] = Float.float16ToFloat(Float.floatToFloat16(random.nextFloat() / 100 + 0.001f));
            }
        }
        List<Integer> groups = new ArrayList<>(
                IntStream.range(0, cols).mapToObj(c -> c / group).toList());
        if (shuffled) {
            Collections.shuffle(groups, random);
        }
        return new Numbers(
                values, zeros, scales, groups.stream().mapToInt(g -> g).toArray());
    }

    /** [groups, rows], as GPTQ and AWQ have them. */
    private static float[] transposed(float[][] scales) {
        int rows = scales.length;
        float[] all = new float[rows * scales[0].length];
        for (int i = 0; i < all.length; i++) {
            all[i] = scales[i % rows][i / rows];
        }
        return all;
    }

    @ParameterizedTest
    @CsvSource({
        "4, 16, true, false, gptq",
        "4, 16, false, false, gptq",
        "4, 16, false, false, gptq_v2",
        "4, -1, false, false, gptq",
        "4, 16, true, true, gptq",
        "4, 16, false, true, gptq",
        "2, 32, false, false, gptq",
        "8, 16, false, true, gptq_v2",
        "3, 16, true, false, gptq",
        "3, 16, false, false, gptq",
        "3, 32, false, true, gptq_v2",
        "4, 24, true, false, gptq",
        "4, 24, false, false, gptq_v2"
    })
    void gptq(int bits, int group, boolean symmetric, boolean shuffled, String format) throws IOException {
        checkpoint(
                ", 'quantization_config': {'quant_method': 'gptq', 'bits': " + bits + ", 'group_size': " + group
                        + ", 'sym': " + symmetric + ", 'desc_act': " + shuffled + ", 'checkpoint_format': '" + format
                        + "'}",
                (module, rows, cols) -> gptqModule(module, rows, cols, bits, group, symmetric, shuffled, format));
        String zeroPoints = symmetric ? "" : " with zero points";
        // The groups of whole rows are as long as those of the matrix with the shorter ones; the last may be short.
        String groups = group < 0 ? "a row" : "" + (group == 24 ? 8 : group);
        assertRead("w8a16_group of " + (shuffled ? 1 : groups) + zeroPoints, 1e-6);
    }

    /** Writes the i-th number, bit for bit, of those that begin in a word and go on in every step-th. */
    private static void behind(int[] words, int first, int step, int i, int bits, int value) {
        for (int b = 0; b < bits; b++) {
            int at = i * bits + b;
            words[first + at / 32 * step] |= (value >> b & 1) << (at % 32);
        }
    }

    private double[][] gptqModule(
            String module,
            int rows,
            int cols,
            int bits,
            int group,
            boolean symmetric,
            boolean shuffled,
            String format) {
        int mask = (1 << bits) - 1;
        Numbers n = numbers(bits, rows, cols, group < 0 ? cols : group, symmetric ? 1 << (bits - 1) : -1, shuffled);
        int groups = n.scales[0].length;
        int[] words = new int[cols * bits / 32 * rows];
        int[] zeros = new int[groups * rows * bits / 32];
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < cols; c++) {
                behind(words, r, rows, c, bits, n.values[r][c]);
            }
            for (int g = 0; g < groups; g++) {
                int stored = (n.zeros[r][g] - (format.equals("gptq") ? 1 : 0)) & mask;
                behind(zeros, g * rows * bits / 32, 1, r, bits, stored);
            }
        }
        writer.add(module + ".qweight", words, cols * bits / 32, rows)
                .add(module + ".qzeros", zeros, groups, rows * bits / 32)
                .add(module + ".scales", transposed(n.scales), groups, rows)
                .add(module + ".g_idx", n.groups, cols);
        return n.weights();
    }

    @ParameterizedTest
    @CsvSource({"4, 16, true", "4, -1, true", "4, 32, false", "8, 16, true"})
    void awq(int bits, int group, boolean zeroPoints) throws IOException {
        int perWord = 32 / bits;
        int[] order = bits == 4 ? ORDER : ORDER_OF_8_BITS;
        checkpoint(
                ", 'quantization_config': {'quant_method': 'awq', 'bits': " + bits + ", 'group_size': " + group
                        + ", 'zero_point': " + zeroPoints + ", 'version': 'gemm', 'modules_to_not_convert': ['gate']}",
                (module, rows, cols) -> {
                    Numbers n = numbers(
                            bits, rows, cols, group < 0 ? cols : group, zeroPoints ? -1 : 1 << (bits - 1), false);
                    int groups = n.scales[0].length;
                    int[] words = new int[cols * rows / perWord];
                    int[] zeros = new int[groups * rows / perWord];
                    for (int w = 0; w < rows / perWord; w++) {
                        for (int i = 0; i < perWord; i++) {
                            int row = w * perWord + order[i];
                            for (int c = 0; c < cols; c++) {
                                words[c * rows / perWord + w] |= n.values[row][c] << (bits * i);
                            }
                            for (int g = 0; g < groups; g++) {
                                zeros[g * rows / perWord + w] |= n.zeros[row][g] << (bits * i);
                            }
                        }
                    }
                    writer.add(module + ".qweight", words, cols, rows / perWord)
                            .add(module + ".scales", transposed(n.scales), groups, rows);
                    if (zeroPoints) {
                        writer.add(module + ".qzeros", zeros, groups, rows / perWord);
                    }
                    return n.weights();
                });
        String with = zeroPoints ? " with zero points" : "";
        assertRead("w8a16_group of " + (group < 0 ? "a row" : group) + with, 1e-6);
    }

    @ParameterizedTest
    @CsvSource({
        "4, 16, true, false",
        "4, 16, false, false",
        "4, 16, false, true",
        "4, -1, false, false",
        "2, 16, false, false",
        "1, 16, true, false",
        "3, 16, false, false",
        "5, 16, true, false",
        "6, -1, false, false",
        "7, 16, false, true",
        "4, 24, false, false"
    })
    void packed(int bits, int group, boolean symmetric, boolean shuffled) throws IOException {
        packed(bits, group, symmetric, shuffled, "null");
    }

    /** Scales of 8-bit activations, whatever they are, are none of the weights: they are run with floats. */
    @ParameterizedTest
    @CsvSource({"int, true, token", "float, true, token", "float, false, tensor"})
    void packedForActivationsOf8Bits(String type, boolean dynamic, String strategy) throws IOException {
        packed(
                4,
                16,
                true,
                false,
                "{'num_bits': 8, 'type': '" + type + "', 'symmetric': true, 'dynamic': " + dynamic + ", 'strategy': '"
                        + strategy + "'}");
    }

    private void packed(int bits, int group, boolean symmetric, boolean shuffled, String activations)
            throws IOException {
        int perWord = 32 / bits;
        checkpoint(
                ", 'quantization_config': {'quant_method': 'compressed-tensors', 'format': 'pack-quantized',"
                        + " 'config_groups': {'group_0': {'targets': ['Linear'], 'weights': {'num_bits': " + bits
                        + ", 'type': 'int', 'symmetric': " + symmetric + ", 'group_size': " + group
                        + ", 'actorder': null}, 'input_activations': " + activations + "}}}",
                (module, rows, cols) -> {
                    Numbers n = numbers(
                            bits, rows, cols, group < 0 ? cols : group, symmetric ? 1 << (bits - 1) : -1, shuffled);
                    int groups = n.scales[0].length;
                    int wide = Math.ceilDiv(cols, perWord);
                    int high = Math.ceilDiv(rows, perWord);
                    int[] words = new int[rows * wide];
                    int[] zeros = new int[high * groups];
                    float[] scales = new float[rows * groups];
                    for (int r = 0; r < rows; r++) {
                        for (int c = 0; c < cols; c++) {
                            words[r * wide + c / perWord] |= n.values[r][c] << (bits * (c % perWord));
                        }
                        for (int g = 0; g < groups; g++) {
                            zeros[r / perWord * groups + g] |= n.zeros[r][g] << (bits * (r % perWord));
                            scales[r * groups + g] = n.scales[r][g];
                        }
                    }
                    writer.add(module + ".weight_packed", words, rows, wide)
                            .add(module + ".weight_scale", scales, rows, groups)
                            .add(module + ".weight_shape", new int[] {rows, cols}, 2);
                    if (!symmetric) {
                        writer.add(module + ".weight_zero_point", zeros, high, groups);
                    }
                    if (activations.contains("false")) {
                        writer.add(module + ".input_scale", new float[] {0.1f}, 1);
                    }
                    if (shuffled) {
                        writer.add(module + ".weight_g_idx", n.groups, cols);
                    }
                    return n.weights();
                });
        String zeroPoints = symmetric ? "" : " with zero points";
        String groups = group < 0 ? "a row" : "" + (group == 24 ? 8 : group);
        assertRead("w8a16_group of " + (shuffled ? 1 : groups) + zeroPoints, 1e-6);
    }
}
