package org.tornadomoe.tornado.device;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.function.LongConsumer;
import org.tornadomoe.kernel.MoeExecutionException;

/**
 * The functions that the library uses of NVIDIA's driver ({@code libcuda}) and run-time compiler ({@code libnvrtc}).
 * Contexts, streams, events, modules, functions and device addresses are the driver's handles. A call that fails throws
 * a {@link MoeExecutionException} with the driver's name of the error. Thread-safe.
 */
public interface CudaDriver {
    /** The prefix of the compiler's option for an architecture. */
    String ARCHITECTURE = "--gpu-architecture=";

    /** The lowest compute capability that can launch a kernel before the previous one has ended. */
    int EARLY_LAUNCHES = 90;

    /** The real driver; tests use others. */
    CudaDriver NVIDIA = new NvidiaDriver();

    /** A device's compute capability, such as 90 for 9.0, Hopper's. */
    int computeCapability(int device);

    /** The compiler's option for exactly a device's {@link #computeCapability}. */
    static String architecture(int computeCapability) {
        return ARCHITECTURE + "sm_" + computeCapability;
    }

    int multiprocessors(int device);

    /** The size of the device's last-level cache. */
    int cacheBytes(int device);

    /** The device of the calling thread's context. */
    int currentDevice();

    /** Makes a context current on the calling thread. */
    void setContext(long context);

    /** Compiles CUDA C to machine code. */
    byte[] compile(String source, List<String> options);

    /** Loads a module into the calling thread's context. */
    long loadModule(byte[] binary);

    void unloadModule(long module);

    /** A kernel of a module. */
    long function(long module, String name);

    /** Allows a kernel that much dynamic shared memory. */
    void allowSharedBytes(long function, int bytes);

    /**
     * Launches a kernel on a stream.
     *
     * @param how the launch, from {@link #fillLaunch}
     * @param parameters pointers to the parameters' values
     */
    void launch(MemorySegment how, long function, MemorySegment parameters);

    /** Enqueues a copy from the host to the device on a stream. */
    void copyToDevice(long to, MemorySegment from, long bytes, long stream);

    /** Enqueues a copy from the device to the host. */
    void copyFromDevice(MemorySegment to, long from, long bytes, long stream);

    /** Enqueues a copy from one context's device to another's, on a stream of the calling thread's context. */
    void copyBetween(long to, long toContext, long from, long fromContext, long bytes, long stream);

    /** Enqueues a fill with zeros. */
    void clear(long pointer, long bytes, long stream);

    /** Waits until all work on a stream is done. */
    void await(long stream);

    /** Waits until a recorded event has happened. */
    void awaitEvent(long event);

    /** Makes a stream in the calling thread's context that waits for no other stream; the caller must destroy it. */
    long stream();

    void destroyStream(long stream);

    /** Whether {@link #beginRecording} works, with kernels that start before the previous ones have ended. */
    boolean recordsGraphs();

    /** From now on what is enqueued on a stream is recorded instead of executed. */
    void beginRecording(long stream);

    /** Ends a recording. The caller must destroy the graph. */
    long endRecording(long stream);

    /** Enqueues all that was recorded. */
    void launchGraph(long graph, long stream);

    void destroyGraph(long graph);

    /** The device address of pinned memory of the host, in the calling thread's context. */
    long addressOfPinned(MemorySegment memory);

    /** Whether work enqueued on a stream is recorded into a graph instead of executed. */
    boolean isRecording(long stream);

    /**
     * Pins host pages for all contexts, so that copies from and to them run asynchronously.
     *
     * @return false if they are pinned already; whoever pinned them unpins them
     * @throws MoeExecutionException if the driver or the system doesn't allow it; copies are then slower
     */
    boolean pin(MemorySegment memory);

    void unpin(MemorySegment memory);

    /**
     * Lets kernels and copies of the calling thread's context access another context's memory, as long as both exist.
     *
     * @throws MoeExecutionException if their devices can't
     */
    void usePeer(long context);

    /** Allocates memory in the calling thread's context; the caller must free it. */
    long allocate(long bytes);

    void free(long pointer);

    /** Makes an event; the caller must destroy it. */
    long event();

    /** Makes an event without a time stamp, which costs less. */
    long timelessEvent();

    void destroyEvent(long event);

    /** Records an event on a stream; it happens when all earlier work is done. */
    void record(long event, long stream);

    /** Makes a stream, of any context, wait until a recorded event has happened. */
    void waitFor(long event, long stream);

    /** Nanoseconds between two events that have happened. */
    long nanosBetween(long from, long to);

    /** A driver object that is released by {@link #close}. */
    record Handle(long value, LongConsumer giveBack) implements AutoCloseable {
        @Override
        public void close() {
            giveBack.accept(value);
        }
    }

    // ---- a launch's configuration: a CUlaunchConfig, followed by the one CUlaunchAttribute that it may point to

    long LAUNCH_BYTES = 56;
    long ATTRIBUTE_BYTES = 72;
    int PROGRAMMATIC_STREAM_SERIALIZATION = 6;

    /** Allocates memory for it. */
    static MemorySegment allocateLaunch(Arena arena) {
        return arena.allocate(LAUNCH_BYTES + ATTRIBUTE_BYTES, 8);
    }

    /**
     * Fills it in so that the kernel may start before the previous one has ended; the kernel itself must wait for that.
     */
    static void fillLaunch(MemorySegment how, int gridX, int gridY, int block, int sharedBytes, long stream) {
        int[] sizes = {gridX, gridY, 1, block, 1, 1, sharedBytes};
        MemorySegment.copy(sizes, 0, how, ValueLayout.JAVA_INT, 0, sizes.length);
        how.set(ValueLayout.JAVA_LONG, 32, stream);
        how.set(ValueLayout.ADDRESS, 40, how.asSlice(LAUNCH_BYTES));
        how.set(ValueLayout.JAVA_INT, 48, 1);
        how.set(ValueLayout.JAVA_INT, LAUNCH_BYTES, PROGRAMMATIC_STREAM_SERIALIZATION);
        how.set(ValueLayout.JAVA_INT, LAUNCH_BYTES + 8, 1);
    }

    /** Sets another stream. */
    static void putOn(MemorySegment how, long stream) {
        how.set(ValueLayout.JAVA_LONG, 32, stream);
    }

    /** Makes the kernel start only after all earlier work on the stream. */
    static void startAlone(MemorySegment how) {
        how.set(ValueLayout.JAVA_INT, 48, 0);
    }
}
