package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.FragmentGemm;

/**
 * GEMMs of float activations on NVIDIA's int8 tensor cores, with kernels in Java: an activation is three digits of
 * int8. For TornadoVM's CUDA and PTX backends.
 */
public final class TornadoFragmentDigitExperts extends TornadoExperts {
    public TornadoFragmentDigitExperts() {
        super(FragmentGemm.ofDigits());
    }

    @Override
    public int order() {
        return 151;
    }
}
