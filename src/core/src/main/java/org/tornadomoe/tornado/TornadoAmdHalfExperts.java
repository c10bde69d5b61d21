package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.AmdGemm;

/**
 * int8 weights times float activations on AMD's matrix cores, as half-precision products with float sums ({@code
 * amd-gemm.cl}); {@link AmdGemm} describes the rounding. For TornadoVM's OpenCL backend.
 */
public final class TornadoAmdHalfExperts extends TornadoExperts {
    public TornadoAmdHalfExperts() {
        super(AmdGemm.ofHalves());
    }

    @Override
    public int order() {
        return 226;
    }
}
