package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.WgmmaGemm;

/**
 * int8 weights times float activations on Hopper's tensor cores, as half-precision products ({@code wgmma-gemm.cu});
 * {@link WgmmaGemm} describes the rounding. For TornadoVM's CUDA backend.
 */
public final class TornadoWgmmaHalfExperts extends TornadoExperts {
    public TornadoWgmmaHalfExperts() {
        super(WgmmaGemm.ofHalves());
    }

    @Override
    public int order() {
        return 94;
    }
}
