package org.tornadomoe.tornado.device;

import java.util.List;
import java.util.Locale;
import java.util.Map;

/** A device that says it is another. */
public final class AmdDevice {
    private AmdDevice() {}

    /** A home with one such device, which compiles nothing that isn't Java. */
    public static TornadoHome home(String backend, String name) {
        Device device = called(backend, name, TornadoHome.current().devices().getFirst());
        return new TornadoHome(TornadoHome.Kind.INTERPRETER, List.of(device), Map.of(), null);
    }

    /** A device under another name. */
    public static Device called(String backend, String name, Device device) {
        Probe lacking = new Probe(_ -> "it is NVIDIA's");
        return new Device(
                backend.toLowerCase(Locale.ROOT) + ":0",
                backend,
                name,
                Long.MAX_VALUE,
                256,
                device.tornado(),
                new Probe(_ -> null),
                lacking,
                lacking);
    }
}
