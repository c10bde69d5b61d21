package org.tornadomoe.quant;

import java.util.Objects;

/**
 * vLLM's activation quantisers, in float arithmetic. There are three, which round differently.
 *
 * <ul>
 *   <li>One scale per token ({@code per_token_quant_int8} in {@code int8_utils.py}): {@code absmax = max(|x|, 1e-10)},
 *       {@code scale = absmax / 127}, {@code q = round(x * (127 / absmax))} with halves away from zero. So |q| is at
 *       most 127; a token of zeros has q = 0 and a scale of 1e-10 / 127.
 *   <li>One scale, given or {@code max(max|x| / 127, 1e-10)} ({@code scaled_int8_quant}): {@code q = round(x / scale)}
 *       with halves to even, clamped to [-128, 127]. vLLM takes the maximum in the activations' own type; here it is in
 *       float.
 *   <li>One scale per token and group of columns ({@code per_token_group_quant_int8}): {@code scale = max(|x|, 1e-10) /
 *       127}, {@code q = truncate(clamp(x / scale, -128, 127))}; or, our addition, rounded to nearest, halves to even.
 *       The last group may be shorter.
 * </ul>
 *
 * <p>A NaN or an infinity makes its scale NaN or infinite and its own q 0. The token's results (with one scale found at
 * run time, all tokens' results) then become NaN rather than plausible numbers. With a given scale, an infinity is
 * clamped and a NaN becomes 0.
 */
public final class Int8Activations {
    /** Lower bound of max|x|, so that the scale of a row of zeros is not zero. */
    public static final float MIN_ABS_MAX = 1e-10f;

    private static final float BELOW_HALF = Math.nextDown(0.5f);

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

    /**
     * Quantises M tokens of width H, x [M, H] into q [M, H] and scales [M].
     *
     * @throws IndexOutOfBoundsException if an array is too short, before anything is written
     */
    public static void quantize(float[] x, int tokens, int width, byte[] q, float[] scales) {
        requireRoom(tokens, width, x.length, q.length);
        Objects.checkFromIndexSize(0, tokens, scales.length);
        for (int m = 0; m < tokens; m++) {
            scales[m] = quantize(x, m * width, width, q, m * width);
        }
    }

    /** The one scale of x[0, length): max(max|x| / 127, 1e-10). */
    public static float tensorScale(float[] x, int length) {
        Objects.checkFromIndexSize(0, length, x.length);
        float absMax = 0;
        for (int i = 0; i < length; i++) {
            absMax = Math.max(absMax, Math.abs(x[i]));
        }
        return Math.max(absMax / 127f, MIN_ABS_MAX);
    }

    /** Quantises x[0, length) into q with one scale, positive. */
    public static void quantize(float[] x, int length, float scale, byte[] q) {
        quantize(x, 0, length, scale, q, 0);
    }

    /** Quantises x[from, from + length) into q[into, into + length) with one scale, positive. */
    public static void quantize(float[] x, int from, int length, float scale, byte[] q, int into) {
        Objects.checkFromIndexSize(from, length, x.length);
        Objects.checkFromIndexSize(into, length, q.length);
        for (int i = 0; i < length; i++) {
            q[into + i] = roundHalfEven(x[from + i] / scale);
        }
    }

    /**
     * Quantises M tokens of width H with a scale for every {@code group} columns, x [M, H] into q [M, H] and scales [M,
     * ⌈H / group⌉].
     *
     * @param group positive
     * @param nearest whether to round to the nearest integer, halves to even, instead of truncating
     * @throws IllegalArgumentException if {@code group} is not positive
     * @throws IndexOutOfBoundsException if an array is too short, before anything is written
     */
    public static void quantizeGroups(
            float[] x, int tokens, int width, int group, boolean nearest, byte[] q, float[] scales) {
        if (group < 1) {
            throw new IllegalArgumentException("group: expected a positive number, got " + group);
        }
        requireRoom(tokens, width, x.length, q.length);
        int groups = Math.ceilDiv(width, group);
        Objects.checkFromIndexSize(0L, (long) tokens * groups, scales.length);
        for (int g = 0; g < tokens * groups; g++) {
            int from = g / groups * width + g % groups * group;
            int length = Math.min(group, width - g % groups * group);
            scales[g] = quantizeGroup(x, from, length, nearest, q, from);
        }
    }

    /**
     * Quantises the group x[from, from + length) into q[into, into + length).
     *
     * @param nearest whether to round to the nearest integer, halves to even, instead of truncating
     * @return its scale
     */
    public static float quantizeGroup(float[] x, int from, int length, boolean nearest, byte[] q, int into) {
        Objects.checkFromIndexSize(into, length, q.length);
        float scale = scale(x, from, length);
        for (int i = 0; i < length; i++) {
            float quotient = x[from + i] / scale;
            q[into + i] = nearest ? roundHalfEven(quotient) : (byte) Math.clamp((int) quotient, -128, 127);
        }
        return scale;
    }

    private static void requireRoom(int tokens, int width, int x, int q) {
        Objects.checkFromIndexSize(0, tokens, Integer.MAX_VALUE);
        Objects.checkFromIndexSize(0, width, Integer.MAX_VALUE);
        Objects.checkFromIndexSize(0L, (long) tokens * width, Math.min(x, q));
    }

    /** Rounds to the nearest integer, halves to even, clamped to [-128, 127]; NaN gives 0. */
    static byte roundHalfEven(float x) {
        return (byte) Math.clamp((int) Math.rint(x), -128, 127);
    }

    /**
     * Rounds to the nearest integer, halves away from zero; NaN gives 0. It adds slightly less than a half: a fraction
     * just below a half stays below the integer, and a half still reaches it through the sum's own rounding. No branch
     * depends on the fraction, which the CPU couldn't predict. C2 vectorises signum but not copySign: ten times as
     * fast.
     */
    static byte roundHalfAway(float x) {
        return (byte) (x + Math.signum(x) * BELOW_HALF);
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
