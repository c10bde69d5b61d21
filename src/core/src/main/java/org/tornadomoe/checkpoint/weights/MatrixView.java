package org.tornadomoe.checkpoint.weights;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Quantization;

/** A matrix that is made of others, which it reads when it is read itself. */
public sealed interface MatrixView extends Matrix {
    /** The matrix whose name this one has in messages. */
    Matrix named();

    @Override
    default Path file() {
        return named().file();
    }

    @Override
    default String tensorName() {
        return named().tensorName();
    }

    /** Another matrix, every value times a factor. Not for int8 values: their scales are multiplied. */
    record Scaled(Matrix of, float factor) implements MatrixView {
        @Override
        public int rows() {
            return of.rows();
        }

        @Override
        public int cols() {
            return of.cols();
        }

        @Override
        public Matrix named() {
            return of;
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

    /** The product of two matrices, [rows, n] times [n, cols], computed where it is read. */
    record Product(Matrix left, Matrix right) implements MatrixView {
        @Override
        public int rows() {
            return left.rows();
        }

        @Override
        public int cols() {
            return right.cols();
        }

        @Override
        public Matrix named() {
            return left;
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
    record Above(Matrix first, Matrix second) implements MatrixView {
        @Override
        public int rows() {
            return first.rows() + second.rows();
        }

        @Override
        public int cols() {
            return first.cols();
        }

        @Override
        public Matrix named() {
            return first;
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
    record Beside(List<Matrix> parts) implements MatrixView {
        @Override
        public int rows() {
            return parts.getFirst().rows();
        }

        @Override
        public int cols() {
            return parts.stream().mapToInt(Matrix::cols).sum();
        }

        @Override
        public Matrix named() {
            return parts.getFirst();
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
    record Window(Matrix of, int rows, int cols, int firstRow, int firstCol) implements MatrixView {
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
        public Matrix named() {
            return of;
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
            int rowsPerScale = perScale(whole.rowsPerScale(), whole.rows(), firstRow, rows);
            int colsPerScale = perScale(whole.colsPerScale(), whole.cols(), firstCol, cols);
            int there = Math.clamp((long) whole.cols() - firstCol, 0, cols);
            return new Int8(
                    rows,
                    cols,
                    rowsPerScale,
                    colsPerScale,
                    (row, into, at) -> {
                        boolean inside = firstRow + row < whole.rows() && there > 0;
                        if (inside) {
                            byte[] all = new byte[whole.cols()];
                            whole.values().read(firstRow + row, all, 0);
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
                    whole.zeros() == null
                            ? null
                            : (r, c) -> isInside(whole, r * rowsPerScale, c * colsPerScale)
                                    ? whole.zero(firstRow + r * rowsPerScale, firstCol + c * colsPerScale)
                                    : 0,
                    whole.stored());
        }

        private boolean isInside(Int8 whole, int row, int col) {
            return firstRow + row < whole.rows() && firstCol + col < whole.cols();
        }

        /** Rows (or columns) of the window that share a scale. */
        private static int perScale(int perScale, int length, int first, int part) {
            return perScale >= length ? part : Math.min(part, Matrix.gcd(perScale, first));
        }
    }

    /** Every so many rows of another matrix: the gate's or the up projection's where they alternate. */
    record EveryRow(Matrix of, int rows, int first, int step) implements MatrixView {
        @Override
        public int cols() {
            return of.cols();
        }

        @Override
        public Matrix named() {
            return of;
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
            int per = whole.rowsPerScale();
            boolean one = per >= whole.rows();
            Int8.IntAt zeros = whole.zeros();
            return new Int8(
                    rows,
                    whole.cols(),
                    one ? rows : 1,
                    whole.colsPerScale(),
                    (row, into, at) -> whole.values().read(first + row * step, into, at),
                    (r, c) -> whole.scales().get(one ? 0 : (first + r * step) / per, c),
                    zeros == null ? null : (r, c) -> zeros.get(one ? 0 : (first + r * step) / per, c),
                    whole.stored());
        }
    }
}
