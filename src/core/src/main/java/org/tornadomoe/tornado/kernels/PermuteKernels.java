package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Tokens gathered by expert, a row of their own for every pair, in the two forms that vLLM has: densely, one expert's
 * rows behind another's ({@code moe_permute}, {@code moe_unpermute}), and batched, where every expert has the same
 * number of slots. Within an expert, rows are in the order of pairs. Everything starts from {@link AlignKernels#count},
 * with {@code keep} 0, then {@link #countTokens}.
 *
 * <p>Where a pair's row is, is kept by pair ({@code rowOfPair}); a pair that was left out has no row, −1.
 */
public final class PermuteKernels {
    /** Work-items of a group, but for {@link #firstRows} and {@link #batchedBlocks}. */
    public static final int GROUP = 128;

    private static final int EXPERTS_AN_ITEM = AlignKernels.MAX_EXPERTS / AlignKernels.SCAN_GROUP;

    private PermuteKernels() {}

    /**
     * How many pairs each expert has (vLLM: {@code count_expert_num_tokens}), and where among an expert's pairs those
     * of each chunk start.
     *
     * <p>Grid: a work-item an expert, groups of {@link #GROUP}. Costs 8·chunks·E bytes.
     *
     * @param header [0] = M
     * @param counts [chunks, E] of {@link AlignKernels#count}, replaced by the expert's pairs in the chunks before
     * @param expertNumTokens [E], written
     */
    public static void countTokens(
            KernelContext ctx, IntArray header, IntArray counts, IntArray expertNumTokens, int topK, int numExperts) {
        int expert = ctx.globalIdx;
        if (expert < numExperts) {
            int chunks = (header.get(0) * topK + AlignKernels.CHUNK - 1) / AlignKernels.CHUNK;
            int before = 0;
            for (int chunk = 0; chunk < chunks; chunk++) {
                int index = chunk * numExperts + expert;
                int count = counts.get(index);
                counts.set(index, before);
                before += count;
            }
            expertNumTokens.set(expert, before);
        }
    }

    /**
     * Each expert's first row where rows are dense.
     *
     * <p>Grid: one group of {@link AlignKernels#SCAN_GROUP} work-items, {@value #EXPERTS_AN_ITEM} experts each.
     *
     * @param expertNumTokens [E]
     * @param expertFirstTokenOffset [E + 1], written; the last one is the number of rows
     */
    public static void firstRows(
            KernelContext ctx, IntArray expertNumTokens, IntArray expertFirstTokenOffset, int numExperts) {
        int[] ends = ctx.allocateIntLocalArray(AlignKernels.SCAN_GROUP);
        int lane = ctx.localIdx;
        int own = 0;
        for (int j = 0; j < EXPERTS_AN_ITEM; j++) {
            int expert = lane * EXPERTS_AN_ITEM + j;
            if (expert < numExperts) {
                own += expertNumTokens.get(expert);
            }
        }
        ends[lane] = own;
        ctx.localBarrier();
        for (int distance = 1; distance < AlignKernels.SCAN_GROUP; distance <<= 1) {
            int left = lane >= distance ? ends[lane - distance] : 0;
            ctx.localBarrier();
            ends[lane] += left;
            ctx.localBarrier();
        }
        int start = ends[lane] - own;
        for (int j = 0; j < EXPERTS_AN_ITEM; j++) {
            int expert = lane * EXPERTS_AN_ITEM + j;
            if (expert < numExperts) {
                expertFirstTokenOffset.set(expert, start);
                start += expertNumTokens.get(expert);
            }
        }
        if (lane == AlignKernels.SCAN_GROUP - 1) {
            expertFirstTokenOffset.set(numExperts, ends[lane]);
        }
    }

    /**
     * Which row each pair has where rows are dense, and which pair each row.
     *
     * <p>Grid: a work-item a pair, groups of {@link #GROUP}. Costs 28 bytes a pair.
     *
     * @param header [0] = M
     * @param keys [P], of {@link AlignKernels#count}
     * @param ranks [P], likewise
     * @param counts [chunks, E], of {@link #countTokens}
     * @param expertFirstTokenOffset [E + 1]
     * @param permutedIdx [P], written: each row's pair; P for what is past the last row
     * @param rowOfPair [P], written (vLLM's {@code inv_permuted_idx}, where a pair that was left out has a row past the
     *     last)
     */
    public static void permute(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            IntArray ranks,
            IntArray counts,
            IntArray expertFirstTokenOffset,
            IntArray permutedIdx,
            IntArray rowOfPair,
            int topK,
            int numExperts) {
        int pair = ctx.globalIdx;
        int pairs = header.get(0) * topK;
        if (pair < pairs) {
            int expert = keys.get(pair);
            int row = -1;
            if (expert >= 0) {
                int before = counts.get(pair / AlignKernels.CHUNK * numExperts + expert);
                row = expertFirstTokenOffset.get(expert) + before + ranks.get(pair);
                permutedIdx.set(row, pair);
            }
            rowOfPair.set(pair, row);
            if (pair >= expertFirstTokenOffset.get(numExperts)) {
                permutedIdx.set(pair, pairs);
            }
        }
    }

    /**
     * Which row each pair has where every expert has {@code maxTokens} slots, slot s of expert e being row {@code
     * e·maxTokens + s}. A pair for which there is no slot left has row −1.
     *
     * <p>Grid: a work-item a pair or a row, whichever are more, groups of {@link #GROUP}. Costs 20 bytes a pair and 8 a
     * row.
     *
     * @param header [0] = M
     * @param keys [P], of {@link AlignKernels#count}
     * @param ranks [P], likewise
     * @param counts [chunks, E], of {@link #countTokens}
     * @param expertNumTokens [E]
     * @param pairOfRow [E·maxTokens], written; −1 where a slot is empty
     * @param rowOfPair [P], written
     */
    public static void slots(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            IntArray ranks,
            IntArray counts,
            IntArray expertNumTokens,
            IntArray pairOfRow,
            IntArray rowOfPair,
            int topK,
            int numExperts,
            int maxTokens) {
        int index = ctx.globalIdx;
        if (index < header.get(0) * topK) {
            int expert = keys.get(index);
            int row = -1;
            if (expert >= 0) {
                int slot = counts.get(index / AlignKernels.CHUNK * numExperts + expert) + ranks.get(index);
                if (slot < maxTokens) {
                    row = expert * maxTokens + slot;
                    pairOfRow.set(row, index);
                }
            }
            rowOfPair.set(index, row);
        }
        if (index < numExperts * maxTokens) {
            int expert = index / maxTokens;
            if (index - expert * maxTokens >= expertNumTokens.get(expert)) {
                pairOfRow.set(index, -1);
            }
        }
    }

    /**
     * Alignment of the slots in use (vLLM: {@code batched_moe_align_block_size}), first part: which expert each block
     * has.
     *
     * <p>Grid: one group of {@link AlignKernels#SCAN_GROUP} work-items, {@value #EXPERTS_AN_ITEM} experts each.
     *
     * @param expertNumTokens [E]; an expert has {@code maxTokens} slots, so what is more counts as that
     * @param firstPlaces [E], written: where in {@code sortedIds} an expert's run starts
     * @param expertIds [blocks], written up to the last block in use
     * @param padded [0] written: places in use, a multiple of {@code blockSize}
     */
    public static void batchedBlocks(
            KernelContext ctx,
            IntArray expertNumTokens,
            IntArray firstPlaces,
            IntArray expertIds,
            IntArray padded,
            int numExperts,
            int maxTokens,
            int blockSize) {
        int[] ends = ctx.allocateIntLocalArray(AlignKernels.SCAN_GROUP);
        int lane = ctx.localIdx;
        int own = 0;
        for (int j = 0; j < EXPERTS_AN_ITEM; j++) {
            int expert = lane * EXPERTS_AN_ITEM + j;
            if (expert < numExperts) {
                int count = expertNumTokens.get(expert);
                int used = count < maxTokens ? count : maxTokens;
                own += (used + blockSize - 1) / blockSize;
            }
        }
        ends[lane] = own;
        ctx.localBarrier();
        for (int distance = 1; distance < AlignKernels.SCAN_GROUP; distance <<= 1) {
            int left = lane >= distance ? ends[lane - distance] : 0;
            ctx.localBarrier();
            ends[lane] += left;
            ctx.localBarrier();
        }
        int block = ends[lane] - own;
        for (int j = 0; j < EXPERTS_AN_ITEM; j++) {
            int expert = lane * EXPERTS_AN_ITEM + j;
            if (expert < numExperts) {
                firstPlaces.set(expert, block * blockSize);
                int count = expertNumTokens.get(expert);
                int used = count < maxTokens ? count : maxTokens;
                int end = block + (used + blockSize - 1) / blockSize;
                for (int b = block; b < end; b++) {
                    expertIds.set(b, expert);
                }
                block = end;
            }
        }
        if (lane == AlignKernels.SCAN_GROUP - 1) {
            padded.set(0, ends[lane] * blockSize);
        }
    }

    /**
     * Alignment of the slots in use, second part: the row that each place has.
     *
     * <p>Grid: a work-item a place, groups of {@link #GROUP}. Costs 16 bytes a place.
     *
     * @param expertNumTokens [E]
     * @param firstPlaces [E], of {@link #batchedBlocks}
     * @param expertIds [blocks], likewise
     * @param padded [0], likewise
     * @param sortedIds written for every place in use; what pads an expert's run gets E·maxTokens, which is no row
     */
    public static void batchedPlaces(
            KernelContext ctx,
            IntArray expertNumTokens,
            IntArray firstPlaces,
            IntArray expertIds,
            IntArray padded,
            IntArray sortedIds,
            int numExperts,
            int maxTokens,
            int blockSize) {
        int place = ctx.globalIdx;
        if (place < padded.get(0)) {
            int expert = expertIds.get(place / blockSize);
            int slot = place - firstPlaces.get(expert);
            int row = numExperts * maxTokens;
            if (slot < maxTokens && slot < expertNumTokens.get(expert)) {
                row = expert * maxTokens + slot;
            }
            sortedIds.set(place, row);
        }
    }

    /**
     * Copies each token's int8 values and scales to the rows of its pairs; with {@code pairsPerRow} 1 each pair has its
     * own.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a pair. Costs 8·rowInts bytes a pair.
     *
     * @param header [0] = M
     * @param rowOfPair [P]
     * @param tokens [M, rowInts], or [P, rowInts]
     * @param tokenScales [M, groups] or [P, groups]
     * @param rows [rows, rowInts], written where a pair has its row
     * @param rowScales [rows, groups], likewise
     * @param groups scales of a row
     */
    public static void copyInt8(
            KernelContext ctx,
            IntArray header,
            IntArray rowOfPair,
            IntArray tokens,
            FloatArray tokenScales,
            IntArray rows,
            FloatArray rowScales,
            int topK,
            int pairsPerRow,
            int rowInts,
            int groups) {
        int pair = ctx.groupIdx;
        int row = pair < header.get(0) * topK ? rowOfPair.get(pair) : -1;
        if (row >= 0) {
            int token = pair / pairsPerRow;
            for (int i = ctx.localIdx; i < rowInts; i += GROUP) {
                rows.set(row * rowInts + i, tokens.get(token * rowInts + i));
            }
            for (int i = ctx.localIdx; i < groups; i += GROUP) {
                rowScales.set(row * groups + i, tokenScales.get(token * groups + i));
            }
        }
    }

    /**
     * Copies each token's values to the rows of its pairs, times the pair's router weight if {@code weighted} is 1.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a pair. Costs 8·cols bytes a pair.
     *
     * @param header [0] = M
     * @param rowOfPair [P]
     * @param topkWeights [P]; with {@code weighted} 0 not looked at
     * @param tokens [M, cols]
     * @param rows [rows, cols], written where a pair has its row
     */
    public static void copyFloats(
            KernelContext ctx,
            IntArray header,
            IntArray rowOfPair,
            FloatArray topkWeights,
            FloatArray tokens,
            FloatArray rows,
            int topK,
            int cols,
            int weighted) {
        int pair = ctx.groupIdx;
        int row = pair < header.get(0) * topK ? rowOfPair.get(pair) : -1;
        if (row >= 0) {
            int token = pair / topK;
            for (int c = ctx.localIdx; c < cols; c += GROUP) {
                float value = tokens.get(token * cols + c);
                rows.set(row * cols + c, weighted == 1 ? value * topkWeights.get(pair) : value);
            }
        }
    }

    /**
     * Back to tokens: {@code output[m][h] = Σ_k w[m][k] · rows[rowOfPair[m·K + k]][h]}, in the order of k; a pair
     * without a row adds nothing.
     *
     * <p>Grid: a work-item an element of the output, groups of {@link #GROUP}. Costs 4·(K + 1) bytes an element.
     *
     * @param header [0] = M
     * @param rowOfPair [P]
     * @param topkWeights [P]; with {@code weighted} 0 not looked at
     * @param rows [rows, H]
     * @param output [M, H], written
     */
    public static void unpermute(
            KernelContext ctx,
            IntArray header,
            IntArray rowOfPair,
            FloatArray topkWeights,
            FloatArray rows,
            FloatArray output,
            int topK,
            int hiddenDim,
            int weighted) {
        int index = ctx.globalIdx;
        int token = index / hiddenDim;
        if (token < header.get(0)) {
            int column = index - token * hiddenDim;
            float sum = 0.0f;
            for (int k = 0; k < topK; k++) {
                int pair = token * topK + k;
                int row = rowOfPair.get(pair);
                if (row >= 0) {
                    float value = rows.get(row * hiddenDim + column);
                    sum += weighted == 1 ? value * topkWeights.get(pair) : value;
                }
            }
            output.set(index, sum);
        }
    }
}
