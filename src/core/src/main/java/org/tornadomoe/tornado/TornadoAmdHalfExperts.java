package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.AmdGemm;

/**
 * int8 weights times activations in float on AMD's matrix cores, as products of halves with sums in float ({@code
 * amd-gemm.cl}); see {@link AmdGemm} for what that rounds. On TornadoVM's OpenCL backend.
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
