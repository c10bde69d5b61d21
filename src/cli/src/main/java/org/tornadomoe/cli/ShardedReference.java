package org.tornadomoe.cli;

import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.reference.Reference;

/** The definition of a sharded layer. */
final class ShardedReference {
    private ShardedReference() {}

    /**
     * The layer's output. With tensor parallelism it is the sum of the ranks' outputs, each with the activation scales
     * of its own columns.
     *
     * @param whole all of the layer's weights
     * @param hidden [M, H]
     */
    static double[] forward(Sharding sharding, Int8Experts whole, float[] hidden, int tokens) {
        if (sharding.ranks().size() == 1 || sharding.isExpertParallel()) {
            return Reference.forward(whole, hidden, tokens).output();
        }
        double[] sum = new double[tokens * sharding.config().hiddenDim()];
        for (int rank = 0; rank < sharding.ranks().size(); rank++) {
            try (Int8Experts weights = sharding.weights(rank, whole)) {
                double[] term = Reference.forward(weights, hidden, tokens).output();
                for (int i = 0; i < sum.length; i++) {
                    sum[i] += term[i];
                }
            }
        }
        return sum;
    }
}
