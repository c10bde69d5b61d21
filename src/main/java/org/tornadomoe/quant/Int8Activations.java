package org.tornadomoe.quant;

import java.util.Objects;

/**
 * The per-token activation quantiser of vLLM ({@code per_token_quant_int8} in {@code int8_utils.py}), in float
 * arithmetic: {@code absmax = max(|x|, 1e-10)}, {@code scale = absmax / 127}, {@code q = round(x * (127 / absmax))}
 * with halves away from zero. So |q| is at most 127, and a token of zeros has q = 0 and a scale of 1e-10 / 127.
 *
 * <p>A NaN or an infinity in the token makes the scale NaN or infinite and that value's q 0, which makes the token's
 * result NaN rather than a plausible number; other tokens are untouched.
 */
public final class Int8Activations {
    /** Least max-abs, so that the scale of a row of zeros is not zero. */
    public static final float MIN_ABS_MAX = 1e-10f;

    private Int8Activations() {}

    /** The scale of x[from, from + length). */
    public static float scale(float[] x, int from, int length) {
        return absMax(x, from, length) / 127f;
    }

    /**
     * Quantises the token x[from, from + length) into q[into, into + length).
     *
     * @return its scale
     * @throws IndexOutOfBoundsException if a range is not inside its array
     */
    public static float quantize(float[] x, int from, int length, byte[] q, int into) {
        Objects.checkFromIndexSize(into, length, q.length);
        float absMax = absMax(x, from, length);
        float inverse = 127f / absMax;
        for (int i = 0; i < length; i++) {
            q[into + i] = roundHalfAway(x[from + i] * inverse);
        }
        return absMax / 127f;
    }

    /** Quantises M tokens of width H, x [M, H] into q [M, H] and scales [M]. */
    public static void quantize(float[] x, int tokens, int width, byte[] q, float[] scales) {
        Objects.checkFromIndexSize(0, tokens, scales.length);
        for (int m = 0; m < tokens; m++) {
            scales[m] = quantize(x, m * width, width, q, m * width);
        }
    }

    /** To the nearest integer, halves away from zero; NaN gives 0. Not floor(x + 0.5), which errs just below a half. */
    static byte roundHalfAway(float x) {
        float truncated = (int) x;
        float away = Math.abs(x - truncated) >= 0.5f ? Math.copySign(1f, x) : 0f;
        return (byte) (truncated + away);
    }

    private static float absMax(float[] x, int from, int length) {
        Objects.checkFromIndexSize(from, length, x.length);
        float absMax = MIN_ABS_MAX;
        for (int i = from; i < from + length; i++) {
            absMax = Math.max(absMax, Math.abs(x[i]));
        }
        return absMax;
    }
}
