package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.PortableGemm;

/** GEMMs in scalar arithmetic, on any device, with float activations too. */
public final class TornadoPortableExperts extends TornadoExperts {
    public TornadoPortableExperts() {
        super(new PortableGemm());
    }

    @Override
    public int order() {
        return 300;
    }
}
