package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** The element-wise steps: the activation between the GEMMs and the sum over a token's experts after them. */
public final class CombineKernels {
    /** Work-items of a group. */
    public static final int GROUP = 128;

    private CombineKernels() {}

    /**
     * SiLU of the gate times up: {@code act[p][i] = g / (1 + exp(−g)) · u} with {@code g = gateUp[p][i]}, {@code u =
     * gateUp[p][I + i]}. In float throughout; vLLM rounds SiLU(g) to the layer's type before it multiplies.
     *
     * <p>Grid: a work-item an element, in groups of {@link #GROUP}. Costs 12 bytes an element.
     *
     * @param header [0] = M
     * @param keys [P]; a pair with −1 has no row in {@code gateUp} and gets none
     * @param gateUp [P, 2I]
     * @param activated [P, I], written
     */
    public static void siluAndMultiply(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray gateUp,
            FloatArray activated,
            int topK,
            int intermediate) {
        int index = ctx.globalIdx;
        int pair = index / intermediate;
        // Two steps, because a key is there for a pair only.
        int key = pair < header.get(0) * topK ? keys.get(pair) : -1;
        if (key >= 0) {
            int gateIndex = index + pair * intermediate;
            float gate = gateUp.get(gateIndex);
            float up = gateUp.get(gateIndex + intermediate);
            activated.set(index, gate / (1.0f + TornadoMath.exp(-gate)) * up);
        }
    }

    /**
     * The sum over a token's K experts, whose outputs are weighted already: {@code output[m][h] = Σ_k down[m·K + k][h]},
     * in the order of k; a pair that was left out adds nothing.
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
