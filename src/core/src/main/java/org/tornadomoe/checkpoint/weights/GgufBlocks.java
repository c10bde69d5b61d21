package org.tornadomoe.checkpoint.weights;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Arrays;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.GgmlType;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.Tensor;
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
public record GgufBlocks(Gguf.Entry entry, GgmlType type, int index, int rows, int cols, float factor) {
    private static final ValueLayout.OfFloat FLOAT =
            ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /** Of routers and vectors: far above any. */
    private static final int MAX_FLOATS = 1 << 28;

    /** A tensor of blocks as one of floats, in memory. */
    public static Tensor toFloats(Gguf.Entry entry, GgmlType type) {
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
    public Matrix matrix() {
        if (type.hasMin()) {
            Int8Quantization groups =
                    Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, type.group));
            return new Matrix.Decoded(
                    rows, cols, entry.file(), entry.name(), this::row, groups, Matrix.CodeRow.NONE, this::numbers);
        }
        WeightQuantization.Group stored = WeightQuantization.Group.of(8, type.group, true);
        return new Matrix.Int8(
                rows,
                cols,
                1,
                type.group,
                this::numbers,
                new Scales(this),
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

    /** In whole numbers, scales and mins. */
    private boolean numbers(int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        if (colsPerScale != type.group) {
            return false;
        }
        numbers(row, numbers, 0);
        scales(row, scales);
        int count = cols / type.group;
        long at = block(row, 0);
        for (int n = 0; n < count; n += type.groups, at += type.bytes) {
            type.mins(entry.data(), at, mins, n);
        }
        times(factor, mins, row);
        return true;
    }

    /** The scales of a row. */
    private void scales(int row, float[] into) {
        int count = cols / type.group;
        long at = block(row, 0);
        for (int n = 0; n < count; n += type.groups, at += type.bytes) {
            type.scales(entry.data(), at, into, n);
        }
        times(factor, into, row);
    }

    /** Scales or mins of a row, all of which have to be finite. */
    private void times(float factor, float[] values, int row) {
        int count = cols / type.group;
        for (int n = 0; n < count; n++) {
            values[n] *= factor;
        }
        for (int n = 0; !Matrix.areFinite(values, count); n++) {
            finite(values[n], row, n * type.group);
        }
    }

    private record Scales(GgufBlocks blocks) implements Matrix.Int8.FloatAt {
        @Override
        public float get(int row, int group) {
            int elements = blocks.type.elements;
            int col = group * blocks.type.group;
            long at = blocks.block(row, col);
            float scale = blocks.type.scale(blocks.entry.data(), at, col % elements / blocks.type.group);
            return blocks.finite(scale * blocks.factor, row, col);
        }

        /** All of a row: it is asked for no less. */
        @Override
        public void read(int row, int count, float[] into) {
            blocks.scales(row, into);
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
        byte[] numbers = new byte[cols];
        float[] scales = new float[cols / type.group];
        float[] mins = new float[scales.length];
        numbers(row, type.group, numbers, scales, mins);
        for (int group = 0, from = 0; from < cols; group++, from += type.group) {
            values(numbers, from, from + type.group, scales[group], mins[group], into);
        }
    }

    /** A loop of its own, of which the JVM makes vectors. */
    private static void values(byte[] numbers, int from, int to, float scale, float min, float[] into) {
        for (int i = from; i < to; i++) {
            into[i] = numbers[i] * scale - min;
        }
    }
}
