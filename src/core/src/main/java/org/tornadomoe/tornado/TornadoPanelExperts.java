package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.PanelGemm;

/**
 * int8 GEMMs in scalar arithmetic, exact in int32, in a form that OpenCL's compilers turn into dot-product
 * instructions. They stream weights for few pairs per expert and tile them for many. For any device except those of
 * TornadoVM's CUDA and PTX backends.
 */
public final class TornadoPanelExperts extends TornadoExperts {
    public TornadoPanelExperts() {
        super(new PanelGemm());
    }

    @Override
    public int order() {
        return 230;
    }
}
