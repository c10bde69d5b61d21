package org.tornadomoe.checkpoint.weights;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.SmallFloats;

/** One matrix, {@code m}, in a file of its own. */
class MatrixReaderTest {
    private static final String CHANNEL = "'weights': {'num_bits': 8, 'type': 'int', 'strategy': 'channel'}";
    private static final byte[] VALUES = {1, -2, 3, -4, 5, -6, 7, -8};

    @TempDir
    Path directory;

    private final SafetensorsWriter file = new SafetensorsWriter();

    private @Nullable WeightQuantization quantization(String json) throws IOException {
        String config = "{'quantization_config': {" + json + "}}";
        return QuantizationConfig.of(
                JsonFile.read(Files.writeString(directory.resolve("config.json"), config.replace('\'', '"'))));
    }

    private static String compressedTensors(String arguments) {
        return "'quant_method': 'compressed-tensors', 'format': 'int-quantized', 'config_groups': {'group_0': {"
                + "'targets': ['Linear'], " + arguments + "}}";
    }

    private Safetensors written() {
        Path path = directory.resolve("model.safetensors");
        file.write(path);
        return Safetensors.open(path);
    }

    /** The values of [2, 4], and the activations' scale if there is one. */
    private float[] read(String json, @Nullable Float inputScale) throws IOException {
        try (Safetensors tensors = written()) {
            Matrix matrix = new MatrixReader(new BlockTensors(tensors), quantization(json)).read("m", 2, 4);
            assertThat(requireNonNull(matrix.int8()).stored().inputScale()).isEqualTo(inputScale);
            float[] all = new float[8];
            float[] row = new float[4];
            for (int r = 0; r < 2; r++) {
                matrix.row(r, row);
                System.arraycopy(row, 0, all, 4 * r, 4);
            }
            return all;
        }
    }

    private void refused(String json, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> read(json, null))
                .withMessageContaining(message);
    }

    private void channels() {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[] {0.5f, 2}, 2, 1);
    }

    @Test
    void symmetricWeightsMayHaveZeroPointsOfZero() throws IOException {
        channels();
        file.add("m.weight_zero_point", new byte[2], 2, 1);
        assertThat(read(compressedTensors(CHANNEL), null)).containsExactly(0.5f, -1, 1.5f, -2, 10, -12, 14, -16);
    }

    @Test
    void symmetricWeightsHaveNoOtherZeroPoints() {
        channels();
        file.add("m.weight_zero_point", new byte[] {0, 3}, 2, 1);
        refused(
                compressedTensors(CHANNEL),
                "tensor 'm.weight_zero_point': expected zeros, since the configuration says that the weights are"
                        + " symmetric, got 3");
    }

    @Test
    void thereIsAZeroPointForEachScale() {
        channels();
        file.add("m.weight_zero_point", new byte[3], 3);
        refused(compressedTensors(CHANNEL), "expected 2 x 1 zero points, got m.weight_zero_point I8[3]");
    }

    @Test
    void aGroupHasAScaleAndAZeroPoint() throws IOException {
        file.add("m.weight", VALUES, 2, 4)
                .add("m.weight_scale", new float[] {1, 2, 4, 8}, 2, 2)
                .add("m.weight_zero_point", new byte[] {1, -2, 3, 0}, 2, 2);
        String groups = "'weights': {'num_bits': 8, 'type': 'int', 'strategy': 'group', 'group_size': 2,"
                + " 'symmetric': false}";
        assertThat(read(compressedTensors(groups), null)).containsExactly(0, -3, 10, -4, 8, -36, 56, -64);
    }

    /** What the tensors tell is read only if the configuration may be. */
    @Test
    void floatsOf4BitsWithoutScalesInTheFileAreRefused() {
        file.add("m.weight_packed", DType.U8, MemorySegment.ofArray(new byte[4]), 2, 2)
                .add("m.weight_scale", DType.F8_E8M0, MemorySegment.ofArray(new byte[2]), 2, 1);
        refused(
                compressedTensors("'weights': {'num_bits': 4, 'type': 'float', 'strategy': 'group', 'group_size': 4,"
                        + " 'dynamic': true}"),
                "'weights': 'dynamic': expected false, got true");
    }

    /** Groups of columns in another order, whose order is nowhere. */
    @ParameterizedTest
    @CsvSource({"'group', true", "'dynamic', true", "true, true", "'weight', false", "'static', false", "false, false"})
    void anOrderThatIsSaidHasToBeThere(String order, boolean refused) throws IOException {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[] {1, 2, 4, 8}, 2, 2);
        String said = compressedTensors("'weights': {'strategy': 'group', 'group_size': 2, 'actorder': "
                + (order.matches("true|false") ? order : "'" + order + "'") + "}");
        if (refused) {
            refused(said, "tensor 'm.weight_g_idx' is missing: expected the group of each column");
        } else {
            assertThat(read(said, null)).containsExactly(1, -2, 6, -8, 20, -24, 56, -64);
        }
    }

    @Test
    void anOrderOfAnotherKindIsRefused() {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[] {1, 2, 4, 8}, 2, 2);
        refused(
                compressedTensors("'weights': {'strategy': 'group', 'group_size': 2, 'actorder': 'row'}"),
                "'actorder': expected group, dynamic, weight, static or null, got row");
    }

    @ParameterizedTest
    @CsvSource({"true, 2, true", "true, 4, false", "true, -1, false", "false, 2, false"})
    void gptqsOrderHasToBeThereWhereThereAreGroups(boolean ordered, int group, boolean refused) throws IOException {
        int[] words = new int[4];
        Arrays.fill(words, 0x84838281);
        float[] scales = new float[group == 2 ? 8 : 4];
        Arrays.fill(scales, 1);
        file.add("m.qweight", words, 1, 4).add("m.scales", scales, scales.length / 4, 4);
        String gptq = "'quant_method': 'gptq', 'bits': 8, 'desc_act': " + ordered + ", 'group_size': " + group;
        try (Safetensors tensors = written()) {
            MatrixReader reader = new MatrixReader(new BlockTensors(tensors), quantization(gptq));
            if (refused) {
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(() -> reader.read("m", 4, 4))
                        .withMessageContaining("tensor 'm.g_idx' is missing: expected the group of each column");
            } else {
                float[] row = new float[4];
                reader.read("m", 4, 4).row(3, row);
                assertThat(row).containsExactly(1, 2, 3, 4);
            }
        }
    }

    @Test
    void modelOptsScalesOfBlocksHaveFourDimensions() throws IOException {
        // Blocks of 128 x 128 of a matrix [128, 16384]: as many scales as there are rows.
        byte[] ones = new byte[128 * 16384];
        Arrays.fill(ones, (byte) 0x38);
        float[] scales = new float[128];
        for (int i = 0; i < 128; i++) {
            scales[i] = i + 1;
        }
        file.add("m.weight", DType.F8_E4M3, MemorySegment.ofArray(ones), 128, 16384)
                .add("m.weight_scale", scales, 1, 1, 128, 1);
        try (Safetensors tensors = written()) {
            float[] row = new float[16384];
            new MatrixReader(new BlockTensors(tensors), quantization("'quant_method': 'modelopt'"))
                    .read("m", 128, 16384)
                    .row(5, row);
            assertThat(row[0]).isEqualTo(1);
            assertThat(row[16383]).isEqualTo(128);
        }
    }

    private static String known(boolean symmetric) {
        return "'weights': {'num_bits': 8, 'type': 'int', 'strategy': 'tensor'}, 'input_activations': {'num_bits': 8,"
                + " 'type': 'int', 'strategy': 'tensor', 'dynamic': false, 'symmetric': " + symmetric + "}";
    }

    @Test
    void aScaleOfActivationsThatIsKnownIsRead() throws IOException {
        file.add("m.weight", VALUES, 2, 4)
                .add("m.weight_scale", new float[] {2}, 1)
                .add("m.input_scale", new float[] {0.25f}, 1)
                .add("m.input_zero_point", new byte[1], 1);
        assertThat(read(compressedTensors(known(true)), 0.25f)).containsExactly(2, -4, 6, -8, 10, -12, 14, -16);
    }

    @Test
    void symmetricActivationsHaveNoZeroPoint() {
        file.add("m.weight", VALUES, 2, 4)
                .add("m.weight_scale", new float[] {2}, 1)
                .add("m.input_scale", new float[] {0.25f}, 1)
                .add("m.input_zero_point", new byte[] {5}, 1);
        refused(
                compressedTensors(known(true)),
                "tensor 'm.input_zero_point': expected 0, since the configuration says that the activations are"
                        + " symmetric, got 5");
    }

    @ParameterizedTest
    @CsvSource(
            quoteCharacter = '`',
            value = {
                "weight, I8, 3, 5, `'quant_method': 'compressed-tensors'`, 3, 5",
                "weight_packed, U8, 3, 5, `'quant_method': 'compressed-tensors'`, 3, 10",
                "weight_packed, I32, 3, 5, `'quant_method': 'compressed-tensors'`, 3, 20",
                "qweight, I32, 3, 5, `'quant_method': 'gptq', 'bits': 8, 'group_size': 32`, 5, 12",
                "qweight, I32, 3, 5, `'quant_method': 'gptq', 'bits': 4, 'group_size': 32`, 5, 24",
                "qweight, I32, 3, 5, `'quant_method': 'awq', 'bits': 4, 'group_size': 32`, 40, 3",
            })
    void theShapeFollowsFromWhatIsStored(
            String suffix, DType dtype, int stored, int wide, String json, int rows, int cols) throws IOException {
        String config = json.contains("compressed") ? compressedTensors(CHANNEL) : json;
        file.add("m." + suffix, dtype, MemorySegment.ofArray(new byte[stored * wide * dtype.bytes()]), stored, wide);
        try (Safetensors tensors = written()) {
            int[] shape = new MatrixReader(new BlockTensors(tensors), quantization(config)).shape("m");
            assertThat(shape).containsExactly(rows, cols);
        }
    }

    @Test
    void theShapeThatIsToldCountsFirst() throws IOException {
        file.add("m.weight_shape", new int[] {7, 9}, 2).add("m.weight_packed", new int[21], 7, 3);
        try (Safetensors tensors = written()) {
            assertThat(new MatrixReader(new BlockTensors(tensors), null).shape("m"))
                    .containsExactly(7, 9);
        }
    }

    @ParameterizedTest
    @CsvSource({"0, 4", "4, 0", "-1, 4"})
    void aShapeIsOfPositiveNumbers(int rows, int cols) {
        file.add("m.weight_shape", new int[] {rows, cols}, 2);
        try (Safetensors tensors = written()) {
            MatrixReader reader = new MatrixReader(new BlockTensors(tensors), null);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> reader.shape("m"))
                    .withMessageContaining(
                            "tensor 'm.weight_shape': expected rows and columns, got [" + rows + ", " + cols + "]");
        }
    }

    @Test
    void aMatrixHasTwoDimensions() {
        file.add("m.weight", new byte[8], 2, 2, 2)
                .add("n.weight", new byte[0], 0, 3)
                .add("o.weight", new byte[1], 1, 1);
        try (Safetensors tensors = written()) {
            MatrixReader reader = new MatrixReader(new BlockTensors(tensors), null);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> reader.shape("m"))
                    .withMessageContaining("expected rows and columns, got m.weight I8[2, 2, 2]");
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> reader.shape("n"))
                    .withMessageContaining("expected rows and columns, got n.weight I8[0, 3]");
            assertThat(reader.shape("o")).containsExactly(1, 1);
        }
    }

    /** Of 8-bit floats zero points are allowed where they say nothing. */
    @Test
    void floatsHaveNoZeroPoints() throws IOException {
        file.add("m.weight", DType.F8_E4M3, MemorySegment.ofArray(new byte[] {0x38, 0x40}), 1, 2)
                .add("m.weight_scale", new float[] {2}, 1)
                .add("m.weight_zero_point", new float[] {0}, 1)
                .add("n.weight", DType.F8_E4M3, MemorySegment.ofArray(new byte[2]), 1, 2)
                .add("n.weight_scale", new float[] {2}, 1)
                .add("n.weight_zero_point", new float[] {1}, 1);
        try (Safetensors tensors = written()) {
            MatrixReader reader = new MatrixReader(new BlockTensors(tensors), null);
            float[] row = new float[2];
            reader.read("m", 1, 2).row(0, row);
            assertThat(row).containsExactly(2, 4);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> reader.read("n", 1, 2))
                    .withMessageContaining("tensor 'n.weight_zero_point': expected zeros, since floats have no zero"
                            + " points, got 1.0");
        }
    }

    /**
     * Rows of 4 bits that are read together are those read one by one, which are what lies in their place; of sizes
     * that are no multiples of what is read at once.
     */
    @ParameterizedTest
    @CsvSource({"gptq, 40, 48", "gptq, 8, 8", "awq, 40, 48", "awq, 24, 24", "packed, 21, 43", "nvfp4, 21, 36"})
    void rowsReadTogetherAreThoseReadOneByOne(String form, int rows, int cols) throws IOException {
        byte[] bytes = new byte[form.equals("packed") ? rows * Math.ceilDiv(cols, 8) * 4 : rows * cols / 2];
        new Random(rows + cols).nextBytes(bytes);
        MemorySegment data = MemorySegment.ofArray(bytes);
        float[] scales = new float[rows];
        Arrays.fill(scales, 1);
        String json = switch (form) {
            case "gptq", "awq" -> {
                boolean gptq = form.equals("gptq");
                file.add("m.qweight", DType.I32, data, gptq ? cols / 8 : cols, gptq ? rows : rows / 8)
                        .add("m.scales", scales, 1, rows);
                yield "'quant_method': '" + form + "', 'bits': 4, 'group_size': -1, "
                        + (gptq ? "'sym': true" : "'zero_point': false, 'version': 'gemm'");
            }
            case "packed" -> {
                file.add("m.weight_packed", DType.I32, data, rows, Math.ceilDiv(cols, 8))
                        .add("m.weight_scale", scales, rows, 1);
                yield compressedTensors("'weights': {'num_bits': 4, 'type': 'int', 'strategy': 'channel'}");
            }
            default -> {
                byte[] ones = new byte[rows * 3];
                Arrays.fill(ones, (byte) 0x38);
                file.add("m.weight", DType.U8, data, rows, cols / 2)
                        .add("m.weight_scale", DType.F8_E4M3, MemorySegment.ofArray(ones), rows, 3)
                        .add("m.weight_scale_2", new float[] {1});
                yield "'quant_method': 'modelopt'";
            }
        };
        try (Safetensors tensors = written()) {
            Matrix matrix = new MatrixReader(new BlockTensors(tensors), quantization(json)).read("m", rows, cols);
            Matrix.Int8.RowReader values = requireNonNull(matrix.int8()).values();
            byte[][] expected = new byte[rows][cols];
            for (int r = 0; r < rows; r++) {
                for (int c = 0; c < cols; c++) {
                    int nibble = switch (form) { // in halves of bytes
                        case "gptq" -> (c / 8 * rows + r) * 8 + c % 8;
                        case "awq" -> (c * rows / 8 + r / 8) * 8 + (r % 2 == 0 ? r % 8 / 2 : 4 + r % 8 / 2);
                        case "packed" -> r * Math.ceilDiv(cols, 8) * 8 + c;
                        default -> r * cols + c;
                    };
                    int bits = (bytes[nibble / 2] >> (4 * (nibble % 2))) & 0xf;
                    expected[r][c] = (byte) (form.equals("nvfp4") ? SmallFloats.HALF_STEPS[bits] : bits - 8);
                }
                byte[] row = new byte[cols + 3];
                values.read(r, row, 2);
                assertThat(Arrays.copyOfRange(row, 2, cols + 2)).isEqualTo(expected[r]);
                assertThat(row[0] + row[1] + row[cols + 2]).as("around it").isZero();
            }
            for (int count : new int[] {1, 5, 8, 16}) {
                byte[] several = new byte[count * cols];
                for (int first = 0; first + count <= rows; first += Math.min(count, 8)) {
                    values.read(first, count, cols, several);
                    for (int i = 0; i < count; i++) {
                        assertThat(Arrays.copyOfRange(several, i * cols, (i + 1) * cols))
                                .as("row %s of %s from %s", i, count, first)
                                .isEqualTo(expected[first + i]);
                    }
                }
            }
        }
    }

    /** Words of MLX, and scales, of a matrix [1, 32]. */
    private void mlx(int words, DType scale, int scales) {
        file.add("m.weight", DType.U32, MemorySegment.ofArray(new byte[4 * words]), 1, words)
                .add("m.scales", scale, MemorySegment.ofArray(new byte[scale.bytes() * scales]), 1, scales);
    }

    private void mlxRefused(String message) {
        try (Safetensors tensors = written()) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> new MatrixReader(new BlockTensors(tensors), null).read("m", 1, 32))
                    .withMessageContaining(message);
        }
    }

    @Test
    void mlxHasNo7Bits() {
        mlx(7, DType.F32, 1);
        mlxRefused("tensor 'm.weight': expected 2, 3, 4, 5, 6 or 8 bits for each of the 32 columns of 1 rows, got"
                + " m.weight U32[1, 7]");
    }

    @ParameterizedTest
    @CsvSource({"4, F32, 1", "4, U8, 4", "8, U8, 2", "2, U8, 1", "2, U8, 2"})
    void mlxWithoutOffsetsIsOfSmallFloats(int words, DType scale, int scales) {
        mlx(words, scale, scales);
        mlxRefused("tensor 'm.scales': expected m.biases beside it, or scales (U8) of MXFP4, MXFP8 or NVFP4, got"
                + " m.scales " + scale + "[1, " + scales + "]");
    }

    @ParameterizedTest
    @ValueSource(ints = {0, 3, 64})
    void mlxHasScalesOfGroups(int scales) {
        mlx(4, DType.F32, scales);
        file.add("m.biases", new float[scales], 1, scales);
        mlxRefused(
                "tensor 'm.scales': expected a scale for each group of the 32 columns of 1 rows, got m.scales F32[1, "
                        + scales + "]");
    }

    private void wholeWords(String json, int rows, int cols, String message) throws IOException {
        WeightQuantization quantization = quantization(json);
        try (Safetensors none = written()) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> new MatrixReader(new BlockTensors(none), quantization).read("q", rows, cols))
                    .withMessageContaining("'q': expected " + message);
        }
    }

    /** GPTQ's and AWQ's words have no room for a part of one. */
    @Test
    void wordsAreWhole() throws IOException {
        String gptq = "'quant_method': 'gptq', 'sym': true, 'group_size': -1, 'bits': ";
        wholeWords(gptq + 4, 6, 8, "rows in multiples of 8, got 6 x 8");
        wholeWords(gptq + 4, 8, 6, "columns in multiples of 8, got 8 x 6");
        wholeWords(gptq + 3, 48, 32, "rows in multiples of 32, got 48 x 32");
        wholeWords(gptq + 3, 32, 48, "columns in multiples of 32, got 32 x 48");
        wholeWords(gptq + 8, 6, 4, "rows in multiples of 4, got 6 x 4");
        wholeWords("'quant_method': 'awq', 'bits': 4, 'group_size': -1", 12, 8, "rows in multiples of 8, got 12 x 8");
    }

    private static final String QUARK = "'quant_method': 'quark'";

    /** Quark's whole numbers: what shares a scale is what the scales' number says. */
    @Test
    void quarksScalesAreOfTheMatrixOfARowOrOfAGroup() throws IOException {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[] {0.5f}, 1);
        assertThat(read(QUARK, null)).containsExactly(0.5f, -1, 1.5f, -2, 2.5f, -3, 3.5f, -4);
    }

    @Test
    void quarksScalesOfGroups() throws IOException {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[] {1, 2, 4, 8}, 2, 2);
        assertThat(read(QUARK, null)).containsExactly(1, -2, 6, -8, 20, -24, 56, -64);
    }

    @Test
    void quarksScalesOfRowsWithZeroPoints() throws IOException {
        file.add("m.weight", VALUES, 2, 4)
                .add("m.weight_scale", new float[] {1, 2}, 2, 1)
                .add("m.weight_zero_point", new byte[] {1, -1}, 2, 1);
        assertThat(read(QUARK, null)).containsExactly(0, -3, 2, -5, 12, -10, 16, -14);
    }

    private static String quark(String weight) {
        return QUARK + ", 'global_quant_config': {'weight': {" + weight + "}}";
    }

    /** Groups are of a transposed matrix; scales are so, too, or in older files not. */
    @Test
    void quarksGroupsAreOfColumns() throws IOException {
        String groups = quark("'dtype': 'int8', 'qscheme': 'per_group', 'group_size': 4, 'ch_axis': 1");
        file.add("m.weight", new byte[] {1, 5, -2, -6, 3, 7, -4, -8}, 4, 2)
                .add("m.weight_scale", new float[] {1, 2}, 2, 1);
        assertThat(read(groups, null)).containsExactly(1, -2, 3, -4, 10, -12, 14, -16);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'dtype': 'int8', 'is_dynamic': true | 'is_dynamic': expected false, got true",
                "'dtype': 'int8', 'qscheme': 'per_channel', 'ch_axis': 1 | 'ch_axis': expected 0 of channels",
                "'dtype': 'int8', 'qscheme': 'per_group', 'ch_axis': 0, 'group_size': 2 | 'ch_axis': expected 0 of"
                        + " channels",
                "'dtype': 'fp4', 'scale_format': 'e5m3' | 'scale_format': expected e8m0 or float32, got e5m3",
                "'dtype': 'int3' | 'dtype': expected int4, uint4, int8, uint8 or small floats, got int3",
                "'dtype': 'int8', 'qscheme': 'per_group', 'group_size': 2 | expected another number of groups of"
                        + " columns",
                "'dtype': 'uint8' | expected dtype U8, got I8",
                "'dtype': 'int4' | expected columns in multiples of 8, got 2 x 4",
            })
    void whatQuarkSaysHasToBeRight(String weight, String message) {
        file.add("m.weight", VALUES, weight.contains("per_group") ? 4 : 2, weight.contains("per_group") ? 2 : 4)
                .add("m.weight_scale", new float[] {1, 2, 4, 8}, 2, 2);
        refused(quark(weight), message);
    }

    @Test
    void quarksOutputsAndRotationsAreNotRead() {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[] {1, 2}, 2, 1);
        refused(
                QUARK + ", 'global_quant_config': {'weight': {'dtype': 'int8'}, 'output_tensors': {'dtype': 'int8'}}",
                "'output_tensors': expected null, quantised outputs are not read");
        refused(
                quark("'dtype': 'int8'") + ", 'algo_config': [{'name': 'rotation'}]",
                "'algo_config': rotations of activations are not read");
        refused(
                quark("'dtype': 'int8'") + ", 'export': {'pack_method': 'zigzag'}",
                "'pack_method': expected reorder or order, got zigzag");
    }

    /** A pattern is a shell's, and counts before the rest. */
    @Test
    void quarksModulesMayDiffer() throws IOException {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[] {1, 2}, 2, 1);
        String rest = quark("'dtype': 'int3'") + ", 'layer_quant_config': {'x.*': {'weight': {'dtype': 'int2'}}, '?': ";
        String rows = "{'weight': {'dtype': 'int8', 'qscheme': 'per_channel', 'ch_axis': 0}}}";
        assertThat(read(rest + rows, null)).containsExactly(1, -2, 3, -4, 10, -12, 14, -16);
    }

    @ParameterizedTest
    @ValueSource(ints = {0, 6})
    void quarksScalesOfNoWholeGroupsAreRefused(int scales) {
        file.add("m.weight", VALUES, 2, 4).add("m.weight_scale", new float[scales], 2, scales / 2);
        refused(QUARK, "tensor 'm.weight_scale': expected one scale, or one or more for each of 2 rows, got");
    }

    @Test
    void aShapeIsToldByTheFile() {
        file.add("m.weight_shape", new int[] {1, 1}, 2);
        try (Safetensors tensors = written()) {
            assertThat(new MatrixReader(new BlockTensors(tensors), null).shape("m"))
                    .containsExactly(1, 1);
        }
    }

    /** Two a byte, also where the bytes are called whole numbers: their scales are exponents. */
    @ParameterizedTest
    @ValueSource(strings = {"U8", "I8"})
    void floatsOf4BitsAreKnownByTheirScales(DType dtype) {
        byte[] codes = new byte[16];
        Arrays.fill(codes, (byte) 0x42); // 1 and 2
        file.add("m.weight", dtype, MemorySegment.ofArray(codes), 1, 16)
                .add("m.weight_scale", DType.F8_E8M0, MemorySegment.ofArray(new byte[] {(byte) 129}), 1, 1);
        try (Safetensors tensors = written()) {
            float[] row = new float[32];
            new MatrixReader(new BlockTensors(tensors), null).read("m", 1, 32).row(0, row);
            for (int c = 0; c < 32; c++) {
                assertThat(row[c]).isEqualTo(c % 2 == 0 ? 4 : 8);
            }
        }
    }

    @Test
    void wholeNumbersOfWhichNothingIsSaidAreRefused() {
        file.add("m.weight", VALUES, 2, 4);
        try (Safetensors tensors = written()) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> new MatrixReader(new BlockTensors(tensors), null).read("m", 2, 4))
                    .withMessageContaining("tensor 'm.weight': expected dtype F64 or F32 or F16 or BF16, got I8");
        }
    }

    /** Beside a tensor of all experts, whose name they begin with; in the module, or at the end of the name. */
    @ParameterizedTest
    @ValueSource(strings = {"e_scale", "e.scale", "e_weight_scale_inv", "e.weight_scale"})
    void scalesOfAllExperts(String name) {
        file.add(name, new float[] {3}, 1)
                .add("e_input_scale", new float[] {1}, 1)
                .add("e.input_scale", new float[] {1}, 1);
        try (Safetensors tensors = written()) {
            BlockTensors block = new BlockTensors(tensors);
            assertThat(new MatrixReader(block, null).scaleOf("e").name()).isEqualTo(name);
            block.requireAllTaken("e"); // and those of activations
        }
    }

    @Test
    void scalesOfAllExpertsMayBeMissing() {
        file.add("other", new float[] {3}, 1);
        try (Safetensors tensors = written()) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> new MatrixReader(new BlockTensors(tensors), null).scaleOf("e"))
                    .withMessageContaining("e_weight_scale_inv");
        }
    }

    @Test
    void quarksScalesOfActivationsAreTaken() throws IOException {
        channels();
        file.add("m.input_scale", new float[] {1}, 1);
        try (Safetensors tensors = written()) {
            BlockTensors block = new BlockTensors(tensors);
            new MatrixReader(block, quantization(QUARK)).read("m", 2, 4);
            block.requireAllTaken("m.");
        }
    }

    /** Greatest values of rows, and an order of rows that is that of the shape. */
    @ParameterizedTest
    @CsvSource({"-1, true", "0, true", "1, false"})
    void bitsAndBytesOf8Bits(int format, boolean fits) {
        file.add("m.weight", VALUES, 2, 4).add("m.SCB", new float[] {127, 254}, 2);
        if (format >= 0) {
            file.add("m.weight_format", new byte[] {(byte) format}, 1);
        }
        try (Safetensors tensors = written()) {
            MatrixReader reader = new MatrixReader(new BlockTensors(tensors), null);
            assertThat(reader.shape("m")).containsExactly(2, 4);
            if (fits) {
                float[] row = new float[4];
                reader.read("m", 2, 4).row(1, row);
                assertThat(row).containsExactly(10, -12, 14, -16);
            } else {
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(() -> reader.read("m", 2, 4))
                        .withMessageContaining("expected 0 (row), got 1");
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"'[1, 1]', true", "'[3, 5]', true", "'[0, 5]', false", "'[3, 0]', false", "'[3, 5, 1]', false"})
    void bitsAndBytesTellsTheShapeOf4Bits(String shape, boolean fits) {
        byte[] state = ("{\"shape\": " + shape + "}").getBytes(StandardCharsets.UTF_8);
        file.add("m.weight.quant_state.bitsandbytes__nf4", DType.U8, MemorySegment.ofArray(state), state.length);
        try (Safetensors tensors = written()) {
            MatrixReader reader = new MatrixReader(new BlockTensors(tensors), null);
            if (fits) {
                assertThat(Arrays.toString(reader.shape("m"))).isEqualTo(shape);
            } else {
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(() -> reader.shape("m"))
                        .withMessageContaining("'shape': expected rows and columns, got " + shape);
            }
        }
    }
}
