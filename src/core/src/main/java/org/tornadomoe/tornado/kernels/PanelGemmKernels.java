package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The expert GEMM on int8 for compilers that have no word for a four-way int8 dot product but find it:
 * {@code out[p][n] = Σ_g aScales · bScales[e][g][n] · Σ_k a[row(p)][k] · b[expert(p)][n][k]} for every pair p of a
 * token and one of its experts, k being the columns of group g, with exact int32 sums of at most 131,071 columns. Of
 * {@link #plus4} NVIDIA's compiler makes {@code dp4a} and AMD's (LLVM 19 and later) {@code v_dot4}, as long as a sum
 * takes no more than one of them in a round of its loop: of longer sums they mix the products.
 * {@link PanelFloatKernels} has the same for activations in float.
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
    public static final int TILE_ROWS = 4 * PANEL;

    /** Work-items of a group of it. */
    public static final int TILE_GROUP = PANEL;

    /** Weight rows of a work-item of it. */
    static final int LANE_ROWS = TILE_ROWS / TILE_GROUP;

    /** Ints of k that it has in local memory at once. */
    public static final int CHUNK = 32;

    private PanelGemmKernels() {}

    /**
     * For few pairs: {@code sum · aScales · bScales}, multiplied from left to right and added up group by group; then
     * as {@link Pairs#put} says.
     *
     * <p>Grid: groups of {@link #STREAM_GROUP} for {@link #STREAM_ROWS} weight rows (x) and a block (y). A lane has a
     * row, a slice every {@value #SLICES}th int of it; slices are added up through local memory. A block multiplies 1,
     * 4 or 8 pairs, as it has them, and with one group of columns keeps 8, 4 or 2 reads of weights on their way. Costs
     * K·N bytes of weights a block.
     *
     * @param header [0] = M, [1] = pairs of a block; nothing is done if those aren't {@link #FEW}
     * @param sortedIds pairs in expert order, in blocks; what is no pair (P) pads a block at its end
     * @param expertIds [blocks]; a block with −1 is written zeros
     * @param padded [0] = places in use in {@code sortedIds}
     * @param a [rows of a, kInts]
     * @param aScales [rows of a, groups]
     * @param b {@code lead} ints, then [E, ⌈N / 64⌉, kInts, 64]
     * @param bScales [E, groups, ⌈N / rowsPerScale⌉]
     * @param bias with {@link Pairs#BIASED} [E, N]; else not looked at
     * @param topkWeights [P]
     * @param out [P, N], written for every pair in {@code sortedIds}
     * @param rows N
     * @param groupInts ints of a group of columns, kInts if there is one group
     * @param form what else there is, of {@link Pairs}
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
            int rows,
            int kInts,
            int groupInts,
            int rowsPerScale,
            int lead,
            int form) {
        int[] shared = ctx.allocateIntLocalArray(SLICES * FEW * STREAM_ROWS);
        float[] scaled = ctx.allocateFloatLocalArray(SLICES * FEW * STREAM_ROWS);
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
        int groups = (kInts + groupInts - 1) / groupInts;
        int scaleRows = (rows + rowsPerScale - 1) / rowsPerScale;
        int n = first + lane;
        int scaleFrom = expert * groups * scaleRows + (n < rows ? n : rows - 1) / rowsPerScale;
        int[] at = new int[FEW];
        for (int p = 0; p < FEW; p++) {
            at[p] = Pairs.rowAt(sortedIds, place + p, active, pairs, topK, form);
        }
        int second = Pairs.at(sortedIds, place + 1, active, pairs);
        int fifth = Pairs.at(sortedIds, place + 4, active, pairs);
        int[] sums = new int[SUMS];
        for (int i = 0; i < SUMS; i++) {
            sums[i] = 0;
        }
        // What a branch finds it writes itself: of a value that three branches set, TornadoVM 5.2 takes the second's,
        // whichever ran.
        int to = slice * FEW * STREAM_ROWS + lane;
        for (int p = 0; p < FEW; p++) {
            shared[to + p * STREAM_ROWS] = 0;
            scaled[to + p * STREAM_ROWS] = 0.0f;
        }
        if (groups == 1) {
            int k = slice;
            if (second >= pairs) {
                for (; k + 7 * SLICES < end; k += 8 * SLICES) {
                    for (int r = 0; r < 8; r++) {
                        int here = k + r * SLICES;
                        sums[r] = plus4(sums[r], b.get(from + here * PANEL), a.get(at[0] * kInts + here));
                    }
                }
                for (; k < end; k += SLICES) {
                    sums[0] = plus4(sums[0], b.get(from + k * PANEL), a.get(at[0] * kInts + k));
                }
                for (int i = 1; i < 8; i++) {
                    sums[0] += sums[i];
                }
                shared[to] = sums[0];
            } else if (fifth >= pairs) {
                for (; k + 3 * SLICES < end; k += 4 * SLICES) {
                    for (int r = 0; r < 4; r++) {
                        int here = k + r * SLICES;
                        int weights = b.get(from + here * PANEL);
                        for (int p = 0; p < 4; p++) {
                            sums[r * 4 + p] = plus4(sums[r * 4 + p], weights, a.get(at[p] * kInts + here));
                        }
                    }
                }
                for (; k < end; k += SLICES) {
                    int weights = b.get(from + k * PANEL);
                    for (int p = 0; p < 4; p++) {
                        sums[p] = plus4(sums[p], weights, a.get(at[p] * kInts + k));
                    }
                }
                for (int p = 0; p < 4; p++) {
                    for (int r = 1; r < 4; r++) {
                        sums[p] += sums[r * 4 + p];
                    }
                    shared[to + p * STREAM_ROWS] = sums[p];
                }
            } else {
                for (; k + SLICES < end; k += 2 * SLICES) {
                    for (int r = 0; r < 2; r++) {
                        int here = k + r * SLICES;
                        int weights = b.get(from + here * PANEL);
                        for (int p = 0; p < FEW; p++) {
                            sums[r * FEW + p] = plus4(sums[r * FEW + p], weights, a.get(at[p] * kInts + here));
                        }
                    }
                }
                for (; k < end; k += SLICES) {
                    int weights = b.get(from + k * PANEL);
                    for (int p = 0; p < FEW; p++) {
                        sums[p] = plus4(sums[p], weights, a.get(at[p] * kInts + k));
                    }
                }
                for (int p = 0; p < FEW; p++) {
                    shared[to + p * STREAM_ROWS] = sums[p] + sums[FEW + p];
                }
            }
        } else {
            float[] totals = new float[FEW];
            for (int p = 0; p < FEW; p++) {
                totals[p] = 0.0f;
            }
            if (second >= pairs) {
                for (int g = 0; g * groupInts < end; g++) {
                    int last = (g + 1) * groupInts < end ? (g + 1) * groupInts : end;
                    sums[0] = 0;
                    for (int k = g * groupInts + slice; k < last; k += SLICES) {
                        sums[0] = plus4(sums[0], b.get(from + k * PANEL), a.get(at[0] * kInts + k));
                    }
                    float scale = bScales.get(scaleFrom + g * scaleRows);
                    totals[0] += sums[0] * aScales.get(at[0] * groups + g) * scale;
                }
                scaled[to] = totals[0];
            } else if (fifth >= pairs) {
                for (int g = 0; g * groupInts < end; g++) {
                    int last = (g + 1) * groupInts < end ? (g + 1) * groupInts : end;
                    for (int p = 0; p < 4; p++) {
                        sums[p] = 0;
                    }
                    for (int k = g * groupInts + slice; k < last; k += SLICES) {
                        int weights = b.get(from + k * PANEL);
                        for (int p = 0; p < 4; p++) {
                            sums[p] = plus4(sums[p], weights, a.get(at[p] * kInts + k));
                        }
                    }
                    float scale = bScales.get(scaleFrom + g * scaleRows);
                    for (int p = 0; p < 4; p++) {
                        totals[p] += sums[p] * aScales.get(at[p] * groups + g) * scale;
                    }
                }
                for (int p = 0; p < 4; p++) {
                    scaled[to + p * STREAM_ROWS] = totals[p];
                }
            } else {
                for (int g = 0; g * groupInts < end; g++) {
                    int last = (g + 1) * groupInts < end ? (g + 1) * groupInts : end;
                    for (int p = 0; p < FEW; p++) {
                        sums[p] = 0;
                    }
                    for (int k = g * groupInts + slice; k < last; k += SLICES) {
                        int weights = b.get(from + k * PANEL);
                        for (int p = 0; p < FEW; p++) {
                            sums[p] = plus4(sums[p], weights, a.get(at[p] * kInts + k));
                        }
                    }
                    float scale = bScales.get(scaleFrom + g * scaleRows);
                    for (int p = 0; p < FEW; p++) {
                        totals[p] += sums[p] * aScales.get(at[p] * groups + g) * scale;
                    }
                }
                for (int p = 0; p < FEW; p++) {
                    scaled[to + p * STREAM_ROWS] = totals[p];
                }
            }
        }
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has pair slice and row lane.
        int pair = Pairs.at(sortedIds, place + slice, active, pairs);
        float value = 0.0f;
        if (groups == 1) {
            int total = 0;
            for (int s = 0; s < SLICES; s++) {
                total += shared[s * FEW * STREAM_ROWS + lid];
            }
            if (expert >= 0) {
                value = total * aScales.get(Pairs.row(pair, pairs, topK, form)) * bScales.get(scaleFrom);
            }
        } else {
            for (int s = 0; s < SLICES; s++) {
                value += scaled[s * FEW * STREAM_ROWS + lid];
            }
        }
        Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, n, value);
    }

    /**
     * As {@link #stream}, with the same parameters, for blocks of {@link #MANY} pairs.
     *
     * <p>Grid: groups of {@link #TILE_GROUP} for {@link #TILE_ROWS} weight rows (x) and a block (y). A lane has four
     * rows, each a panel after the last, and all pairs, whose int8 values come through local memory, {@value #CHUNK}
     * ints of each at a time. Costs K·N bytes of weights a block, from memory once an expert as far as the cache holds
     * them.
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
            int rows,
            int kInts,
            int groupInts,
            int rowsPerScale,
            int lead,
            int form) {
        int[] shared = ctx.allocateIntLocalArray(MANY * CHUNK);
        float[] scaleOf = ctx.allocateFloatLocalArray(MANY);
        float[] totals = ctx.allocateFloatLocalArray(MANY * TILE_ROWS);
        int lane = ctx.localIdx;
        int block = ctx.groupIdy;
        int place = block * MANY;
        int pairs = header.get(0) * topK;
        int active = header.get(1) == MANY && place < padded.get(0) ? 1 : 0;
        int expert = active == 1 ? expertIds.get(block) : -1;
        int end = expert >= 0 ? kInts : 0;
        int panels = (rows + PANEL - 1) / PANEL;
        int panel = ctx.groupIdx * LANE_ROWS;
        int n = panel * PANEL + lane;
        int groups = (kInts + groupInts - 1) / groupInts;
        int scaleRows = (rows + rowsPerScale - 1) / rowsPerScale;
        // The last group may have fewer panels: it takes the last of them again.
        int spare = panels - 1 - panel;
        int[] from = new int[LANE_ROWS];
        int[] scaleAt = new int[LANE_ROWS];
        int[] next = new int[LANE_ROWS];
        int[] weights = new int[LANE_ROWS];
        int[] sums = new int[LANE_ROWS * MANY];
        for (int r = 0; r < LANE_ROWS; r++) {
            from[r] = lead + (expert * panels + panel + (spare < r ? spare : r)) * kInts * PANEL + lane;
            scaleAt[r] = expert * groups * scaleRows + (n + r * PANEL < rows ? n + r * PANEL : rows - 1) / rowsPerScale;
            next[r] = end > 0 ? b.get(from[r]) : 0;
            for (int p = 0; p < MANY; p++) {
                totals[p * TILE_ROWS + r * PANEL + lane] = 0.0f;
            }
        }
        int row = Pairs.rowAt(sortedIds, place + lane / 4, active, pairs, topK, form) * kInts;
        int scaled = Pairs.rowAt(sortedIds, place + lane % MANY, active, pairs, topK, form) * groups;
        for (int first = 0; first < end; first += groupInts) {
            int group = first / groupInts;
            int last = first + groupInts < end ? first + groupInts : end;
            if (lane < MANY) {
                scaleOf[lane] = aScales.get(scaled + group);
            }
            for (int i = 0; i < LANE_ROWS * MANY; i++) {
                sums[i] = 0;
            }
            for (int k = first; k < last; k += CHUNK) {
                int steps = last - k < CHUNK ? last - k : CHUNK;
                for (int i = lane % 4; i < steps; i += 4) {
                    shared[i * MANY + lane / 4] = a.get(row + k + i);
                }
                ctx.localBarrier();
                for (int i = 0; i < steps; i++) {
                    int ahead = (k + i + 1 < end ? k + i + 1 : k + i) * PANEL;
                    for (int r = 0; r < LANE_ROWS; r++) {
                        weights[r] = next[r];
                        next[r] = b.get(from[r] + ahead);
                    }
                    for (int r = 0; r < LANE_ROWS; r++) {
                        for (int p = 0; p < MANY; p++) {
                            sums[r * MANY + p] = plus4(sums[r * MANY + p], weights[r], shared[i * MANY + p]);
                        }
                    }
                }
                ctx.localBarrier();
            }
            for (int r = 0; r < LANE_ROWS; r++) {
                float scale = bScales.get(scaleAt[r] + group * scaleRows);
                for (int p = 0; p < MANY; p++) {
                    int at = p * TILE_ROWS + r * PANEL + lane;
                    totals[at] = totals[at] + sums[r * MANY + p] * scaleOf[p] * scale;
                }
            }
            ctx.localBarrier();
        }
        for (int p = 0; p < MANY; p++) {
            int pair = Pairs.at(sortedIds, place + p, active, pairs);
            for (int r = 0; r < TILE_ROWS; r += PANEL) {
                float value = totals[p * TILE_ROWS + r + lane];
                Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, n + r, value);
            }
        }
    }

    /** A sum and the products of four int8 values each. */
    private static int plus4(int sum, int x, int y) {
        return sum
                + GemmKernels.int8(x) * GemmKernels.int8(y)
                + GemmKernels.int8(x >> 8) * GemmKernels.int8(y >> 8)
                + GemmKernels.int8(x >> 16) * GemmKernels.int8(y >> 16)
                + GemmKernels.int8(x >> 24) * GemmKernels.int8(y >> 24);
    }
}
