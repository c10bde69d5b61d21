package uk.ac.manchester.tornado.api;

import java.util.List;
import java.util.Locale;
import java.util.function.Predicate;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.enums.TornadoDeviceType;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;

/** All backends and devices. */
public class TornadoDeviceMap {
    private final TornadoRuntime runtime = TornadoRuntimeProvider.getTornadoRuntime();

    public TornadoDeviceMap() {}

    public int getNumBackends() {
        return runtime.getNumBackends();
    }

    public List<TornadoBackend> getAllBackends() {
        return IntStream.range(0, getNumBackends())
                .mapToObj(runtime::getBackend)
                .toList();
    }

    public List<TornadoBackend> getBackendsWithPredicate(Predicate<? super TornadoBackend> predicate) {
        return getAllBackends().stream().filter(predicate).toList();
    }

    public List<TornadoBackend> getBackendsWithDevicePredicate(Predicate<? super TornadoDevice> predicate) {
        return getBackendsWithPredicate(
                backend -> backend.getAllDevices().stream().anyMatch(predicate));
    }

    /** The devices whose name contains this one, ignoring case. */
    public Stream<TornadoDevice> getDevicesByName(String name) {
        String wanted = name.toLowerCase(Locale.ROOT);
        return devices().filter(d -> d.getDeviceName().toLowerCase(Locale.ROOT).contains(wanted));
    }

    public Stream<TornadoDevice> getDevicesByType(TornadoDeviceType type) {
        return devices().filter(d -> d.getDeviceType() == type);
    }

    private Stream<TornadoDevice> devices() {
        return getAllBackends().stream().flatMap(backend -> backend.getAllDevices().stream());
    }
}
