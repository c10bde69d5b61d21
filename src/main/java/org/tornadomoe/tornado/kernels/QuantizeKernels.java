package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Activations to int8, a scale a row. */
public final class QuantizeKernels {
    /** Work-items of a group, which quantises one row. */
    public static final int GROUP = 128;

    private QuantizeKernels() {}

    /**
     * The per-token quantiser of vLLM's {@code per_token_quant_int8}: {@code scale = a / 127}, {@code q = round(x · (127 /
     * a))}, half away from zero, where {@code a} is the row's greatest magnitude, at least 1e-10.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row; there are {@code header[0] · rowsPerToken} rows. Costs 8·cols
     * bytes read (the second pass from the cache) and cols bytes written a row.
     *
     * @param header [0] = M
     * @param keys with {@code keyed} 1 [rows]: a row with −1 isn't there, and nothing is written for it; else not looked at
     * @param weights with {@code weighted} 1 [rows]: what a row is multiplied by first; else not looked at
     * @param values [rows, cols]; with {@code weighted} 1 [M, cols], each for as many rows as a token has
     * @param quantized [rows, rowInts], written: four values an int, the first in the low byte; the values that pad a row
     *     to {@code 4 · rowInts} are 0
     * @param scales [rows], written
     */
    public static void quantizeRows(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray weights,
            FloatArray values,
            IntArray quantized,
            FloatArray scales,
            int rowsPerToken,
            int cols,
            int rowInts,
            int keyed,
            int weighted) {
        float[] magnitudes = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int row = ctx.groupIdx;
        int active = row < header.get(0) * rowsPerToken ? 1 : 0;
        if (keyed == 1 && active == 1) {
            active = keys.get(row) >= 0 ? 1 : 0;
        }
        float weight = 1.0f;
        if (weighted == 1 && active == 1) {
            weight = weights.get(row);
        }
        int end = active * cols;
        int from = (weighted == 1 ? row / rowsPerToken : row) * cols;
        float magnitude = 1.0e-10f;
        for (int c = lane; c < end; c += GROUP) {
            magnitude = TornadoMath.max(magnitude, TornadoMath.abs(values.get(from + c) * weight));
        }
        magnitudes[lane] = magnitude;
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                magnitudes[lane] = TornadoMath.max(magnitudes[lane], magnitudes[lane + stride]);
            }
        }
        ctx.localBarrier();
        magnitude = magnitudes[0];
        float inverse = 127.0f / magnitude;
        int ints = active * rowInts;
        for (int i = lane; i < ints; i += GROUP) {
            int packed = 0;
            for (int b = 0; b < 4; b++) {
                int c = 4 * i + b;
                if (c < cols) {
                    packed |= (roundHalfAway(values.get(from + c) * weight * inverse) & 0xFF) << (8 * b);
                }
            }
            quantized.set(row * rowInts + i, packed);
        }
        if (lane == 0 && active == 1) {
            scales.set(row, magnitude / 127.0f);
        }
    }

    /** Adding a half and truncating would round the float just below 0.5 up, so the fraction is looked at instead. */
    static int roundHalfAway(float x) {
        float magnitude = TornadoMath.abs(x);
        int whole = (int) magnitude;
        int rounded = magnitude - whole >= 0.5f ? whole + 1 : whole;
        return x < 0.0f ? -rounded : rounded;
    }
}
