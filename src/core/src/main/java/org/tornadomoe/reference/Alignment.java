package org.tornadomoe.reference;

/**
 * The pairs in the order of their experts, each expert's run padded to whole blocks, so that a block of rows needs one
 * expert's weights only.
 *
 * @param blockSize rows of a block
 * @param sortedTokenIds pair indices; padding holds the number of pairs
 * @param expertIds the expert of each block
 */
public record Alignment(int blockSize, int[] sortedTokenIds, int[] expertIds) {
    /** Length of the padded order, a multiple of the block size. */
    public int numTokensPostPadded() {
        return sortedTokenIds.length;
    }
}
