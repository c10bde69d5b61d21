package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;

/**
 * int8 values [experts, rows, cols] with one float scale a row: weight = value * scale. A row takes {@link #rowBytes}
 * bytes, so that every row starts on a 16-byte boundary; the bytes past {@code cols} are zero.
 *
 * <p>Lives as long as the arena it was allocated in; reading it afterwards is an {@link IllegalStateException}.
 * Thread-safe as long as nobody writes.
 *
 * @param values experts * rows * rowBytes bytes
 * @param scales [experts, rows], row-major; the array itself, not a copy
 */
public record Int8Tensor(int experts, int rows, int cols, MemorySegment values, float[] scales) {
    /**
     * Checks the sizes against each other.
     *
     * @throws IllegalArgumentException naming what does not fit
     */
    public Int8Tensor {
        if (experts < 1 || rows < 1 || cols < 1) {
            throw new IllegalArgumentException(
                    "shape: expected positive [experts, rows, cols], got " + shape(experts, rows, cols));
        }
        long bytes = bytes(experts, rows, cols);
        if (values.byteSize() != bytes) {
            throw new IllegalArgumentException("values: expected " + bytes + " bytes for " + shape(experts, rows, cols)
                    + ", got " + values.byteSize());
        }
        if (scales.length != (long) experts * rows) {
            throw new IllegalArgumentException("scales: expected " + (long) experts * rows + " values for "
                    + shape(experts, rows, cols) + ", got " + scales.length);
        }
    }

    /**
     * A tensor of zeros with scales of zero, 64-byte aligned.
     *
     * @throws IllegalArgumentException if a size is not positive, or experts * rows is over 2^31 - 1
     * @throws OutOfMemoryError if the arena cannot give that much; the message says how much it was
     */
    public static Int8Tensor allocate(Arena arena, int experts, int rows, int cols) {
        if (experts < 1 || rows < 1 || cols < 1 || (long) experts * rows > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("shape: expected positive [experts, rows, cols] with fewer than 2^31"
                    + " rows in all, got " + shape(experts, rows, cols));
        }
        long bytes = bytes(experts, rows, cols);
        try {
            return new Int8Tensor(experts, rows, cols, arena.allocate(bytes, 64), new float[experts * rows]);
        } catch (OutOfMemoryError e) {
            OutOfMemoryError named = new OutOfMemoryError("int8 tensor " + shape(experts, rows, cols) + " needs "
                    + bytes + " bytes off the heap and " + 4L * experts * rows + " on it: " + e.getMessage()
                    + " (the limit off the heap is -XX:MaxDirectMemorySize, by default that of the heap, -Xmx)");
            named.initCause(e);
            throw named;
        }
    }

    /** Bytes that the values of a tensor of this shape take. */
    public static long bytes(int experts, int rows, int cols) {
        return Math.multiplyExact((long) experts * rows, rowBytes(cols));
    }

    /** Bytes from one row to the next: cols rounded up to 16. */
    public int rowBytes() {
        return Math.toIntExact(rowBytes(cols));
    }

    private static long rowBytes(int cols) {
        return (cols + 15L) / 16 * 16;
    }

    /** One value. */
    public byte get(int expert, int row, int col) {
        return values.get(ValueLayout.JAVA_BYTE, offset(expert, row) + Objects.checkIndex(col, cols));
    }

    /** The scale of a row. */
    public float scale(int expert, int row) {
        return scales[scaleIndex(expert, row)];
    }

    /** Reads a row's {@code cols} values. */
    public void row(int expert, int row, byte[] into) {
        MemorySegment.copy(values, ValueLayout.JAVA_BYTE, offset(expert, row), into, 0, cols);
    }

    /**
     * Writes a row: {@code cols} values from {@code source[from]} on, and its scale. Distinct rows may be written by
     * distinct threads; whoever reads them must be told afterwards.
     *
     * @throws IndexOutOfBoundsException if the row is not the tensor's or the array too short
     */
    public void setRow(int expert, int row, byte[] source, int from, float scale) {
        MemorySegment.copy(source, from, values, ValueLayout.JAVA_BYTE, offset(expert, row), cols);
        scales[scaleIndex(expert, row)] = scale;
    }

    private int scaleIndex(int expert, int row) {
        return Objects.checkIndex(expert, experts) * rows + Objects.checkIndex(row, rows);
    }

    private long offset(int expert, int row) {
        return (long) scaleIndex(expert, row) * rowBytes();
    }

    private static String shape(int experts, int rows, int cols) {
        return "[" + experts + ", " + rows + ", " + cols + "]";
    }

    @Override
    public String toString() {
        return "Int8Tensor" + shape(experts, rows, cols);
    }
}
