package org.tornadomoe.tornado;

import java.util.SplittableRandom;
import java.util.stream.IntStream;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Pairs in blocks of experts, in random order, as a layer's alignment sorts them: six blocks over and over, of which
 * one has no expert. There is at least one pair more than they hold, which nobody computes, and anything behind what
 * is in use.
 *
 * @param pairs all pairs
 * @param blockOfPair [pairs]: the number of a pair's block plus one; 0 if it has none
 */
record RandomBlocks(
        int pairs,
        int blocks,
        IntArray header,
        IntArray sortedIds,
        IntArray expertIds,
        IntArray padded,
        int[] blockOfPair) {
    static final int EXPERTS = 3;
    private static final int[] EXPERT_OF_BLOCK = {2, 0, -1, 1, 0, 2};

    /**
     * Makes them.
     *
     * @param block the pairs that a block has room for
     * @param pairsOfBlock of each of six
     * @param times how often there are six
     */
    static RandomBlocks of(SplittableRandom random, int block, int[] pairsOfBlock, int times, int topK) {
        int blocks = EXPERT_OF_BLOCK.length * times;
        int tokens = Math.ceilDiv(IntStream.of(pairsOfBlock).sum() * times + 1, topK);
        int pairs = tokens * topK;
        int[] order = new int[pairs];
        for (int p = 0; p < pairs; p++) {
            int other = random.nextInt(p + 1);
            order[p] = order[other];
            order[other] = p;
        }
        IntArray sortedIds = new IntArray(blocks * block + block);
        IntArray expertIds = new IntArray(blocks + 1);
        int[] blockOfPair = new int[pairs];
        int next = 0;
        for (int b = 0; b < blocks; b++) {
            expertIds.set(b, EXPERT_OF_BLOCK[b % EXPERT_OF_BLOCK.length]);
            for (int i = 0; i < block; i++) {
                boolean here = i < pairsOfBlock[b % EXPERT_OF_BLOCK.length];
                sortedIds.set(b * block + i, here ? order[next] : pairs);
                if (here) {
                    blockOfPair[order[next++]] = b + 1;
                }
            }
        }
        expertIds.set(blocks, 77);
        for (int i = 0; i < block; i++) {
            sortedIds.set(blocks * block + i, -5);
        }
        return new RandomBlocks(
                pairs,
                blocks,
                IntArray.fromElements(tokens, block),
                sortedIds,
                expertIds,
                IntArray.fromElements(blocks * block),
                blockOfPair);
    }

    /** Whether a pair is in a block. */
    boolean has(int pair) {
        return blockOfPair[pair] > 0;
    }

    /** The expert of a pair's block; -1 if that has none. */
    int expertOf(int pair) {
        return EXPERT_OF_BLOCK[(blockOfPair[pair] - 1) % EXPERT_OF_BLOCK.length];
    }

    /** Fills rows with random values and packs them, four an int, with zeros up to {@code rowInts}. */
    static IntArray activations(SplittableRandom random, byte[][] rows, int rowInts) {
        IntArray packed = new IntArray(rows.length * rowInts);
        packed.init(0);
        for (int r = 0; r < rows.length; r++) {
            random.nextBytes(rows[r]);
            for (int c = 0; c < rows[r].length; c++) {
                int at = r * rowInts + c / 4;
                packed.set(at, packed.get(at) | ((rows[r][c] & 0xFF) << (8 * (c % 4))));
            }
        }
        return packed;
    }
}
