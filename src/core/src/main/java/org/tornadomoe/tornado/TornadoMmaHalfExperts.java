package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.MmaGemm;

/**
 * int8 weights times float activations on NVIDIA's tensor cores from compute capability 8.0 on, as half-precision
 * products ({@code mma-gemm.cu}); {@link MmaGemm} describes the rounding. For TornadoVM's CUDA backend.
 */
public final class TornadoMmaHalfExperts extends TornadoExperts {
    public TornadoMmaHalfExperts() {
        super(MmaGemm.ofHalves());
    }

    @Override
    public int order() {
        return 96;
    }
}
