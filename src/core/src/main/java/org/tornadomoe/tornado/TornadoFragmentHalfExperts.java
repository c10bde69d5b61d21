package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.FragmentGemm;

/**
 * GEMMs of float activations on NVIDIA's 16-bit tensor cores, with kernels in Java: an activation is the sum of two
 * halves. For TornadoVM's CUDA and PTX backends.
 */
public final class TornadoFragmentHalfExperts extends TornadoExperts {
    public TornadoFragmentHalfExperts() {
        super(FragmentGemm.ofFloats());
    }

    @Override
    public int order() {
        return 151;
    }
}
