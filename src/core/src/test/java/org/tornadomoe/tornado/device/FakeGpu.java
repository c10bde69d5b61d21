package org.tornadomoe.tornado.device;

/** A GPU that TornadoVM takes for one of CUDA's. */
public final class FakeGpu {
    private FakeGpu() {}

    public static Device of(int index) {
        Probe fine = new Probe(_ -> null);
        return new Device(
                "cuda:" + index,
                Device.CUDA,
                "GPU " + index,
                Long.MAX_VALUE,
                1024,
                TornadoHome.current().devices().getFirst().tornado(),
                fine,
                fine,
                fine);
    }
}
