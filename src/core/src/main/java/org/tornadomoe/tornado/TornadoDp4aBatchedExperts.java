package org.tornadomoe.tornado;

import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.tornado.graph.Dp4aGemm;

/** As {@link TornadoDp4aExperts}, with activations in the batched format: slots of each expert. */
public final class TornadoDp4aBatchedExperts extends TornadoExperts {
    public TornadoDp4aBatchedExperts() {
        super(new Dp4aGemm(), FusedMoeActivationFormat.BATCHED_EXPERTS);
    }

    @Override
    public int order() {
        return 220;
    }
}
