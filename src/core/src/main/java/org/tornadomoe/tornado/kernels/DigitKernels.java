package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Floats as digits of int8, for products of int8: what {@link FragmentGemmKernels} multiplies. */
public final class DigitKernels {
    /** Digits of an activation in float, of 8 bits each, the highest first. */
    public static final int PLANES = 3;

    /** Work-items of a group. */
    public static final int GROUP = QuantizeKernels.GROUP;

    /** The greatest magnitude of digits: 127 · 2^16. */
    private static final float MOST = 8323072.0f;

    private DigitKernels() {}

    /**
     * Rows in float as {@value #PLANES} digits to the base of 256 from -128 to 127 each, of whole
     * numbers of which the greatest of a row has the magnitude 127 · 2^16: to the precision of a float, relative to the
     * row's greatest.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row; there are {@code header[0] · rowsPerToken} rows. Costs
     * 8·cols bytes read (the second pass from the cache) and 3·cols bytes written a row.
     *
     * @param header [0] = M
     * @param keys with {@code keyed} 1 [rows]: a row with −1 isn't there, and nothing is written for it; else not
     *     looked at
     * @param weights with {@code weighted} 1 [rows]: what a row is multiplied by first; else not looked at
     * @param values [rows, cols]; with {@code weighted} 1 [M, cols], each for as many rows as a token has
     * @param digits [rows, PLANES · chunks · 17], written: of each digit a row's values, four an int, the first in the
     *     low byte, what pads the last chunk 0; then with {@code summed} 1 of each digit a sum a chunk
     * @param scales [rows], written: of the lowest digit
     */
    public static void split(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray weights,
            FloatArray values,
            IntArray digits,
            FloatArray scales,
            int rowsPerToken,
            int cols,
            int keyed,
            int weighted,
            int summed) {
        float[] magnitudes = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int row = ctx.groupIdx;
        int active = QuantizeKernels.active(header, keys, row, rowsPerToken, keyed);
        float weight = QuantizeKernels.weight(weights, row, active, weighted);
        int end = active * cols;
        int from = QuantizeKernels.valuesRow(row, rowsPerToken, weighted) * cols;
        magnitudes[lane] = QuantizeKernels.magnitude(values, from + lane, from + end, weight, 1.0e-30f);
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                magnitudes[lane] = TornadoMath.max(magnitudes[lane], magnitudes[lane + stride]);
            }
        }
        ctx.localBarrier();
        float magnitude = magnitudes[0];
        float inverse = MOST / magnitude;
        int chunks = (cols + FragmentGemmKernels.CHUNK - 1) / FragmentGemmKernels.CHUNK;
        int plane = chunks * 16;
        int to = row * PLANES * chunks * 17;
        for (int i = lane; i < active * plane; i += GROUP) {
            int high = 0;
            int middle = 0;
            int low = 0;
            for (int b = 0; b < 4; b++) {
                int c = 4 * i + b;
                if (c < cols) {
                    int whole = QuantizeKernels.roundHalfAway(values.get(from + c) * weight * inverse);
                    int digit = GemmKernels.int8(whole);
                    int rest = (whole - digit) >> 8;
                    int next = GemmKernels.int8(rest);
                    low |= (digit & 0xFF) << (8 * b);
                    middle |= (next & 0xFF) << (8 * b);
                    high |= (((rest - next) >> 8) & 0xFF) << (8 * b);
                }
            }
            digits.set(to + i, high);
            digits.set(to + plane + i, middle);
            digits.set(to + 2 * plane + i, low);
        }
        if (summed == 1) {
            ctx.globalBarrier();
            for (int f = lane; f < active * PLANES * chunks; f += GROUP) {
                int sum = 0;
                for (int i = 0; i < 16; i++) {
                    int four = digits.get(to + 16 * f + i);
                    sum += GemmKernels.int8(four)
                            + GemmKernels.int8(four >> 8)
                            + GemmKernels.int8(four >> 16)
                            + GemmKernels.int8(four >> 24);
                }
                digits.set(to + PLANES * plane + f, sum);
            }
        }
        if (lane == 0 && active == 1) {
            scales.set(row, magnitude / MOST);
        }
    }
}
