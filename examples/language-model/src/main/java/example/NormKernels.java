package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * RMS norms. Hidden states are [M, width]; {@code header[0]} is M, the number of tokens. The norm of a layer also adds
 * what the layer before has computed.
 */
final class NormKernels {
    /** Work-items per work-group, for norms over a whole token. */
    static final int WIDE = 1024;

    private NormKernels() {}

    /**
     * Adds a layer's output to the hidden states, and writes each token's RMS norm: hidden states divided by their root
     * mean square, times gains. Grid: one work-group of {@value #WIDE} per token.
     */
    static void addAndNorm(
            KernelContext ctx,
            IntArray header,
            FloatArray hidden,
            FloatArray output,
            FloatArray gains,
            int gainsFrom,
            FloatArray normed,
            int width,
            float epsilon) {
        float[] sums = ctx.allocateFloatLocalArray(WIDE);
        int lid = ctx.localIdx;
        int t = ctx.groupIdx;
        int at = t * width;
        int end = t < header.get(0) ? width : 0;
        float sum = 0.0f;
        for (int i = lid; i < end; i += WIDE) { // no writes, so that many reads are in flight at once
            float value = hidden.get(at + i) + output.get(at + i);
            sum += value * value;
        }
        sums[lid] = sum;
        for (int half = WIDE / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lid < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f / TornadoMath.sqrt(sums[0] / width + epsilon);
        for (int i = lid; i < end; i += WIDE) {
            float value = hidden.get(at + i) + output.get(at + i);
            hidden.set(at + i, value);
            normed.set(at + i, value * factor * gains.get(gainsFrom + i));
        }
    }

    /**
     * The same for the last token only, with the norm as the digits of {@link ProductKernels}. Grid: one work-group of
     * {@value #WIDE}.
     */
    static void addAndNormToDigits(
            KernelContext ctx,
            IntArray header,
            FloatArray hidden,
            FloatArray output,
            FloatArray gains,
            int gainsFrom,
            IntArray digits,
            FloatArray scales,
            int width,
            float epsilon) {
        float[] sums = ctx.allocateFloatLocalArray(WIDE);
        int lid = ctx.localIdx;
        int at = (header.get(0) - 1) * width;
        int ints = width / 4;
        float sum = 0.0f;
        for (int k = lid; k < ints; k += WIDE) {
            int c = at + 4 * k;
            float h0 = hidden.get(c) + output.get(c);
            float h1 = hidden.get(c + 1) + output.get(c + 1);
            float h2 = hidden.get(c + 2) + output.get(c + 2);
            float h3 = hidden.get(c + 3) + output.get(c + 3);
            hidden.set(c, h0);
            hidden.set(c + 1, h1);
            hidden.set(c + 2, h2);
            hidden.set(c + 3, h3);
            sum += h0 * h0 + h1 * h1 + h2 * h2 + h3 * h3;
        }
        sums[lid] = sum;
        for (int half = WIDE / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lid < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f / TornadoMath.sqrt(sums[0] / width + epsilon);
        for (int from = 0; from < ints; from += WIDE) {
            int k = from + lid;
            float v0 = 0.0f;
            float v1 = 0.0f;
            float v2 = 0.0f;
            float v3 = 0.0f;
            if (k < ints) {
                int c = 4 * k;
                v0 = hidden.get(at + c) * factor * gains.get(gainsFrom + c);
                v1 = hidden.get(at + c + 1) * factor * gains.get(gainsFrom + c + 1);
                v2 = hidden.get(at + c + 2) * factor * gains.get(gainsFrom + c + 2);
                v3 = hidden.get(at + c + 3) * factor * gains.get(gainsFrom + c + 3);
            }
            ctx.localBarrier();
            sums[lid] = ProductKernels.greatest(v0, v1, v2, v3);
            for (int half = WorkGroup.ITEMS / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (lid % WorkGroup.ITEMS < half) {
                    sums[lid] = TornadoMath.max(sums[lid], sums[lid + half]);
                }
            }
            ctx.localBarrier();
            if (k < ints) {
                float greatest = sums[lid - lid % WorkGroup.ITEMS];
                ProductKernels.quantize(digits, scales, ints, k, greatest, v0, v1, v2, v3);
            }
        }
    }

    /**
     * A norm over all heads together, in place: {@code width} values from {@code from} on of each token's {@code
     * stride}. Grid: one work-group per token.
     */
    static void normHeads(
            KernelContext ctx,
            IntArray header,
            FloatArray qkv,
            FloatArray gains,
            int gainsFrom,
            int stride,
            int from,
            int width,
            float epsilon) {
        float[] sums = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int lid = ctx.localIdx;
        int t = ctx.groupIdx;
        int at = t * stride + from;
        int end = t < header.get(0) ? width : 0;
        float sum = 0.0f;
        for (int i = lid; i < end; i += WorkGroup.ITEMS) {
            sum += qkv.get(at + i) * qkv.get(at + i);
        }
        sums[lid] = sum;
        for (int half = WorkGroup.ITEMS / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lid < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f / TornadoMath.sqrt(sums[0] / width + epsilon);
        for (int i = lid; i < end; i += WorkGroup.ITEMS) {
            qkv.set(at + i, qkv.get(at + i) * factor * gains.get(gainsFrom + i));
        }
    }
}
