package org.tornadomoe.tornado;

import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.tornado.graph.PortableGemm;

/** As {@link TornadoPortableExperts}, with activations in the batched format: slots of each expert. */
public final class TornadoPortableBatchedExperts extends TornadoExperts {
    public TornadoPortableBatchedExperts() {
        super(new PortableGemm(), FusedMoeActivationFormat.BATCHED_EXPERTS);
    }

    @Override
    public int order() {
        return 240;
    }
}
