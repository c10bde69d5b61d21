package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.PanelGemm;

/**
 * int8 GEMMs in plain arithmetic, exact in int32, in a form that OpenCL's compilers make dot-product instructions of:
 * weights are streamed for few pairs an expert, tiled for many. On any device but those of TornadoVM's CUDA and PTX
 * backends.
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
