package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.lang.management.ManagementFactory;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.jspecify.annotations.Nullable;

/**
 * Allocates zeroed off-heap memory for whole tensors. An arena zeroes its memory from one thread, one 4 kB page after
 * the other. On Linux, if the program may call native code ({@code --enable-native-access}), this class allocates from
 * the system instead. The system zeroes a page when a thread first writes it, and uses 2 MB pages if available.
 *
 * <p>Its limit is the same as the arenas', {@code -XX:MaxDirectMemorySize}, by default the heap's; arenas count their
 * own memory separately. Thread-safe.
 */
@SuppressWarnings("restricted") // used only if the program allows native access
public final class SystemMemory {
    /** The least bytes that the system is asked for: a large page. */
    public static final long LEAST = 2 << 20;

    private static final int READ_AND_WRITE = 3;
    private static final int PRIVATE_AND_ANONYMOUS = 0x22;
    private static final int ADVISE_HUGE_PAGES = 14;

    /** How often the limit is looked at again, after 1, 2, 4 ms and so on: half a second in all. */
    private static final int TRIES = 9;

    /** Null if arenas allocate the memory. */
    private static final @Nullable SystemMemory SYSTEM = ofSystem();

    private final MethodHandle map;
    private final MethodHandle unmap;
    private final MethodHandle advise;
    private final long limit;
    private final AtomicLong taken = new AtomicLong();

    private SystemMemory(MethodHandle map, MethodHandle unmap, MethodHandle advise, long limit) {
        this.map = map;
        this.unmap = unmap;
        this.advise = advise;
        this.limit = limit;
    }

    /**
     * Allocates zeroed memory, until the arena is closed or, if that is the garbage collector's, nothing refers to it.
     *
     * @param alignment of the first byte, at most 4096
     * @throws OutOfMemoryError if the system lacks memory, or the limit would be exceeded
     */
    public static MemorySegment allocate(Arena arena, long bytes, long alignment) {
        if (SYSTEM == null || bytes < LEAST) {
            return arena.allocate(bytes, alignment);
        }
        SYSTEM.reserve(bytes);
        return SYSTEM.take(arena, bytes);
    }

    /** The same, but of the arena's own memory, which has another limit, where this one's would be exceeded. */
    public static MemorySegment allocateWithinLimit(Arena arena, long bytes, long alignment) {
        return SYSTEM == null || bytes < LEAST || SYSTEM.counted(bytes) >= 0
                ? arena.allocate(bytes, alignment)
                : SYSTEM.take(arena, bytes);
    }

    /** The bytes currently allocated from the system. */
    static long taken() {
        return SYSTEM == null ? 0 : SYSTEM.taken.get();
    }

    /** The limit in bytes; 0 if arenas allocate the memory. */
    static long limit() {
        return SYSTEM == null ? 0 : SYSTEM.limit;
    }

    private static @Nullable SystemMemory ofSystem() {
        String arch = System.getProperty("os.arch");
        if (!SystemMemory.class.getModule().isNativeAccessEnabled()
                || !System.getProperty("os.name").equals("Linux")
                || !(arch.equals("amd64") || arch.equals("aarch64"))) {
            return null;
        }
        Linker linker = Linker.nativeLinker();
        SymbolLookup libc = linker.defaultLookup();
        ValueLayout.OfLong size = ValueLayout.JAVA_LONG;
        ValueLayout.OfInt flags = ValueLayout.JAVA_INT;
        return new SystemMemory(
                linker.downcallHandle(
                        libc.findOrThrow("mmap"), FunctionDescriptor.of(size, size, size, flags, flags, flags, size)),
                linker.downcallHandle(libc.findOrThrow("munmap"), FunctionDescriptor.of(flags, size, size)),
                linker.downcallHandle(libc.findOrThrow("madvise"), FunctionDescriptor.of(flags, size, size, flags)),
                maxDirectMemory());
    }

    /** The JVM's option, or its default. */
    private static long maxDirectMemory() {
        String option = "-XX:MaxDirectMemorySize=";
        return ManagementFactory.getRuntimeMXBean().getInputArguments().stream()
                .filter(argument -> argument.startsWith(option))
                .map(argument -> argument.substring(option.length()))
                .mapToLong(SystemMemory::bytes)
                .filter(bytes -> bytes > 0)
                .reduce((first, last) -> last)
                .orElse(Runtime.getRuntime().maxMemory());
    }

    /** Parses a size in the JVM options' format: 512m. */
    static long bytes(String option) {
        int unit = "kmgt".indexOf(Character.toLowerCase(option.charAt(option.length() - 1)));
        long number = Long.parseLong(unit < 0 ? option : option.substring(0, option.length() - 1));
        return number << (10 * (unit + 1));
    }

    /** Counts bytes that are about to be taken: −1, or what is taken already where that leaves no room for them. */
    private long counted(long bytes) {
        long before = taken.getAndAdd(bytes);
        if (bytes <= limit - before) {
            return -1;
        }
        taken.addAndGet(-bytes);
        return before;
    }

    /** Counts them; where there is no room, once the garbage collector has freed what it can. */
    private void reserve(long bytes) {
        long before = counted(bytes);
        for (int tries = 0; before >= 0; tries++) {
            if (tries == TRIES || bytes > limit) {
                throw new OutOfMemoryError(
                        "cannot reserve " + bytes + " bytes: " + before + " of " + limit + " are taken");
            }
            if (tries == 0) {
                System.gc(); // as the JVM does for arenas
            }
            LockSupport.parkNanos(1_000_000L << tries);
            before = counted(bytes);
        }
    }

    /** Takes what is counted. */
    private MemorySegment take(Arena arena, long bytes) {
        long address = -1;
        try {
            address = (long) map.invokeExact(0L, bytes, READ_AND_WRITE, PRIVATE_AND_ANONYMOUS, -1, 0L);
            if (address == -1) {
                throw new OutOfMemoryError("the system has no " + bytes + " bytes");
            }
            int _ = (int) advise.invokeExact(address, bytes, ADVISE_HUGE_PAGES);
            long mapped = address;
            return MemorySegment.ofAddress(address).reinterpret(bytes, arena, _ -> release(mapped, bytes));
        } catch (RuntimeException | Error failure) {
            release(address, bytes);
            throw failure;
        } catch (Throwable impossible) { // none of them throws a checked exception
            throw new AssertionError(impossible);
        }
    }

    private void release(long address, long bytes) {
        taken.addAndGet(-bytes);
        try {
            if (address != -1) {
                int _ = (int) unmap.invokeExact(address, bytes);
            }
        } catch (Throwable impossible) {
            throw new AssertionError(impossible);
        }
    }
}
