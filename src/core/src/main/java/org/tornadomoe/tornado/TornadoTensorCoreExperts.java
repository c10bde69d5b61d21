package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.TensorCoreGemm;

/**
 * int8 GEMMs on NVIDIA's tensor cores, exact in int32, with kernels in the device's own language ({@code
 * expert-gemm.cu}): one streams weights for few pairs per expert, the other tiles the GEMM for many. For TornadoVM's
 * CUDA and PTX backends.
 */
public final class TornadoTensorCoreExperts extends TornadoExperts {
    public TornadoTensorCoreExperts() {
        super(new TensorCoreGemm());
    }

    @Override
    public int order() {
        return 100;
    }
}
