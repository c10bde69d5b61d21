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
            return new Matrix.Decoded(rows, cols, entry.file(), entry.name(), this::row, groups, Matrix.CodeRow.NONE);
        }
        WeightQuantization.Group stored = WeightQuantization.Group.of(8, type.group, true);
        return new Matrix.Int8(
                rows,
                cols,
                1,
                type.group,
                this::numbers,
                new Scales(),
                null,
                new Matrix.Stored(entry.file(), entry.name(), entry.name(), stored, null));
    }

    private long block(int row, int col) {
        return (((long) index * rows + row) * cols + col) / type.elements * type.bytes;
    }

    private void numbers(int row, byte[] into, int to) {
        long at = block(row, 0);
        for (int col = 0; col < cols; col += type.elements, at += type.bytes) {
            type.numbers(entry.data(), at, into, to + col);
        }
    }

    private final class Scales implements Matrix.Int8.FloatAt {
        @Override
        public float get(int row, int group) {
            int col = group * type.group;
            long at = block(row, col);
            return finite(type.scale(entry.data(), at, col % type.elements / type.group) * factor, row, col);
        }

        @Override
        public void read(int row, int count, float[] into) {
            int perBlock = type.elements / type.group;
            long at = block(row, 0);
            for (int n = 0; n < count; at += type.bytes) {
                for (int group = 0; group < perBlock; group++, n++) {
                    into[n] = finite(type.scale(entry.data(), at, group) * factor, row, n * type.group);
                }
            }
        }
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
        int groups = type.elements / type.group;
        float[] scales = new float[groups];
        float[] mins = new float[groups];
        long at = block(row, 0);
        for (int first = 0; first < cols; first += type.elements, at += type.bytes) {
            type.numbers(entry.data(), at, numbers, 0);
            type.scales(entry.data(), at, scales, mins);
            for (int group = 0, from = 0; group < groups; group++, from += type.group) {
                float scale = finite(scales[group] * factor, row, first + from);
                float min = finite(mins[group] * factor, row, first + from);
                values(numbers, from, from + type.group, scale, min, into, first);
            }
        }
    }

    /** A loop of its own, of which the JVM makes vectors. */
    private static void values(byte[] numbers, int from, int to, float scale, float min, float[] into, int at) {
        for (int i = from; i < to; i++) {
            into[at + i] = numbers[i] * scale - min;
        }
    }
}
