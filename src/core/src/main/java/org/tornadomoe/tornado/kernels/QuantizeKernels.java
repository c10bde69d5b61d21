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
     * The per-token quantiser of vLLM's {@code per_token_quant_int8}: {@code scale = a / 127},
     * {@code q = round(x · (127 / a))}, half away from zero, where {@code a} is the row's greatest magnitude, at least
     * 1e-10.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row; there are {@code header[0] · rowsPerToken} rows. Costs
     * 8·cols bytes read (the second pass from the cache) and cols bytes written a row.
     *
     * @param header [0] = M
     * @param keys with {@code keyed} 1 [rows]: a row with −1 isn't there, and nothing is written for it; else not
     *     looked at
     * @param weights with {@code weighted} 1 [rows]: what a row is multiplied by first; else not looked at
     * @param values [rows, cols]; with {@code weighted} 1 [M, cols], each for as many rows as a token has
     * @param quantized [rows, rowInts], written: four values an int, the first in the low byte; the values that pad a
     *     row to {@code 4 · rowInts} are 0
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
        int active = active(header, keys, row, rowsPerToken, keyed);
        float weight = weight(weights, row, active, weighted);
        int end = active * cols;
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
        magnitudes[lane] = magnitude(values, from + lane, from + end, weight, 1.0e-10f);
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                magnitudes[lane] = TornadoMath.max(magnitudes[lane], magnitudes[lane + stride]);
            }
        }
        ctx.localBarrier();
        float magnitude = magnitudes[0];
        float inverse = 127.0f / magnitude;
        int ints = active * rowInts;
        for (int i = lane; i < ints; i += GROUP) {
            quantized.set(row * rowInts + i, rounded4(values, from, 4 * i, cols, weight, inverse));
        }
        if (lane == 0 && active == 1) {
            scales.set(row, magnitude / 127.0f);
        }
    }

    /**
     * The greatest magnitude of each row, 0 for one that isn't there. With {@link #tensorScale} after it the one scale
     * of all rows is found; a maximum is the same in any order. The parameters are those of {@link #quantizeRows}, but
     * for:
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row; there are {@code header[0] · rowsPerToken} rows. Costs
     * 4·cols bytes a row.
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
        int active = active(header, keys, row, rowsPerToken, keyed);
        float weight = weight(weights, row, active, weighted);
        int end = active * cols;
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
        greatest[lane] = magnitude(values, from + lane, from + end, weight, 0.0f);
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                greatest[lane] = TornadoMath.max(greatest[lane], greatest[lane + stride]);
            }
        }
        ctx.localBarrier();
        if (lane == 0 && row < header.get(0) * rowsPerToken) {
            magnitudes.set(row, greatest[0]);
        }
    }

    /**
     * The one scale of all rows: {@code max(greatest / 127, 1e-10)}.
     *
     * <p>Grid: one group of {@link #GROUP} work-items. Costs 4 bytes a row.
     *
     * @param header [0] · {@code rowsPerToken} rows
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
            scale.set(0, TornadoMath.max(dividedBy127(greatest[0]), 1.0e-10f));
        }
    }

    /**
     * The per-tensor quantiser of vLLM's {@code scaled_int8_quant}: {@code q = round(x / scale)}, half to even, clamped
     * to [-128, 127]. The parameters are those of {@link #quantizeRows}, but for:
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row. Costs 4·cols bytes read and cols written a row, and an
     * integer division a value.
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
        int active = active(header, keys, row, rowsPerToken, keyed);
        float weight = weight(weights, row, active, weighted);
        float one = scale.get(0);
        float power = powerOfTwo(one);
        int divisor = mantissa(one, power);
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
        int ints = active * rowInts;
        for (int i = lane; i < ints; i += GROUP) {
            quantized.set(row * rowInts + i, quotients4(values, from, 4 * i, cols, weight, power, divisor, 1));
        }
        if (lane == 0 && active == 1) {
            scales.set(row, one);
        }
    }

    /**
     * The group quantiser of vLLM's {@code per_token_group_quant_int8}: {@code scale = max(|x|, 1e-10) / 127} of a
     * group of columns, {@code q = truncate(clamp(x / scale, -128, 127))}, or to the nearest, half to even. The
     * parameters are those of {@link #quantizeRows}, but for:
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row and group of columns. Costs what {@link #quantizeRows}
     * does, and an integer division a value.
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
        int active = active(header, keys, row, rowsPerToken, keyed);
        float weight = weight(weights, row, active, weighted);
        int last = first + group < cols ? first + group : cols;
        int end = active * last;
        int from = valuesRow(row, rowsPerToken, weighted) * cols;
        magnitudes[lane] = magnitude(values, from + first + lane, from + end, weight, 1.0e-10f);
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                magnitudes[lane] = TornadoMath.max(magnitudes[lane], magnitudes[lane + stride]);
            }
        }
        ctx.localBarrier();
        float scale = dividedBy127(magnitudes[0]);
        float power = powerOfTwo(scale);
        int divisor = mantissa(scale, power);
        int ints = active * ((last + 3) / 4);
        for (int i = first / 4 + lane; i < ints; i += GROUP) {
            quantized.set(row * rowInts + i, quotients4(values, from, 4 * i, cols, weight, power, divisor, nearest));
        }
        if (lane == 0 && active == 1) {
            scales.set(ctx.groupIdx, scale);
        }
    }

    /** 1 for a row that is there, else 0. */
    static int active(IntArray header, IntArray keys, int row, int rowsPerToken, int keyed) {
        int active = row < header.get(0) * rowsPerToken ? 1 : 0;
        if (keyed == 1 && active == 1) {
            active = keys.get(row) >= 0 ? 1 : 0;
        }
        return active;
    }

    /** What a row is multiplied by first. */
    static float weight(FloatArray weights, int row, int active, int weighted) {
        float weight = 1.0f;
        if (weighted == 1 && active == 1) {
            weight = weights.get(row);
        }
        return weight;
    }

    /** The greatest magnitude, times the weight, of every {@link #GROUP}th value; at least {@code least}. */
    static float magnitude(FloatArray values, int from, int end, float weight, float least) {
        float magnitude = least;
        for (int at = from; at < end; at += GROUP) {
            magnitude = TornadoMath.max(magnitude, TornadoMath.abs(values.get(at) * weight));
        }
        return magnitude;
    }

    /** Where a row's values are: with {@code weighted} 1 they are its token's, which all of the token's rows share. */
    static int valuesRow(int row, int rowsPerToken, int weighted) {
        return weighted == 1 ? row / rowsPerToken : row;
    }

    /** Columns {@code first} to first + 3 of a row as an int, rounded half away from zero; 0 past its end. */
    static int rounded4(FloatArray values, int from, int first, int cols, float weight, float inverse) {
        int packed = 0;
        for (int b = 0; b < 4; b++) {
            if (first + b < cols) {
                packed |= (roundHalfAway(values.get(from + first + b) * weight * inverse) & 0xFF) << (8 * b);
            }
        }
        return packed;
    }

    /** As {@link #rounded4}, by {@link #quotient}. */
    private static int quotients4(
            FloatArray values, int from, int first, int cols, float weight, float power, int divisor, int nearest) {
        int packed = 0;
        for (int b = 0; b < 4; b++) {
            if (first + b < cols) {
                packed |= (quotient(values.get(from + first + b) * weight, power, divisor, nearest) & 0xFF) << (8 * b);
            }
        }
        return packed;
    }

    /**
     * {@code x / scale} as IEEE 754 rounds it, then truncated or, with {@code nearest} 1, rounded half to even; clamped
     * to [-128, 127].
     *
     * <p>In integers, because devices divide floats approximately (PTX to 2 ulp, OpenCL by a reciprocal), and
     * truncating makes a whole step of that: by construction the greatest of a group is 127 scales or one ulp less.
     *
     * @param power {@link #powerOfTwo} of the scale
     * @param divisor {@link #mantissa} of the scale
     */
    private static int quotient(float x, float power, int divisor, int nearest) {
        // An integer from 2^23 on; below, it is less than the divisor. More than 2^31 is a quotient of more than 127.
        float dividend = TornadoMath.min(TornadoMath.abs(x) * power, 0x1.fffffep30f);
        int whole = (int) dividend;
        int q = whole / divisor;
        int rest = whole - q * divisor;
        // How far twice the rest may be from the divisor where the float quotient is q + 1/2: by the ulp of numbers
        // like q.
        int tie = q > 0 ? divisor >> 23 : 0;
        tie = q > 1 ? divisor >> 22 : tie;
        tie = q > 3 ? divisor >> 21 : tie;
        tie = q > 7 ? divisor >> 20 : tie;
        tie = q > 15 ? divisor >> 19 : tie;
        tie = q > 31 ? divisor >> 18 : tie;
        tie = q > 63 ? divisor >> 17 : tie;
        // A float quotient may be q + 1 where the exact one isn't yet, by half an ulp.
        int up = divisor - rest <= tie >> 1 ? 1 : 0;
        if (nearest == 1) {
            int twice = q == 0 ? (int) (dividend + dividend) : rest + rest;
            int odd = twice - divisor >= -tie ? q & 1 : 0;
            up = twice - divisor > tie ? 1 : odd;
        }
        int signed = x < 0.0f ? -q - up : q + up;
        signed = signed > 127 ? 127 : signed;
        return signed < -128 ? -128 : signed;
    }

    /** The scale times its power of two: 24 bits. At least 1, so that one that is no number can be divided by. */
    private static int mantissa(float scale, float power) {
        int mantissa = (int) (scale * power);
        return mantissa > 0 ? mantissa : 1;
    }

    /** The power of two by which x, positive and at least 2^-104, is in [2^23, 2^24). Products with it are exact. */
    private static float powerOfTwo(float x) {
        float power = x < 0x1p24f ? 1.0f : 0x1p-104f;
        power = x * power < 0x1p-40f ? power * 0x1p64f : power;
        power = x * power < 0x1p-8f ? power * 0x1p32f : power;
        power = x * power < 0x1p8f ? power * 0x1p16f : power;
        power = x * power < 0x1p16f ? power * 0x1p8f : power;
        power = x * power < 0x1p20f ? power * 0x1p4f : power;
        power = x * power < 0x1p22f ? power * 0x1p2f : power;
        return x * power < 0x1p23f ? power * 2.0f : power;
    }

    /** {@code x / 127}, x positive, as IEEE 754 rounds it; in integers for {@link #quotient}'s reason. */
    private static float dividedBy127(float x) {
        float power = powerOfTwo(x);
        int mantissa = (int) (x * power);
        int bits = mantissa < 127 << 17 ? 7 : 6;
        int dividend = bits == 7 ? mantissa << 7 : mantissa << 6;
        int q = dividend / 127;
        q = dividend - 127 * q > 63 ? q + 1 : q;
        // powerOfTwo(power) is 2^23 / power.
        float inverse = powerOfTwo(power) * (bits == 7 ? 0x1p-30f : 0x1p-29f);
        return x < 0x1p127f ? q * inverse : x / 127.0f;
    }

    /** Adding a half and truncating would round the float just below 0.5 up, so the fraction is looked at instead. */
    static int roundHalfAway(float x) {
        float magnitude = TornadoMath.abs(x);
        int whole = (int) magnitude;
        int rounded = magnitude - whole >= 0.5f ? whole + 1 : whole;
        return x < 0.0f ? -rounded : rounded;
    }
}
