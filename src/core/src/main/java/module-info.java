import org.tornadomoe.kernel.FusedMoeExperts;
import uk.ac.manchester.tornado.runtime.library.spi.TornadoLibraryProvider;

/**
 * An int8 mixture-of-experts layer; {@link org.tornadomoe.MoeLayer} is the front door. What is required statically may
 * be absent: TornadoVM (the interpreter has its module's name), the Vector API, the flight recorder, Micrometer.
 */
@SuppressWarnings("requires-automatic")
module org.tornadomoe {
    requires transitive org.jspecify;
    requires tools.jackson.core;
    requires tools.jackson.jr.ob;
    requires static jdk.incubator.vector;
    requires static jdk.jfr;
    requires static micrometer.core;
    requires static tornado.api;

    exports org.tornadomoe;
    exports org.tornadomoe.checkpoint;
    exports org.tornadomoe.config;
    exports org.tornadomoe.cpu;
    exports org.tornadomoe.kernel;
    exports org.tornadomoe.observe;
    exports org.tornadomoe.oracle;
    exports org.tornadomoe.parallel;
    exports org.tornadomoe.quant;
    exports org.tornadomoe.reference;
    exports org.tornadomoe.tornado;
    exports org.tornadomoe.tornado.device;
    exports org.tornadomoe.tornado.kernels;
    exports org.tornadomoe.tuning;

    uses FusedMoeExperts;

    provides FusedMoeExperts with
            org.tornadomoe.tornado.TornadoHopperExperts,
            org.tornadomoe.tornado.TornadoTensorCoreExperts,
            org.tornadomoe.tornado.TornadoDp4aExperts,
            org.tornadomoe.tornado.TornadoDp4aBatchedExperts,
            org.tornadomoe.tornado.TornadoPanelExperts,
            org.tornadomoe.tornado.TornadoPortableBatchedExperts,
            org.tornadomoe.tornado.TornadoPortableExperts,
            org.tornadomoe.cpu.CpuExperts,
            org.tornadomoe.cpu.CpuBatchedExperts,
            org.tornadomoe.reference.ReferenceExperts;
    provides TornadoLibraryProvider with
            org.tornadomoe.tornado.cuda.CudaLibrary;
}
