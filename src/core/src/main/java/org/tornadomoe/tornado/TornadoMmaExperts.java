package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.MmaGemm;

/**
 * int8 GEMMs on NVIDIA's tensor cores from compute capability 8.0 on, exact in int32 until scales are applied, with
 * kernels in CUDA C ({@code mma-gemm.cu}), library tasks of the graph. For TornadoVM's CUDA backend.
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
