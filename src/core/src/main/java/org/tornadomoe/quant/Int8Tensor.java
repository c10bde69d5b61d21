package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.function.ObjIntConsumer;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * int8 values [experts, rows, cols] with a grid of float scales and optional zero points: weight = (value − zero point)
 * · scale. A row takes {@link #rowBytes} bytes, so that every row starts on a 16-byte boundary; the bytes past {@code
 * cols} are zero.
 *
 * <p>Lives as long as its arena; reading it afterwards throws {@link IllegalStateException}. Thread-safe while no
 * thread writes.
 *
 * @param rowsPerScale rows that share a scale: 1, {@code rows} for one scale per expert, or a block's rows; the last
 *     block may be smaller
 * @param colsPerScale columns that share a scale; the last group may be smaller
 * @param values experts * rows * rowBytes bytes
 * @param scales [experts, {@link #scaleRows}, {@link #scaleCols}], row-major; the array itself, not a copy
 * @param zeroPoints as many as scales; null if all are 0. Unsigned values q and zero points z are stored as q − 128 and
 *     z − 128.
 * @param unread where the values still are; null if they are in {@code values}. {@link #values} reads all of them
 *     first; {@link #row} and {@link #eachExpert} read what they are asked for
 */
public record Int8Tensor(
        int experts,
        int rows,
        int cols,
        int rowsPerScale,
        int colsPerScale,
        MemorySegment values,
        float[] scales,
        byte @Nullable [] zeroPoints,
        @Nullable UnreadValues unread) {
    /**
     * Checks that the sizes fit one another.
     *
     * @throws IllegalArgumentException naming the size that does not fit
     */
    public Int8Tensor {
        if (rowsPerScale < 1 || colsPerScale < 1) {
            throw new IllegalArgumentException(
                    "scale grid: expected a positive number of rows and columns a scale, got " + rowsPerScale + " x "
                            + colsPerScale);
        }
        long bytes = bytes(experts, rows, cols);
        if (values.byteSize() != bytes) {
            throw new IllegalArgumentException("values: expected " + bytes + " bytes for " + shape(experts, rows, cols)
                    + ", got " + values.byteSize());
        }
        long count = scaleCount(experts, rows, cols, rowsPerScale, colsPerScale);
        if (scales.length != count) {
            throw new IllegalArgumentException("scales: expected " + count + " values for " + shape(experts, rows, cols)
                    + ", got " + scales.length);
        }
        if (zeroPoints != null && zeroPoints.length != count) {
            throw new IllegalArgumentException("zeroPoints: expected " + count + " values for "
                    + shape(experts, rows, cols) + ", got " + zeroPoints.length);
        }
    }

    /** Values that are there. */
    public Int8Tensor(
            int experts,
            int rows,
            int cols,
            int rowsPerScale,
            int colsPerScale,
            MemorySegment values,
            float[] scales,
            byte @Nullable [] zeroPoints) {
        this(experts, rows, cols, rowsPerScale, colsPerScale, values, scales, zeroPoints, null);
    }

    /** One scale per row, no zero points. */
    public Int8Tensor(int experts, int rows, int cols, MemorySegment values, float[] scales) {
        this(experts, rows, cols, 1, Math.max(cols, 1), values, scales, null);
    }

    /** Allocates a tensor of zeros with one scale per row, also zero; otherwise like the other method. */
    public static Int8Tensor allocate(Arena arena, int experts, int rows, int cols) {
        return allocate(arena, experts, rows, cols, 1, Math.max(cols, 1), false);
    }

    /**
     * Allocates a 64-byte aligned tensor of zeros, with scales and zero points of zero.
     *
     * @throws IllegalArgumentException if a size is not positive, or experts * rows or the number of scales exceeds
     *     2^31 - 1
     * @throws OutOfMemoryError if the arena cannot allocate that much; the message gives the size
     */
    public static Int8Tensor allocate(
            Arena arena, int experts, int rows, int cols, int rowsPerScale, int colsPerScale, boolean zeroPoints) {
        requireAddressable(experts, rows, cols);
        if (rowsPerScale < 1
                || colsPerScale < 1
                || scaleCount(experts, rows, cols, rowsPerScale, colsPerScale) > Integer.MAX_VALUE) {
            throw new IllegalArgumentException(
                    "scale grid: expected positive numbers that give fewer than 2^31 scales, got " + rowsPerScale
                            + " x " + colsPerScale + " for " + shape(experts, rows, cols));
        }
        int count = (int) scaleCount(experts, rows, cols, rowsPerScale, colsPerScale);
        long bytes = bytes(experts, rows, cols);
        try {
            return new Int8Tensor(
                    experts,
                    rows,
                    cols,
                    rowsPerScale,
                    colsPerScale,
                    SystemMemory.allocate(arena, bytes, 64),
                    new float[count],
                    zeroPoints ? new byte[count] : null);
        } catch (OutOfMemoryError e) {
            OutOfMemoryError named = new OutOfMemoryError("int8 tensor " + shape(experts, rows, cols) + " needs "
                    + bytes + " bytes off the heap and " + (zeroPoints ? 5L : 4L) * count + " on it: " + e.getMessage()
                    + " (-XX:MaxDirectMemorySize limits memory off the heap; its default is -Xmx)");
            named.initCause(e);
            throw named;
        }
    }

    private static long scaleCount(int experts, int rows, int cols, int rowsPerScale, int colsPerScale) {
        // experts * rows fits an int
        return (long) experts * Math.ceilDiv(rows, rowsPerScale) * Math.ceilDiv(cols, colsPerScale);
    }

    /** Rows, and the bytes of one row, are indexed by int. */
    private static void requireAddressable(int experts, int rows, int cols) {
        if (experts < 1
                || rows < 1
                || cols < 1
                || (long) experts * rows > Integer.MAX_VALUE
                || rowBytes(cols) > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("shape: expected positive [experts, rows, cols] with fewer than 2^31"
                    + " rows in all, and fewer than 2^31 - 16 columns, got " + shape(experts, rows, cols));
        }
    }

    /** This tensor, whose values are still zeros, with values that are read when they are asked for. */
    public Int8Tensor unread(UnreadValues.Source source) {
        UnreadValues unread = new UnreadValues(source, 0);
        return new Int8Tensor(experts, rows, cols, rowsPerScale, colsPerScale, values, scales, zeroPoints, unread);
    }

    /** All values; those that are still unread are read first, on all cores. */
    @Override
    public MemorySegment values() {
        if (unread != null && !unread.isRead()) {
            unread.readAll(this);
        }
        return values;
    }

    /** Whether values are read from where they are stored, so that {@link #eachExpert} needs less memory. */
    public boolean isUnread() {
        return unread != null && !unread.isRead();
    }

    /**
     * Takes every expert, on all cores. What is unread is read into memory that many experts use in turn, and stays
     * unread.
     *
     * @param consumer takes an expert's number and a tensor of this one expert, which lasts until it returns
     */
    public void eachExpert(ObjIntConsumer<Int8Tensor> consumer) {
        Queue<MemorySegment> spare = new ConcurrentLinkedQueue<>();
        try (Arena arena = Arena.ofShared()) {
            IntStream.range(0, experts).parallel().forEach(e -> {
                if (unread == null || unread.isRead()) {
                    consumer.accept(experts(e, 1), e);
                    return;
                }
                MemorySegment free = spare.poll();
                MemorySegment own = free == null ? SystemMemory.allocate(arena, bytes(1, rows, cols), 64) : free;
                Int8Tensor one = view(own, e, 1, null);
                unread.read(e, one);
                consumer.accept(one, e);
                spare.add(own);
            });
        }
    }

    /** Rows of an expert's scales. */
    public int scaleRows() {
        return Math.ceilDiv(rows, rowsPerScale);
    }

    /** Columns of an expert's scales. */
    public int scaleCols() {
        return Math.ceilDiv(cols, colsPerScale);
    }

    /** Some of the experts: a view of their values, copies of their scales and zero points. */
    public Int8Tensor experts(int first, int count) {
        Objects.checkFromIndexSize(first, count, experts);
        if (count == experts) {
            return this;
        }
        long bytes = (long) rows * rowBytes();
        return view(
                values.asSlice(first * bytes, count * bytes),
                first,
                count,
                isUnread() ? Objects.requireNonNull(unread).from(first) : null);
    }

    /** One expert's own memory, to read its values into. */
    Int8Tensor ofOne(int expert) {
        long bytes = (long) rows * rowBytes();
        return view(values.asSlice(expert * bytes, bytes), expert, 1, null);
    }

    /** Some of the experts with their scales. */
    private Int8Tensor view(MemorySegment values, int first, int count, @Nullable UnreadValues unread) {
        int grid = scaleRows() * scaleCols();
        return new Int8Tensor(
                count,
                rows,
                cols,
                rowsPerScale,
                colsPerScale,
                values,
                Arrays.copyOfRange(scales, first * grid, (first + count) * grid),
                zeroPoints == null ? null : Arrays.copyOfRange(zeroPoints, first * grid, (first + count) * grid),
                unread);
    }

    /** Whether every row has exactly one scale of its own. */
    public boolean isPerRow() {
        return rowsPerScale == 1 && colsPerScale >= cols;
    }

    /** Whether every expert has one scale. */
    public boolean isPerExpert() {
        return rowsPerScale >= rows && colsPerScale >= cols;
    }

    /**
     * The number of bytes of a tensor's values.
     *
     * @throws IllegalArgumentException if no tensor can have that shape
     */
    public static long bytes(int experts, int rows, int cols) {
        requireAddressable(experts, rows, cols);
        return (long) experts * rows * rowBytes(cols);
    }

    /** Bytes from one row to the next: {@code cols} rounded up to a multiple of 16. */
    public int rowBytes() {
        return Math.toIntExact(rowBytes(cols));
    }

    private static long rowBytes(int cols) {
        return (cols + 15L) / 16 * 16;
    }

    /** One value. */
    public byte get(int expert, int row, int col) {
        return values().get(ValueLayout.JAVA_BYTE, offset(expert, row) + Objects.checkIndex(col, cols));
    }

    /** The scale of a row that has its own scale. */
    public float scale(int expert, int row) {
        requirePerRow();
        return scales[rowIndex(expert, row)];
    }

    /** The scale of a value. */
    public float scale(int expert, int row, int col) {
        return scales[scaleIndex(expert, row, col)];
    }

    /** The zero point of a value; 0 if there are none. */
    public byte zeroPoint(int expert, int row, int col) {
        int index = scaleIndex(expert, row, col);
        return zeroPoints == null ? 0 : zeroPoints[index];
    }

    /** The index of a value's scale in {@link #scales}. */
    public int scaleIndex(int expert, int row, int col) {
        Objects.checkIndex(expert, experts);
        Objects.checkIndex(row, rows);
        Objects.checkIndex(col, cols);
        return (expert * scaleRows() + row / rowsPerScale) * scaleCols() + col / colsPerScale;
    }

    /** Reads a row's {@code cols} values. */
    public void row(int expert, int row, byte[] into) {
        row(expert, row, into, 0);
    }

    /** Reads a row's {@code cols} values into {@code into[at]} and following. */
    public void row(int expert, int row, byte[] into, int at) {
        long offset = offset(expert, row);
        if (unread == null || unread.isRead()) {
            MemorySegment.copy(values, ValueLayout.JAVA_BYTE, offset, into, at, cols);
        } else if (values.scope().isAlive()) {
            unread.row(expert, row, into, at);
        } else {
            throw new IllegalStateException("Already closed");
        }
    }

    /**
     * Writes a row that has its own scale: {@code cols} values from {@code source[from]} on, and the scale. Different
     * threads may write different rows; the caller must synchronise before reading them.
     *
     * @throws IndexOutOfBoundsException if the row is not the tensor's or the array too short
     */
    public void setRow(int expert, int row, byte[] source, int from, float scale) {
        requirePerRow();
        setRow(expert, row, source, from);
        scales[rowIndex(expert, row)] = scale;
    }

    /** Writes a row's values but no scale; otherwise like the other method. */
    public void setRow(int expert, int row, byte[] source, int from) {
        MemorySegment.copy(source, from, values, ValueLayout.JAVA_BYTE, offset(expert, row), cols);
    }

    /** The same from memory, {@code from} bytes behind the source's first. */
    public void setRow(int expert, int row, MemorySegment source, long from) {
        MemorySegment.copy(source, from, values, offset(expert, row), cols);
    }

    @FunctionalInterface
    interface RowReader {
        void read(int row, float[] into);
    }

    /**
     * Adds an expert's squared error against other weights to {@code sums[0]}, the square of the other weights to
     * {@code sums[1]}.
     */
    void addError(int expert, RowReader exact, double[] sums) {
        float[] weights = new float[cols];
        byte[] values = new byte[cols];
        float[] held = new float[cols];
        double[] errors = new double[cols];
        double[] squares = new double[cols];
        for (int row = 0; row < rows; row++) {
            exact.read(row, weights);
            row(expert, row, values);
            for (int from = 0; from < cols; from += colsPerScale) {
                int to = Math.min(cols, from + colsPerScale);
                hold(values, from, to, scale(expert, row, from), zeroPoint(expert, row, from), held);
            }
            addSquares(weights, held, errors, squares);
        }
        sums[0] += Arrays.stream(errors).sum();
        sums[1] += Arrays.stream(squares).sum();
    }

    // Separate loops, so that the JVM vectorises them.

    private static void hold(byte[] values, int from, int to, float scale, int zero, float[] into) {
        for (int c = from; c < to; c++) {
            into[c] = (values[c] - zero) * scale;
        }
    }

    private static void addSquares(float[] exact, float[] held, double[] errors, double[] squares) {
        for (int c = 0; c < errors.length; c++) {
            double difference = exact[c] - held[c];
            errors[c] += difference * difference;
            squares[c] += (double) exact[c] * exact[c];
        }
    }

    private void requirePerRow() {
        if (!isPerRow()) {
            throw new IllegalStateException(
                    this + " has a scale for " + rowsPerScale + " x " + colsPerScale + " values, not one a row");
        }
    }

    private int rowIndex(int expert, int row) {
        return Objects.checkIndex(expert, experts) * rows + Objects.checkIndex(row, rows);
    }

    private long offset(int expert, int row) {
        return (long) rowIndex(expert, row) * rowBytes();
    }

    private static String shape(int experts, int rows, int cols) {
        return "[" + experts + ", " + rows + ", " + cols + "]";
    }

    @Override
    public String toString() {
        return "Int8Tensor" + shape(experts, rows, cols);
    }
}
