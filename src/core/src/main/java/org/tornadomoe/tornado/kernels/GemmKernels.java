package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

/**
 * The expert GEMMs: {@code out[p][n] = Σ_g scale · Σ_k a[row(p)][k] · b[expert(p)][n][k]} for every pair p of a token
 * and one of its experts, k being the columns of group g. All of them share grid, work-group and layout, and differ in
 * the inner product only.
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
     * int8 × int8, with the {@code dp4a} instruction (PTX, CUDA): {@code out[p][n] = Σ_g sum · aScales[row(p)][g] ·
     * bScales[e][g][n / rowsPerScale]}, multiplied from left to right; then as {@link Pairs#put} says. With one group
     * sums are exact in int32 for a K of at most 133,000. With several each slice's sum of a group is, and what they
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
     * @param bias with {@link Pairs#BIASED} [E, N]; else not looked at
     * @param topkWeights [P]
     * @param out [P, N], written for every pair in {@code sortedIds}
     * @param rows N
     * @param groupInts ints of a group of columns, of which the last may be short; kInts if there is one group
     * @param form what else there is, of {@link Pairs}
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
            int rows,
            int kInts,
            int groupInts,
            int rowsPerScale,
            int form) {
        int[] sums = ctx.allocateIntLocalArray(SLICES * BLOCK * ROWS);
        float[] scaled = ctx.allocateFloatLocalArray(SLICES * BLOCK * ROWS);
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
        int scaleFrom = expert * groups * scaleRows + column / rowsPerScale;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        int own = slice * BLOCK * ROWS + lane;
        int row0 = Pairs.rowAt(sortedIds, place, active, pairs, topK, form);
        int row1 = Pairs.rowAt(sortedIds, place + 1, active, pairs, topK, form);
        int row2 = Pairs.rowAt(sortedIds, place + 2, active, pairs, topK, form);
        int row3 = Pairs.rowAt(sortedIds, place + 3, active, pairs, topK, form);
        int row4 = Pairs.rowAt(sortedIds, place + 4, active, pairs, topK, form);
        int row5 = Pairs.rowAt(sortedIds, place + 5, active, pairs, topK, form);
        int row6 = Pairs.rowAt(sortedIds, place + 6, active, pairs, topK, form);
        int row7 = Pairs.rowAt(sortedIds, place + 7, active, pairs, topK, form);
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
            if (groups == 1) {
                sums[own] = dot0;
                sums[own + ROWS] = dot1;
                sums[own + 2 * ROWS] = dot2;
                sums[own + 3 * ROWS] = dot3;
                sums[own + 4 * ROWS] = dot4;
                sums[own + 5 * ROWS] = dot5;
                sums[own + 6 * ROWS] = dot6;
                sums[own + 7 * ROWS] = dot7;
            } else {
                float scale = bScales.get(scaleFrom + group * scaleRows);
                sum0 += dot0 * aScales.get(row0 * groups + group) * scale;
                sum1 += dot1 * aScales.get(row1 * groups + group) * scale;
                sum2 += dot2 * aScales.get(row2 * groups + group) * scale;
                sum3 += dot3 * aScales.get(row3 * groups + group) * scale;
                sum4 += dot4 * aScales.get(row4 * groups + group) * scale;
                sum5 += dot5 * aScales.get(row5 * groups + group) * scale;
                sum6 += dot6 * aScales.get(row6 * groups + group) * scale;
                sum7 += dot7 * aScales.get(row7 * groups + group) * scale;
            }
            group = group + 1;
        }
        if (groups > 1) {
            scaled[own] = sum0;
            scaled[own + ROWS] = sum1;
            scaled[own + 2 * ROWS] = sum2;
            scaled[own + 3 * ROWS] = sum3;
            scaled[own + 4 * ROWS] = sum4;
            scaled[own + 5 * ROWS] = sum5;
            scaled[own + 6 * ROWS] = sum6;
            scaled[own + 7 * ROWS] = sum7;
        }
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has token slice and row lane.
        int pair = Pairs.at(sortedIds, place + slice, active, pairs);
        float value = 0.0f;
        if (groups > 1) {
            for (int s = 0; s < SLICES; s++) {
                value += scaled[s * BLOCK * ROWS + lid];
            }
        } else if (expert >= 0) {
            int total = 0;
            for (int s = 0; s < SLICES; s++) {
                total += sums[s * BLOCK * ROWS + lid];
            }
            value = total * aScales.get(Pairs.row(pair, pairs, topK, form)) * bScales.get(scaleFrom);
        }
        Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, n, value);
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
            int rows,
            int kInts,
            int groupInts,
            int rowsPerScale,
            int form) {
        int[] sums = ctx.allocateIntLocalArray(SLICES * BLOCK * ROWS);
        float[] scaled = ctx.allocateFloatLocalArray(SLICES * BLOCK * ROWS);
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
        int scaleFrom = expert * groups * scaleRows + column / rowsPerScale;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        int own = slice * BLOCK * ROWS + lane;
        int row0 = Pairs.rowAt(sortedIds, place, active, pairs, topK, form);
        int row1 = Pairs.rowAt(sortedIds, place + 1, active, pairs, topK, form);
        int row2 = Pairs.rowAt(sortedIds, place + 2, active, pairs, topK, form);
        int row3 = Pairs.rowAt(sortedIds, place + 3, active, pairs, topK, form);
        int row4 = Pairs.rowAt(sortedIds, place + 4, active, pairs, topK, form);
        int row5 = Pairs.rowAt(sortedIds, place + 5, active, pairs, topK, form);
        int row6 = Pairs.rowAt(sortedIds, place + 6, active, pairs, topK, form);
        int row7 = Pairs.rowAt(sortedIds, place + 7, active, pairs, topK, form);
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
                dot0 = dot0 + product4(weights, a.get(row0 * kInts + k));
                dot1 = dot1 + product4(weights, a.get(row1 * kInts + k));
                dot2 = dot2 + product4(weights, a.get(row2 * kInts + k));
                dot3 = dot3 + product4(weights, a.get(row3 * kInts + k));
                dot4 = dot4 + product4(weights, a.get(row4 * kInts + k));
                dot5 = dot5 + product4(weights, a.get(row5 * kInts + k));
                dot6 = dot6 + product4(weights, a.get(row6 * kInts + k));
                dot7 = dot7 + product4(weights, a.get(row7 * kInts + k));
            }
            if (groups == 1) {
                sums[own] = dot0;
                sums[own + ROWS] = dot1;
                sums[own + 2 * ROWS] = dot2;
                sums[own + 3 * ROWS] = dot3;
                sums[own + 4 * ROWS] = dot4;
                sums[own + 5 * ROWS] = dot5;
                sums[own + 6 * ROWS] = dot6;
                sums[own + 7 * ROWS] = dot7;
            } else {
                float scale = bScales.get(scaleFrom + group * scaleRows);
                sum0 += dot0 * aScales.get(row0 * groups + group) * scale;
                sum1 += dot1 * aScales.get(row1 * groups + group) * scale;
                sum2 += dot2 * aScales.get(row2 * groups + group) * scale;
                sum3 += dot3 * aScales.get(row3 * groups + group) * scale;
                sum4 += dot4 * aScales.get(row4 * groups + group) * scale;
                sum5 += dot5 * aScales.get(row5 * groups + group) * scale;
                sum6 += dot6 * aScales.get(row6 * groups + group) * scale;
                sum7 += dot7 * aScales.get(row7 * groups + group) * scale;
            }
            group = group + 1;
        }
        if (groups > 1) {
            scaled[own] = sum0;
            scaled[own + ROWS] = sum1;
            scaled[own + 2 * ROWS] = sum2;
            scaled[own + 3 * ROWS] = sum3;
            scaled[own + 4 * ROWS] = sum4;
            scaled[own + 5 * ROWS] = sum5;
            scaled[own + 6 * ROWS] = sum6;
            scaled[own + 7 * ROWS] = sum7;
        }
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has token slice and row lane.
        int pair = Pairs.at(sortedIds, place + slice, active, pairs);
        float value = 0.0f;
        if (groups > 1) {
            for (int s = 0; s < SLICES; s++) {
                value += scaled[s * BLOCK * ROWS + lid];
            }
        } else if (expert >= 0) {
            int total = 0;
            for (int s = 0; s < SLICES; s++) {
                total += sums[s * BLOCK * ROWS + lid];
            }
            value = total * aScales.get(Pairs.row(pair, pairs, topK, form)) * bScales.get(scaleFrom);
        }
        Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, n, value);
    }

    /**
     * float × int8 for unquantised activations (w8a16): {@code out[p][n] = Σ_g bScales[e][g][n] · Σ_k a[row(p)][k] ·
     * (b[e][n][k] − zeroPoints[e][g][n])}; then as {@link Pairs#put} says. The parameters are those of {@link #dp4a},
     * but for:
     *
     * @param a [rows of a, cols] in float
     * @param b [E, ⌈cols / 4⌉, N]
     * @param bScales [E, groups, N]
     * @param zeroPoints with {@link Pairs#ZERO_POINTS} as {@code bScales}, whole numbers; else not looked at
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
            int rows,
            int cols,
            int groupInts,
            int form) {
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
        int scaleFrom = expert * groups * rows + column;
        int end = expert >= 0 ? kInts : 0;
        int from = expert * kInts * rows + column;
        int own = slice * BLOCK * ROWS + lane;
        int row0 = Pairs.rowAt(sortedIds, place, active, pairs, topK, form) * cols;
        int row1 = Pairs.rowAt(sortedIds, place + 1, active, pairs, topK, form) * cols;
        int row2 = Pairs.rowAt(sortedIds, place + 2, active, pairs, topK, form) * cols;
        int row3 = Pairs.rowAt(sortedIds, place + 3, active, pairs, topK, form) * cols;
        int row4 = Pairs.rowAt(sortedIds, place + 4, active, pairs, topK, form) * cols;
        int row5 = Pairs.rowAt(sortedIds, place + 5, active, pairs, topK, form) * cols;
        int row6 = Pairs.rowAt(sortedIds, place + 6, active, pairs, topK, form) * cols;
        int row7 = Pairs.rowAt(sortedIds, place + 7, active, pairs, topK, form) * cols;
        float sum0 = 0.0f;
        float sum1 = 0.0f;
        float sum2 = 0.0f;
        float sum3 = 0.0f;
        float sum4 = 0.0f;
        float sum5 = 0.0f;
        float sum6 = 0.0f;
        float sum7 = 0.0f;
        for (int first = 0; first < end; first += groupInts) {
            int scaleAt = scaleFrom + first / groupInts * rows;
            int last = first + groupInts < end ? first + groupInts : end;
            int zero = Pairs.zeroPoint(zeroPoints, scaleAt, form);
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
                int c = 4 * k;
                float w0 = weight(weights, zero, c, cols);
                float w1 = weight(weights >> 8, zero, c + 1, cols);
                float w2 = weight(weights >> 16, zero, c + 2, cols);
                float w3 = weight(weights >> 24, zero, c + 3, cols);
                dot0 = plus4(dot0, a, row0, c, cols, w0, w1, w2, w3);
                dot1 = plus4(dot1, a, row1, c, cols, w0, w1, w2, w3);
                dot2 = plus4(dot2, a, row2, c, cols, w0, w1, w2, w3);
                dot3 = plus4(dot3, a, row3, c, cols, w0, w1, w2, w3);
                dot4 = plus4(dot4, a, row4, c, cols, w0, w1, w2, w3);
                dot5 = plus4(dot5, a, row5, c, cols, w0, w1, w2, w3);
                dot6 = plus4(dot6, a, row6, c, cols, w0, w1, w2, w3);
                dot7 = plus4(dot7, a, row7, c, cols, w0, w1, w2, w3);
            }
            float scale = bScales.get(scaleAt);
            sum0 += dot0 * scale;
            sum1 += dot1 * scale;
            sum2 += dot2 * scale;
            sum3 += dot3 * scale;
            sum4 += dot4 * scale;
            sum5 += dot5 * scale;
            sum6 += dot6 * scale;
            sum7 += dot7 * scale;
        }
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
        float value = 0.0f;
        for (int s = 0; s < SLICES; s++) {
            value += sums[s * BLOCK * ROWS + lid];
        }
        int pair = Pairs.at(sortedIds, place + slice, active, pairs);
        Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, n, value);
    }

    /** A weight less its zero point; 0 past the end of a row. */
    static float weight(int word, int zero, int c, int cols) {
        return c < cols ? int8(word) - zero : 0;
    }

    /** A sum and four products. Past the end of a row, where weights are 0, the last activation stands in. */
    static float plus4(float sum, FloatArray a, int at, int c, int cols, float w0, float w1, float w2, float w3) {
        int c1 = c + 1 < cols ? c + 1 : cols - 1;
        int c2 = c + 2 < cols ? c + 2 : cols - 1;
        int c3 = c + 3 < cols ? c + 3 : cols - 1;
        return sum + w0 * a.get(at + c) + w1 * a.get(at + c1) + w2 * a.get(at + c2) + w3 * a.get(at + c3);
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
