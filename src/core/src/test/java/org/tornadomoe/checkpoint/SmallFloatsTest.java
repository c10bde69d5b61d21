package org.tornadomoe.checkpoint;

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
import org.tornadomoe.checkpoint.SmallFloats.Place;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/** Of a tensor of two matrices [4, 6] of 8-bit floats the second, by what its scales' shape says. */
class SmallFloatsTest {
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
            Matrix matrix = SmallFloats.eightBits(
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

    @Test
    void codesAreGivenForScalesThatHoldForAllOfThem() {
        Matrix groups = SmallFloats.eightBits(
                values(DType.F8_E5M2), scales(2, ROWS, 3), new Place(0, ROWS, ROWS, COLS, 0, 1, false), null);
        byte[] codes = new byte[COLS];
        float[] scales = new float[COLS];
        assertThat(groups.codes(1, 1, codes, scales)).isSameAs(SmallFloats.E5M2);
        assertThat(scales).containsExactly(4, 4, 5, 5, 6, 6);
        assertThat(groups.codes(1, 3, codes, scales)).isNull();
        Matrix rows = SmallFloats.eightBits(
                values(DType.F8_E4M3), scales(2, ROWS), new Place(0, ROWS, ROWS, COLS, 0, 1, false), null);
        assertThat(rows.codes(2, 4, codes, scales)).isNotNull();
        assertThat(scales).startsWith(3, 3);
    }

    @Test
    void scalesOfNoSuchShapeAreRefused() {
        for (long[] shape : new long[][] {{5}, {2, ROWS, 4}, {2, 0}}) {
            assertThatExceptionOfType(CheckpointException.class)
                    .as(Arrays.toString(shape))
                    .isThrownBy(() ->
                            SmallFloats.eightBits(values(DType.F8_E4M3), scales(shape), Place.whole(ROWS, COLS), null))
                    .withMessageContaining("expected one scale, a scale for each of 4 rows, for each group of their 6"
                            + " columns, or 1 x 1 for blocks of 128 x 128, of 2 matrices, got scales F32");
        }
        Place transposed = new Place(0, ROWS, ROWS, COLS, 0, 1, true);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> SmallFloats.eightBits(values(DType.F8_E4M3), scales(2, 2, 3), transposed, SAID))
                .withMessageContaining("expected 2 x 4 scales for blocks of 2 x 3, got scales F32[2, 2, 3]");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> SmallFloats.eightBits(values(DType.F8_E4M3), scales(2, 4, 4), transposed, SAID))
                .withMessageContaining("expected 2 x 4 scales");
    }
}
