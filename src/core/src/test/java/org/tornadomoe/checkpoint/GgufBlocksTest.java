package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.GgmlType;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.GgufWriter;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SmallFloats;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.checkpoint.weights.ScaledFloats;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;

/** Layers of GGUF files whose matrices are blocks that ggml has quantised. */
class GgufBlocksTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden/ggml/blocks.safetensors");

    /** Experts, hidden and intermediate size: every row is two of the golden file's parts. */
    private static final int E = 2;

    private static final int H = 512;
    private static final int I = 256;

    private static Safetensors golden;

    @TempDir
    Path directory;

    @BeforeAll
    static void open() {
        golden = Safetensors.open(GOLDEN);
    }

    @AfterAll
    static void close() {
        golden.close();
    }

    private static Stream<GgmlType> types() {
        return Arrays.stream(GgmlType.values()).filter(type -> type.group > 0);
    }

    /** Matrices of 256 columns a piece: the first two pieces of the golden file by turns, then the first again. */
    private static int piece(int n) {
        return n % 3 % 2;
    }

    private static GgufWriter add(GgufWriter writer, String name, GgmlType type, long... shape) {
        int pieces = (int) (Arrays.stream(shape).reduce(1, (a, b) -> a * b) / 256);
        int bytes = 256 / type.elements * type.bytes;
        byte[] data = new byte[pieces * bytes];
        byte[] blocks = golden.tensor(type + ".bytes").toBytes();
        for (int n = 0; n < pieces; n++) {
            System.arraycopy(blocks, piece(n) * bytes, data, n * bytes, bytes);
        }
        return writer.raw(name, type, data, shape);
    }

    /** A row of such a matrix, by ggml. */
    private static float[] row(GgmlType type, int cols, int row) {
        float[] values = new float[cols];
        Tensor pieces = golden.tensor(type + ".values");
        for (int c = 0; c < cols; c += 256) {
            pieces.readFloats(256L * piece((row * cols + c) / 256), values, c, 256);
        }
        return values;
    }

    private static GgufWriter layer(GgmlType gate, GgmlType up, GgmlType down) {
        GgufWriter writer = new GgufWriter()
                .text("general.architecture", "qwen2moe")
                .number("qwen2moe.block_count", 1)
                .number("qwen2moe.embedding_length", H)
                .number("qwen2moe.expert_count", E)
                .number("qwen2moe.expert_used_count", 1)
                .tensor("blk.0.ffn_gate_inp.weight", GgmlType.F32, new float[E * H], E, H);
        add(writer, "blk.0.ffn_gate_exps.weight", gate, E, I, H);
        add(writer, "blk.0.ffn_up_exps.weight", up, E, I, H);
        return add(writer, "blk.0.ffn_down_exps.weight", down, E, H, I);
    }

    private MoeCheckpoint write(GgufWriter writer) {
        Path file = directory.resolve("model.gguf");
        writer.write(file);
        return MoeCheckpoint.open(file);
    }

    private static float[] gateUpRow(ExpertWeights weights, int expert, int row) {
        float[] values = new float[H];
        weights.gateUpRow(expert, row, values);
        return values;
    }

    private static float[] downRow(ExpertWeights weights, int expert, int row) {
        float[] values = new float[I];
        weights.downRow(expert, row, values);
        return values;
    }

    private static float[] dequantized(Int8Tensor tensor, int expert, int row) {
        float[] values = new float[tensor.cols()];
        for (int c = 0; c < values.length; c++) {
            values[c] = (tensor.get(expert, row, c) - tensor.zeroPoint(expert, row, c)) * tensor.scale(expert, row, c);
        }
        return values;
    }

    @ParameterizedTest
    @MethodSource("types")
    void whatLiesOnAGridIsKeptAndTheRestQuantizedInItsGroups(GgmlType type) {
        try (MoeCheckpoint checkpoint = write(layer(type, type, type))) {
            ExpertWeights weights = checkpoint.layer(0);
            assertThat(weights instanceof QuantizedWeights).isEqualTo(!type.hasMin());
            assertThat(weights.quantization().scheme()).isEqualTo(Int8Scheme.W8A16_GROUP);
            assertThat(weights.quantization().grid()).isEqualTo(new GroupShape(1, type.group));
            assertThat(checkpoint.bytes(0)).containsEntry(type.name(), 3L * E * H * I / type.elements * type.bytes);
            try (Int8Experts int8 = QuantizedWeights.int8(weights, weights.quantization(), Progress.NONE)) {
                for (int e = 0; e < E; e++) {
                    for (int r = 0; r < H; r += 5) {
                        float[] gateUp = row(type, H, e * I + r % I);
                        float[] down = row(type, I, e * H + r);
                        assertThat(gateUpRow(weights, e, r)).isEqualTo(gateUp);
                        assertThat(downRow(weights, e, r)).isEqualTo(down);
                        assertNear(dequantized(int8.w13(), e, r), gateUp, type);
                        assertNear(dequantized(int8.w2(), e, r), down, type);
                    }
                }
            }
        }
    }

    private static void assertNear(float[] actual, float[] expected, GgmlType type) {
        for (int from = 0; from < actual.length; from += type.group) {
            float most = 0;
            for (int i = from; i < from + type.group; i++) {
                most = Math.max(most, Math.abs(expected[i]));
            }
            for (int i = from; i < from + type.group; i++) {
                assertThat(Math.abs(actual[i] - expected[i]))
                        .isLessThanOrEqualTo(type.hasMin() ? most / 127 * 0.501f : 0);
            }
        }
    }

    /** As in files of type Q4_K_M, and with a shared expert and router of blocks, too. */
    @Test
    void aLayerMayHaveSeveralTypes() {
        GgufWriter writer = layer(GgmlType.Q4_K, GgmlType.IQ4_XS, GgmlType.Q6_K);
        writer.tensors.removeIf(tensor -> tensor.name().contains("inp"));
        add(writer, "blk.0.ffn_gate_inp.weight", GgmlType.Q5_1, E, H);
        add(writer, "blk.0.ffn_gate_shexp.weight", GgmlType.Q8_0, I, H);
        add(writer, "blk.0.ffn_up_shexp.weight", GgmlType.Q5_0, I, H);
        add(writer, "blk.0.ffn_down_shexp.weight", GgmlType.Q2_K, H, I);
        add(writer, "blk.0.ffn_gate_inp_shexp.weight", GgmlType.Q4_0, H);
        try (MoeCheckpoint checkpoint = write(writer)) {
            ExpertWeights weights = checkpoint.layer(0);
            assertThat(weights.config().numFusedSharedExperts()).isEqualTo(1);
            assertThat(Arrays.copyOfRange(requireNonNull(weights.router().weight()), H, 2 * H))
                    .isEqualTo(row(GgmlType.Q5_1, H, 1));
            assertThat(weights.router().sharedExpertGate()).isEqualTo(row(GgmlType.Q4_0, H, 0));
            assertThat(checkpoint.bytes(0))
                    .containsOnlyKeys("Q4_K", "IQ4_XS", "Q6_K", "Q5_1", "Q8_0", "Q5_0", "Q2_K", "Q4_0");
            assertThat(weights.quantization().grid()).isEqualTo(new GroupShape(1, 16));
            try (Int8Experts int8 = QuantizedWeights.int8(weights, weights.quantization(), Progress.NONE)) {
                for (int r = 0; r < I; r += 7) {
                    assertNear(dequantized(int8.w13(), 1, r), row(GgmlType.Q4_K, H, I + r), GgmlType.Q4_K);
                    assertNear(dequantized(int8.w13(), 1, I + r), row(GgmlType.IQ4_XS, H, I + r), GgmlType.IQ4_XS);
                    assertNear(dequantized(int8.w2(), 1, r), row(GgmlType.Q6_K, I, H + r), GgmlType.Q6_K);
                    assertNear(dequantized(int8.w13(), 2, r), row(GgmlType.Q8_0, H, r), GgmlType.Q8_0);
                    assertNear(dequantized(int8.w13(), 2, I + r), row(GgmlType.Q5_0, H, r), GgmlType.Q5_0);
                    assertNear(dequantized(int8.w2(), 2, r), row(GgmlType.Q2_K, I, r), GgmlType.Q2_K);
                }
            }
        }
    }

    @ParameterizedTest
    @MethodSource("types")
    void everyValueIsMultipliedByItsMatrixScale(GgmlType type) {
        GgufWriter writer = layer(type, type, type);
        writer.tensor("blk.0.ffn_up_exps.scale", GgmlType.F32, new float[] {1, -0.5f}, E);
        try (MoeCheckpoint checkpoint = write(writer)) {
            ExpertWeights weights = checkpoint.layer(0);
            float[] up = row(type, H, I + 3);
            for (int c = 0; c < H; c++) {
                up[c] *= -0.5f;
            }
            assertThat(gateUpRow(weights, 1, I + 3)).isEqualTo(up);
            assertThat(gateUpRow(weights, 1, 3)).isEqualTo(row(type, H, I + 3));
        }
    }

    @Test
    void scalesAndMinsThatAreNoNumbersAreRefused() {
        for (GgmlType type : new GgmlType[] {GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q4_K, GgmlType.MXFP4}) {
            for (int at = 0; at <= (type.hasMin() ? 2 : 0); at += 2) {
                GgufWriter writer = layer(type, type, type);
                byte[] data = writer.tensors.getLast().data();
                MemorySegment.ofArray(data)
                        .set(ValueLayout.JAVA_SHORT_UNALIGNED, data.length / type.bytes / 2 * type.bytes + at, (short)
                                -1);
                try (MoeCheckpoint checkpoint = write(writer)) {
                    ExpertWeights weights = checkpoint.layer(0);
                    assertThatExceptionOfType(CheckpointException.class)
                            .isThrownBy(() -> QuantizedWeights.int8(weights, weights.quantization(), Progress.NONE)
                                    .close())
                            .withMessageContaining(
                                    "tensor 'blk.0.ffn_down_exps.weight': expected finite scales, got NaN in matrix 1,"
                                            + " row 0, column 0");
                }
            }
        }
    }

    /** Its last dimension are the columns, all others the rows. */
    @Test
    void aWholeTensorIsAMatrix() {
        byte[] blocks = new byte[6 * 34];
        Arrays.fill(blocks, (byte) 1);
        Path file = Path.of("file.gguf");
        Matrix matrix = GgufLayer.matrix(
                new Gguf.Entry(file, "q", GgmlType.Q8_0, 8, new long[] {2, 3, 32}, MemorySegment.ofArray(blocks)));
        assertThat(matrix.rows()).isEqualTo(6);
        assertThat(matrix.cols()).isEqualTo(32);
        float[] row = new float[32];
        matrix.row(5, row);
        assertThat(row).containsOnly(Float.float16ToFloat((short) 0x0101));
        Matrix floats = GgufLayer.matrix(
                new Gguf.Entry(file, "f", GgmlType.F32, 0, new long[] {2, 2, 3}, MemorySegment.ofArray(new byte[48])));
        assertThat(floats.rows()).isEqualTo(4);
        assertThat(floats.cols()).isEqualTo(3);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> GgufLayer.matrix(
                        new Gguf.Entry(file, "u", null, 77, new long[] {2, 3}, MemorySegment.ofArray(new byte[0]))))
                .withMessageContaining("tensor 'u': expected one of the types")
                .withMessageEndingWith("got type number 77");
    }

    /** A layer gives what its matrices give. */
    @Test
    void aLayerGivesNumbersAndCodes() {
        byte[] blocks = new byte[32 * 20];
        Arrays.fill(blocks, (byte) 0x11);
        Matrix numbered = GgufLayer.matrix(new Gguf.Entry(
                Path.of("file"), "q", GgmlType.Q4_1, 3, new long[] {32, 32}, MemorySegment.ofArray(blocks)));
        LayerWeights weights =
                LayerWeights.ofOne(new Projections(List.of(), numbered, numbered, numbered, null, null, null));
        byte[] numbers = new byte[32];
        float[] scales = new float[1];
        float[] mins = new float[1];
        assertThat(weights.gateUpNumbers(0, 40, 32, numbers, scales, mins)).isTrue();
        assertThat(numbers).containsOnly(1);
        assertThat(weights.downNumbers(0, 3, 32, new byte[32], scales, mins)).isTrue();
        assertThat(weights.downNumbers(0, 3, 16, new byte[32], scales, mins)).isFalse();
        assertThat(weights.gateUpCodes(0, 3, 32, numbers, scales)).isNull();
        Tensor values = new Tensor(
                Path.of("file"), "v", DType.F8_E4M3, new long[] {32, 32}, MemorySegment.ofArray(new byte[1024]));
        Tensor scale = new Tensor(Path.of("file"), "s", DType.U8, new long[0], MemorySegment.ofArray(new byte[] {127}));
        Matrix coded = ScaledFloats.eightBits(values, scale, ScaledFloats.Place.whole(32, 32), null);
        LayerWeights codes = LayerWeights.ofOne(new Projections(List.of(), coded, coded, coded, null, null, null));
        assertThat(codes.gateUpCodes(0, 40, 32, numbers, scales)).isSameAs(SmallFloats.E4M3);
        assertThat(codes.downCodes(0, 3, 32, numbers, scales)).isSameAs(SmallFloats.E4M3);
        assertThat(codes.downNumbers(0, 3, 32, numbers, scales, mins)).isFalse();
    }
}
