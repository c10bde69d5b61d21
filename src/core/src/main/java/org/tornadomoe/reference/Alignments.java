package org.tornadomoe.reference;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * The orders of pairs in which a block of rows needs one expert's weights only (vLLM: {@code moe_align_block_size}).
 */
public final class Alignments {
    private Alignments() {}

    /**
     * {@link #align(int[], int, int)} where some experts live elsewhere, in either of vLLM's ways.
     *
     * @param expertMap the local number of each expert, -1 if it lives elsewhere
     * @param keep whether pairs of experts elsewhere are kept, sorted by their global number, in blocks of expert -1;
     *     else they are left out, and pairs sorted by local number
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
     * Align: pairs sorted by expert, ascending within an expert, every expert's run filled up to whole blocks with the
     * number of pairs. Experts without pairs take no block; ids outside [0, E) are left out. (vLLM:
     * {@code moe_align_block_size}, without the unused capacity at the end.)
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
     * Align for the batched format, where each expert has a slot for every token: S = M in whole blocks. Slot s of
     * expert e, the s-th of its pairs, is at e·S + s; blocks without a pair have expert -1. An expert that a token
     * names twice may have more pairs than slots, and then as many blocks as it needs.
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
     * A block for every pair, in their order, for so few of them that hardly two have the same expert: nothing is
     * sorted. A block's first place has its pair, the others the number of pairs. (vLLM: naive block assignment, where
     * 4·P is at most E and all experts are here.)
     *
     * @param topkIds the expert of each pair; ids outside [0, E) are blocks of nobody, −1
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
