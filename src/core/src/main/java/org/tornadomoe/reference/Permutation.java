package org.tornadomoe.reference;

/**
 * The pairs in the order of their experts, without padding; what goes to experts elsewhere, or to nobody, is left out.
 *
 * @param expertFirstTokenOffset [E_local + 1]: each expert's first row, then the number of rows
 * @param permutedIdx [P]: the pair of each row; P past the last row
 * @param rowOfPair [P]: the row of each pair, -1 if it was left out
 */
public record Permutation(int[] expertFirstTokenOffset, int[] permutedIdx, int[] rowOfPair) {
    /** Rows in use. */
    public int rows() {
        return expertFirstTokenOffset[expertFirstTokenOffset.length - 1];
    }
}
