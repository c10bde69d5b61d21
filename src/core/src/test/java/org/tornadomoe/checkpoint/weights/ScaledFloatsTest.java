package org.tornadomoe.checkpoint.weights;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.function.IntBinaryOperator;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.SmallFloats;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.ScaledFloats.Place;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/** Of a tensor of two matrices [4, 6] of 8-bit floats the second, by what its scales' shape says. */
class ScaledFloatsTest {
    private static final int ROWS = 4;
    private static final int COLS = 6;
    private static final GroupShape SAID = new GroupShape(2, 3);

    private static final Int8Quantization CHANNEL = Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
    private static final Int8Quantization GROUPS =
            Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 2));
    private static final Int8Quantization BLOCKS =
            Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(SAID).withRoundToNearest(true);

    /** 1, 1.125, 1.25, ... by the place. */
    private static Tensor values(DType dtype) {
        byte[] codes = new byte[2 * ROWS * COLS];
        for (int i = 0; i < codes.length; i++) {
            codes[i] = (byte) (0x38 + i % 16);
        }
        return new Tensor(Path.of("file"), "values", dtype, new long[] {2, ROWS, COLS}, MemorySegment.ofArray(codes));
    }

    /** 1, 2, 3, ... */
    private static Tensor scales(long... shape) {
        int count = (int) LongStream.of(shape).reduce(1, (a, b) -> a * b);
        ByteBuffer bytes = ByteBuffer.allocate(4 * count).order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < count; i++) {
            bytes.putFloat(1 + i);
        }
        return new Tensor(Path.of("file"), "scales", DType.F32, shape, MemorySegment.ofArray(bytes.array()));
    }

    private static Arguments straight(
            String shape, @Nullable GroupShape said, Int8Quantization suits, int per, IntBinaryOperator scale) {
        return Arguments.of(shape, said, false, suits, per, scale);
    }

    private static Arguments transposed(
            String shape, @Nullable GroupShape said, Int8Quantization suits, int per, IntBinaryOperator scale) {
        return Arguments.of(shape, said, true, suits, per, scale);
    }

    private static Stream<Arguments> shapes() {
        return Stream.of(
                straight("", null, CHANNEL, COLS, (_, _) -> 0),
                straight("1", SAID, CHANNEL, COLS, (_, _) -> 0),
                straight("2", null, CHANNEL, COLS, (_, _) -> 1),
                straight("2,1,1", null, CHANNEL, COLS, (_, _) -> 1),
                straight("2,4", null, CHANNEL, COLS, (r, _) -> 4 + r),
                straight("2,4,1", SAID, CHANNEL, COLS, (r, _) -> 4 + r),
                straight("2,4,3", null, GROUPS, 2, (r, c) -> 12 + 3 * r + c / 2),
                straight("2,2,2", SAID, BLOCKS, 3, (r, c) -> 4 + r / 2 * 2 + c / 3),
                transposed("2,1,4", null, CHANNEL, COLS, (r, _) -> 4 + r),
                transposed("2,4,1", null, CHANNEL, COLS, (r, _) -> 4 + r), // the scales aren't transposed
                transposed("2,3,4", null, GROUPS, 2, (r, c) -> 12 + r + c / 2 * 4),
                transposed("2,2,2", SAID, BLOCKS, 3, (r, c) -> 4 + r / 2 + c / 3 * 2),
                transposed("2", null, CHANNEL, COLS, (_, _) -> 1));
    }

    @ParameterizedTest
    @MethodSource("shapes")
    void theScalesShapeSaysWhatSharesOne(
            String shape,
            @Nullable GroupShape said,
            boolean transposed,
            Int8Quantization suits,
            int per,
            IntBinaryOperator scale) {
        Tensor scales = scales(
                shape.isEmpty()
                        ? new long[0]
                        : Stream.of(shape.split(",")).mapToLong(Long::parseLong).toArray());
        Tensor values = values(DType.F8_E4M3);
        // All rows, and those of odd numbers.
        for (int first = 0; first < 2; first++) {
            int step = first + 1;
            int rows = ROWS / step;
            Matrix matrix = ScaledFloats.eightBits(
                    values, scales, new Place(1, ROWS, rows, COLS, first, step, transposed), said);
            assertThat(matrix.suits()).isEqualTo(suits);
            assertThat(matrix.source()).isEqualTo("file: tensor 'values'");
            for (int row = 0; row < rows; row++) {
                int r = first + step * row;
                float[] into = new float[COLS];
                matrix.row(row, into);
                for (int c = 0; c < COLS; c++) {
                    int at = ROWS * COLS + (transposed ? c * ROWS + r : r * COLS + c);
                    assertThat(into[c])
                            .as("%s [%s, %s]", shape, r, c)
                            .isEqualTo(values.getFloat(at) * (1 + scale.applyAsInt(r, c)));
                }
                byte[] codes = new byte[COLS];
                float[] own = new float[COLS / per];
                float[] table = matrix.codes(row, per, codes, own);
                if (transposed) {
                    assertThat(table).isNull();
                    continue;
                }
                assertThat(table).isSameAs(SmallFloats.E4M3);
                for (int c = 0; c < COLS; c++) {
                    assertThat(SmallFloats.E4M3[codes[c]] * own[c / per]).isEqualTo(into[c]);
                }
            }
        }
    }

    /** Gate's and up's rows are halves of a matrix, or come in turns. */
    @Test
    void gateAndUpMayHaveAScaleEach() {
        Tensor values = values(DType.F8_E4M3);
        float[] into = new float[COLS];
        for (int n = 0; n < 2 * ROWS; n++) {
            int matrix = n / ROWS;
            int r = n % ROWS;
            ScaledFloats.eightBits(values, scales(2, 2), new Place(matrix, ROWS, ROWS, COLS, 0, 1, false), null)
                    .row(r, into);
            assertThat(into[0]).isEqualTo(values.getFloat((long) n * COLS) * (1 + 2 * matrix + r / 2));
            Place turns = new Place(matrix, ROWS, ROWS / 2, COLS, r % 2, 2, false);
            ScaledFloats.eightBits(values, scales(2, 2), turns, null).row(r / 2, into);
            assertThat(into[0]).isEqualTo(values.getFloat((long) n * COLS) * (1 + 2 * matrix + r % 2));
        }
    }

    /** Three scales of a matrix [3, 8] are those of its rows, or of its blocks of three columns. */
    @Test
    void whatTheConfigurationSaysDecidesBetweenRowsAndBlocks() {
        Place place = new Place(1, 3, 3, 8, 0, 1, false);
        GroupShape said = new GroupShape(3, 3);
        assertScales(place, scales(2, 1, 3), said, (_, c) -> 4 + c / 3);
        assertScales(place, scales(2, 1, 3), null, (r, _) -> 4 + r);
        // Of one dimension they are no blocks'.
        assertScales(new Place(0, 4, 4, 12, 0, 1, false), scales(4), new GroupShape(4, 3), (r, _) -> 1 + r);
    }

    private static void assertScales(
            Place place, Tensor scales, @Nullable GroupShape said, IntBinaryOperator expected) {
        Tensor values = values(DType.F8_E4M3);
        Matrix matrix = ScaledFloats.eightBits(values, scales, place, said);
        float[] into = new float[place.cols()];
        for (int r = 0; r < place.rows(); r++) {
            matrix.row(r, into);
            for (int c = 0; c < into.length; c++) {
                float value = values.getFloat(place.start() + (long) r * place.cols() + c);
                assertThat(into[c]).as("[%s, %s]", r, c).isEqualTo(value * expected.applyAsInt(r, c));
            }
        }
    }

    @Test
    void blocksAreOf128RowsAndColumnsIfNothingIsSaid() {
        int rows = 130;
        int cols = 260;
        byte[] ones = new byte[rows * cols];
        Arrays.fill(ones, (byte) 0x38);
        Tensor values = new Tensor(
                Path.of("file"), "values", DType.F8_E4M3, new long[] {rows, cols}, MemorySegment.ofArray(ones));
        Matrix matrix = ScaledFloats.eightBits(values, scales(2, 3), Place.whole(rows, cols), null);
        float[] into = new float[cols];
        for (int row : new int[] {0, 127, 128, 129}) {
            matrix.row(row, into);
            for (int col : new int[] {0, 127, 128, 255, 256, 259}) {
                assertThat(into[col]).isEqualTo(1 + row / 128 * 3 + col / 128);
            }
        }
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> ScaledFloats.eightBits(values, scales(3, 2), Place.whole(rows, cols), null))
                .withMessageContaining("2 x 3 for blocks of 128 x 128, got scales F32[3, 2]");
    }

    /** The second of two matrices [3, 64] of four bits, with an exponent for each 32 columns. */
    @Test
    void groupsOfFourBitNumbersHaveExponents() {
        byte[] codes = new byte[2 * 3 * 32];
        Arrays.fill(codes, (byte) 0x22); // 1, twice
        byte[] exponents = new byte[2 * 3 * 2];
        for (int i = 0; i < exponents.length; i++) {
            exponents[i] = (byte) (127 + i);
        }
        Tensor values =
                new Tensor(Path.of("file"), "values", DType.U8, new long[] {2, 3, 32}, MemorySegment.ofArray(codes));
        Tensor scale =
                new Tensor(Path.of("file"), "scale", DType.U8, new long[] {2, 3, 2}, MemorySegment.ofArray(exponents));
        Matrix matrix = ScaledFloats.fourBits("module", values, scale, new Place(1, 3, 3, 64, 0, 1, false), 2);
        float[] into = new float[64];
        for (int row = 0; row < 3; row++) {
            matrix.row(row, into);
            for (int col = 0; col < 64; col++) {
                assertThat(into[col]).isEqualTo(2f * (1 << (6 + 2 * row + col / 32)));
            }
        }
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(
                        () -> ScaledFloats.fourBits("module", values, scale, new Place(2, 3, 3, 64, 0, 1, false), 1))
                .withMessageContaining("expected two values a byte of matrices of 3 x 64, got values U8[2, 3, 32]");
        Tensor few = new Tensor(
                Path.of("file"),
                "scale",
                DType.U8,
                new long[] {2, 2},
                MemorySegment.ofArray(Arrays.copyOf(exponents, 4)));
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> ScaledFloats.fourBits("module", values, few, Place.whole(3, 64), 1))
                .withMessageContaining(
                        "expected a scale for each group of the 64 columns of 6 rows, got scale U8[2, 2]");
    }

    @Test
    void codesAreGivenForScalesThatHoldForAllOfThem() {
        Matrix groups = ScaledFloats.eightBits(
                values(DType.F8_E5M2), scales(2, ROWS, 3), new Place(0, ROWS, ROWS, COLS, 0, 1, false), null);
        byte[] codes = new byte[COLS];
        float[] scales = new float[COLS];
        assertThat(groups.codes(1, 1, codes, scales)).isSameAs(SmallFloats.E5M2);
        assertThat(scales).containsExactly(4, 4, 5, 5, 6, 6);
        assertThat(groups.codes(1, 3, codes, scales)).isNull();
        Matrix rows = ScaledFloats.eightBits(
                values(DType.F8_E4M3), scales(2, ROWS), new Place(0, ROWS, ROWS, COLS, 0, 1, false), null);
        assertThat(rows.codes(2, 4, codes, scales)).isNotNull();
        assertThat(scales).startsWith(3, 3);
    }

    @Test
    void scalesOfNoSuchShapeAreRefused() {
        for (long[] shape : new long[][] {{5}, {2, ROWS, 4}, {2, 0}, {2, 2, 2}}) {
            assertThatExceptionOfType(CheckpointException.class)
                    .as(Arrays.toString(shape))
                    .isThrownBy(() ->
                            ScaledFloats.eightBits(values(DType.F8_E4M3), scales(shape), Place.whole(ROWS, COLS), null))
                    .withMessageContaining("expected one scale, a scale for each of 4 rows, for each group of their 6"
                            + " columns, or 1 x 1 for blocks of 128 x 128, of 2 matrices, got scales F32");
        }
        Place transposed = new Place(0, ROWS, ROWS, COLS, 0, 1, true);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> ScaledFloats.eightBits(values(DType.F8_E4M3), scales(2, 2, 3), transposed, SAID))
                .withMessageContaining("expected 2 x 4 scales for blocks of 2 x 3, got scales F32[2, 2, 3]");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> ScaledFloats.eightBits(values(DType.F8_E4M3), scales(2, 4, 4), transposed, SAID))
                .withMessageContaining("expected 2 x 4 scales");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> ScaledFloats.eightBits(values(DType.F8_E4M3), scales(4), transposed, SAID))
                .withMessageContaining("expected 2 x 4 scales");
        // Of two matrices there may be a scale for gate's rows and one for up's; of one there may not.
        byte[] one = new byte[ROWS * COLS];
        Tensor single = new Tensor(
                Path.of("file"), "values", DType.F8_E4M3, new long[] {ROWS, COLS}, MemorySegment.ofArray(one));
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> ScaledFloats.eightBits(single, scales(1, 2), Place.whole(ROWS, COLS), null))
                .withMessageContaining("expected one scale");
    }
}
