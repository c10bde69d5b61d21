package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * RMS norms. Hidden states are [M, width]; {@code header[0]} is M, the number of tokens. What the layer before has
 * computed is added to them by the second norm of a layer.
 */
final class NormKernels {
    /** Work-items per work-group, for norms over a whole token. */
    static final int WIDE = 1024;

    private NormKernels() {}

    /**
     * Writes each token's RMS norm: hidden states, with what is still to be added to them, divided by their root mean
     * square, times gains. Grid: one work-group of {@value #WIDE} per token.
     *
     * @param adds 1 if projected is to be added, too, and both sums are to be written to the hidden states; else 0
     */
    static void rmsNorm(
            KernelContext ctx,
            IntArray header,
            FloatArray hidden,
            FloatArray output,
            FloatArray projected,
            int adds,
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
            if (adds == 1) {
                value += projected.get(at + i);
            }
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
            if (adds == 1) {
                value += projected.get(at + i);
                hidden.set(at + i, value);
            }
            normed.set(at + i, value * factor * gains.get(gainsFrom + i));
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
