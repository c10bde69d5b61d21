package org.tornadomoe.reference;

import java.util.Arrays;
import java.util.stream.IntStream;

/** Orders the pairs so that each block of rows needs only one expert's weights (vLLM: {@code moe_align_block_size}). */
public final class Alignments {
    private Alignments() {}

    /**
     * {@link #align(int[], int, int)} if some experts are on other ranks, in either of vLLM's two ways.
     *
     * @param expertMap the local number of each expert, -1 if it is on another rank
     * @param keep true keeps the pairs of experts on other ranks, sorts by global number, and gives their blocks the
     *     expert -1; false leaves them out and sorts by local number
     */
    public static Alignment align(int[] topkIds, int[] expertMap, boolean keep, int blockSize) {
        if (keep) {
            Alignment global = align(topkIds, expertMap.length, blockSize);
            int[] expertIds =
                    Arrays.stream(global.expertIds()).map(e -> expertMap[e]).toArray();
            return new Alignment(blockSize, global.sortedTokenIds(), expertIds);
        }
        int local = (int) Arrays.stream(expertMap).filter(e -> e >= 0).count();
        int[] keys = Arrays.stream(topkIds)
                .map(id -> id >= 0 && id < expertMap.length ? expertMap[id] : -1)
                .toArray();
        return align(keys, local, blockSize);
    }

    /**
     * Sorts pairs by expert, ascending within an expert, and pads every expert's run to whole blocks with the number of
     * pairs. Experts without pairs get no block; ids outside [0, E) are left out. (vLLM: {@code moe_align_block_size},
     * without the unused capacity at the end.)
     *
     * @param topkIds the expert of each pair
     */
    public static Alignment align(int[] topkIds, int experts, int blockSize) {
        if (blockSize < 1) {
            throw new IllegalArgumentException("blockSize: expected a positive number, got " + blockSize);
        }
        int[] start = new int[experts + 1];
        for (int e = 0; e < experts; e++) {
            int expert = e;
            int count = (int) Arrays.stream(topkIds).filter(id -> id == expert).count();
            start[e + 1] = start[e] + (count + blockSize - 1) / blockSize * blockSize;
        }
        int[] sorted = new int[start[experts]];
        Arrays.fill(sorted, topkIds.length);
        int[] expertIds = new int[sorted.length / blockSize];
        for (int e = 0; e < experts; e++) {
            Arrays.fill(expertIds, start[e] / blockSize, start[e + 1] / blockSize, e);
            int next = start[e];
            for (int p = 0; p < topkIds.length; p++) {
                if (topkIds[p] == e) {
                    sorted[next++] = p;
                }
            }
        }
        return new Alignment(blockSize, sorted, expertIds);
    }

    /**
     * Aligns for the batched format, in which each expert has S slots: M rounded up to whole blocks. The s-th pair of
     * expert e is in its slot s, at e·S + s; blocks without a pair have expert -1. If a token names an expert twice,
     * the expert may have more pairs than slots; it then gets as many blocks as it needs.
     *
     * @param topkIds the expert of each pair; ids outside [0, E) are left out
     */
    public static Alignment alignBatched(int[] topkIds, int experts, int tokens, int blockSize) {
        IntStream.Builder sorted = IntStream.builder();
        IntStream.Builder expertIds = IntStream.builder();
        for (int e = 0; e < experts; e++) {
            int expert = e;
            int[] pairs = IntStream.range(0, topkIds.length)
                    .filter(p -> topkIds[p] == expert)
                    .toArray();
            int blocks = Math.ceilDiv(Math.max(tokens, pairs.length), blockSize);
            for (int slot = 0; slot < blocks * blockSize; slot++) {
                sorted.add(slot < pairs.length ? pairs[slot] : topkIds.length);
                if (slot % blockSize == 0) {
                    expertIds.add(slot < pairs.length ? e : -1);
                }
            }
        }
        return new Alignment(
                blockSize, sorted.build().toArray(), expertIds.build().toArray());
    }

    /**
     * Gives every pair its own block, in order, without sorting; for so few pairs that hardly two have the same expert.
     * A block's first row has its pair, the others the number of pairs. (vLLM: naive block assignment, if 4·P is at
     * most E and all experts are local.)
     *
     * @param topkIds the expert of each pair; ids outside [0, E) give blocks of expert −1
     */
    public static Alignment naiveAlign(int[] topkIds, int experts, int blockSize) {
        if (blockSize < 1) {
            throw new IllegalArgumentException("blockSize: expected a positive number, got " + blockSize);
        }
        int[] sorted = new int[topkIds.length * blockSize];
        Arrays.fill(sorted, topkIds.length);
        int[] expertIds = new int[topkIds.length];
        for (int p = 0; p < topkIds.length; p++) {
            sorted[p * blockSize] = p;
            expertIds[p] = topkIds[p] >= 0 && topkIds[p] < experts ? topkIds[p] : -1;
        }
        return new Alignment(blockSize, sorted, expertIds);
    }
}
