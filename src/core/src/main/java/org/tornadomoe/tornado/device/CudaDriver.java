package org.tornadomoe.tornado.device;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.function.LongConsumer;
import org.tornadomoe.kernel.MoeExecutionException;

/**
 * What is called of NVIDIA's driver ({@code libcuda}) and run-time compiler ({@code libnvrtc}). Contexts, streams,
 * events, modules, functions and addresses on a device are the driver's handles. Every call that fails is a {@link
 * MoeExecutionException} with the driver's name for the error. Thread-safe.
 */
public interface CudaDriver {
    /** What the compiler's option for an architecture begins with. */
    String ARCHITECTURE = "--gpu-architecture=";

    /** The one there is, outside of tests. */
    CudaDriver NVIDIA = new NvidiaDriver();

    /** A device's compute capability, such as 90 for 9.0, Hopper's. */
    int computeCapability(int device);

    /** The compiler's option for exactly a device's {@link #computeCapability}. */
    static String architecture(int computeCapability) {
        return ARCHITECTURE + "sm_" + computeCapability;
    }

    int multiprocessors(int device);

    /** Of the device's last cache. */
    int cacheBytes(int device);

    /** The device of the calling thread's context. */
    int currentDevice();

    /** Makes a context the calling thread's. */
    void setContext(long context);

    /** CUDA C to machine code. */
    byte[] compile(String source, List<String> options);

    /** Loads a module into the calling thread's context. */
    long loadModule(byte[] binary);

    void unloadModule(long module);

    /** A kernel of a module. */
    long function(long module, String name);

    /** Lets a kernel have so much dynamic shared memory. */
    void allowSharedBytes(long function, int bytes);

    /**
     * Puts a kernel on a stream.
     *
     * @param how of {@link #fillLaunch}
     * @param parameters pointers to its parameters' values
     */
    void launch(MemorySegment how, long function, MemorySegment parameters);

    /** Puts a copy of what is here on a stream. */
    void copyToDevice(long to, MemorySegment from, long bytes, long stream);

    /** The other way. */
    void copyFromDevice(MemorySegment to, long from, long bytes, long stream);

    /** Puts a copy from one context's device to another's on a stream of the calling thread's context. */
    void copyBetween(long to, long toContext, long from, long fromContext, long bytes, long stream);

    /** Puts zeros on a stream. */
    void clear(long pointer, long bytes, long stream);

    /** Waits until everything on a stream is done. */
    void await(long stream);

    /** Waits until an event that was recorded has happened. */
    void awaitEvent(long event);

    /** A stream of the calling thread's context, which waits for no other and has to be destroyed. */
    long stream();

    void destroyStream(long stream);

    /** Whether what is put on a stream is recorded as a graph instead of being done. */
    boolean isRecording(long stream);

    /**
     * Keeps pages of the host where they are, for all contexts, so that copies from and to them run beside the host.
     *
     * @return false where they are kept already; whoever has them kept lets them go
     * @throws MoeExecutionException where the driver or the system doesn't allow it: copies are slower then
     */
    boolean pin(MemorySegment memory);

    void unpin(MemorySegment memory);

    /**
     * Lets kernels and copies of the calling thread's context use another context's memory, as long as both are.
     *
     * @throws MoeExecutionException where their devices can't
     */
    void usePeer(long context);

    /** Memory of the calling thread's context, which has to be freed. */
    long allocate(long bytes);

    void free(long pointer);

    /** An event, which has to be destroyed. */
    long event();

    /** One that has no time, and costs less. */
    long timelessEvent();

    void destroyEvent(long event);

    /** Puts an event on a stream: it happens when all before it is done. */
    void record(long event, long stream);

    /** Has a stream, of any context, wait until an event that was recorded has happened. */
    void waitFor(long event, long stream);

    /** Nanoseconds between two events that have happened. */
    long nanosBetween(long from, long to);

    /** What the driver has given, until it is closed. */
    record Handle(long value, LongConsumer giveBack) implements AutoCloseable {
        @Override
        public void close() {
            giveBack.accept(value);
        }
    }

    // ---- what a launch is told: a CUlaunchConfig, and behind it the one CUlaunchAttribute that it may point to

    long LAUNCH_BYTES = 56;
    long ATTRIBUTE_BYTES = 72;
    int PROGRAMMATIC_STREAM_SERIALIZATION = 6;

    /** Room for it. */
    static MemorySegment allocateLaunch(Arena arena) {
        return arena.allocate(LAUNCH_BYTES + ATTRIBUTE_BYTES, 8);
    }

    /** A kernel may start before the one in front of it is through; it has to wait for it itself. */
    static void fillLaunch(MemorySegment how, int gridX, int gridY, int block, int sharedBytes, long stream) {
        int[] sizes = {gridX, gridY, 1, block, 1, 1, sharedBytes};
        MemorySegment.copy(sizes, 0, how, ValueLayout.JAVA_INT, 0, sizes.length);
        how.set(ValueLayout.JAVA_LONG, 32, stream);
        how.set(ValueLayout.ADDRESS, 40, how.asSlice(LAUNCH_BYTES));
        how.set(ValueLayout.JAVA_INT, 48, 1);
        how.set(ValueLayout.JAVA_INT, LAUNCH_BYTES, PROGRAMMATIC_STREAM_SERIALIZATION);
        how.set(ValueLayout.JAVA_INT, LAUNCH_BYTES + 8, 1);
    }

    /** Onto another stream. */
    static void putOn(MemorySegment how, long stream) {
        how.set(ValueLayout.JAVA_LONG, 32, stream);
    }

    /** The kernel waits for what is in front of it, whatever that is. */
    static void startAlone(MemorySegment how) {
        how.set(ValueLayout.JAVA_INT, 48, 0);
    }
}
