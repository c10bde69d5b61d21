package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

/**
 * The expert GEMMs where scales change along k: with blocks ({@code w8a8_block}) and groups ({@code w8a16_group}).
 * Grid, work-group, layout and cost are those of {@link GemmKernels}; within a group of columns a slice adds up every
 * {@link GemmKernels#SLICES}th int as there, and scales its sum at the group's end.
 */
public final class BlockGemmKernels {
    private static final int BLOCK = GemmKernels.BLOCK;
    private static final int ROWS = GemmKernels.ROWS;
    private static final int SLICES = GemmKernels.SLICES;

    private BlockGemmKernels() {}

    /**
     * int8 × int8 with a scale for a group of columns of a token and one for a block of weights, with the {@code dp4a}
     * instruction (PTX, CUDA):
     * {@code out[p][n] = Σ_g aScales[row(p)][g] · bScales[e][g][n / rowsPerScale] · Σ a[row(p)][k] · b[e][n][k]}, the
     * inner sum over the columns of group g; plus {@code bias[e][n]} if {@code biased} is 1, and times the pair's
     * router weight if {@code weighted} is 1. Products of a group that one slice adds up are exact in int32, what they
     * are scaled to is added up in float.
     *
     * @param header [0] = M
     * @param sortedIds pairs in expert order; what is no pair (P) is skipped
     * @param expertIds [blocks]; a block with −1 is written zeros
     * @param padded [0] = places in use in {@code sortedIds}
     * @param a [rows of a, kInts]
     * @param aScales [rows of a, groups]
     * @param b [E, kInts, N]
     * @param bScales [E, groups, ⌈N / rowsPerScale⌉]
     * @param bias with {@code biased} 1 [E, N]; else not looked at
     * @param topkWeights [P]
     * @param out [P, N], written for every pair in {@code sortedIds}
     * @param pairsPerRow pairs that share a row of {@code a}: K for tokens, 1 for pairs
     * @param groupInts ints of a group of columns; the last group may be short
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
            int groupInts,
            int rowsPerScale,
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
        int groups = (kInts + groupInts - 1) / groupInts;
        int scaleRows = (rows + rowsPerScale - 1) / rowsPerScale;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        int scaleFrom = expert * groups * scaleRows + column / rowsPerScale;
        // A place that pads the block reads row 0; its sum is thrown away.
        int pair0 = active == 1 ? sortedIds.get(place) : pairs;
        int pair1 = active == 1 ? sortedIds.get(place + 1) : pairs;
        int pair2 = active == 1 ? sortedIds.get(place + 2) : pairs;
        int pair3 = active == 1 ? sortedIds.get(place + 3) : pairs;
        int pair4 = active == 1 ? sortedIds.get(place + 4) : pairs;
        int pair5 = active == 1 ? sortedIds.get(place + 5) : pairs;
        int pair6 = active == 1 ? sortedIds.get(place + 6) : pairs;
        int pair7 = active == 1 ? sortedIds.get(place + 7) : pairs;
        int row0 = pair0 < pairs ? pair0 / pairsPerRow : 0;
        int row1 = pair1 < pairs ? pair1 / pairsPerRow : 0;
        int row2 = pair2 < pairs ? pair2 / pairsPerRow : 0;
        int row3 = pair3 < pairs ? pair3 / pairsPerRow : 0;
        int row4 = pair4 < pairs ? pair4 / pairsPerRow : 0;
        int row5 = pair5 < pairs ? pair5 / pairsPerRow : 0;
        int row6 = pair6 < pairs ? pair6 / pairsPerRow : 0;
        int row7 = pair7 < pairs ? pair7 / pairsPerRow : 0;
        float sum0 = 0.0f;
        float sum1 = 0.0f;
        float sum2 = 0.0f;
        float sum3 = 0.0f;
        float sum4 = 0.0f;
        float sum5 = 0.0f;
        float sum6 = 0.0f;
        float sum7 = 0.0f;
        int group = 0;
        for (int first = 0; first < end; first += groupInts) {
            int last = first + groupInts < end ? first + groupInts : end;
            int dot0 = 0;
            int dot1 = 0;
            int dot2 = 0;
            int dot3 = 0;
            int dot4 = 0;
            int dot5 = 0;
            int dot6 = 0;
            int dot7 = 0;
            for (int k = first + slice; k < last; k += SLICES) {
                int weights = b.get(from + k * rows);
                dot0 = QuantizationUtils.dp4a_packed(weights, a.get(row0 * kInts + k), dot0);
                dot1 = QuantizationUtils.dp4a_packed(weights, a.get(row1 * kInts + k), dot1);
                dot2 = QuantizationUtils.dp4a_packed(weights, a.get(row2 * kInts + k), dot2);
                dot3 = QuantizationUtils.dp4a_packed(weights, a.get(row3 * kInts + k), dot3);
                dot4 = QuantizationUtils.dp4a_packed(weights, a.get(row4 * kInts + k), dot4);
                dot5 = QuantizationUtils.dp4a_packed(weights, a.get(row5 * kInts + k), dot5);
                dot6 = QuantizationUtils.dp4a_packed(weights, a.get(row6 * kInts + k), dot6);
                dot7 = QuantizationUtils.dp4a_packed(weights, a.get(row7 * kInts + k), dot7);
            }
            float scale = bScales.get(scaleFrom + group * scaleRows);
            sum0 += dot0 * aScales.get(row0 * groups + group) * scale;
            sum1 += dot1 * aScales.get(row1 * groups + group) * scale;
            sum2 += dot2 * aScales.get(row2 * groups + group) * scale;
            sum3 += dot3 * aScales.get(row3 * groups + group) * scale;
            sum4 += dot4 * aScales.get(row4 * groups + group) * scale;
            sum5 += dot5 * aScales.get(row5 * groups + group) * scale;
            sum6 += dot6 * aScales.get(row6 * groups + group) * scale;
            sum7 += dot7 * aScales.get(row7 * groups + group) * scale;
            group = group + 1;
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
            float value = total;
            if (biased == 1 && expert >= 0) {
                value = value + bias.get(expert * rows + n);
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
            int groupInts,
            int rowsPerScale,
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
        int groups = (kInts + groupInts - 1) / groupInts;
        int scaleRows = (rows + rowsPerScale - 1) / rowsPerScale;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        int scaleFrom = expert * groups * scaleRows + column / rowsPerScale;
        // A place that pads the block reads row 0; its sum is thrown away.
        int pair0 = active == 1 ? sortedIds.get(place) : pairs;
        int pair1 = active == 1 ? sortedIds.get(place + 1) : pairs;
        int pair2 = active == 1 ? sortedIds.get(place + 2) : pairs;
        int pair3 = active == 1 ? sortedIds.get(place + 3) : pairs;
        int pair4 = active == 1 ? sortedIds.get(place + 4) : pairs;
        int pair5 = active == 1 ? sortedIds.get(place + 5) : pairs;
        int pair6 = active == 1 ? sortedIds.get(place + 6) : pairs;
        int pair7 = active == 1 ? sortedIds.get(place + 7) : pairs;
        int row0 = pair0 < pairs ? pair0 / pairsPerRow : 0;
        int row1 = pair1 < pairs ? pair1 / pairsPerRow : 0;
        int row2 = pair2 < pairs ? pair2 / pairsPerRow : 0;
        int row3 = pair3 < pairs ? pair3 / pairsPerRow : 0;
        int row4 = pair4 < pairs ? pair4 / pairsPerRow : 0;
        int row5 = pair5 < pairs ? pair5 / pairsPerRow : 0;
        int row6 = pair6 < pairs ? pair6 / pairsPerRow : 0;
        int row7 = pair7 < pairs ? pair7 / pairsPerRow : 0;
        float sum0 = 0.0f;
        float sum1 = 0.0f;
        float sum2 = 0.0f;
        float sum3 = 0.0f;
        float sum4 = 0.0f;
        float sum5 = 0.0f;
        float sum6 = 0.0f;
        float sum7 = 0.0f;
        int group = 0;
        for (int first = 0; first < end; first += groupInts) {
            int last = first + groupInts < end ? first + groupInts : end;
            int dot0 = 0;
            int dot1 = 0;
            int dot2 = 0;
            int dot3 = 0;
            int dot4 = 0;
            int dot5 = 0;
            int dot6 = 0;
            int dot7 = 0;
            for (int k = first + slice; k < last; k += SLICES) {
                int weights = b.get(from + k * rows);
                dot0 = dot0 + GemmKernels.product4(weights, a.get(row0 * kInts + k));
                dot1 = dot1 + GemmKernels.product4(weights, a.get(row1 * kInts + k));
                dot2 = dot2 + GemmKernels.product4(weights, a.get(row2 * kInts + k));
                dot3 = dot3 + GemmKernels.product4(weights, a.get(row3 * kInts + k));
                dot4 = dot4 + GemmKernels.product4(weights, a.get(row4 * kInts + k));
                dot5 = dot5 + GemmKernels.product4(weights, a.get(row5 * kInts + k));
                dot6 = dot6 + GemmKernels.product4(weights, a.get(row6 * kInts + k));
                dot7 = dot7 + GemmKernels.product4(weights, a.get(row7 * kInts + k));
            }
            float scale = bScales.get(scaleFrom + group * scaleRows);
            sum0 += dot0 * aScales.get(row0 * groups + group) * scale;
            sum1 += dot1 * aScales.get(row1 * groups + group) * scale;
            sum2 += dot2 * aScales.get(row2 * groups + group) * scale;
            sum3 += dot3 * aScales.get(row3 * groups + group) * scale;
            sum4 += dot4 * aScales.get(row4 * groups + group) * scale;
            sum5 += dot5 * aScales.get(row5 * groups + group) * scale;
            sum6 += dot6 * aScales.get(row6 * groups + group) * scale;
            sum7 += dot7 * aScales.get(row7 * groups + group) * scale;
            group = group + 1;
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
            float value = total;
            if (biased == 1 && expert >= 0) {
                value = value + bias.get(expert * rows + n);
            }
            if (weighted == 1) {
                value = value * topkWeights.get(pair);
            }
            out.set(pair * rows + n, value);
        }
    }

    /**
     * float × int8 with a scale, and perhaps a zero point, for a group of columns of a row (w8a16):
     * {@code out[p][n] = Σ_g bScales[e][g][n] · Σ a[row(p)][k] · (b[e][n][k] − zeroPoints[e][g][n])}, the inner sum
     * over the columns of group g; then bias and router weight as {@link #dp4a} has them. The parameters are those of
     * {@link #dp4a}, but for:
     *
     * @param a [rows of a, cols] in float
     * @param zeroPoints with {@code zeroPointed} 1 [E, groups, N]; else not looked at
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
            FloatArray zeroPoints,
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray out,
            int topK,
            int pairsPerRow,
            int rows,
            int cols,
            int groupInts,
            int zeroPointed,
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
        int kInts = (cols + 3) / 4;
        int groups = (kInts + groupInts - 1) / groupInts;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        int scaleFrom = expert * groups * rows + column;
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
        int group = 0;
        for (int first = 0; first < end; first += groupInts) {
            int last = first + groupInts < end ? first + groupInts : end;
            float zero = 0.0f;
            if (zeroPointed == 1) {
                zero = zeroPoints.get(scaleFrom + group * rows);
            }
            float dot0 = 0.0f;
            float dot1 = 0.0f;
            float dot2 = 0.0f;
            float dot3 = 0.0f;
            float dot4 = 0.0f;
            float dot5 = 0.0f;
            float dot6 = 0.0f;
            float dot7 = 0.0f;
            for (int k = first + slice; k < last; k += SLICES) {
                int weights = b.get(from + k * rows);
                int c0 = 4 * k;
                // Past the end of a row the weights count nothing; the activations are read from the last column
                // instead.
                int c1 = c0 + 1 < cols ? c0 + 1 : cols - 1;
                int c2 = c0 + 2 < cols ? c0 + 2 : cols - 1;
                int c3 = c0 + 3 < cols ? c0 + 3 : cols - 1;
                float w0 = GemmKernels.int8(weights) - zero;
                float w1 = c0 + 1 < cols ? GemmKernels.int8(weights >> 8) - zero : 0.0f;
                float w2 = c0 + 2 < cols ? GemmKernels.int8(weights >> 16) - zero : 0.0f;
                float w3 = c0 + 3 < cols ? GemmKernels.int8(weights >> 24) - zero : 0.0f;
                dot0 += w0 * a.get(row0 + c0) + w1 * a.get(row0 + c1) + w2 * a.get(row0 + c2) + w3 * a.get(row0 + c3);
                dot1 += w0 * a.get(row1 + c0) + w1 * a.get(row1 + c1) + w2 * a.get(row1 + c2) + w3 * a.get(row1 + c3);
                dot2 += w0 * a.get(row2 + c0) + w1 * a.get(row2 + c1) + w2 * a.get(row2 + c2) + w3 * a.get(row2 + c3);
                dot3 += w0 * a.get(row3 + c0) + w1 * a.get(row3 + c1) + w2 * a.get(row3 + c2) + w3 * a.get(row3 + c3);
                dot4 += w0 * a.get(row4 + c0) + w1 * a.get(row4 + c1) + w2 * a.get(row4 + c2) + w3 * a.get(row4 + c3);
                dot5 += w0 * a.get(row5 + c0) + w1 * a.get(row5 + c1) + w2 * a.get(row5 + c2) + w3 * a.get(row5 + c3);
                dot6 += w0 * a.get(row6 + c0) + w1 * a.get(row6 + c1) + w2 * a.get(row6 + c2) + w3 * a.get(row6 + c3);
                dot7 += w0 * a.get(row7 + c0) + w1 * a.get(row7 + c1) + w2 * a.get(row7 + c2) + w3 * a.get(row7 + c3);
            }
            float scale = bScales.get(scaleFrom + group * rows);
            sum0 += dot0 * scale;
            sum1 += dot1 * scale;
            sum2 += dot2 * scale;
            sum3 += dot3 * scale;
            sum4 += dot4 * scale;
            sum5 += dot5 * scale;
            sum6 += dot6 * scale;
            sum7 += dot7 * scale;
            group = group + 1;
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
            float value = total;
            if (weighted == 2) {
                value = value * topkWeights.get(pair);
            }
            if (biased == 1 && expert >= 0) {
                value = value + bias.get(expert * rows + n);
            }
            if (weighted == 1) {
                value = value * topkWeights.get(pair);
            }
            out.set(pair * rows + n, value);
        }
    }
}
