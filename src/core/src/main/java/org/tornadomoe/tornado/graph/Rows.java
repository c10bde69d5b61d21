package org.tornadomoe.tornado.graph;

import java.util.function.IntUnaryOperator;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The rows that reach the experts: pairs of a token and an expert, or slots of the batched format.
 *
 * @param header [0] · {@code perHeader} of them in a call, [1] of them in a block
 * @param perHeader how many an element of the header stands for
 * @param count the same on the host, for M tokens
 * @param keys [R]: −1 for a row that isn't there
 */
record Rows(IntArray header, int perHeader, IntUnaryOperator count, IntArray keys) {
    int of(int tokens) {
        return count.applyAsInt(tokens);
    }
}
