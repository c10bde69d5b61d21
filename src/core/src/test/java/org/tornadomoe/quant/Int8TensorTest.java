package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Objects;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class Int8TensorTest {
    private static final int MAX = Integer.MAX_VALUE;

    private final Arena arena = Arena.ofConfined();

    @AfterEach
    void free() {
        arena.close();
    }

    /** An arena that has no memory: what gets as far as asking for some has passed all checks. */
    private static final Arena NO_MEMORY = new Arena() {
        @Override
        public MemorySegment allocate(long bytes, long alignment) {
            throw new OutOfMemoryError("all gone");
        }

        @Override
        public MemorySegment.Scope scope() {
            return Arena.global().scope();
        }

        @Override
        public void close() {}
    };

    @ParameterizedTest
    @CsvSource({
        "1, 4, true, false",
        "1, 9, true, false",
        "2, 4, false, false",
        "1, 3, false, false",
        "3, 4, false, true",
        "9, 9, false, true",
        "2, 9, false, false",
        "9, 3, false, false"
    })
    void whatSharesAScale(int rowsPerScale, int colsPerScale, boolean perRow, boolean perExpert) {
        Int8Tensor tensor = Int8Tensor.allocate(arena, 2, 3, 4, rowsPerScale, colsPerScale, false);
        assertThat(tensor.isPerRow()).isEqualTo(perRow);
        assertThat(tensor.isPerExpert()).isEqualTo(perExpert);
        assertThat(tensor.scales()).hasSize(2 * tensor.scaleRows() * tensor.scaleCols());
    }

    @Test
    void someExpertsAreAViewOfValuesAndCopiesOfScales() {
        Int8Tensor all = Int8Tensor.allocate(arena, 4, 3, 20, 2, 8, true);
        byte[] zeroPoints = Objects.requireNonNull(all.zeroPoints());
        for (int i = 0; i < all.scales().length; i++) {
            all.scales()[i] = i;
            zeroPoints[i] = (byte) -i;
        }
        for (int e = 0; e < 4; e++) {
            byte[] row = new byte[20];
            row[19] = (byte) (10 + e);
            all.setRow(e, 2, row, 0);
        }
        Int8Tensor some = all.experts(1, 2);
        assertThat(some.experts()).isEqualTo(2);
        for (int e = 0; e < 2; e++) {
            assertThat(some.get(e, 2, 19)).isEqualTo((byte) (11 + e));
            assertThat(some.scale(e, 2, 19)).isEqualTo(all.scale(e + 1, 2, 19));
            assertThat(some.zeroPoint(e, 2, 19)).isEqualTo(all.zeroPoint(e + 1, 2, 19));
        }
        all.setRow(1, 0, new byte[] {5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0);
        assertThat(some.get(0, 0, 0)).isEqualTo((byte) 5);
        some.scales()[0] = 99;
        assertThat(all.scales()).doesNotContain(99);
        assertThat(all.experts(0, 4)).isSameAs(all);
        assertThat(Int8Tensor.allocate(arena, 2, 1, 1).experts(1, 1).zeroPoints())
                .isNull();
        assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> all.experts(3, 2));
    }

    @ParameterizedTest
    @CsvSource({
        "0, 1, 1",
        "1, 0, 1",
        "1, 1, 0",
        "-1, 1, 1",
        "2, 1073741824, 1",
        "1, 1, 2147483633",
    })
    void whatCannotBeAddressedIsNoShape(int experts, int rows, int cols) {
        String message =
                "shape: expected positive [experts, rows, cols] with fewer than 2^31 rows in all, and fewer than"
                        + " 2^31 - 16 columns, got [" + experts + ", " + rows + ", " + cols + "]";
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Tensor.bytes(experts, rows, cols))
                .withMessage(message);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Tensor.allocate(NO_MEMORY, experts, rows, cols, 1, 1, false))
                .withMessage(message);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new Int8Tensor(experts, rows, cols, MemorySegment.NULL, new float[0]))
                .withMessage(message);
    }

    @Test
    void theGreatestShapesCanBeAddressed() {
        assertThat(Int8Tensor.bytes(1, 1, MAX - 15)).isEqualTo(MAX - 15L);
        assertThat(Int8Tensor.bytes(1, MAX, 1)).isEqualTo(16L * MAX);
        assertThat(Int8Tensor.bytes(2, MAX / 2, 17)).isEqualTo(32L * (MAX - 1));
    }

    @ParameterizedTest
    @CsvSource({"0, 1, 4, 2", "1, 0, 4, 2", "1, 1, 65536, 32768"})
    @SuppressWarnings("NullAway") // which takes a record's array for one that isn't null
    void aGridThatCannotBeIsRefused(int rowsPerScale, int colsPerScale, int rows, int cols) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Tensor.allocate(NO_MEMORY, 1, rows, cols, rowsPerScale, colsPerScale, false))
                .withMessage("scale grid: expected positive numbers that give fewer than 2^31 scales, got "
                        + rowsPerScale + " x " + colsPerScale + " for [1, " + rows + ", " + cols + "]");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new Int8Tensor(
                        1,
                        rows,
                        cols,
                        rowsPerScale,
                        colsPerScale,
                        arena.allocate(Int8Tensor.bytes(1, 4, 2)),
                        new float[3],
                        null))
                .withMessageMatching("(scale grid: expected a positive number of rows and columns a scale|values: ).*");
    }

    @ParameterizedTest
    @CsvSource({"false, 24", "true, 30"})
    void wantOfMemorySaysHowMuchItWas(boolean zeroPoints, int onTheHeap) {
        assertThatExceptionOfType(OutOfMemoryError.class)
                .isThrownBy(() -> Int8Tensor.allocate(NO_MEMORY, 2, 3, 20, 1, 20, zeroPoints))
                .withMessage("int8 tensor [2, 3, 20] needs 192 bytes off the heap and " + onTheHeap
                        + " on it: all gone (-XX:MaxDirectMemorySize limits memory off the heap; its default is -Xmx)")
                .satisfies(e -> assertThat(e.getCause()).hasMessage("all gone"));
    }

    @Test
    void aRowIsWrittenWithItsScale() {
        Int8Tensor tensor = Int8Tensor.allocate(arena, 2, 3, 4);
        tensor.setRow(1, 2, new byte[] {9, 1, 2, 3, 4, 9}, 1, 0.5f);
        byte[] row = new byte[4];
        tensor.row(1, 2, row);
        assertThat(row).containsExactly(1, 2, 3, 4);
        assertThat(tensor.scale(1, 2)).isEqualTo(0.5f);
        assertThat(tensor.scales()).containsExactly(0, 0, 0, 0, 0, 0.5f);
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> tensor.setRow(1, 2, new byte[4], 1, 1));
    }

    @Test
    void zeroPointsAreAsManyAsScales() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new Int8Tensor(1, 2, 4, 1, 2, arena.allocate(32), new float[4], new byte[3]))
                .withMessage("zeroPoints: expected 4 values for [1, 2, 4], got 3");
    }
}
