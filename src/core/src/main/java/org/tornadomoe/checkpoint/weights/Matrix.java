package org.tornadomoe.checkpoint.weights;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.WeightRows;

/**
 * A weight matrix [rows, cols] as it lies in a checkpoint, read row by row. Thread-safe. There are three forms,
 * whatever the format: floats as they are ({@link Floats}); whole numbers of -128 to 127 on a grid of scales ({@link
 * Int8}), which also holds what has fewer bits, and loses nothing as int8; and any other, decoded to floats ({@link
 * Decoded}), which becomes int8 with an error.
 */
public sealed interface Matrix extends WeightRows {
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

    /** Another matrix, every value times a factor. Not for int8 values: their scales are multiplied. */
    record Scaled(Matrix of, float factor) implements Matrix {
        @Override
        public int rows() {
            return of.rows();
        }

        @Override
        public int cols() {
            return of.cols();
        }

        @Override
        public Path file() {
            return of.file();
        }

        @Override
        public String tensorName() {
            return of.tensorName();
        }

        @Override
        public @Nullable Int8Quantization suits() {
            return of.suits();
        }

        @Override
        public void row(int row, float[] into) {
            of.row(row, into);
            for (int i = 0; i < of.cols(); i++) {
                into[i] *= factor;
            }
        }
    }

    /** A matrix, every value times a factor. */
    static Matrix scaled(Matrix of, float factor) {
        Int8 int8 = of.int8();
        return int8 == null
                ? new Scaled(of, factor)
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

    /** The product of two matrices, [rows, n] times [n, cols], computed where it is read. */
    record Product(Matrix left, Matrix right) implements Matrix {
        @Override
        public int rows() {
            return left.rows();
        }

        @Override
        public int cols() {
            return right.cols();
        }

        @Override
        public Path file() {
            return left.file();
        }

        @Override
        public String tensorName() {
            return left.tensorName();
        }

        @Override
        public void row(int row, float[] into) {
            float[] factors = new float[left.cols()];
            left.row(row, factors);
            double[] sum = new double[cols()];
            float[] each = new float[cols()];
            for (int n = 0; n < factors.length; n++) {
                right.row(n, each);
                for (int c = 0; c < sum.length; c++) {
                    sum[c] += (double) factors[n] * each[c];
                }
            }
            for (int c = 0; c < sum.length; c++) {
                into[c] = (float) sum[c];
            }
        }
    }

    /** Two matrices of as many columns, one above the other. */
    record Above(Matrix first, Matrix second) implements Matrix {
        @Override
        public int rows() {
            return first.rows() + second.rows();
        }

        @Override
        public int cols() {
            return first.cols();
        }

        @Override
        public Path file() {
            return first.file();
        }

        @Override
        public String tensorName() {
            return first.tensorName();
        }

        @Override
        public void row(int row, float[] into) {
            if (row < first.rows()) {
                first.row(row, into);
            } else {
                second.row(row - first.rows(), into);
            }
        }
    }

    /** Matrices of as many rows side by side. */
    record Beside(List<Matrix> parts) implements Matrix {
        @Override
        public int rows() {
            return parts.getFirst().rows();
        }

        @Override
        public int cols() {
            return parts.stream().mapToInt(Matrix::cols).sum();
        }

        @Override
        public Path file() {
            return parts.getFirst().file();
        }

        @Override
        public String tensorName() {
            return parts.getFirst().tensorName();
        }

        @Override
        public void row(int row, float[] into) {
            int at = 0;
            for (Matrix part : parts) {
                float[] own = new float[part.cols()];
                part.row(row, own);
                System.arraycopy(own, 0, into, at, own.length);
                at += own.length;
            }
        }
    }

    /**
     * A window of another matrix that starts at (firstRow, firstCol); what lies past the other's end is zero. A shared
     * expert is cut into such windows, each as wide as a routed expert.
     */
    record Window(Matrix of, int rows, int cols, int firstRow, int firstCol) implements Matrix {
        @Override
        public void row(int row, float[] into) {
            Objects.checkIndex(row, rows);
            int there = Math.min(cols, of.cols() - firstCol);
            if (firstRow + row >= of.rows() || there <= 0) {
                Arrays.fill(into, 0, cols, 0f);
                return;
            }
            if (firstCol == 0 && there == of.cols()) {
                of.row(firstRow + row, into);
            } else {
                float[] whole = new float[of.cols()];
                of.row(firstRow + row, whole);
                System.arraycopy(whole, firstCol, into, 0, there);
            }
            Arrays.fill(into, there, cols, 0f);
        }

        @Override
        public Path file() {
            return of.file();
        }

        @Override
        public String tensorName() {
            return of.tensorName();
        }

        @Override
        public @Nullable Int8Quantization suits() {
            return of.suits();
        }

        /** With smaller blocks where a block of the other's lies across the window's edge. */
        @Override
        public @Nullable Int8 int8() {
            Int8 whole = of.int8();
            if (whole == null) {
                return null;
            }
            int rowsPerScale = perScale(whole.rowsPerScale, whole.rows, firstRow, rows);
            int colsPerScale = perScale(whole.colsPerScale, whole.cols, firstCol, cols);
            int there = Math.clamp((long) whole.cols - firstCol, 0, cols);
            return new Int8(
                    rows,
                    cols,
                    rowsPerScale,
                    colsPerScale,
                    (row, into, at) -> {
                        boolean inside = firstRow + row < whole.rows && there > 0;
                        if (inside) {
                            byte[] all = new byte[whole.cols];
                            whole.values.read(firstRow + row, all, 0);
                            System.arraycopy(all, firstCol, into, at, there);
                        }
                        // What stands for zero: the last group or block may begin before the other's end.
                        int top = row / rowsPerScale * rowsPerScale;
                        for (int c = inside ? there : 0; c < cols; c++) {
                            int left = c / colsPerScale * colsPerScale;
                            into[at + c] =
                                    isInside(whole, top, left) ? (byte) whole.zero(firstRow + top, firstCol + left) : 0;
                        }
                    },
                    (r, c) -> isInside(whole, r * rowsPerScale, c * colsPerScale)
                            ? whole.scale(firstRow + r * rowsPerScale, firstCol + c * colsPerScale)
                            : 0,
                    whole.zeros == null
                            ? null
                            : (r, c) -> isInside(whole, r * rowsPerScale, c * colsPerScale)
                                    ? whole.zero(firstRow + r * rowsPerScale, firstCol + c * colsPerScale)
                                    : 0,
                    whole.stored);
        }

        private boolean isInside(Int8 whole, int row, int col) {
            return firstRow + row < whole.rows && firstCol + col < whole.cols;
        }

        /** Rows (or columns) of the window that share a scale. */
        private static int perScale(int perScale, int length, int first, int part) {
            return perScale >= length ? part : Math.min(part, gcd(perScale, first));
        }
    }

    /** Every so many rows of another matrix: the gate's or the up projection's where they alternate. */
    record EveryRow(Matrix of, int rows, int first, int step) implements Matrix {
        @Override
        public int cols() {
            return of.cols();
        }

        @Override
        public Path file() {
            return of.file();
        }

        @Override
        public String tensorName() {
            return of.tensorName();
        }

        @Override
        public @Nullable Int8Quantization suits() {
            return of.suits();
        }

        @Override
        public void row(int row, float[] into) {
            Objects.checkIndex(row, rows);
            of.row(first + row * step, into);
        }

        /** With a scale a row, unless all rows share one. */
        @Override
        public @Nullable Int8 int8() {
            Int8 whole = of.int8();
            if (whole == null) {
                return null;
            }
            int per = whole.rowsPerScale;
            boolean one = per >= whole.rows;
            return new Int8(
                    rows,
                    whole.cols,
                    one ? rows : 1,
                    whole.colsPerScale,
                    (row, into, at) -> whole.values.read(first + row * step, into, at),
                    (r, c) -> whole.scales.get(one ? 0 : (first + r * step) / per, c),
                    whole.zeros == null ? null : (r, c) -> whole.zeros.get(one ? 0 : (first + r * step) / per, c),
                    whole.stored);
        }
    }

    /** The greatest number that divides both; the other one where one is 0. */
    static int gcd(int a, int b) {
        return b == 0 ? a : gcd(b, a % b);
    }
}
