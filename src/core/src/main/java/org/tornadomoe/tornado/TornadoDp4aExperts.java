package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.Dp4aGemm;

/** int8 GEMMs with {@code dp4a}, which computes four products and their sum in one instruction, exact in int32. */
public final class TornadoDp4aExperts extends TornadoExperts {
    public TornadoDp4aExperts() {
        super(new Dp4aGemm());
    }

    @Override
    public int order() {
        return 200;
    }
}
