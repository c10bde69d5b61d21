package org.tornadomoe.checkpoint;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Arrays;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Rows of a tensor of quantised blocks.
 *
 * @param type the tensor's, one that is read
 * @param index which of the matrices [rows, cols] that the tensor holds one after the other
 * @param factor what every value is multiplied by
 */
record GgufBlocks(Gguf.Entry entry, GgmlType type, int index, int rows, int cols, float factor) {
    private static final ValueLayout.OfFloat FLOAT =
            ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /** Of routers and vectors: far above any. */
    private static final int MAX_FLOATS = 1 << 28;

    /** A tensor of blocks as one of floats, in memory. */
    static Tensor toFloats(Gguf.Entry entry, GgmlType type) {
        long[] shape = entry.shape();
        long elements = entry.data().byteSize() / type.bytes * type.elements;
        if (elements > MAX_FLOATS) {
            throw entry.problem("expected at most " + MAX_FLOATS + " values, got " + Arrays.toString(shape));
        }
        int cols = (int) shape[shape.length - 1];
        int rows = (int) elements / cols;
        GgufBlocks blocks = new GgufBlocks(entry, type, 0, rows, cols, 1);
        MemorySegment data = MemorySegment.ofArray(new byte[4 * rows * cols]);
        float[] row = new float[cols];
        for (int r = 0; r < rows; r++) {
            blocks.row(r, row);
            for (int c = 0; c < cols; c++) {
                data.set(FLOAT, 4L * (r * cols + c), row[c]);
            }
        }
        return new Tensor(entry.file(), entry.name(), DType.F32, shape, data);
    }

    /** What they are to the layer: int8 without loss, unless they have mins. */
    Matrix matrix() {
        if (type.hasMin()) {
            Int8Quantization groups =
                    Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, type.group));
            return new Matrix.Decoded(rows, cols, entry.file(), entry.name(), this::row, groups);
        }
        WeightQuantization.Group stored = WeightQuantization.Group.of(8, type.group, true);
        return new Matrix.Int8(
                rows,
                cols,
                1,
                type.group,
                this::numbers,
                this::scale,
                null,
                new Matrix.Stored(entry.file(), entry.name(), entry.name(), stored, null));
    }

    private long block(int row, int col) {
        return (((long) index * rows + row) * cols + col) / type.elements * type.bytes;
    }

    private void numbers(int row, byte[] into) {
        long at = block(row, 0);
        for (int col = 0; col < cols; col += type.elements, at += type.bytes) {
            type.numbers(entry.data(), at, into, col);
        }
    }

    private float scale(int row, int group) {
        int col = group * type.group;
        return finite(type.scale(entry.data(), block(row, col), col % type.elements / type.group) * factor, row, col);
    }

    private float finite(float value, int row, int col) {
        if (!Float.isFinite(value)) {
            throw entry.problem("expected finite scales, got " + value + " in matrix " + index + ", row " + row
                    + ", column " + col);
        }
        return value;
    }

    /** A row's values. */
    private void row(int row, float[] into) {
        byte[] numbers = new byte[type.elements];
        long at = block(row, 0);
        for (int col = 0; col < cols; at += type.bytes) {
            type.numbers(entry.data(), at, numbers, 0);
            for (int i = 0; i < type.elements; ) {
                float scale = finite(type.scale(entry.data(), at, i / type.group) * factor, row, col);
                float min = finite(type.min(entry.data(), at, i / type.group) * factor, row, col);
                for (int end = i + type.group; i < end; i++, col++) {
                    into[col] = numbers[i] * scale - min;
                }
            }
        }
    }
}
