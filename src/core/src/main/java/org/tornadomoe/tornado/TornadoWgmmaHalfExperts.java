package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.WgmmaGemm;

/**
 * int8 weights times activations in float on Hopper's tensor cores, as products of halves ({@code wgmma-gemm.cu});
 * see {@link WgmmaGemm} for what that rounds. On TornadoVM's CUDA backend.
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
