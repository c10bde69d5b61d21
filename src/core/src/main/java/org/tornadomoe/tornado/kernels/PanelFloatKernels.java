package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The expert GEMM of activations in float with int8 weights, for compilers of plain arithmetic:
 * {@code out[p][n] = Σ_g bScales[e][g][n] · Σ_k a[row(p)][k] · (b[expert(p)][n][k] − zeroPoints[e][g][n])} for every
 * pair p of a token and one of its experts, k being the columns of group g. Kernels, blocks and the weights' layout are
 * those of {@link PanelGemmKernels}.
 */
public final class PanelFloatKernels {
    private static final int FEW = PanelGemmKernels.FEW;
    private static final int MANY = PanelGemmKernels.MANY;
    private static final int PANEL = PanelGemmKernels.PANEL;
    private static final int STREAM_ROWS = PanelGemmKernels.STREAM_ROWS;
    private static final int SLICES = PanelGemmKernels.SLICES;
    private static final int TILE_ROWS = PanelGemmKernels.TILE_ROWS;
    private static final int LANE_ROWS = PanelGemmKernels.LANE_ROWS;

    /** Ints of k, four columns each, of which {@link #tile} has activations in local memory at once. */
    private static final int CHUNK = TILE_ROWS / 4;

    private PanelFloatKernels() {}

    /**
     * For few pairs. Otherwise as {@link PanelGemmKernels#stream}, but for:
     *
     * @param a [rows of a, cols] in float
     * @param bScales [E, groups, N]
     * @param zeroPoints with {@link Pairs#ZERO_POINTS} as {@code bScales}, whole numbers; else not looked at
     * @param groupInts ints of a group of columns, all of a row if there is one group
     */
    public static void stream(
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
            int lead,
            int form) {
        float[] shared = ctx.allocateFloatLocalArray(SLICES * FEW * STREAM_ROWS);
        int lid = ctx.localIdx;
        int lane = lid % STREAM_ROWS;
        int slice = lid / STREAM_ROWS;
        int first = ctx.groupIdx * STREAM_ROWS;
        int block = ctx.groupIdy;
        int place = block * FEW;
        int pairs = header.get(0) * topK;
        int active = header.get(1) == FEW && place < padded.get(0) ? 1 : 0;
        int expert = active == 1 ? expertIds.get(block) : -1;
        int kInts = (cols + 3) / 4;
        int end = expert >= 0 ? kInts : 0;
        int panel = expert * ((rows + PANEL - 1) / PANEL) + first / PANEL;
        int from = lead + panel * kInts * PANEL + first % PANEL + lane;
        int n = first + lane;
        int groups = (kInts + groupInts - 1) / groupInts;
        int scaleFrom = expert * groups * rows + (n < rows ? n : rows - 1);
        int[] at = new int[FEW];
        float[] dots = new float[FEW];
        float[] totals = new float[FEW];
        for (int p = 0; p < FEW; p++) {
            at[p] = Pairs.rowAt(sortedIds, place + p, active, pairs, topK, form) * cols;
            totals[p] = 0.0f;
        }
        int second = Pairs.at(sortedIds, place + 1, active, pairs);
        int fifth = Pairs.at(sortedIds, place + 4, active, pairs);
        // What a branch finds it writes itself: of a value that three branches set, TornadoVM 5.2 takes the second's,
        // whichever ran.
        int to = slice * FEW * STREAM_ROWS + lane;
        for (int p = 0; p < FEW; p++) {
            shared[to + p * STREAM_ROWS] = 0.0f;
        }
        if (second >= pairs) {
            for (int g = 0; g * groupInts < end; g++) {
                int last = (g + 1) * groupInts < end ? (g + 1) * groupInts : end;
                int zero = Pairs.zeroPoint(zeroPoints, scaleFrom + g * rows, form);
                dots[0] = 0.0f;
                for (int k = g * groupInts + slice; k < last; k += SLICES) {
                    int weights = b.get(from + k * PANEL);
                    int c = 4 * k;
                    float w0 = GemmKernels.weight(weights, zero, c, cols);
                    float w1 = GemmKernels.weight(weights >> 8, zero, c + 1, cols);
                    float w2 = GemmKernels.weight(weights >> 16, zero, c + 2, cols);
                    float w3 = GemmKernels.weight(weights >> 24, zero, c + 3, cols);
                    dots[0] = GemmKernels.plus4(dots[0], a, at[0], c, cols, w0, w1, w2, w3);
                }
                float scale = bScales.get(scaleFrom + g * rows);
                totals[0] += dots[0] * scale;
            }
            shared[to] = totals[0];
        } else if (fifth >= pairs) {
            for (int g = 0; g * groupInts < end; g++) {
                int last = (g + 1) * groupInts < end ? (g + 1) * groupInts : end;
                int zero = Pairs.zeroPoint(zeroPoints, scaleFrom + g * rows, form);
                for (int p = 0; p < 4; p++) {
                    dots[p] = 0.0f;
                }
                for (int k = g * groupInts + slice; k < last; k += SLICES) {
                    int weights = b.get(from + k * PANEL);
                    int c = 4 * k;
                    float w0 = GemmKernels.weight(weights, zero, c, cols);
                    float w1 = GemmKernels.weight(weights >> 8, zero, c + 1, cols);
                    float w2 = GemmKernels.weight(weights >> 16, zero, c + 2, cols);
                    float w3 = GemmKernels.weight(weights >> 24, zero, c + 3, cols);
                    for (int p = 0; p < 4; p++) {
                        dots[p] = GemmKernels.plus4(dots[p], a, at[p], c, cols, w0, w1, w2, w3);
                    }
                }
                float scale = bScales.get(scaleFrom + g * rows);
                for (int p = 0; p < 4; p++) {
                    totals[p] += dots[p] * scale;
                }
            }
            for (int p = 0; p < 4; p++) {
                shared[to + p * STREAM_ROWS] = totals[p];
            }
        } else {
            for (int g = 0; g * groupInts < end; g++) {
                int last = (g + 1) * groupInts < end ? (g + 1) * groupInts : end;
                int zero = Pairs.zeroPoint(zeroPoints, scaleFrom + g * rows, form);
                for (int p = 0; p < FEW; p++) {
                    dots[p] = 0.0f;
                }
                for (int k = g * groupInts + slice; k < last; k += SLICES) {
                    int weights = b.get(from + k * PANEL);
                    int c = 4 * k;
                    float w0 = GemmKernels.weight(weights, zero, c, cols);
                    float w1 = GemmKernels.weight(weights >> 8, zero, c + 1, cols);
                    float w2 = GemmKernels.weight(weights >> 16, zero, c + 2, cols);
                    float w3 = GemmKernels.weight(weights >> 24, zero, c + 3, cols);
                    for (int p = 0; p < FEW; p++) {
                        dots[p] = GemmKernels.plus4(dots[p], a, at[p], c, cols, w0, w1, w2, w3);
                    }
                }
                float scale = bScales.get(scaleFrom + g * rows);
                for (int p = 0; p < FEW; p++) {
                    totals[p] += dots[p] * scale;
                }
            }
            for (int p = 0; p < FEW; p++) {
                shared[to + p * STREAM_ROWS] = totals[p];
            }
        }
        ctx.localBarrier();
        // As many work-items as outputs of the group: item lid has pair slice and row lane.
        float value = 0.0f;
        for (int s = 0; s < SLICES; s++) {
            value += shared[s * FEW * STREAM_ROWS + lid];
        }
        int pair = Pairs.at(sortedIds, place + slice, active, pairs);
        Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, n, value);
    }

    /**
     * As {@link #stream}, with the same parameters, for blocks of {@link #MANY} pairs, as {@link PanelGemmKernels#tile}
     * does it.
     */
    public static void tile(
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
            int lead,
            int form) {
        float[] shared = ctx.allocateFloatLocalArray(MANY * TILE_ROWS);
        int kInts = (cols + 3) / 4;
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
        // The last group may have fewer panels: it takes the last of them again.
        int spare = panels - 1 - panel;
        int[] from = new int[LANE_ROWS];
        int[] scaleAt = new int[LANE_ROWS];
        int[] next = new int[LANE_ROWS];
        int[] weights = new int[LANE_ROWS];
        int[] zero = new int[LANE_ROWS];
        float[] scale = new float[LANE_ROWS];
        float[] sums = new float[LANE_ROWS * MANY];
        for (int r = 0; r < LANE_ROWS; r++) {
            from[r] = lead + (expert * panels + panel + (spare < r ? spare : r)) * kInts * PANEL + lane;
            scaleAt[r] = expert * groups * rows + (n + r * PANEL < rows ? n + r * PANEL : rows - 1);
            next[r] = end > 0 ? b.get(from[r]) : 0;
            for (int p = 0; p < MANY; p++) {
                sums[r * MANY + p] = 0.0f;
            }
        }
        int row = Pairs.rowAt(sortedIds, place + lane / 4, active, pairs, topK, form) * cols;
        for (int first = 0; first < end; first += groupInts) {
            int last = first + groupInts < end ? first + groupInts : end;
            // A row's only scale multiplies its sum, not its weights.
            for (int r = 0; r < LANE_ROWS; r++) {
                scale[r] = groups == 1 ? 1.0f : bScales.get(scaleAt[r] + first / groupInts * rows);
                zero[r] = Pairs.zeroPoint(zeroPoints, scaleAt[r] + first / groupInts * rows, form);
            }
            for (int k = first; k < last; k += CHUNK) {
                int steps = last - k < CHUNK ? last - k : CHUNK;
                for (int i = lane % 4; i < 4 * steps; i += 4) {
                    shared[i * MANY + lane / 4] = 4 * k + i < cols ? a.get(row + 4 * k + i) : 0.0f;
                }
                ctx.localBarrier();
                for (int i = 0; i < steps; i++) {
                    int ahead = (k + i + 1 < end ? k + i + 1 : k + i) * PANEL;
                    for (int r = 0; r < LANE_ROWS; r++) {
                        weights[r] = next[r];
                        next[r] = b.get(from[r] + ahead);
                    }
                    for (int j = 0; j < 4; j++) {
                        for (int r = 0; r < LANE_ROWS; r++) {
                            float w = (GemmKernels.int8(weights[r] >> (8 * j)) - zero[r]) * scale[r];
                            for (int p = 0; p < MANY; p++) {
                                sums[r * MANY + p] += w * shared[(4 * i + j) * MANY + p];
                            }
                        }
                    }
                }
                ctx.localBarrier();
            }
        }
        for (int r = 0; r < LANE_ROWS; r++) {
            float whole = groups == 1 && expert >= 0 ? bScales.get(scaleAt[r]) : 1.0f;
            for (int p = 0; p < MANY; p++) {
                shared[p * TILE_ROWS + r * PANEL + lane] = sums[r * MANY + p] * whole;
            }
        }
        for (int p = 0; p < MANY; p++) {
            int pair = Pairs.at(sortedIds, place + p, active, pairs);
            for (int r = 0; r < TILE_ROWS; r += PANEL) {
                float value = shared[p * TILE_ROWS + r + lane];
                Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, n + r, value);
            }
        }
    }
}
