package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.HopperGemm;

/**
 * int8 GEMMs on the tensor cores of NVIDIA's Hopper (H100, H200), exact in int32, with kernels in CUDA C ({@code
 * hopper-gemm.cu}), library tasks of the graph. For many pairs per expert they use {@code wgmma} on tiles that the copy
 * engine fetches, for few pairs they stream the weights; both apply the activation in the epilogue. For TornadoVM's
 * CUDA backend.
 */
public final class TornadoHopperExperts extends TornadoExperts {
    public TornadoHopperExperts() {
        super(new HopperGemm());
    }

    @Override
    public int order() {
        return 90;
    }
}
