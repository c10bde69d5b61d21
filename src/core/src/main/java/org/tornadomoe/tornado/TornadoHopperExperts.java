package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.HopperGemm;

/**
 * int8 GEMMs on the tensor cores of NVIDIA's Hopper (H100, H200), exact in int32, by kernels in CUDA C ({@code
 * hopper-gemm.cu}) that are library tasks of the graph: {@code wgmma} on tiles that the copy engine fetches for many
 * pairs an expert, streamed weights for few, the activation in either's last step. On TornadoVM's CUDA backend.
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
