package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.WgmmaGemm;

/**
 * int8 x int8 with one scale for each block, on Hopper's tensor cores ({@code
 * wgmma-gemm.cu}). For TornadoVM's CUDA backend.
 */
public final class TornadoWgmmaExperts extends TornadoExperts {
    public TornadoWgmmaExperts() {
        super(WgmmaGemm.ofInt8());
    }

    @Override
    public int order() {
        return 93;
    }
}
