package org.tornadomoe.tornado;

/** GEMMs in plain arithmetic, on any device, and with float activations too. */
public final class TornadoPortableExperts extends TornadoExperts {
    public TornadoPortableExperts() {
        super(false);
    }

    @Override
    public int order() {
        return 300;
    }
}
