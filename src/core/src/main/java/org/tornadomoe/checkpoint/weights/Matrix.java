package org.tornadomoe.checkpoint.weights;

import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.WeightRows;

/**
 * A weight matrix [rows, cols] as it lies in a checkpoint, read row by row. Thread-safe. There are three forms,
 * whatever the format: floats as they are ({@link Floats}); whole numbers of -128 to 127 on a grid of scales ({@link
 * Int8}), which also holds what has fewer bits, and loses nothing as int8; and any other, decoded to floats ({@link
 * Decoded}), which becomes int8 with an error. A {@link MatrixView} is made of others.
 */
public sealed interface Matrix extends WeightRows permits Matrix.Floats, Matrix.Int8, Matrix.Decoded, MatrixView {
    /** The file it lies in, for messages. */
    Path file();

    /** The tensor that says what its values are, for messages: of int8 the one with the scales. */
    String tensorName();

    /** Both, as messages begin. */
    @Override
    default String source() {
        return file() + ": tensor '" + tensorName() + "'";
    }

    /** The same matrix as int8, if that is what the checkpoint holds; else null. */
    default @Nullable Int8 int8() {
        return null;
    }

    /** What a matrix that is not int8 is best run as; null where its form doesn't say, as of floats. */
    default @Nullable Int8Quantization suits() {
        return null;
    }

    /** Reads a row in 8-bit codes, as {@link org.tornadomoe.quant.ExpertWeights#gateUpCodes} says. */
    @FunctionalInterface
    interface CodeRow {
        /** Of what isn't stored so. */
        CodeRow NONE = (row, colsPerScale, codes, scales) -> null;

        float @Nullable [] read(int row, int colsPerScale, byte[] codes, float[] scales);
    }

    /** Likewise; null if it isn't stored so. */
    default float @Nullable [] codes(int row, int colsPerScale, byte[] codes, float[] scales) {
        return null;
    }

    /** Reads a row in whole numbers, as {@link org.tornadomoe.quant.ExpertWeights#gateUpNumbers} says. */
    @FunctionalInterface
    interface NumberRow {
        /** Of what isn't stored so. */
        NumberRow NONE = (row, colsPerScale, numbers, scales, mins) -> false;

        boolean read(int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins);
    }

    /** Likewise; false if it isn't stored so. */
    default boolean numbers(int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        return false;
    }

    /** Whether the first of some floats are finite: their exponents are summed up, of which the JVM makes vectors. */
    static boolean areFinite(float[] values, int count) {
        int over = 0;
        for (int i = 0; i < count; i++) {
            over |= (Float.floatToRawIntBits(values[i]) & 0x7f800000) + 0x00800000;
        }
        return over >= 0;
    }

    /** Reads a row of {@code cols} values into the start of an array. Called from many threads. */
    @FunctionalInterface
    interface FloatRow {
        void read(int row, float[] into);
    }

    /**
     * Values of a format that has no grid of whole numbers, or none that fits int8: 8-bit floats, blocks with a least
     * value of their own.
     *
     * @param tensorName the tensor with the values, for messages
     * @param values decodes a row
     * @param suits what costs least: as many values a scale as the format has
     * @param coded reads a row in 8-bit codes
     * @param numbered reads a row in whole numbers
     */
    record Decoded(
            int rows,
            int cols,
            Path file,
            String tensorName,
            FloatRow values,
            Int8Quantization suits,
            CodeRow coded,
            NumberRow numbered)
            implements Matrix {
        @Override
        public boolean numbers(int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
            return numbered.read(row, colsPerScale, numbers, scales, mins);
        }

        @Override
        public float @Nullable [] codes(int row, int colsPerScale, byte[] codes, float[] scales) {
            return coded.read(row, colsPerScale, codes, scales);
        }

        @Override
        public void row(int row, float[] into) {
            Objects.checkIndex(row, rows);
            values.read(row, into);
        }
    }

    /**
     * Floats somewhere in a tensor: element (r, c) is the tensor's element {@code start + r * rowStride + c *
     * colStride}. That covers a tensor of its own, an expert's part of a fused one, and any of these transposed or
     * interleaved.
     */
    record Floats(Tensor tensor, int rows, int cols, long start, long rowStride, long colStride) implements Matrix {
        /** A whole tensor: its last dimension are the columns, all others the rows; one column of a single value. */
        public static Floats of(Tensor tensor) {
            long[] shape = tensor.requireFloat().shape();
            long cols = shape.length == 0 ? 1 : shape[shape.length - 1];
            long rows = cols == 0 ? 0 : tensor.elements() / cols;
            if (rows > Integer.MAX_VALUE || cols > Integer.MAX_VALUE) {
                throw tensor.problem("expected fewer than 2^31 rows and columns, got " + Arrays.toString(shape));
            }
            return new Floats(tensor, (int) rows, (int) cols, 0, cols, 1);
        }

        /** A tensor that is the matrix. */
        public static Floats of(Tensor tensor, int rows, int cols) {
            return new Floats(tensor.requireFloat().requireShape(rows, cols), rows, cols, 0, cols, 1);
        }

        @Override
        public Path file() {
            return tensor.file();
        }

        @Override
        public String tensorName() {
            return tensor.name();
        }

        @Override
        public void row(int row, float[] into) {
            Objects.checkIndex(row, rows);
            tensor.readFloats(start + row * rowStride, colStride, into, 0, cols);
        }
    }

    /**
     * Where int8 values come from.
     *
     * @param module what its tensors' names begin with, for messages
     * @param scales the tensor that has the scales, for messages
     * @param scheme how the checkpoint says that they are stored, and the activations that they are meant for
     * @param inputScale the static scale of the activations that the matrix is multiplied by; null if there is none
     */
    record Stored(
            Path file,
            String module,
            String scales,
            WeightQuantization.Group scheme,
            @Nullable Float inputScale) {}

    /**
     * int8 values with a scale, and maybe a zero point, for every block of rowsPerScale x colsPerScale: weight =
     * (value - zero) * scale.
     *
     * @param rowsPerScale rows that share a scale, at most all
     * @param colsPerScale columns that share a scale, at most all
     * @param values reads a row's values, {@code cols} of them
     * @param scales the scale of block (r, c)
     * @param zeros likewise, from -128 to 127; null where all are 0
     */
    record Int8(
            int rows,
            int cols,
            int rowsPerScale,
            int colsPerScale,
            RowReader values,
            FloatAt scales,
            @Nullable IntAt zeros,
            Stored stored)
            implements Matrix {
        @FunctionalInterface
        public interface RowReader {
            /** Reads a row's values to {@code into[at]} and on. */
            void read(int row, byte[] into, int at);

            /** Reads rows one behind the other, {@code cols} values each: sooner where they lie side by side. */
            default void read(int first, int count, int cols, byte[] into) {
                for (int i = 0; i < count; i++) {
                    read(first + i, into, i * cols);
                }
            }

            /** Rows one behind the other as they are stored; null where they are stored otherwise. */
            default @Nullable MemorySegment stored(int first, int count) {
                return null;
            }
        }

        @FunctionalInterface
        public interface FloatAt {
            float get(int row, int col);

            /** The first {@code count} of a row. */
            default void read(int row, int count, float[] into) {
                for (int col = 0; col < count; col++) {
                    into[col] = get(row, col);
                }
            }
        }

        @FunctionalInterface
        public interface IntAt {
            int get(int row, int col);
        }

        @Override
        public Path file() {
            return stored.file;
        }

        @Override
        public String tensorName() {
            return stored.scales;
        }

        @Override
        public Int8 int8() {
            return this;
        }

        /** The scale of a value. */
        public float scale(int row, int col) {
            return scales.get(row / rowsPerScale, col / colsPerScale);
        }

        /** The zero point of a value. */
        int zero(int row, int col) {
            return zeros == null ? 0 : zeros.get(row / rowsPerScale, col / colsPerScale);
        }

        @Override
        public void row(int row, float[] into) {
            Objects.checkIndex(row, rows);
            byte[] bytes = new byte[cols];
            values.read(row, bytes, 0);
            int r = row / rowsPerScale;
            for (int from = 0, c = 0; from < cols; from += colsPerScale, c++) {
                float scale = scales.get(r, c);
                int zero = zeros == null ? 0 : zeros.get(r, c);
                int to = Math.min(cols, from + colsPerScale);
                for (int i = from; i < to; i++) {
                    into[i] = (bytes[i] - zero) * scale;
                }
            }
        }
    }

    /** A matrix, every value times a factor. */
    static Matrix scaled(Matrix of, float factor) {
        Int8 int8 = of.int8();
        return int8 == null
                ? new MatrixView.Scaled(of, factor)
                : new Int8(
                        int8.rows,
                        int8.cols,
                        int8.rowsPerScale,
                        int8.colsPerScale,
                        int8.values,
                        (row, col) -> int8.scales.get(row, col) * factor,
                        int8.zeros,
                        int8.stored);
    }

    /** The greatest number that divides both; the other one where one is 0. */
    static int gcd(int a, int b) {
        return b == 0 ? a : gcd(b, a % b);
    }
}
