package org.tornadomoe.tornado.device;

import java.util.List;
import java.util.Map;

/** A device by the interpreter that says it is another. */
public final class AmdDevice {
    private AmdDevice() {}

    /** A home with one such device, which compiles nothing that isn't Java. */
    public static TornadoHome home(String backend, String name) {
        Probe fine = new Probe(_ -> null);
        Probe lacking = new Probe(_ -> "it is NVIDIA's");
        Device device = new Device(
                backend.toLowerCase(java.util.Locale.ROOT) + ":0",
                backend,
                name,
                Long.MAX_VALUE,
                256,
                TornadoHome.current().devices().getFirst().tornado(),
                fine,
                lacking,
                lacking);
        return new TornadoHome(TornadoHome.Kind.INTERPRETER, List.of(device), Map.of(), null);
    }
}
