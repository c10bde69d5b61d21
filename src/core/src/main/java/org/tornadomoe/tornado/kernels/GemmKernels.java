package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

/**
 * The expert GEMMs: {@code out[p][n] = scale · Σ_k a[row(p)][k] · b[expert(p)][n][k]} for every pair p of a token and
 * one of its experts. All of them share grid, work-group and layout, and differ in the inner product only.
 *
 * <p>Grid: one group of {@link #GROUP} work-items for {@link #BLOCK} sorted pairs of one expert (y) and {@link #ROWS}
 * rows of its weights (x). A group is {@link #SLICES} slices of {@link #ROWS} lanes; a lane owns a weight row, a slice
 * every {@link #SLICES}th int of it, so that a slice reads 128 consecutive bytes and {@value #SLICES} reads are on
 * their way at once. The slices are added up through local memory, in order.
 *
 * <p>Layout of the weights: {@code [E, kInts, N]} ints, an int holding four consecutive k of one row, the first in the
 * low byte ({@code a} is packed the same way). What pads a row to whole ints is 0.
 *
 * <p>Costs, for B blocks in use: 2·{@value #BLOCK}·B·N·K operations; K·N bytes of weights a block, which come from
 * memory once an expert as far as the cache holds them.
 */
public final class GemmKernels {
    /** Sorted pairs of a block, all of one expert: what the alignment pads to. */
    public static final int BLOCK = 8;

    /** Weight rows of a group. */
    public static final int ROWS = 32;

    /** Parts that k is split in within a group. */
    public static final int SLICES = 8;

    /** Work-items of a group. */
    public static final int GROUP = ROWS * SLICES;

    private GemmKernels() {}

    /**
     * int8 × int8 with an exact int32 sum, with the {@code dp4a} instruction (PTX, CUDA): {@code out[p][n] = sum ·
     * aScales[row(p)] · bScales[e][n]}, multiplied from left to right, plus {@code bias[e][n]} if {@code biased} is 1,
     * and times the pair's router weight if {@code weighted} is 1. Exact as long as K is at most 133,000.
     *
     * @param header [0] = M
     * @param sortedIds pairs in expert order; what is no pair (P) is skipped
     * @param expertIds [blocks]; a block with −1 is written zeros
     * @param padded [0] = places in use in {@code sortedIds}
     * @param a [rows of a, kInts]
     * @param aScales [rows of a]
     * @param b [E, kInts, N]
     * @param bScales [E, N]
     * @param bias with {@code biased} 1 [E, N]; else not looked at
     * @param topkWeights [P]
     * @param out [P, N], written for every pair in {@code sortedIds}
     * @param pairsPerRow pairs that share a row of {@code a}: K for tokens, 1 for pairs
     */
    public static void dp4a(
            KernelContext ctx,
            IntArray header,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            IntArray a,
            FloatArray aScales,
            IntArray b,
            FloatArray bScales,
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray out,
            int topK,
            int pairsPerRow,
            int rows,
            int kInts,
            int biased,
            int weighted) {
        int[] sums = ctx.allocateIntLocalArray(SLICES * BLOCK * ROWS);
        int lid = ctx.localIdx;
        int lane = lid % ROWS;
        int slice = lid / ROWS;
        int n = ctx.groupIdx * ROWS + lane;
        int block = ctx.groupIdy;
        int place = block * BLOCK;
        int pairs = header.get(0) * topK;
        int active = place < padded.get(0) ? 1 : 0;
        int column = n < rows ? n : rows - 1;
        int expert = active == 1 ? expertIds.get(block) : -1;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        // A place that pads the block reads row 0; its sum is thrown away.
        int pair0 = active == 1 ? sortedIds.get(place) : pairs;
        int pair1 = active == 1 ? sortedIds.get(place + 1) : pairs;
        int pair2 = active == 1 ? sortedIds.get(place + 2) : pairs;
        int pair3 = active == 1 ? sortedIds.get(place + 3) : pairs;
        int pair4 = active == 1 ? sortedIds.get(place + 4) : pairs;
        int pair5 = active == 1 ? sortedIds.get(place + 5) : pairs;
        int pair6 = active == 1 ? sortedIds.get(place + 6) : pairs;
        int pair7 = active == 1 ? sortedIds.get(place + 7) : pairs;
        int row0 = pair0 < pairs ? pair0 / pairsPerRow * kInts : 0;
        int row1 = pair1 < pairs ? pair1 / pairsPerRow * kInts : 0;
        int row2 = pair2 < pairs ? pair2 / pairsPerRow * kInts : 0;
        int row3 = pair3 < pairs ? pair3 / pairsPerRow * kInts : 0;
        int row4 = pair4 < pairs ? pair4 / pairsPerRow * kInts : 0;
        int row5 = pair5 < pairs ? pair5 / pairsPerRow * kInts : 0;
        int row6 = pair6 < pairs ? pair6 / pairsPerRow * kInts : 0;
        int row7 = pair7 < pairs ? pair7 / pairsPerRow * kInts : 0;
        int sum0 = 0;
        int sum1 = 0;
        int sum2 = 0;
        int sum3 = 0;
        int sum4 = 0;
        int sum5 = 0;
        int sum6 = 0;
        int sum7 = 0;
        for (int k = slice; k < end; k += SLICES) {
            int weights = b.get(from + k * rows);
            sum0 = QuantizationUtils.dp4a_packed(weights, a.get(row0 + k), sum0);
            sum1 = QuantizationUtils.dp4a_packed(weights, a.get(row1 + k), sum1);
            sum2 = QuantizationUtils.dp4a_packed(weights, a.get(row2 + k), sum2);
            sum3 = QuantizationUtils.dp4a_packed(weights, a.get(row3 + k), sum3);
            sum4 = QuantizationUtils.dp4a_packed(weights, a.get(row4 + k), sum4);
            sum5 = QuantizationUtils.dp4a_packed(weights, a.get(row5 + k), sum5);
            sum6 = QuantizationUtils.dp4a_packed(weights, a.get(row6 + k), sum6);
            sum7 = QuantizationUtils.dp4a_packed(weights, a.get(row7 + k), sum7);
        }
        int own = slice * BLOCK * ROWS + lane;
        sums[own] = sum0;
        sums[own + ROWS] = sum1;
        sums[own + 2 * ROWS] = sum2;
        sums[own + 3 * ROWS] = sum3;
        sums[own + 4 * ROWS] = sum4;
        sums[own + 5 * ROWS] = sum5;
        sums[own + 6 * ROWS] = sum6;
        sums[own + 7 * ROWS] = sum7;
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has token slice and row lane.
        int total = 0;
        for (int s = 0; s < SLICES; s++) {
            total += sums[s * BLOCK * ROWS + lid];
        }
        int pair = active == 1 ? sortedIds.get(place + slice) : pairs;
        if (pair < pairs && n < rows) {
            float value = 0.0f;
            if (expert >= 0) {
                value = total * aScales.get(pair / pairsPerRow) * bScales.get(expert * rows + n);
                if (biased == 1) {
                    value = value + bias.get(expert * rows + n);
                }
            }
            if (weighted == 1) {
                value = value * topkWeights.get(pair);
            }
            out.set(pair * rows + n, value);
        }
    }

    /** As {@link #dp4a}, and made of it, with shifts and multiplications that every backend has. */
    public static void portable(
            KernelContext ctx,
            IntArray header,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            IntArray a,
            FloatArray aScales,
            IntArray b,
            FloatArray bScales,
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray out,
            int topK,
            int pairsPerRow,
            int rows,
            int kInts,
            int biased,
            int weighted) {
        int[] sums = ctx.allocateIntLocalArray(SLICES * BLOCK * ROWS);
        int lid = ctx.localIdx;
        int lane = lid % ROWS;
        int slice = lid / ROWS;
        int n = ctx.groupIdx * ROWS + lane;
        int block = ctx.groupIdy;
        int place = block * BLOCK;
        int pairs = header.get(0) * topK;
        int active = place < padded.get(0) ? 1 : 0;
        int column = n < rows ? n : rows - 1;
        int expert = active == 1 ? expertIds.get(block) : -1;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        // A place that pads the block reads row 0; its sum is thrown away.
        int pair0 = active == 1 ? sortedIds.get(place) : pairs;
        int pair1 = active == 1 ? sortedIds.get(place + 1) : pairs;
        int pair2 = active == 1 ? sortedIds.get(place + 2) : pairs;
        int pair3 = active == 1 ? sortedIds.get(place + 3) : pairs;
        int pair4 = active == 1 ? sortedIds.get(place + 4) : pairs;
        int pair5 = active == 1 ? sortedIds.get(place + 5) : pairs;
        int pair6 = active == 1 ? sortedIds.get(place + 6) : pairs;
        int pair7 = active == 1 ? sortedIds.get(place + 7) : pairs;
        int row0 = pair0 < pairs ? pair0 / pairsPerRow * kInts : 0;
        int row1 = pair1 < pairs ? pair1 / pairsPerRow * kInts : 0;
        int row2 = pair2 < pairs ? pair2 / pairsPerRow * kInts : 0;
        int row3 = pair3 < pairs ? pair3 / pairsPerRow * kInts : 0;
        int row4 = pair4 < pairs ? pair4 / pairsPerRow * kInts : 0;
        int row5 = pair5 < pairs ? pair5 / pairsPerRow * kInts : 0;
        int row6 = pair6 < pairs ? pair6 / pairsPerRow * kInts : 0;
        int row7 = pair7 < pairs ? pair7 / pairsPerRow * kInts : 0;
        int sum0 = 0;
        int sum1 = 0;
        int sum2 = 0;
        int sum3 = 0;
        int sum4 = 0;
        int sum5 = 0;
        int sum6 = 0;
        int sum7 = 0;
        for (int k = slice; k < end; k += SLICES) {
            int weights = b.get(from + k * rows);
            sum0 = sum0 + product4(weights, a.get(row0 + k));
            sum1 = sum1 + product4(weights, a.get(row1 + k));
            sum2 = sum2 + product4(weights, a.get(row2 + k));
            sum3 = sum3 + product4(weights, a.get(row3 + k));
            sum4 = sum4 + product4(weights, a.get(row4 + k));
            sum5 = sum5 + product4(weights, a.get(row5 + k));
            sum6 = sum6 + product4(weights, a.get(row6 + k));
            sum7 = sum7 + product4(weights, a.get(row7 + k));
        }
        int own = slice * BLOCK * ROWS + lane;
        sums[own] = sum0;
        sums[own + ROWS] = sum1;
        sums[own + 2 * ROWS] = sum2;
        sums[own + 3 * ROWS] = sum3;
        sums[own + 4 * ROWS] = sum4;
        sums[own + 5 * ROWS] = sum5;
        sums[own + 6 * ROWS] = sum6;
        sums[own + 7 * ROWS] = sum7;
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has token slice and row lane.
        int total = 0;
        for (int s = 0; s < SLICES; s++) {
            total += sums[s * BLOCK * ROWS + lid];
        }
        int pair = active == 1 ? sortedIds.get(place + slice) : pairs;
        if (pair < pairs && n < rows) {
            float value = 0.0f;
            if (expert >= 0) {
                value = total * aScales.get(pair / pairsPerRow) * bScales.get(expert * rows + n);
                if (biased == 1) {
                    value = value + bias.get(expert * rows + n);
                }
            }
            if (weighted == 1) {
                value = value * topkWeights.get(pair);
            }
            out.set(pair * rows + n, value);
        }
    }

    /**
     * float × int8 for unquantised activations (w8a16):
     * {@code out[p][n] = Σ a[row(p)][k] · b[e][n][k] · bScales[e][n]}, plus {@code bias[e][n]} if {@code biased} is 1,
     * and times the pair's router weight if {@code weighted} is 1. The parameters are those of {@link #dp4a}, but for:
     *
     * @param a [rows of a, cols] in float
     * @param weighted 2 for the router's weight before the bias, as if {@code a} had been multiplied by it
     */
    public static void w8a16(
            KernelContext ctx,
            IntArray header,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            FloatArray a,
            IntArray b,
            FloatArray bScales,
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray out,
            int topK,
            int pairsPerRow,
            int rows,
            int kInts,
            int cols,
            int biased,
            int weighted) {
        float[] sums = ctx.allocateFloatLocalArray(SLICES * BLOCK * ROWS);
        int lid = ctx.localIdx;
        int lane = lid % ROWS;
        int slice = lid / ROWS;
        int n = ctx.groupIdx * ROWS + lane;
        int block = ctx.groupIdy;
        int place = block * BLOCK;
        int pairs = header.get(0) * topK;
        int active = place < padded.get(0) ? 1 : 0;
        int column = n < rows ? n : rows - 1;
        int expert = active == 1 ? expertIds.get(block) : -1;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        // A place that pads the block reads row 0; its sum is thrown away.
        int pair0 = active == 1 ? sortedIds.get(place) : pairs;
        int pair1 = active == 1 ? sortedIds.get(place + 1) : pairs;
        int pair2 = active == 1 ? sortedIds.get(place + 2) : pairs;
        int pair3 = active == 1 ? sortedIds.get(place + 3) : pairs;
        int pair4 = active == 1 ? sortedIds.get(place + 4) : pairs;
        int pair5 = active == 1 ? sortedIds.get(place + 5) : pairs;
        int pair6 = active == 1 ? sortedIds.get(place + 6) : pairs;
        int pair7 = active == 1 ? sortedIds.get(place + 7) : pairs;
        int row0 = pair0 < pairs ? pair0 / pairsPerRow * cols : 0;
        int row1 = pair1 < pairs ? pair1 / pairsPerRow * cols : 0;
        int row2 = pair2 < pairs ? pair2 / pairsPerRow * cols : 0;
        int row3 = pair3 < pairs ? pair3 / pairsPerRow * cols : 0;
        int row4 = pair4 < pairs ? pair4 / pairsPerRow * cols : 0;
        int row5 = pair5 < pairs ? pair5 / pairsPerRow * cols : 0;
        int row6 = pair6 < pairs ? pair6 / pairsPerRow * cols : 0;
        int row7 = pair7 < pairs ? pair7 / pairsPerRow * cols : 0;
        float sum0 = 0.0f;
        float sum1 = 0.0f;
        float sum2 = 0.0f;
        float sum3 = 0.0f;
        float sum4 = 0.0f;
        float sum5 = 0.0f;
        float sum6 = 0.0f;
        float sum7 = 0.0f;
        for (int k = slice; k < end; k += SLICES) {
            int weights = b.get(from + k * rows);
            float w0 = int8(weights);
            float w1 = int8(weights >> 8);
            float w2 = int8(weights >> 16);
            float w3 = int8(weights >> 24);
            int c0 = 4 * k;
            // Past the end of a row the weights are 0; the activations are read from the last column instead.
            int c1 = c0 + 1 < cols ? c0 + 1 : cols - 1;
            int c2 = c0 + 2 < cols ? c0 + 2 : cols - 1;
            int c3 = c0 + 3 < cols ? c0 + 3 : cols - 1;
            sum0 += w0 * a.get(row0 + c0) + w1 * a.get(row0 + c1) + w2 * a.get(row0 + c2) + w3 * a.get(row0 + c3);
            sum1 += w0 * a.get(row1 + c0) + w1 * a.get(row1 + c1) + w2 * a.get(row1 + c2) + w3 * a.get(row1 + c3);
            sum2 += w0 * a.get(row2 + c0) + w1 * a.get(row2 + c1) + w2 * a.get(row2 + c2) + w3 * a.get(row2 + c3);
            sum3 += w0 * a.get(row3 + c0) + w1 * a.get(row3 + c1) + w2 * a.get(row3 + c2) + w3 * a.get(row3 + c3);
            sum4 += w0 * a.get(row4 + c0) + w1 * a.get(row4 + c1) + w2 * a.get(row4 + c2) + w3 * a.get(row4 + c3);
            sum5 += w0 * a.get(row5 + c0) + w1 * a.get(row5 + c1) + w2 * a.get(row5 + c2) + w3 * a.get(row5 + c3);
            sum6 += w0 * a.get(row6 + c0) + w1 * a.get(row6 + c1) + w2 * a.get(row6 + c2) + w3 * a.get(row6 + c3);
            sum7 += w0 * a.get(row7 + c0) + w1 * a.get(row7 + c1) + w2 * a.get(row7 + c2) + w3 * a.get(row7 + c3);
        }
        int own = slice * BLOCK * ROWS + lane;
        sums[own] = sum0;
        sums[own + ROWS] = sum1;
        sums[own + 2 * ROWS] = sum2;
        sums[own + 3 * ROWS] = sum3;
        sums[own + 4 * ROWS] = sum4;
        sums[own + 5 * ROWS] = sum5;
        sums[own + 6 * ROWS] = sum6;
        sums[own + 7 * ROWS] = sum7;
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has token slice and row lane.
        float total = 0.0f;
        for (int s = 0; s < SLICES; s++) {
            total += sums[s * BLOCK * ROWS + lid];
        }
        int pair = active == 1 ? sortedIds.get(place + slice) : pairs;
        if (pair < pairs && n < rows) {
            float value = 0.0f;
            if (expert >= 0) {
                value = total * bScales.get(expert * rows + n);
                if (weighted == 2) {
                    value = value * topkWeights.get(pair);
                }
                if (biased == 1) {
                    value = value + bias.get(expert * rows + n);
                }
            }
            if (weighted == 1) {
                value = value * topkWeights.get(pair);
            }
            out.set(pair * rows + n, value);
        }
    }

    static int product4(int x, int y) {
        return int8(x) * int8(y)
                + int8(x >> 8) * int8(y >> 8)
                + int8(x >> 16) * int8(y >> 16)
                + int8(x >> 24) * int8(y >> 24);
    }

    /**
     * The low byte as a signed number. Not with the usual pair of shifts: the compiler makes a sign extension of them,
     * and TornadoVM's PTX backend gets that one wrong (the class {@code Quirks}).
     */
    static int int8(int bits) {
        return ((bits & 0xFF) ^ 0x80) - 0x80;
    }
}
