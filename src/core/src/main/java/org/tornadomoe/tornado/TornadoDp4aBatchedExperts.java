package org.tornadomoe.tornado;

import org.tornadomoe.config.FusedMoeActivationFormat;

/** As {@link TornadoDp4aExperts}, with activations in the batched format: slots of each expert. */
public final class TornadoDp4aBatchedExperts extends TornadoExperts {
    public TornadoDp4aBatchedExperts() {
        super(Gemm.DP4A, FusedMoeActivationFormat.BATCHED_EXPERTS);
    }

    @Override
    public int order() {
        return 220;
    }
}
