package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * What low-rank adapters add to a projection, in float: {@code out[p] += B (A x)} for every pair p of a token with
 * an adapter and an expert that is here. A pair without one costs no more than looking. R is the greatest rank, what an
 * adapter lacks of it is 0; S matrices A share the columns of x.
 */
public final class LoraKernels {
    /** Work-items of a group. */
    public static final int GROUP = 128;

    private LoraKernels() {}

    /**
     * {@code shrunk[p][j] = Σ_c A[l][e][j][c] · x[row(p)][c]} with the token's adapter l and the pair's expert e.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a value, that is S·R a pair. Costs 8·cols bytes read a value.
     *
     * @param header [0] = M
     * @param adapters [M]; −1 for none
     * @param keys [P], local numbers of experts; −1 for a pair that is left out
     * @param x [rows, cols]
     * @param a [L, E, S·R, cols]
     * @param shrunk [P, S·R], written for pairs with an adapter
     * @param pairsPerToken K
     * @param ranks S·R
     * @param experts E, those here
     * @param pairsPerRow pairs that have the same row of x
     */
    public static void shrink(
            KernelContext ctx,
            IntArray header,
            IntArray adapters,
            IntArray keys,
            FloatArray x,
            FloatArray a,
            FloatArray shrunk,
            int pairsPerToken,
            int cols,
            int ranks,
            int experts,
            int pairsPerRow) {
        float[] sums = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int index = ctx.groupIdx;
        int pair = index / ranks;
        int token = pair / pairsPerToken;
        int active = token < header.get(0) ? 1 : 0;
        int adapter = -1;
        int expert = -1;
        if (active == 1) {
            adapter = adapters.get(token);
            expert = keys.get(pair);
        }
        int here = adapter >= 0 && expert >= 0 ? 1 : 0;
        int end = here * cols;
        int fromX = pair / pairsPerRow * cols;
        int fromA = ((adapter * experts + expert) * ranks + index - pair * ranks) * cols;
        float sum = 0.0f;
        for (int c = lane; c < end; c += GROUP) {
            sum += a.get(fromA + c) * x.get(fromX + c);
        }
        sums[lane] = sum;
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                sums[lane] = sums[lane] + sums[lane + stride];
            }
        }
        if (lane == 0 && here == 1) {
            shrunk.set(index, sums[0]);
        }
    }

    /**
     * {@code out[p][n] += Σ_j B[l][e][j][n] · shrunk[p][slice(n)·R + j]}, times the pair's router weight if
     * {@code weighted} is 1. A sum of 0 leaves the very bits that were there, a negative zero's sign included.
     *
     * <p>Grid: a work-item an element of {@code out}, in groups of {@link #GROUP}. Costs 4·R bytes read and 8 more an
     * element.
     *
     * @param header [0] = M
     * @param adapters [M]; −1 for none
     * @param keys [P], local numbers of experts; −1 for a pair that is left out
     * @param topkWeights [P]
     * @param shrunk [P, S·R]
     * @param b [L, E, R, N]
     * @param out [P, N], added to
     * @param pairsPerToken K
     * @param rows N
     * @param rank R
     * @param layout of a row of {@code out}: {@link ActivationKernels#NO_GATE} for S = 1; S = 2 otherwise
     * @param experts E, those here
     */
    public static void expand(
            KernelContext ctx,
            IntArray header,
            IntArray adapters,
            IntArray keys,
            FloatArray topkWeights,
            FloatArray shrunk,
            FloatArray b,
            FloatArray out,
            int pairsPerToken,
            int rows,
            int rank,
            int layout,
            int experts,
            int weighted) {
        int index = ctx.globalIdx;
        int pair = index / rows;
        int token = pair / pairsPerToken;
        int adapter = -1;
        int expert = -1;
        if (token < header.get(0)) {
            adapter = adapters.get(token);
            expert = keys.get(pair);
        }
        if (adapter >= 0 && expert >= 0) {
            int n = index - pair * rows;
            int ranks = layout == ActivationKernels.NO_GATE ? rank : 2 * rank;
            int slice = 0;
            if (layout == ActivationKernels.HALVES) {
                slice = n / (rows / 2);
            }
            if (layout == ActivationKernels.ALTERNATING) {
                slice = n % 2;
            }
            int from = pair * ranks + slice * rank;
            int fromB = (adapter * experts + expert) * rank * rows + n;
            float sum = 0.0f;
            for (int j = 0; j < rank; j++) {
                sum += b.get(fromB + j * rows) * shrunk.get(from + j);
            }
            if (weighted == 1) {
                sum = sum * topkWeights.get(pair);
            }
            if (sum != 0.0f) {
                out.set(index, out.get(index) + sum);
            }
        }
    }
}
