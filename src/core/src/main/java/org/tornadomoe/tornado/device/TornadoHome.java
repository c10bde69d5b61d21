package org.tornadomoe.tornado.device;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import uk.ac.manchester.tornado.api.TornadoBackend;
import uk.ac.manchester.tornado.api.TornadoRuntime;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;

/**
 * The implementation of TornadoVM's API in this JVM: its SDK, the interpreter, or none that works. Determined once,
 * because it can't change in a JVM.
 *
 * @param kind its kind
 * @param devices the devices that can run a layer, in the runtime's order; empty if nothing works
 * @param broken the devices, by id, or whole backends that failed when examined, each with the cause
 * @param note a note for the user: why an existing SDK isn't used, or what is missing; null for none
 */
public record TornadoHome(
        Kind kind,
        List<Device> devices,
        Map<String, String> broken,
        @Nullable String note) {
    /** The kinds of implementation. */
    public enum Kind {
        /** TornadoVM itself: kernels are compiled for the device. */
        SDK,
        /** The interpreter: every work-item runs on the JVM. */
        INTERPRETER,
        /** Devices of another machine, from a {@link DeviceProfile}. */
        PROFILE,
        /** None, or one that failed to start. */
        NONE
    }

    private static final ScopedValue<TornadoHome> ASSUMED = ScopedValue.newInstance();

    /** This JVM's home, or within {@link #assuming} the assumed one. */
    public static TornadoHome current() {
        return ASSUMED.isBound() ? ASSUMED.get() : Holder.HOME;
    }

    /** Runs a question as if this were the JVM's home. */
    public <T, X extends Throwable> T assuming(ScopedValue.CallableOp<? extends T, X> question) throws X {
        return ScopedValue.where(ASSUMED, this).call(question);
    }

    /** TornadoVM's version; null without its SDK. */
    public @Nullable String version() {
        return kind == Kind.SDK ? Quirks.HERE.version() : null;
    }

    /**
     * What this machine lacks for more devices: an SDK, or drivers of backends; null if nothing is known to be missing.
     */
    public @Nullable String missing() {
        List<String> missing = new ArrayList<>();
        if (note != null) {
            missing.add(note.replace(ON_INTERPRETER, ""));
        }
        if (absentBackends() != null) {
            missing.add(absentBackends());
        }
        return missing.isEmpty() ? null : String.join("; ", missing);
    }

    /** The SDK's backends that the launcher left out, each with what it needs; null if there are none. */
    public @Nullable String absentBackends() {
        return System.getProperty("tornadomoe.absent");
    }

    /**
     * A note that TornadoVM is newer than all versions on which layers have run; null if it isn't. Each layer is
     * checked when it is loaded.
     */
    public @Nullable String untriedVersion() {
        return kind == Kind.SDK && Quirks.HERE.isUntried()
                ? "TornadoVM " + Quirks.HERE.version() + " is newer than any that was tried (" + Quirks.TRIED
                        + "): each layer's self-check decides"
                : null;
    }

    /**
     * The device of that id, {@code ptx:0}, or the first whose id has that prefix, {@code ptx}; null if there is none.
     *
     * @param id null for the best device: a GPU before a CPU, CUDA's own compiler before the others
     */
    @Nullable
    public Device find(@Nullable String id) {
        return devices.stream()
                .filter(d -> id == null || d.id().equals(id) || d.id().startsWith(id + ":"))
                .min(Comparator.comparingInt(d -> id == null ? d.preference() : 0))
                .orElse(null);
    }

    private static final String ON_INTERPRETER = ": running on the interpreter";

    private static final class Holder {
        static final TornadoHome HOME = look(System.getenv("TORNADOVM_HOME"));
    }

    /**
     * Examines TornadoVM. A missing SDK or driver makes TornadoVM throw an {@link Error}, and using the class again a
     * different one. The code can't name the error's type: with a TornadoVM type in a catch clause, this class couldn't
     * be loaded without the API.
     */
    static TornadoHome look(@Nullable String sdkDirectory) {
        // On the module path: module-info can't require TornadoVM's second module, because the interpreter has only
        // one.
        ModuleLayer.boot()
                .findModule("tornado.runtime")
                .ifPresent(runtime -> TornadoHome.class.getModule().addReads(runtime));
        // TornadoVM finds its drivers through the thread's class loader; Spark's, for example, doesn't see the modules.
        Thread thread = Thread.currentThread();
        ClassLoader threads = thread.getContextClassLoader();
        thread.setContextClassLoader(ClassLoader.getSystemClassLoader());
        try (SignalHandlers.Step _ = SignalHandlers.step()) {
            return of(TornadoRuntimeProvider.getTornadoRuntime(), sdkDirectory);
        } catch (RuntimeException | Error failure) {
            return none(explain(failure));
        } finally {
            thread.setContextClassLoader(threads);
        }
    }

    /** Leaves out a backend or device that fails when examined, and uses the others. */
    static TornadoHome of(TornadoRuntime runtime, @Nullable String sdkDirectory) {
        List<Device> devices = new ArrayList<>();
        Map<String, Throwable> failures = new LinkedHashMap<>();
        String looking = "TornadoVM";
        try {
            for (int b = 0; b < runtime.getNumBackends(); b++) {
                String type = runtime.getBackendType(b).name();
                looking = type.toLowerCase(Locale.ROOT);
                try {
                    TornadoBackend backend = runtime.getBackend(b);
                    if (type.equals(Device.INTERPRETER)) {
                        return new TornadoHome(
                                Kind.INTERPRETER,
                                List.of(Device.of(backend.getDevice(0), type, 0)),
                                Map.of(),
                                interpreterNote(sdkDirectory));
                    }
                    for (int d = 0; d < backend.getNumDevices(); d++) {
                        addDevice(backend, type, d, devices, failures);
                    }
                } catch (RuntimeException | Error failure) {
                    failures.put(looking, failure);
                }
            }
        } catch (RuntimeException | Error failure) {
            failures.put(looking, failure);
        }
        if (devices.isEmpty()) {
            return none(
                    failures.isEmpty()
                            ? "TornadoVM is here but no backend has a device"
                            : explain(failures.values().iterator().next()));
        }
        Map<String, String> broken = new LinkedHashMap<>();
        failures.forEach((id, failure) -> broken.put(id, RootCause.of(failure)));
        List<String> notes = new ArrayList<>();
        if (!bailoutsAreErrors()) {
            notes.add(BAILOUT_NOTE);
        }
        broken.forEach((id, cause) -> notes.add(id + " is left out: " + cause));
        devices.stream()
                .filter(device -> !device.isTried())
                .map(Device::backend)
                .distinct()
                .forEach(backend -> notes.add(backend
                        + " is a backend that no layer was ever tried on: only portable kernels use"
                        + " it, and each layer's self-check decides"));
        return new TornadoHome(
                Kind.SDK, List.copyOf(devices), broken, notes.isEmpty() ? null : String.join("; ", notes));
    }

    private static void addDevice(
            TornadoBackend backend, String type, int index, List<Device> devices, Map<String, Throwable> failures) {
        try {
            devices.add(Device.of(backend.getDevice(index), type, index));
        } catch (RuntimeException | Error failure) {
            failures.put(type.toLowerCase(Locale.ROOT) + ":" + index, failure);
        }
    }

    private static TornadoHome none(String note) {
        return new TornadoHome(Kind.NONE, List.of(), Map.of(), note);
    }

    private static @Nullable String interpreterNote(@Nullable String sdkDirectory) {
        String launchers = System.getProperty("tornadomoe.note"); // preferred; blank if the launcher has printed it
        if (launchers != null) {
            return launchers.isBlank() ? null : launchers;
        }
        return sdkDirectory == null || sdkDirectory.isBlank()
                ? "no TornadoVM SDK (TORNADOVM_HOME is not set)" + ON_INTERPRETER
                : "TornadoVM's SDK is at " + sdkDirectory
                        + ", but this JVM was started without its argument file (java @" + sdkDirectory
                        + "/tornado-argfile ...)" + ON_INTERPRETER;
    }

    /**
     * By default TornadoVM runs a kernel that it can't compile once as sequential Java, and returns that result. It
     * reads the property when its classes load, so the property can't be set here.
     */
    private static final String BAILOUT_NOTE = "TornadoVM would hide kernels that fail to compile: start the JVM with"
            + " -Dtornado.recover.bailout=False";

    /** Whether a kernel that can't be compiled is an exception in this JVM. */
    public static boolean bailoutsAreErrors() {
        return "false".equalsIgnoreCase(System.getProperty("tornado.recover.bailout"));
    }

    private static String explain(Throwable failure) {
        Throwable root = RootCause.root(failure);
        String message = RootCause.message(root);
        if (root instanceof ClassNotFoundException
                || (root instanceof NoClassDefFoundError && message.contains("tornado"))) {
            return "TornadoVM's API is not on the class path: add the tornado-moe-interpreter jar, or start the JVM"
                    + " with the SDK's argument file (java @$TORNADOVM_HOME/tornado-argfile ...)";
        }
        if (message.contains("argfile")) {
            return "TornadoVM's API is on the class path, but this JVM was started without its argument file (java"
                    + " @$TORNADOVM_HOME/tornado-argfile ...)";
        }
        return "TornadoVM's SDK failed to start, most likely because a driver is missing: " + RootCause.of(failure);
    }
}
