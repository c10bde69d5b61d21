package org.tornadomoe.tornado.device;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * Keeps the JVM's signal handlers in force. A JVM needs SIGSEGV for null checks and safepoints in compiled code, and
 * SIGFPE for divisions by zero. An OpenCL driver that contains LLVM installs LLVM's handlers when it is loaded or first
 * compiles. They serve one signal and then restore the default, so that the next SIGSEGV ends the process without a
 * message. PoCL's own handler for SIGFPE skips the instruction, so that Java's {@code 7 / 0} is 7. So each step in
 * which a driver may be loaded or may compile is wrapped in
 *
 * <pre>{@code
 * try (SignalHandlers.Step _ = SignalHandlers.step()) {
 *     ...
 * }
 * }</pre>
 *
 * At its end the handlers from before the step are restored, which is logged once; other programs' handlers, such as a
 * crash reporter's, stay. Within the step only the JDK's {@code libjsig}, preloaded, protects the process. With it, no
 * changes are found, and none made, for the signals that the JVM needs.
 *
 * <p>Steps may overlap, in one thread or in several; the handlers in force when the first step began count.
 * Thread-safe. On Linux (x86-64, aarch64) it asks the kernel instead of the C library, whose answer is libjsig's if
 * that is preloaded. On systems other than Linux and macOS it does nothing, nor in a JVM without TornadoVM's run time,
 * which alone loads drivers.
 */
@SuppressWarnings("restricted") // native calls are what it is for
public final class SignalHandlers {
    /** A step during which a driver may replace handlers, until it is closed. */
    public interface Step extends AutoCloseable {
        @Override
        void close();
    }

    /** The signals that HotSpot handles, with their numbers on Linux and on macOS. */
    enum Signal {
        SIGSEGV(11, 11),
        SIGBUS(7, 10),
        SIGFPE(8, 8),
        SIGILL(4, 4),
        SIGXFSZ(25, 25),
        SIGPIPE(13, 13),
        SIGHUP(1, 1),
        SIGINT(2, 2),
        SIGQUIT(3, 3),
        SIGTERM(15, 15),
        /** Stops a thread, for example for the flight recorder. */
        SIGUSR2(12, 31);

        final int linux;
        final int mac;

        Signal(int linux, int mac) {
            this.linux = linux;
            this.mac = mac;
        }

        /** Whether it is one of the fault signals, for all of which HotSpot has one handler, which libjsig keeps. */
        boolean isFault() {
            return compareTo(SIGPIPE) <= 0;
        }
    }

    private static final System.Logger LOG = System.getLogger(SignalHandlers.class.getName());
    private static final long SIGSET_BYTES = 8;

    /**
     * {@code struct sigaction} of Linux's kernel (handler, flags, restorer, mask), and {@code Dl_info}; macOS's is
     * less.
     */
    private static final long STRUCT_BYTES = 32;

    private static final @Nullable SignalHandlers PROCESS =
            ModuleLayer.boot().findModule("tornado.runtime").isPresent() ? open() : null;

    private final boolean mac;

    /** Sets an action and returns the previous one; either may be null: (int, MemorySegment, MemorySegment)long, 0. */
    private final MethodHandle sigaction;

    /** Finds the library of an address. */
    private final MethodHandle dladdr;

    private final Map<Signal, MemorySegment> before = new EnumMap<>(Signal.class);
    private int steps;
    private boolean said;

    private SignalHandlers(boolean mac, MethodHandle sigaction, MethodHandle dladdr) {
        this.mac = mac;
        this.sigaction = sigaction;
        this.dladdr = dladdr;
    }

    /** Begins a step that may load a driver or compile in one. */
    public static Step step() {
        return PROCESS == null ? () -> {} : PROCESS.begin();
    }

    /**
     * The instance for this process; null if the platform is unsupported, or if native access is forbidden, which a
     * warning says.
     */
    static @Nullable SignalHandlers open() {
        try {
            Linker linker = Linker.nativeLinker();
            String system = System.getProperty("os.name", "") + " " + System.getProperty("os.arch", "");
            long rtSigaction = switch (system) {
                case "Linux amd64" -> 13;
                case "Linux aarch64" -> 134;
                default -> -1;
            };
            MethodHandle sigaction;
            if (rtSigaction >= 0) {
                FunctionDescriptor type =
                        FunctionDescriptor.of(JAVA_LONG, JAVA_LONG, JAVA_INT, ADDRESS, ADDRESS, JAVA_LONG);
                MethodHandle syscall = linker.downcallHandle(
                        linker.defaultLookup().findOrThrow("syscall"), type, Linker.Option.firstVariadicArg(1));
                sigaction = MethodHandles.insertArguments(
                        MethodHandles.insertArguments(syscall, 4, SIGSET_BYTES), 0, rtSigaction);
            } else if (system.startsWith("Mac OS X ")) {
                // Looking it up by library name gives the system's own function, not libjsig's.
                MemorySegment function = SymbolLookup.libraryLookup("/usr/lib/libSystem.B.dylib", Arena.global())
                        .findOrThrow("sigaction");
                sigaction = linker.downcallHandle(function, FunctionDescriptor.of(JAVA_INT, JAVA_INT, ADDRESS, ADDRESS))
                        .asType(MethodType.methodType(long.class, int.class, MemorySegment.class, MemorySegment.class));
            } else {
                return null;
            }
            MethodHandle dladdr = linker.downcallHandle(
                    linker.defaultLookup().findOrThrow("dladdr"), FunctionDescriptor.of(JAVA_INT, ADDRESS, ADDRESS));
            SignalHandlers handlers = new SignalHandlers(rtSigaction < 0, sigaction, dladdr);
            handlers.action(Signal.SIGSEGV); // checks that the call works at all
            return handlers;
        } catch (RuntimeException closed) {
            LOG.log(
                    System.Logger.Level.WARNING,
                    "can't protect the JVM's signal handlers from drivers (start it with"
                            + " --enable-native-access=ALL-UNNAMED): "
                            + closed);
            return null;
        }
    }

    synchronized Step begin() {
        if (steps++ == 0) {
            for (Signal signal : Signal.values()) {
                MemorySegment now = action(signal);
                if (!isForOnce(now)) {
                    before.put(signal, now);
                }
            }
            recover();
        }
        return this::end;
    }

    /**
     * Recovers handlers if a driver was loaded before this class, or between two steps. HotSpot has one handler for all
     * faults, and drivers don't touch that of SIGPIPE. A crash reporter that handles SIGFPE has the same handler for
     * SIGILL.
     */
    private void recover() {
        MemorySegment jvms = before.get(Signal.SIGPIPE);
        if (jvms == null || !isJvms(jvms)) {
            return;
        }
        for (Signal signal : Signal.values()) {
            if (signal.isFault()) {
                before.putIfAbsent(signal, jvms);
            }
        }
        if (handler(action(Signal.SIGFPE)) != handler(action(Signal.SIGILL))) {
            before.put(Signal.SIGFPE, jvms);
        }
    }

    private synchronized void end() {
        steps--;
        List<Signal> taken = new ArrayList<>();
        Set<String> owners = new LinkedHashSet<>();
        before.forEach((signal, kept) -> {
            MemorySegment now = action(signal);
            // Handlers that Java code sets meanwhile belong to the JVM too.
            if (now.mismatch(kept) >= 0 && !isJvms(now)) {
                exchange(signal, kept, MemorySegment.NULL);
                taken.add(signal);
                owners.add(owner(now));
            }
        });
        if (!taken.isEmpty()) {
            boolean said = this.said;
            this.said |= taken.getFirst().isFault();
            LOG.log(
                    !said && this.said ? System.Logger.Level.WARNING : System.Logger.Level.DEBUG,
                    () -> "a driver (" + String.join(", ", owners)
                            + ") had replaced the JVM's signal handlers for "
                            + taken
                            + "; they are restored, but until now a signal could have ended the process: start it with "
                            + preload());
        }
    }

    /** How to start a JVM so that no driver can replace its handlers. */
    private String preload() {
        Path home = Path.of(System.getProperty("java.home", ""));
        String name = mac ? "libjsig.dylib" : "libjsig.so";
        Path library = home.resolve("lib").resolve(name);
        return (mac ? "DYLD_INSERT_LIBRARIES=" : "LD_PRELOAD=")
                + (Files.exists(library)
                        ? library
                        : home.resolve("lib").resolve("server").resolve(name));
    }

    /** The action currently in force. */
    MemorySegment action(Signal signal) {
        MemorySegment action = Arena.ofAuto().allocate(STRUCT_BYTES, 8);
        exchange(signal, MemorySegment.NULL, action);
        return action;
    }

    private void exchange(Signal signal, MemorySegment set, MemorySegment old) {
        try {
            long error = (long) sigaction.invokeExact(mac ? signal.mac : signal.linux, set, old);
            if (error != 0) {
                throw new IllegalStateException("sigaction(" + signal + ")");
            }
        } catch (RuntimeException | Error failure) {
            throw failure;
        } catch (Throwable failure) {
            throw new IllegalStateException(failure);
        }
    }

    /** Whether it is the default action, or restores the default after one signal (SA_RESETHAND). */
    private boolean isForOnce(MemorySegment action) {
        return handler(action) == 0
                || (mac ? (action.get(JAVA_INT, 12) & 4) != 0 : (action.get(JAVA_LONG, 8) & 0x8000_0000L) != 0);
    }

    private static long handler(MemorySegment action) {
        return action.get(JAVA_LONG, 0);
    }

    boolean isJvms(MemorySegment action) {
        return owner(action).matches(".*/libjvm\\.(so|dylib)");
    }

    /** The handler's library, or a description of another kind of action. */
    String owner(MemorySegment action) {
        if (handler(action) < 2) {
            return handler(action) == 0 ? "the default" : "ignored";
        }
        MemorySegment info = Arena.ofAuto().allocate(STRUCT_BYTES, 8);
        try {
            if ((int) dladdr.invokeExact(MemorySegment.ofAddress(handler(action)), info) == 0) {
                return "no library";
            }
        } catch (RuntimeException | Error failure) {
            throw failure;
        } catch (Throwable failure) {
            throw new IllegalStateException(failure);
        }
        return info.get(ADDRESS, 0).reinterpret(Long.MAX_VALUE).getString(0);
    }
}
