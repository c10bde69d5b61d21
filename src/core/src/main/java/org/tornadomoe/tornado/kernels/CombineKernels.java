package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** The last step: the sum over a token's experts. */
public final class CombineKernels {
    /** Work-items of a group. */
    public static final int GROUP = 128;

    private CombineKernels() {}

    /**
     * The sum over a token's K experts, whose outputs are weighted already:
     * {@code output[m][h] = Σ_k down[m·K + k][h]}, in the order of k; a pair that was left out adds nothing.
     *
     * <p>Grid: a work-item an element of the output, in groups of {@link #GROUP}. Costs 4·(K + 1) bytes an element.
     *
     * @param header [0] = M
     * @param keys [P]; a pair with −1 has no row in {@code down}
     * @param down [P, H]
     * @param output [M, H], written
     */
    public static void combine(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray down,
            FloatArray output,
            int topK,
            int hiddenDim) {
        int index = ctx.globalIdx;
        int token = index / hiddenDim;
        if (token < header.get(0)) {
            int column = index - token * hiddenDim;
            float sum = 0.0f;
            for (int k = 0; k < topK; k++) {
                int pair = token * topK + k;
                if (keys.get(pair) >= 0) {
                    sum += down.get(pair * hiddenDim + column);
                }
            }
            output.set(index, sum);
        }
    }
}
