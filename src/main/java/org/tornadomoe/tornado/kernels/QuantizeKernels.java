package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Activations to int8: with a scale a row, one scale for all, or a scale for every group of columns of a row. */
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
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
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

    /**
     * The greatest magnitude of each row, 0 for one that isn't there. With {@link #tensorScale} after it the one scale of all rows is
     * found; a maximum is the same in any order.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row; there are {@code header[0] · rowsPerToken} rows. Costs 4·cols bytes a row.
     *
     * @param magnitudes [rows], written
     */
    public static void rowMagnitudes(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray weights,
            FloatArray values,
            FloatArray magnitudes,
            int rowsPerToken,
            int cols,
            int keyed,
            int weighted) {
        float[] greatest = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int row = ctx.groupIdx;
        int inside = row < header.get(0) * rowsPerToken ? 1 : 0;
        int active = inside;
        if (keyed == 1 && inside == 1) {
            active = keys.get(row) >= 0 ? 1 : 0;
        }
        float weight = 1.0f;
        if (weighted == 1 && active == 1) {
            weight = weights.get(row);
        }
        int end = active * cols;
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
        float magnitude = 0.0f;
        for (int c = lane; c < end; c += GROUP) {
            magnitude = TornadoMath.max(magnitude, TornadoMath.abs(values.get(from + c) * weight));
        }
        greatest[lane] = magnitude;
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                greatest[lane] = TornadoMath.max(greatest[lane], greatest[lane + stride]);
            }
        }
        ctx.localBarrier();
        if (lane == 0 && inside == 1) {
            magnitudes.set(row, greatest[0]);
        }
    }

    /**
     * The one scale of all rows: {@code max(greatest / 127, 1e-10)}.
     *
     * <p>Grid: one group of {@link #GROUP} work-items. Costs 4 bytes a row.
     *
     * @param magnitudes [rows]
     * @param scale [1], written
     */
    public static void tensorScale(
            KernelContext ctx, IntArray header, FloatArray magnitudes, FloatArray scale, int rowsPerToken) {
        float[] greatest = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int rows = header.get(0) * rowsPerToken;
        float magnitude = 0.0f;
        for (int row = lane; row < rows; row += GROUP) {
            magnitude = TornadoMath.max(magnitude, magnitudes.get(row));
        }
        greatest[lane] = magnitude;
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                greatest[lane] = TornadoMath.max(greatest[lane], greatest[lane + stride]);
            }
        }
        ctx.localBarrier();
        if (lane == 0) {
            scale.set(0, TornadoMath.max(greatest[0] / 127.0f, 1.0e-10f));
        }
    }

    /**
     * The per-tensor quantiser of vLLM's {@code scaled_int8_quant}: {@code q = round(x / scale)}, half to even, clamped to [-128, 127].
     * The parameters are those of {@link #quantizeRows}, but for:
     *
     * @param scale [1]
     * @param scales [rows], written: the one scale for every row, as the GEMMs read it
     */
    public static void quantizeTensor(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray weights,
            FloatArray values,
            FloatArray scale,
            IntArray quantized,
            FloatArray scales,
            int rowsPerToken,
            int cols,
            int rowInts,
            int keyed,
            int weighted) {
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
        float one = scale.get(0);
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
        int ints = active * rowInts;
        for (int i = lane; i < ints; i += GROUP) {
            int packed = 0;
            for (int b = 0; b < 4; b++) {
                int c = 4 * i + b;
                if (c < cols) {
                    packed |= (roundHalfEven(values.get(from + c) * weight / one) & 0xFF) << (8 * b);
                }
            }
            quantized.set(row * rowInts + i, packed);
        }
        if (lane == 0 && active == 1) {
            scales.set(row, one);
        }
    }

    /**
     * The group quantiser of vLLM's {@code per_token_group_quant_int8}: {@code scale = max(|x|, 1e-10) / 127} of a group of columns, {@code q =
     * truncate(clamp(x / scale, -128, 127))}, or to the nearest, half to even. The parameters are those of {@link #quantizeRows}, but for:
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row and group of columns.
     *
     * @param scales [rows, groups], written
     * @param group columns of a group, a multiple of 4 unless one group is all; the last may be short
     * @param nearest 1 to round, 0 to truncate
     */
    public static void quantizeGroups(
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
            int group,
            int nearest,
            int keyed,
            int weighted) {
        float[] magnitudes = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int groups = (cols + group - 1) / group;
        int row = ctx.groupIdx / groups;
        int first = ctx.groupIdx % groups * group;
        int active = row < header.get(0) * rowsPerToken ? 1 : 0;
        if (keyed == 1 && active == 1) {
            active = keys.get(row) >= 0 ? 1 : 0;
        }
        float weight = 1.0f;
        if (weighted == 1 && active == 1) {
            weight = weights.get(row);
        }
        int last = first + group < cols ? first + group : cols;
        int end = active * last;
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
        float magnitude = 1.0e-10f;
        for (int c = first + lane; c < end; c += GROUP) {
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
        float scale = magnitudes[0] / 127.0f;
        int ints = active * ((last + 3) / 4);
        for (int i = first / 4 + lane; i < ints; i += GROUP) {
            int packed = 0;
            for (int b = 0; b < 4; b++) {
                int c = 4 * i + b;
                if (c < cols) {
                    float quotient = values.get(from + c) * weight / scale;
                    int q = (int) TornadoMath.max(TornadoMath.min(quotient, 127.0f), -128.0f);
                    if (nearest == 1) {
                        q = roundHalfEven(quotient);
                    }
                    packed |= (q & 0xFF) << (8 * b);
                }
            }
            quantized.set(row * rowInts + i, packed);
        }
        if (lane == 0 && active == 1) {
            scales.set(ctx.groupIdx, scale);
        }
    }

    /** Where a row's values are: with {@code weighted} 1 they are its token's, which all of the token's rows share. */
    private static int valuesRow(int row, int rowsPerToken, int weighted) {
        return weighted == 1 ? row / rowsPerToken : row;
    }

    /** By the fraction: adding and subtracting a large float is folded away where mathematics are fast. Clamped to [-128, 127]. */
    private static int roundHalfEven(float x) {
        float magnitude = TornadoMath.min(TornadoMath.abs(x), 128.0f);
        int whole = (int) magnitude;
        float fraction = magnitude - whole;
        int up = fraction > 0.5f ? 1 : 0;
        int odd = fraction == 0.5f ? whole & 1 : 0;
        int rounded = whole + up + odd;
        int signed = x < 0.0f ? -rounded : rounded;
        return signed > 127 ? 127 : signed;
    }

    /** Adding a half and truncating would round the float just below 0.5 up, so the fraction is looked at instead. */
    static int roundHalfAway(float x) {
        float magnitude = TornadoMath.abs(x);
        int whole = (int) magnitude;
        int rounded = magnitude - whole >= 0.5f ? whole + 1 : whole;
        return x < 0.0f ? -rounded : rounded;
    }
}
