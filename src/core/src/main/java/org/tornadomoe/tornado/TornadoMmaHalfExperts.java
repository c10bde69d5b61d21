package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.MmaGemm;

/**
 * int8 weights times activations in float on NVIDIA's tensor cores from compute capability 8.0 on, as products of
 * halves ({@code mma-gemm.cu}); see {@link MmaGemm} for what that rounds. On TornadoVM's CUDA backend.
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
