package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

/**
 * Products of int8 matrices with a single token's activations. Weights have one scale per row, and four columns packed
 * per int. The activations are 24-bit integers in three digits of 8 bits, so that one instruction ({@code dp4a})
 * computes four products and their sum with a float's precision: [3, cols / 4] ints, the lowest digits first, and one
 * scale for each {@link WorkGroup#ITEMS} ints.
 */
final class ProductKernels {
    /** Work-items that share a row of weights. */
    private static final int LANES = 32;

    /** Rows of weights per work-group. */
    static final int ROWS = WorkGroup.ITEMS / LANES;

    /** The integer for the largest activation of a block: three digits hold up to 127 · 65793. */
    private static final float GREATEST = 127.0f * 65536.0f;

    private ProductKernels() {}

    static float greatest(float v0, float v1, float v2, float v3) {
        return TornadoMath.max(
                TornadoMath.max(TornadoMath.abs(v0), TornadoMath.abs(v1)),
                TornadoMath.max(TornadoMath.abs(v2), TornadoMath.abs(v3)));
    }

    /**
     * Writes four activations as int {@code k} of each digit, and their block's scale.
     *
     * @param greatest the block's greatest absolute value
     */
    static void quantize(
            IntArray digits,
            FloatArray scales,
            int ints,
            int k,
            float greatest,
            float v0,
            float v1,
            float v2,
            float v3) {
        if (k % WorkGroup.ITEMS == 0) {
            scales.set(k / WorkGroup.ITEMS, greatest / GREATEST);
        }
        float inverse = greatest > 0.0f ? GREATEST / greatest : 0.0f;
        int q0 = round(v0 * inverse);
        int q1 = round(v1 * inverse);
        int q2 = round(v2 * inverse);
        int q3 = round(v3 * inverse);
        digits.set(k, digit(q0, q1, q2, q3, 0));
        digits.set(ints + k, digit(q0 + 128, q1 + 128, q2 + 128, q3 + 128, 8));
        digits.set(2 * ints + k, digit(q0 + 32896, q1 + 32896, q2 + 32896, q3 + 32896, 16));
    }

    private static int round(float value) {
        return (int) TornadoMath.floor(value + 0.5f);
    }

    /** The same digit of four numbers. Digits are -128 to 127, so a negative digit borrows from the next one. */
    private static int digit(int q0, int q1, int q2, int q3, int shift) {
        return q0 >> shift & 0xFF | (q1 >> shift & 0xFF) << 8 | (q2 >> shift & 0xFF) << 16 | q3 >> shift << 24;
    }

    /**
     * {@code y[n] = weightScales[n] · Σ x[k] · w[n][k]} for one token, x in {@code digits}. {@value #LANES} work-items
     * share a row of weights, with eight reads of it in flight at once. Grid: one work-group per {@value #ROWS} rows.
     *
     * @param ints cols / 4
     */
    static void project(
            KernelContext ctx,
            IntArray digits,
            FloatArray scales,
            IntArray weights,
            int weightsFrom,
            FloatArray weightScales,
            int weightScalesFrom,
            FloatArray y,
            int rows,
            int ints) {
        float[] sums = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int[] w = new int[8];
        int lid = ctx.localIdx;
        int lane = lid % LANES;
        int row = ctx.groupIdx * ROWS + lid / LANES;
        int from = weightsFrom + (row < rows ? row : rows - 1) * ints;
        float sum = 0.0f;
        int k = lane;
        for (; k + 7 * LANES < ints; k += 8 * LANES) {
            for (int j = 0; j < 8; j++) {
                w[j] = weights.get(from + k + j * LANES);
            }
            int low = 0;
            int middle = 0;
            int high = 0;
            for (int j = 0; j < 8; j++) {
                low = QuantizationUtils.dp4a_packed(w[j], digits.get(k + j * LANES), low);
                middle = QuantizationUtils.dp4a_packed(w[j], digits.get(ints + k + j * LANES), middle);
                high = QuantizationUtils.dp4a_packed(w[j], digits.get(2 * ints + k + j * LANES), high);
            }
            sum += scales.get(k / WorkGroup.ITEMS) * (high * 65536.0f + middle * 256.0f + low);
        }
        for (; k < ints; k += LANES) {
            int last = weights.get(from + k);
            int low = QuantizationUtils.dp4a_packed(last, digits.get(k), 0);
            int middle = QuantizationUtils.dp4a_packed(last, digits.get(ints + k), 0);
            int high = QuantizationUtils.dp4a_packed(last, digits.get(2 * ints + k), 0);
            sum += scales.get(k / WorkGroup.ITEMS) * (high * 65536.0f + middle * 256.0f + low);
        }
        sums[lid] = sum;
        for (int half = LANES / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        if (lane == 0 && row < rows) {
            y.set(row, sums[lid] * weightScales.get(weightScalesFrom + row));
        }
    }

    /** Like {@link #project}, with the same bits, for devices without {@code dp4a}. */
    static void projectPortable(
            KernelContext ctx,
            IntArray digits,
            FloatArray scales,
            IntArray weights,
            int weightsFrom,
            FloatArray weightScales,
            int weightScalesFrom,
            FloatArray y,
            int rows,
            int ints) {
        float[] sums = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int lid = ctx.localIdx;
        int lane = lid % LANES;
        int row = ctx.groupIdx * ROWS + lid / LANES;
        int from = weightsFrom + (row < rows ? row : rows - 1) * ints;
        int whole = ints / WorkGroup.ITEMS * WorkGroup.ITEMS;
        float sum = 0.0f;
        int low = 0;
        int middle = 0;
        int high = 0;
        for (int k = lane; k < ints; k += LANES) {
            int w = weights.get(from + k);
            low += dot(w, digits.get(k));
            middle += dot(w, digits.get(ints + k));
            high += dot(w, digits.get(2 * ints + k));
            if (k >= whole || k % WorkGroup.ITEMS >= WorkGroup.ITEMS - LANES) {
                sum += scales.get(k / WorkGroup.ITEMS) * (high * 65536.0f + middle * 256.0f + low);
                low = 0;
                middle = 0;
                high = 0;
            }
        }
        sums[lid] = sum;
        for (int half = LANES / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        if (lane == 0 && row < rows) {
            y.set(row, sums[lid] * weightScales.get(weightScalesFrom + row));
        }
    }

    private static int dot(int a, int b) {
        return (a << 24 >> 24) * (b << 24 >> 24)
                + (a << 16 >> 24) * (b << 16 >> 24)
                + (a << 8 >> 24) * (b << 8 >> 24)
                + (a >> 24) * (b >> 24);
    }
}
