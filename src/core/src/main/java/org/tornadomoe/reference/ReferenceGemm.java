package org.tornadomoe.reference;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Tensor;

/** The definition's GEMM: rows of activations times the rows of an expert's weights, in float64. */
public final class ReferenceGemm {
    private ReferenceGemm() {}

    /**
     * The GEMM of W8A8: out [P, N] with out[p, n] = sum over groups of columns of (sum of a[row, i] * w[e, n, i] in the
     * group) * the group's scale of the row * the group's scale of w[e, n], plus the bias of e and n; where row = p /
     * pairsPerRow and e = expertOf[p]. With one scale per row, a row is one group. The inner sum is exact. A pair whose
     * expert is outside [0, E) gets zeros.
     *
     * @param pairsPerRow K for GEMM 1, whose input has one row per token; 1 for GEMM 2, whose input has one row per
     *     pair
     * @param expertOf the expert of each of the P pairs
     * @param bias [E, N]; null for none
     */
    public static double[] multiply(
            QuantizedTokens a, int pairsPerRow, int[] expertOf, Int8Tensor w, float @Nullable [] bias) {
        double[] values = new double[a.values().length];
        for (int i = 0; i < values.length; i++) {
            values[i] = a.values()[i];
        }
        return multiply(values, Numerics.widen(a.scales()), pairsPerRow, expertOf, Weights.of(w), bias);
    }

    /**
     * The GEMM of W8A16: like that of W8A8, but activations have no scale, and the zero points are subtracted from the
     * weights.
     */
    public static double[] multiply(
            double[] a, int pairsPerRow, int[] expertOf, Int8Tensor w, float @Nullable [] bias) {
        return multiply(a, pairsPerRow, expertOf, Weights.of(w), bias);
    }

    /** The GEMM of the quantised activations or, if there are none, of the float ones. */
    static double[] multiply(
            @Nullable QuantizedTokens quantized,
            double[] a,
            int pairsPerRow,
            int[] expertOf,
            Int8Tensor w,
            float @Nullable [] bias) {
        return quantized == null
                ? multiply(a, pairsPerRow, expertOf, w, bias)
                : multiply(quantized, pairsPerRow, expertOf, w, bias);
    }

    static double[] multiply(double[] a, int pairsPerRow, int[] expertOf, Weights w, float @Nullable [] bias) {
        double[] one = new double[expertOf.length / pairsPerRow];
        Arrays.fill(one, 1);
        return multiply(a, one, pairsPerRow, expertOf, w, bias);
    }

    private static double[] multiply(
            double[] a, double[] scales, int pairsPerRow, int[] expertOf, Weights w, float @Nullable [] bias) {
        int cols = w.cols();
        int rows = expertOf.length / pairsPerRow;
        int groups = w.groups();
        boolean grouped = scales.length != rows;
        Numerics.requireLength("activations", a.length, rows, cols);
        Numerics.requireLength("activation scales", scales.length, rows, grouped ? groups : 1);
        double[] out = new double[Math.multiplyExact(expertOf.length, w.rows())];
        // Few tokens of a large layer choose few of its experts; the others' weights are not read.
        int[] chosen = IntStream.of(expertOf)
                .filter(e -> e >= 0 && e < w.experts())
                .distinct()
                .toArray();
        IntStream.range(0, chosen.length * w.rows()).parallel().forEach(weightRow -> {
            int e = chosen[weightRow / w.rows()];
            int n = weightRow % w.rows();
            double[] weights = new double[cols];
            double[] weightScales = new double[groups];
            w.read(e, n, weights, weightScales);
            for (int p = 0; p < expertOf.length; p++) {
                if (expertOf[p] == e) {
                    int row = p / pairsPerRow;
                    double total = 0;
                    for (int g = 0; g < groups; g++) {
                        double sum = 0;
                        for (int i = g * w.colsPerScale(); i < Math.min((g + 1L) * w.colsPerScale(), cols); i++) {
                            sum += a[row * cols + i] * weights[i];
                        }
                        total += sum * scales[grouped ? row * groups + g : row] * weightScales[g];
                    }
                    out[p * w.rows() + n] = total + (bias == null ? 0 : bias[e * w.rows() + n]);
                }
            }
        });
        return out;
    }

    /**
     * One projection of all experts, [E, rows, cols], row by row: weight = value * the scale of its group of columns.
     */
    record Weights(int experts, int rows, int cols, int colsPerScale, RowReader reader) {
        /** Reads a row's values and its groups' scales. */
        interface RowReader {
            void read(int expert, int row, double[] values, double[] scales);
        }

        int groups() {
            return Math.ceilDiv(cols, colsPerScale);
        }

        void read(int expert, int row, double[] values, double[] scales) {
            reader.read(expert, row, values, scales);
        }

        static Weights of(Int8Tensor w) {
            return new Weights(w.experts(), w.rows(), w.cols(), w.colsPerScale(), (expert, row, values, scales) -> {
                byte[] bytes = new byte[w.cols()];
                w.row(expert, row, bytes);
                for (int g = 0; g < scales.length; g++) {
                    int from = g * w.colsPerScale();
                    int to = (int) Math.min((long) from + w.colsPerScale(), bytes.length);
                    int zeroPoint = w.zeroPoint(expert, row, from);
                    for (int i = from; i < to; i++) {
                        values[i] = bytes[i] - zeroPoint;
                    }
                    scales[g] = w.scale(expert, row, from);
                }
            });
        }

        static Weights gateUp(ExpertWeights w) {
            FusedMoeConfig config = w.config();
            return floats(config.globalNumExperts(), config.gateUpRows(), config.hiddenDim(), w::gateUpRow);
        }

        static Weights down(ExpertWeights w) {
            FusedMoeConfig config = w.config();
            return floats(
                    config.globalNumExperts(), config.hiddenDim(), config.intermediateSizePerPartition(), w::downRow);
        }

        private interface FloatRow {
            void read(int expert, int row, float[] into);
        }

        private static Weights floats(int experts, int rows, int cols, FloatRow source) {
            return new Weights(experts, rows, cols, cols, (expert, row, values, scales) -> {
                float[] floats = new float[cols];
                source.read(expert, row, floats);
                for (int i = 0; i < cols; i++) {
                    values[i] = floats[i];
                }
                scales[0] = 1;
            });
        }
    }
}
