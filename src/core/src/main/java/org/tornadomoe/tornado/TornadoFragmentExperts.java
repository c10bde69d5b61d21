package org.tornadomoe.tornado;

import org.tornadomoe.tornado.graph.FragmentGemm;

/**
 * int8 GEMMs on NVIDIA's tensor cores, exact in int32, with kernels in Java. For TornadoVM's CUDA and PTX backends.
 */
public final class TornadoFragmentExperts extends TornadoExperts {
    public TornadoFragmentExperts() {
        super(FragmentGemm.ofInt8());
    }

    @Override
    public int order() {
        return 150;
    }
}
