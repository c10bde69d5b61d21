package org.tornadomoe.reference;

/**
 * The pairs sorted by expert, each expert's run padded to whole blocks, so that a block of rows needs only one expert's
 * weights.
 *
 * @param blockSize rows per block
 * @param sortedTokenIds pair indices; padding holds the number of pairs
 * @param expertIds the expert of each block
 */
public record Alignment(int blockSize, int[] sortedTokenIds, int[] expertIds) {
    /** The padded length, a multiple of the block size. */
    public int numTokensPostPadded() {
        return sortedTokenIds.length;
    }
}
