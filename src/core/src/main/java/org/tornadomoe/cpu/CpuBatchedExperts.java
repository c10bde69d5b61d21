package org.tornadomoe.cpu;

import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.kernel.TopKWeightAndReduce;

/**
 * For activations in the batched format: each expert has as many slots as a call may bring tokens, so that all find
 * one. Within one process a slot is the token's own row: nothing is copied.
 */
public final class CpuBatchedExperts extends CpuExperts {
    @Override
    public int order() {
        return 20;
    }

    @Override
    public FusedMoeActivationFormat activationFormat() {
        return FusedMoeActivationFormat.BATCHED_EXPERTS;
    }

    @Override
    public TopKWeightAndReduce weightAndReduce() {
        return TopKWeightAndReduce.DELEGATE;
    }
}
