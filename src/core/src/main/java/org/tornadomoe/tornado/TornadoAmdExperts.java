package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.AmdGemm;

/**
 * int8 GEMMs on AMD's matrix cores, exact in int32 until scales are applied, with a kernel in OpenCL C ({@code
 * amd-gemm.cl}), a prebuilt task of the graph. For TornadoVM's OpenCL backend.
 */
public final class TornadoAmdExperts extends TornadoExperts {
    public TornadoAmdExperts() {
        super(AmdGemm.ofInt8());
    }

    @Override
    public int order() {
        return 225;
    }
}
