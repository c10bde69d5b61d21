package org.tornadomoe.oracle;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.modular.FusedMoeExperts;
import org.tornadomoe.reference.ReferenceExperts;
import org.tornadomoe.tornado.Device;
import org.tornadomoe.tornado.TornadoExperts;
import org.tornadomoe.tornado.TornadoHome;

/**
 * Picks the kernel class that serves a layer: backends in priority order, each backend's classes in order, and the first
 * that supports the layer. Stateless and thread-safe.
 */
public final class Int8MoeOracle {
    private Int8MoeOracle() {}

    /**
     * Picks.
     *
     * @param backend {@code auto}, or a backend's name: then nothing else is tried
     * @param device a device's id, such as {@code ptx:0}, or the backend part of it; null for the best there is
     * @param kernelClass a kernel class's name, to be taken or refused; null for the first that fits
     * @throws IllegalArgumentException if a name is unknown, listing what is known
     * @throws UnsupportedOperationException if nothing supports the layer, with every candidate's reason
     */
    public static Selection select(
            FusedMoeConfig config,
            Int8Scheme scheme,
            String backend,
            @Nullable String device,
            @Nullable String kernelClass) {
        List<String> refusals = new ArrayList<>();
        for (Int8MoeBackend candidate : Int8MoeBackend.candidates(backend)) {
            List<FusedMoeExperts> classes = backendToKernelClasses(candidate, device);
            if (classes.isEmpty()) {
                refusals.add(candidate + ": " + TornadoHome.current().note());
            }
            for (FusedMoeExperts experts : classes) {
                if (kernelClass != null && !experts.name().equals(kernelClass)) {
                    refusals.add(experts.name() + ": not the kernel class asked for");
                    continue;
                }
                String reason = experts.unsupported(config, scheme);
                if (reason == null) {
                    return new Selection(candidate, experts, refusals);
                }
                refusals.add(experts.name() + ": " + reason);
            }
        }
        throw new UnsupportedOperationException(
                "nothing supports this layer (" + scheme + "): " + String.join("; ", refusals));
    }

    /**
     * A backend's kernel classes, best first; none where it has no device.
     *
     * @throws IllegalArgumentException if there is no such device
     */
    public static List<FusedMoeExperts> backendToKernelClasses(Int8MoeBackend backend, @Nullable String device) {
        return switch (backend) {
            case REFERENCE -> List.of(new ReferenceExperts());
            case TRITON ->
                chooseDevice(TornadoHome.current().devices(), device)
                        .map(d -> List.<FusedMoeExperts>of(new TornadoExperts(d, true), new TornadoExperts(d, false)))
                        .findFirst()
                        .orElse(List.of());
        };
    }

    /** The device asked for, or the best: a GPU before a CPU, CUDA's own compiler before the others. */
    private static Stream<Device> chooseDevice(List<Device> devices, @Nullable String id) {
        if (id == null) {
            return devices.stream().min(Comparator.comparingInt(Device::preference)).stream();
        }
        List<Device> named = devices.stream()
                .filter(d -> d.id().equals(id) || d.id().startsWith(id + ":"))
                .toList();
        if (named.isEmpty()) {
            throw new IllegalArgumentException("device: expected one of "
                    + devices.stream().map(Device::id).toList() + ", got '" + id + "'");
        }
        return named.stream().limit(1);
    }
}
