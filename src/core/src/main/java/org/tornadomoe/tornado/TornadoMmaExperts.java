package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.MmaGemm;

/**
 * int8 GEMMs on NVIDIA's tensor cores from compute capability 8.0 on, exact in int32 up to where scales come in, by
 * kernels in CUDA C ({@code mma-gemm.cu}) that are library tasks of the graph. On TornadoVM's CUDA backend.
 */
public final class TornadoMmaExperts extends TornadoExperts {
    public TornadoMmaExperts() {
        super(MmaGemm.ofInt8());
    }

    @Override
    public int order() {
        return 95;
    }
}
