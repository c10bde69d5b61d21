package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

/**
 * Products of int8 matrices with the last token's activations, after their RMS norm if there is one. Weights have one
 * scale per row and four columns per int: of n ints, int i has columns i, i + n, i + 2n and i + 3n, so that
 * neighbouring work-items read neighbouring activations.
 */
final class ProductKernels {
    /** The largest number of ints per row. */
    static final int WIDEST = 2048;

    /** Work-items that share a row of weights. */
    private static final int LANES = 32;

    /** Rows of weights that a work-group multiplies at once. */
    static final int ROWS = WorkGroup.ITEMS / LANES;

    /** As many work-groups read as fast as a GPU's memory delivers. */
    static final int GROUPS = 1024;

    /** Reads of weights that a work-item has in flight. */
    private static final int READS = 16;

    /** The integer for the largest activation: three digits hold up to 127 · 65793. */
    private static final float GREATEST = 127.0f * 65536.0f;

    private ProductKernels() {}

    private static int round(float value) {
        return (int) TornadoMath.floor(value + 0.5f);
    }

    /** The same digit of four numbers. Digits are -128 to 127, so a negative digit borrows from the next one. */
    private static int digit(int q0, int q1, int q2, int q3, int shift) {
        return q0 >> shift & 0xFF | (q1 >> shift & 0xFF) << 8 | (q2 >> shift & 0xFF) << 16 | q3 >> shift << 24;
    }

    /**
     * {@code y[n] = weightScales[n] · Σ a[k] · w[n][k]}, where a is the last token's x or, if {@code norms} is 1, the
     * RMS norm of x + added. Each work-group makes the activations 24-bit integers, in three digits of 8 bits, so that
     * one instruction ({@code dp4a}) computes four products and their sum with a float's precision. Meanwhile its first
     * rows of weights are on their way. Grid: any number of work-groups; each takes {@value #ROWS} rows at a time.
     *
     * @param x [M, cols]
     * @param added [M, cols]
     * @param ints cols / 4, at most {@value #WIDEST}
     */
    static void project(
            KernelContext ctx,
            IntArray header,
            FloatArray x,
            FloatArray added,
            FloatArray gains,
            int gainsFrom,
            IntArray weights,
            int weightsFrom,
            FloatArray weightScales,
            int weightScalesFrom,
            FloatArray y,
            int rows,
            int ints,
            int norms,
            float epsilon) {
        int[] low = ctx.allocateIntLocalArray(WIDEST);
        int[] middle = ctx.allocateIntLocalArray(WIDEST);
        int[] high = ctx.allocateIntLocalArray(WIDEST);
        float[] sums = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        float[] magnitudes = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int[] w = new int[READS];
        float[] v = new float[4];
        int lid = ctx.localIdx;
        int lane = lid % LANES;
        int row = ctx.groupIdx * ROWS + lid / LANES;
        int first = weightsFrom + (row < rows ? row : rows - 1) * ints;
        for (int j = 0; j < READS; j++) {
            int i = lane + j * LANES;
            w[j] = weights.get(first + (i < ints ? i : ints - 1));
        }
        int token = (header.get(0) - 1) * 4 * ints;
        float squares = 0.0f;
        float greatest = 0.0f;
        for (int i = lid; i < ints; i += WorkGroup.ITEMS) {
            for (int b = 0; b < 4; b++) {
                float value = x.get(token + i + b * ints);
                if (norms == 1) {
                    value += added.get(token + i + b * ints);
                    squares += value * value;
                    value = value * gains.get(gainsFrom + i + b * ints);
                }
                greatest = TornadoMath.max(greatest, TornadoMath.abs(value));
            }
        }
        sums[lid] = squares;
        magnitudes[lid] = greatest;
        for (int half = WorkGroup.ITEMS / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lid < half) {
                sums[lid] = sums[lid] + sums[lid + half];
                magnitudes[lid] = TornadoMath.max(magnitudes[lid], magnitudes[lid + half]);
            }
        }
        ctx.localBarrier();
        greatest = magnitudes[0];
        float inverse = greatest > 0.0f ? GREATEST / greatest : 0.0f;
        float scale = greatest / GREATEST;
        if (norms == 1) {
            scale = scale / TornadoMath.sqrt(sums[0] / (4 * ints) + epsilon);
        }
        // Zeros behind the last, because a work-item always multiplies all that it has read.
        for (int i = lid; i < ints + READS * LANES && i < WIDEST; i += WorkGroup.ITEMS) {
            for (int b = 0; b < 4; b++) {
                v[b] = 0.0f;
                if (i < ints) {
                    v[b] = x.get(token + i + b * ints);
                    if (norms == 1) {
                        v[b] = (v[b] + added.get(token + i + b * ints)) * gains.get(gainsFrom + i + b * ints);
                    }
                }
            }
            int q0 = round(v[0] * inverse);
            int q1 = round(v[1] * inverse);
            int q2 = round(v[2] * inverse);
            int q3 = round(v[3] * inverse);
            low[i] = digit(q0, q1, q2, q3, 0);
            middle[i] = digit(q0 + 128, q1 + 128, q2 + 128, q3 + 128, 8);
            high[i] = digit(q0 + 32896, q1 + 32896, q2 + 32896, q3 + 32896, 16);
        }
        ctx.localBarrier();
        int stride = ctx.globalGroupSizeX / LANES;
        for (; row - lid / LANES < rows; row += stride) {
            int lows = 0;
            int middles = 0;
            int highs = 0;
            for (int k = lane; k - lane < ints; k += READS * LANES) {
                for (int j = 0; j < READS; j++) {
                    lows = QuantizationUtils.dp4a_packed(w[j], low[k + j * LANES], lows);
                    middles = QuantizationUtils.dp4a_packed(w[j], middle[k + j * LANES], middles);
                    highs = QuantizationUtils.dp4a_packed(w[j], high[k + j * LANES], highs);
                }
                boolean more = k - lane + READS * LANES < ints;
                int next = more ? row : row + stride;
                int from = weightsFrom + (next < rows ? next : rows - 1) * ints;
                for (int j = 0; j < READS; j++) {
                    int i = (more ? k + READS * LANES : lane) + j * LANES;
                    w[j] = weights.get(from + (i < ints ? i : ints - 1));
                }
            }
            ctx.localBarrier(); // the sums of the rows before have been read
            sums[lid] = highs * 65536.0f + middles * 256.0f + lows;
            for (int half = LANES / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (lane < half) {
                    sums[lid] = sums[lid] + sums[lid + half];
                }
            }
            if (lane == 0 && row < rows) {
                y.set(row, sums[lid] * scale * weightScales.get(weightScalesFrom + row));
            }
        }
    }

    /** Like {@link #project}, for devices without {@code dp4a}. Grid: one work-group per {@value #ROWS} rows. */
    static void projectPortable(
            KernelContext ctx,
            IntArray header,
            FloatArray x,
            FloatArray added,
            FloatArray gains,
            int gainsFrom,
            IntArray weights,
            int weightsFrom,
            FloatArray weightScales,
            int weightScalesFrom,
            FloatArray y,
            int rows,
            int ints,
            int norms,
            float epsilon) {
        float[] squares = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        float[] sums = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int lid = ctx.localIdx;
        int lane = lid % LANES;
        int row = ctx.groupIdx * ROWS + lid / LANES;
        int from = weightsFrom + (row < rows ? row : rows - 1) * ints;
        int token = (header.get(0) - 1) * 4 * ints;
        float ofSquares = 0.0f;
        float sum = 0.0f;
        for (int i = lane; i < ints; i += LANES) {
            int w = weights.get(from + i);
            for (int b = 0; b < 4; b++) {
                float value = x.get(token + i + b * ints);
                if (norms == 1) {
                    value += added.get(token + i + b * ints);
                    ofSquares += value * value;
                    value = value * gains.get(gainsFrom + i + b * ints);
                }
                sum += value * (w << (24 - 8 * b) >> 24);
            }
        }
        squares[lid] = ofSquares;
        sums[lid] = sum;
        for (int half = LANES / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                squares[lid] = squares[lid] + squares[lid + half];
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        if (lane == 0 && row < rows) {
            float product = sums[lid] * weightScales.get(weightScalesFrom + row);
            if (norms == 1) {
                product = product / TornadoMath.sqrt(squares[lid] / (4 * ints) + epsilon);
            }
            y.set(row, product);
        }
    }
}
