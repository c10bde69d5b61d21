package org.tornadomoe.reference;

import org.tornadomoe.kernel.ChosenExperts;

/**
 * The experts of each token. A pair p is token p / K, slot p % K; a token's slots are ordered by descending score, the
 * shared experts last.
 *
 * @param tokens M
 * @param topK K, the chosen and the shared experts of a token
 * @param ids [M, K] expert ids
 * @param weights [M, K] the factor of each expert's output
 */
public record Routing(int tokens, int topK, int[] ids, double[] weights) {
    /**
     * Checks the lengths.
     *
     * @throws IllegalArgumentException if an array is not M * K long
     */
    public Routing {
        if (ids.length != (long) tokens * topK || weights.length != ids.length) {
            throw new IllegalArgumentException("routing: expected " + tokens + " * " + topK + " ids and weights, got "
                    + ids.length + " and " + weights.length);
        }
    }

    /** The same in the kernels' form, with weights in float; shares the ids. */
    public ChosenExperts chosen() {
        return new ChosenExperts(topK, ids, Numerics.narrow(weights));
    }
}
