package org.tornadomoe.tornado;

import org.tornadomoe.config.FusedMoeActivationFormat;

/** As {@link TornadoPortableExperts}, with activations in the batched format: slots of each expert. */
public final class TornadoPortableBatchedExperts extends TornadoExperts {
    public TornadoPortableBatchedExperts() {
        super(Gemm.PORTABLE, FusedMoeActivationFormat.BATCHED_EXPERTS);
    }

    @Override
    public int order() {
        return 240;
    }
}
