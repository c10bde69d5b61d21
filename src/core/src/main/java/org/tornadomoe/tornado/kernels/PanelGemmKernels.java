package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The expert GEMM for compilers that have no word for a four-way int8 dot product but find it:
 * {@code out[p][n] = scale · Σ_k a[row(p)][k] · b[expert(p)][n][k]} for every pair p of a token and one of its experts,
 * with exact int32 sums. Of {@link #plus4} NVIDIA's compiler makes {@code dp4a} and AMD's (LLVM 19 and later)
 * {@code v_dot4}, as long as a sum takes no more than one of them in a round of its loop: of longer sums they mix the
 * products.
 *
 * <p>Two kernels, by the pairs of a block: {@link #stream} for {@link #FEW}, {@link #tile} for {@link #MANY}. A layer
 * has both in its graph, and in a call one of them has nothing to do. They are two because PoCL (3.1) goes wrong where
 * a barrier is in either branch of a condition.
 *
 * <p>Layout of the weights: {@code [E, panels, kInts, 64]} ints, a panel being {@link #PANEL} rows and an int four
 * consecutive k of one row, the first in the low byte ({@code a} is packed the same way). What pads rows and panels is
 * 0.
 */
public final class PanelGemmKernels {
    /** Sorted pairs of a block where weights are streamed. */
    public static final int FEW = 8;

    /** Sorted pairs of a block where they are tiled. */
    public static final int MANY = 16;

    /** Weight rows that lie side by side. */
    public static final int PANEL = 64;

    /** Weight rows of a group of {@link #stream}. */
    public static final int STREAM_ROWS = 32;

    /** Parts that k is split in there. */
    public static final int SLICES = 8;

    /** Work-items of a group of {@link #stream}. */
    public static final int STREAM_GROUP = STREAM_ROWS * SLICES;

    /** Sums that a work-item of it has going. */
    private static final int SUMS = 16;

    /** Weight rows of a group of {@link #tile}. */
    public static final int TILE_ROWS = 2 * PANEL;

    /** Work-items of a group of it. */
    public static final int TILE_GROUP = PANEL;

    /** Ints of k that it has in local memory at once. */
    public static final int CHUNK = 32;

    private PanelGemmKernels() {}

    /**
     * For few pairs: {@code out[p][n] = sum · aScales[row(p)] · bScales[e][n]}, multiplied from left to right, plus
     * {@code bias[e][n]} if {@code biased} is 1, and times the pair's router weight if {@code weighted} is 1. Exact as
     * long as K is at most 131,071.
     *
     * <p>Grid: groups of {@link #STREAM_GROUP} for {@link #STREAM_ROWS} weight rows (x) and a block (y). A lane has a
     * row, a slice every {@value #SLICES}th int of it; slices are added up through local memory. A block multiplies 1,
     * 4 or 8 pairs, as it has them, and keeps 8, 4 or 2 reads of weights on their way. Costs K·N bytes of weights a
     * block.
     *
     * @param header [0] = M, [1] = pairs of a block; nothing is done if those aren't {@link #FEW}
     * @param sortedIds pairs in expert order, in blocks; what is no pair (P) pads a block at its end
     * @param expertIds [blocks]; a block with −1 is written zeros
     * @param padded [0] = places in use in {@code sortedIds}
     * @param a [rows of a, kInts]
     * @param aScales [rows of a]
     * @param b {@code lead} ints, then [E, ⌈N / 64⌉, kInts, 64]
     * @param bScales [E, N]
     * @param bias with {@code biased} 1 [E, N]; else not looked at
     * @param topkWeights [P]
     * @param out [P, N], written for every pair in {@code sortedIds}
     * @param pairsPerRow pairs that share a row of {@code a}: K for tokens, 1 for pairs
     */
    public static void stream(
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
            int lead,
            int biased,
            int weighted) {
        int[] shared = ctx.allocateIntLocalArray(SLICES * FEW * STREAM_ROWS);
        int lid = ctx.localIdx;
        int lane = lid % STREAM_ROWS;
        int slice = lid / STREAM_ROWS;
        int first = ctx.groupIdx * STREAM_ROWS;
        int block = ctx.groupIdy;
        int place = block * FEW;
        int pairs = header.get(0) * topK;
        int active = header.get(1) == FEW && place < padded.get(0) ? 1 : 0;
        int expert = active == 1 ? expertIds.get(block) : -1;
        int end = expert >= 0 ? kInts : 0;
        int panel = expert * ((rows + PANEL - 1) / PANEL) + first / PANEL;
        int from = lead + panel * kInts * PANEL + first % PANEL + lane;
        int[] at = new int[FEW];
        for (int p = 0; p < FEW; p++) {
            // A place that pads the block has row 0; its sum is thrown away.
            int pair = active == 1 ? sortedIds.get(place + p) : pairs;
            at[p] = pair < pairs ? pair / pairsPerRow * kInts : 0;
        }
        int second = active == 1 ? sortedIds.get(place + 1) : pairs;
        int fifth = active == 1 ? sortedIds.get(place + 4) : pairs;
        int[] sums = new int[SUMS];
        for (int i = 0; i < SUMS; i++) {
            sums[i] = 0;
        }
        int k = slice;
        if (second >= pairs) {
            for (; k + 7 * SLICES < end; k += 8 * SLICES) {
                for (int r = 0; r < 8; r++) {
                    int here = k + r * SLICES;
                    int weights = b.get(from + here * PANEL);
                    sums[r] = plus4(sums[r], weights, a.get(at[0] + here));
                }
            }
            for (; k < end; k += SLICES) {
                int weights = b.get(from + k * PANEL);
                sums[0] = plus4(sums[0], weights, a.get(at[0] + k));
            }
            for (int i = 1; i < 8; i++) {
                sums[0] += sums[i];
                sums[i] = 0;
            }
        } else if (fifth >= pairs) {
            for (; k + 3 * SLICES < end; k += 4 * SLICES) {
                for (int r = 0; r < 4; r++) {
                    int here = k + r * SLICES;
                    int weights = b.get(from + here * PANEL);
                    for (int p = 0; p < 4; p++) {
                        sums[r * 4 + p] = plus4(sums[r * 4 + p], weights, a.get(at[p] + here));
                    }
                }
            }
            for (; k < end; k += SLICES) {
                int weights = b.get(from + k * PANEL);
                for (int p = 0; p < 4; p++) {
                    sums[p] = plus4(sums[p], weights, a.get(at[p] + k));
                }
            }
            for (int i = 4; i < 4 * 4; i++) {
                sums[i % 4] += sums[i];
                sums[i] = 0;
            }
        } else {
            for (; k + SLICES < end; k += 2 * SLICES) {
                for (int r = 0; r < 2; r++) {
                    int here = k + r * SLICES;
                    int weights = b.get(from + here * PANEL);
                    for (int p = 0; p < FEW; p++) {
                        sums[r * FEW + p] = plus4(sums[r * FEW + p], weights, a.get(at[p] + here));
                    }
                }
            }
            for (; k < end; k += SLICES) {
                int weights = b.get(from + k * PANEL);
                for (int p = 0; p < FEW; p++) {
                    sums[p] = plus4(sums[p], weights, a.get(at[p] + k));
                }
            }
            for (int i = FEW; i < 2 * FEW; i++) {
                sums[i % FEW] += sums[i];
                sums[i] = 0;
            }
        }
        for (int p = 0; p < FEW; p++) {
            shared[(slice * FEW + p) * STREAM_ROWS + lane] = sums[p];
        }
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has pair slice and row lane.
        int total = 0;
        for (int s = 0; s < SLICES; s++) {
            total += shared[s * FEW * STREAM_ROWS + lid];
        }
        int pair = active == 1 ? sortedIds.get(place + slice) : pairs;
        put(
                aScales,
                bScales,
                bias,
                topkWeights,
                out,
                pairs,
                pairsPerRow,
                rows,
                biased,
                weighted,
                expert,
                pair,
                first + lane,
                total);
    }

    /**
     * As {@link #stream}, with the same parameters, for blocks of {@link #MANY} pairs.
     *
     * <p>Grid: groups of {@link #TILE_GROUP} for {@link #TILE_ROWS} weight rows (x) and a block (y). A lane has two
     * rows, a panel apart, and all pairs; the pairs' int8 values come through local memory, {@value #CHUNK} ints of
     * each at a time. The barrier in the inner loop is there for the compilers: it keeps them from unrolling, and PoCL
     * makes vectors of work-items only between barriers.
     */
    public static void tile(
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
            int lead,
            int biased,
            int weighted) {
        int[] shared = ctx.allocateIntLocalArray(MANY * CHUNK);
        int lid = ctx.localIdx;
        int block = ctx.groupIdy;
        int place = block * MANY;
        int pairs = header.get(0) * topK;
        int active = header.get(1) == MANY && place < padded.get(0) ? 1 : 0;
        int expert = active == 1 ? expertIds.get(block) : -1;
        int end = expert >= 0 ? kInts : 0;
        int panels = (rows + PANEL - 1) / PANEL;
        int panel = ctx.groupIdx * 2;
        int from = expert >= 0 ? lead + (expert * panels + panel) * kInts * PANEL + lid : 0;
        // The last group may have one panel only: it takes that twice.
        int apart = panel + 1 < panels ? kInts * PANEL : 0;
        int own = active == 1 ? sortedIds.get(place + lid / 4) : pairs;
        int row = own < pairs ? own / pairsPerRow * kInts : 0;
        int s00 = 0;
        int s10 = 0;
        int s20 = 0;
        int s30 = 0;
        int s40 = 0;
        int s50 = 0;
        int s60 = 0;
        int s70 = 0;
        int s80 = 0;
        int s90 = 0;
        int sa0 = 0;
        int sb0 = 0;
        int sc0 = 0;
        int sd0 = 0;
        int se0 = 0;
        int sf0 = 0;
        int s01 = 0;
        int s11 = 0;
        int s21 = 0;
        int s31 = 0;
        int s41 = 0;
        int s51 = 0;
        int s61 = 0;
        int s71 = 0;
        int s81 = 0;
        int s91 = 0;
        int sa1 = 0;
        int sb1 = 0;
        int sc1 = 0;
        int sd1 = 0;
        int se1 = 0;
        int sf1 = 0;
        int next0 = end > 0 ? b.get(from) : 0;
        int next1 = end > 0 ? b.get(from + apart) : 0;
        for (int k = 0; k < end; k += CHUNK) {
            for (int i = lid % 4; i < CHUNK; i += 4) {
                shared[i * MANY + lid / 4] = k + i < kInts ? a.get(row + k + i) : 0;
            }
            ctx.localBarrier();
            int steps = end - k < CHUNK ? end - k : CHUNK;
            for (int i = 0; i < steps; i++) {
                int w0 = next0;
                int w1 = next1;
                int ahead = from + (k + i + 1 < end ? k + i + 1 : k + i) * PANEL;
                next0 = b.get(ahead);
                next1 = b.get(ahead + apart);
                int at = i * MANY;
                s00 = plus4(s00, w0, shared[at]);
                s10 = plus4(s10, w0, shared[at + 1]);
                s20 = plus4(s20, w0, shared[at + 2]);
                s30 = plus4(s30, w0, shared[at + 3]);
                s40 = plus4(s40, w0, shared[at + 4]);
                s50 = plus4(s50, w0, shared[at + 5]);
                s60 = plus4(s60, w0, shared[at + 6]);
                s70 = plus4(s70, w0, shared[at + 7]);
                s80 = plus4(s80, w0, shared[at + 8]);
                s90 = plus4(s90, w0, shared[at + 9]);
                sa0 = plus4(sa0, w0, shared[at + 10]);
                sb0 = plus4(sb0, w0, shared[at + 11]);
                sc0 = plus4(sc0, w0, shared[at + 12]);
                sd0 = plus4(sd0, w0, shared[at + 13]);
                se0 = plus4(se0, w0, shared[at + 14]);
                sf0 = plus4(sf0, w0, shared[at + 15]);
                s01 = plus4(s01, w1, shared[at]);
                s11 = plus4(s11, w1, shared[at + 1]);
                s21 = plus4(s21, w1, shared[at + 2]);
                s31 = plus4(s31, w1, shared[at + 3]);
                s41 = plus4(s41, w1, shared[at + 4]);
                s51 = plus4(s51, w1, shared[at + 5]);
                s61 = plus4(s61, w1, shared[at + 6]);
                s71 = plus4(s71, w1, shared[at + 7]);
                s81 = plus4(s81, w1, shared[at + 8]);
                s91 = plus4(s91, w1, shared[at + 9]);
                sa1 = plus4(sa1, w1, shared[at + 10]);
                sb1 = plus4(sb1, w1, shared[at + 11]);
                sc1 = plus4(sc1, w1, shared[at + 12]);
                sd1 = plus4(sd1, w1, shared[at + 13]);
                se1 = plus4(se1, w1, shared[at + 14]);
                sf1 = plus4(sf1, w1, shared[at + 15]);
                ctx.localBarrier();
            }
        }
        int[] sums = new int[2 * MANY];
        sums[0] = s00;
        sums[1] = s01;
        sums[2] = s10;
        sums[3] = s11;
        sums[4] = s20;
        sums[5] = s21;
        sums[6] = s30;
        sums[7] = s31;
        sums[8] = s40;
        sums[9] = s41;
        sums[10] = s50;
        sums[11] = s51;
        sums[12] = s60;
        sums[13] = s61;
        sums[14] = s70;
        sums[15] = s71;
        sums[16] = s80;
        sums[17] = s81;
        sums[18] = s90;
        sums[19] = s91;
        sums[20] = sa0;
        sums[21] = sa1;
        sums[22] = sb0;
        sums[23] = sb1;
        sums[24] = sc0;
        sums[25] = sc1;
        sums[26] = sd0;
        sums[27] = sd1;
        sums[28] = se0;
        sums[29] = se1;
        sums[30] = sf0;
        sums[31] = sf1;
        // Four pairs at a time through local memory, so that neighbours write neighbours.
        for (int p = 0; p < MANY; p += 4) {
            for (int i = 0; i < 8; i++) {
                shared[i * PANEL + lid] = sums[2 * p + i];
            }
            ctx.localBarrier();
            for (int i = lid; i < 4 * TILE_ROWS; i += TILE_GROUP) {
                int pair = active == 1 ? sortedIds.get(place + p + i / TILE_ROWS) : pairs;
                int n = ctx.groupIdx * TILE_ROWS + i % TILE_ROWS;
                put(
                        aScales,
                        bScales,
                        bias,
                        topkWeights,
                        out,
                        pairs,
                        pairsPerRow,
                        rows,
                        biased,
                        weighted,
                        expert,
                        pair,
                        n,
                        shared[i]);
            }
            ctx.localBarrier();
        }
    }

    /** What a pair and a weight row get of their sum. */
    private static void put(
            FloatArray aScales,
            FloatArray bScales,
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray out,
            int pairs,
            int pairsPerRow,
            int rows,
            int biased,
            int weighted,
            int expert,
            int pair,
            int n,
            int sum) {
        if (pair < pairs && n < rows) {
            float value = 0.0f;
            if (expert >= 0) {
                value = sum * aScales.get(pair / pairsPerRow) * bScales.get(expert * rows + n);
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
     * A sum and the products of four int8 values each. See {@link GemmKernels#int8} for why not with a pair of shifts.
     */
    private static int plus4(int sum, int x, int y) {
        return sum
                + (((x & 0xFF) ^ 0x80) - 0x80) * (((y & 0xFF) ^ 0x80) - 0x80)
                + ((((x >> 8) & 0xFF) ^ 0x80) - 0x80) * ((((y >> 8) & 0xFF) ^ 0x80) - 0x80)
                + ((((x >> 16) & 0xFF) ^ 0x80) - 0x80) * ((((y >> 16) & 0xFF) ^ 0x80) - 0x80)
                + ((((x >> 24) & 0xFF) ^ 0x80) - 0x80) * ((((y >> 24) & 0xFF) ^ 0x80) - 0x80);
    }
}
