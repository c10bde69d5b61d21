package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The activation between the GEMMs, in float throughout; vLLM rounds silu(g) to the layer's type before it multiplies.
 * Which function it is, its constants and the layout of its argument are constants of the compiled kernel.
 *
 * <p>With g of the gate and u of the up projection (1 without a gate), g' = min(g, limit), u' = u cut off at ±limit:
 * {@link #SILU} silu(g')·u', {@link #GELU} g·Φ(g)·u, {@link #GELU_TANH} the same by a tanh, {@link #RELU2} max(g,
 * 0)²·u, {@link #SWIGLU_OAI} g'·sigmoid(alpha·g')·(u' + beta), {@link #SWIGLU_STEP} min(silu(g), limit)·u',
 * {@link #SITU} beta·tanh(g / beta)·sigmoid(g) times u, or linearBeta·tanh(u / linearBeta) if that isn't 0. A number
 * that is no function's, or no layout's, gives NaN.
 */
public final class ActivationKernels {
    /** Work-items of a group. */
    public static final int GROUP = 128;

    /** Work-items of a group of {@link #activateAndQuantize}, which has a row. */
    public static final int ROW_GROUP = 256;

    public static final int SILU = 0;
    public static final int GELU = 1;
    public static final int GELU_TANH = 2;
    public static final int RELU2 = 3;
    public static final int SWIGLU_OAI = 4;
    public static final int SWIGLU_STEP = 5;
    public static final int SITU = 6;

    /** Layout of a row of the argument: I columns, no gate. */
    public static final int NO_GATE = 0;

    /** I columns of the gate, then I of the up projection. */
    public static final int HALVES = 1;

    /** Columns of gate and up projection alternate. */
    public static final int ALTERNATING = 2;

    private ActivationKernels() {}

    /**
     * The activation alone.
     *
     * <p>Grid: a work-item an element, in groups of {@link #GROUP}. Costs 12 bytes an element, 8 without a gate.
     *
     * @param header [0] · {@code rowsPerHeader} rows
     * @param keys [rows]; a row with −1 isn't there and gets no values
     * @param gateUp [rows, 2I], or [rows, I] without a gate
     * @param activated [rows, I], written
     * @param limit the greatest float for none
     */
    public static void activate(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray gateUp,
            FloatArray activated,
            int rowsPerHeader,
            int cols,
            int function,
            int layout,
            float limit,
            float alpha,
            float beta,
            float linearBeta) {
        int index = ctx.globalIdx;
        int row = index / cols;
        // Two steps, because a key is there for a row only.
        int key = row < header.get(0) * rowsPerHeader ? keys.get(row) : -1;
        if (key >= 0) {
            int c = index - row * cols;
            int gate = layout == NO_GATE ? index : row * 2 * cols + (layout == ALTERNATING ? 2 * c : c);
            int up = gate + (layout == ALTERNATING ? 1 : cols);
            float u = 1.0f;
            if (layout != NO_GATE) {
                u = gateUp.get(up);
            }
            activated.set(index, valueOf(gateUp.get(gate), u, function, layout, limit, alpha, beta, linearBeta));
        }
    }

    /**
     * The activation, and the result in int8 with a scale a row, by the rule and in the layout of {@link
     * QuantizeKernels#quantizeRows}, which it gives the same bits as. One kernel, since for few tokens the start of
     * another costs more than its work.
     *
     * <p>Grid: one group of {@link #ROW_GROUP} work-items a row. Every work-item reads only those values again that it
     * wrote itself. Costs 17 bytes an element, 13 without a gate.
     *
     * @param header [0] · {@code rowsPerHeader} rows
     * @param keys [rows]; a row with −1 isn't there and gets no values
     * @param gateUp [rows, 2I], or [rows, I] without a gate
     * @param activated [rows, I], written
     * @param quantized [rows, rowInts], written
     * @param scales [rows], written
     * @param limit the greatest float for none
     */
    public static void activateAndQuantize(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray gateUp,
            FloatArray activated,
            IntArray quantized,
            FloatArray scales,
            int rowsPerHeader,
            int cols,
            int rowInts,
            int function,
            int layout,
            float limit,
            float alpha,
            float beta,
            float linearBeta) {
        float[] magnitudes = ctx.allocateFloatLocalArray(ROW_GROUP);
        int lane = ctx.localIdx;
        int row = ctx.groupIdx;
        int active = QuantizeKernels.active(header, keys, row, rowsPerHeader, 1);
        int ints = active * rowInts;
        int from = row * cols;
        float magnitude = 1.0e-10f;
        for (int i = lane; i < ints; i += ROW_GROUP) {
            for (int b = 0; b < 4; b++) {
                int c = 4 * i + b;
                if (c < cols) {
                    int gate = layout == NO_GATE ? from + c : 2 * from + (layout == ALTERNATING ? 2 * c : c);
                    int up = gate + (layout == ALTERNATING ? 1 : cols);
                    float u = 1.0f;
                    if (layout != NO_GATE) {
                        u = gateUp.get(up);
                    }
                    float value = valueOf(gateUp.get(gate), u, function, layout, limit, alpha, beta, linearBeta);
                    activated.set(from + c, value);
                    magnitude = TornadoMath.max(magnitude, TornadoMath.abs(value));
                }
            }
        }
        magnitudes[lane] = magnitude;
        for (int stride = ROW_GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                magnitudes[lane] = TornadoMath.max(magnitudes[lane], magnitudes[lane + stride]);
            }
        }
        ctx.localBarrier();
        magnitude = magnitudes[0];
        float inverse = 127.0f / magnitude;
        for (int i = lane; i < ints; i += ROW_GROUP) {
            quantized.set(row * rowInts + i, QuantizeKernels.rounded4(activated, from, 4 * i, cols, 1.0f, inverse));
        }
        if (lane == 0 && active == 1) {
            scales.set(row, magnitude / 127.0f);
        }
    }

    private static float valueOf(
            float gate, float up, int function, int layout, float limit, float alpha, float beta, float linearBeta) {
        // No switch: function and layout are constants, so that one of these is left.
        float g = TornadoMath.min(gate, limit);
        float u = TornadoMath.max(TornadoMath.min(up, limit), -limit);
        float value = Float.NaN;
        if (function == SILU) {
            value = g * sigmoid(g) * u;
        }
        if (function == GELU) {
            value = gate * normalCdf(gate) * up;
        }
        if (function == GELU_TANH) {
            // (1 + tanh(z)) / 2 is sigmoid(2z); 2·√(2/π) = 1.595769. Beyond 20 it is 0 or 1.
            float x = TornadoMath.max(TornadoMath.min(gate, 20.0f), -20.0f);
            value = gate * sigmoid(1.595769f * (x + 0.044715f * x * x * x)) * up;
        }
        if (function == RELU2) {
            float positive = TornadoMath.max(gate, 0.0f);
            value = positive * positive * up;
        }
        if (function == SWIGLU_OAI) {
            value = g * sigmoid(alpha * g) * (u + beta);
        }
        if (function == SWIGLU_STEP) {
            value = TornadoMath.min(gate * sigmoid(gate), limit) * u;
        }
        if (function == SITU) {
            float linear = up;
            if (linearBeta != 0.0f) {
                linear = linearBeta * hyperbolicTangent(up / linearBeta);
            }
            value = beta * hyperbolicTangent(gate / beta) * sigmoid(gate) * linear;
        }
        if (layout < NO_GATE || layout > ALTERNATING) {
            value = Float.NaN;
        }
        return value;
    }

    /**
     * Without infinities: what a number divided by one is, fast mathematics leave open (on PoCL it is NaN). 0 where it
     * is below float's range, so that a large negative argument times it is no number of its own.
     */
    private static float sigmoid(float x) {
        float value = 1.0f / (1.0f + TornadoMath.exp(TornadoMath.min(-x, 87.0f)));
        return x < -87.0f ? 0.0f : value;
    }

    /**
     * The normal distribution, Φ(x) = erfc(−x / √2) / 2; TornadoVM has no erf. For t = |x| / √2 and r = 1 / (1 + t /
     * 2), exp(t²)·erfc(t) / r is a polynomial of r to 5e-8 (a fit at Chebyshev nodes of r in [1/8, 1]), so small values
     * are relatively right, too.
     */
    private static float normalCdf(float x) {
        float t = TornadoMath.abs(x) * 0.70710677f;
        float r = 1.0f / (1.0f + 0.5f * t);
        float p = -0.05979175f;
        p = p * r + 0.2879944f;
        p = p * r - 0.4940359f;
        p = p * r + 0.2855806f;
        p = p * r - 0.03157028f;
        p = p * r + 0.2046731f;
        p = p * r + 0.2426303f;
        p = p * r + 0.2824363f;
        p = p * r + 0.28208318f;
        float tail = 0.5f * p * r * TornadoMath.exp(TornadoMath.max(-t * t, -87.0f));
        float upper = x < 0.0f ? tail : 1.0f - tail;
        return x < -13.0f ? 0.0f : upper;
    }

    /**
     * tanh, to float's precision on every device, which the devices' own instructions aren't: below 0.7 an odd
     * polynomial (a fit at Chebyshev nodes of x²), above by exp.
     */
    private static float hyperbolicTangent(float x) {
        float magnitude = TornadoMath.abs(x);
        float z = x * x;
        float p = -0.00504155f;
        p = p * z + 0.01997311f;
        p = p * z - 0.05350661f;
        p = p * z + 0.13328122f;
        p = p * z - 0.33333117f;
        p = p * z + 1.0f;
        float large = 1.0f - 2.0f / (1.0f + TornadoMath.exp(TornadoMath.min(2.0f * magnitude, 87.0f)));
        float signed = x < 0.0f ? -large : large;
        return magnitude < 0.7f ? p * x : signed;
    }
}
