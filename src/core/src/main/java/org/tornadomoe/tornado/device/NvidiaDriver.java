package org.tornadomoe.tornado.device;

import java.lang.foreign.AddressLayout;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Stream;
import org.tornadomoe.kernel.MoeExecutionException;

/** Calls {@code libcuda} and {@code libnvrtc}, which TornadoVM's CUDA backend has loaded already. */
@SuppressWarnings("restricted") // this class exists for native calls
final class NvidiaDriver implements CudaDriver {
    private static final int COMPUTE_CAPABILITY_MAJOR = 75;
    private static final int COMPUTE_CAPABILITY_MINOR = 76;
    private static final int MULTIPROCESSORS = 16;
    private static final int FUNC_MAX_DYNAMIC_SHARED_SIZE = 8;
    private static final int L2_CACHE_SIZE = 38;
    private static final int EVENT_DISABLE_TIMING = 2;
    private static final int STREAM_NON_BLOCKING = 1;
    private static final int MEMHOSTREGISTER_PORTABLE_AND_MAPPED = 3;
    private static final int CAPTURE_MODE_THREAD_LOCAL = 1;

    /** The first driver that records kernels which start early. */
    private static final int RECORDS_EARLY_LAUNCHES = 12_030;

    private static final int PEER_ACCESS_ALREADY_ENABLED = 704;
    private static final int HOST_MEMORY_ALREADY_REGISTERED = 712;
    private static final AddressLayout POINTER = ValueLayout.ADDRESS;
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT;
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG;
    private static final Map<String, MethodHandle> FUNCTIONS = new ConcurrentHashMap<>();

    /** Compiled kernels by their options and source; every layer needs the same ones. */
    private static final Map<List<String>, byte[]> BINARIES = new ConcurrentHashMap<>();

    @Override
    public int computeCapability(int device) {
        return 10 * attribute(device, COMPUTE_CAPABILITY_MAJOR) + attribute(device, COMPUTE_CAPABILITY_MINOR);
    }

    @Override
    public int multiprocessors(int device) {
        return attribute(device, MULTIPROCESSORS);
    }

    private static int attribute(int device, int attribute) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment value = arena.allocate(INT);
            cu("cuDeviceGetAttribute", List.of(POINTER, INT, INT), value, attribute, device);
            return value.get(INT, 0);
        }
    }

    @Override
    public int currentDevice() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment value = arena.allocate(INT);
            cu("cuCtxGetDevice", List.of(POINTER), value);
            return value.get(INT, 0);
        }
    }

    @Override
    public void setContext(long context) {
        try {
            check("cuCtxSetCurrent", (int) Often.SET_CONTEXT.invokeExact(context));
        } catch (Throwable failure) {
            throw failed("cuCtxSetCurrent", failure);
        }
    }

    @Override
    public long loadModule(byte[] binary) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment module = arena.allocate(POINTER);
            MemorySegment image = arena.allocateFrom(ValueLayout.JAVA_BYTE, binary);
            cu("cuModuleLoadData", List.of(POINTER, POINTER), module, image);
            return module.get(POINTER, 0).address();
        }
    }

    @Override
    public void unloadModule(long module) {
        cu("cuModuleUnload", List.of(POINTER), MemorySegment.ofAddress(module));
    }

    @Override
    public long function(long module, String name) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment function = arena.allocate(POINTER);
            cu(
                    "cuModuleGetFunction",
                    List.of(POINTER, POINTER, POINTER),
                    function,
                    MemorySegment.ofAddress(module),
                    arena.allocateFrom(name));
            return function.get(POINTER, 0).address();
        }
    }

    @Override
    public void allowSharedBytes(long function, int bytes) {
        cu("cuFuncSetAttribute", List.of(LONG, INT, INT), function, FUNC_MAX_DYNAMIC_SHARED_SIZE, bytes);
    }

    /** The driver's version, such as 12030 for 12.3. */
    private static final class Version {
        static final int OF_DRIVER = read();

        private Version() {}

        private static int read() {
            try (Arena arena = Arena.ofConfined()) {
                MemorySegment version = arena.allocate(INT);
                cu("cuDriverGetVersion", List.of(POINTER), version);
                return version.get(INT, 0);
            }
        }
    }

    /** Functions that every call of a layer uses; they have exact types for speed. */
    private static final class Often {
        static final MethodHandle SET_CONTEXT = find("cuCtxSetCurrent", List.of(LONG));
        static final MethodHandle LAUNCH = find("cuLaunchKernelEx", List.of(POINTER, LONG, POINTER, LONG));
        static final MethodHandle TO_DEVICE = find("cuMemcpyHtoDAsync_v2", List.of(LONG, POINTER, LONG, LONG));
        static final MethodHandle FROM_DEVICE = find("cuMemcpyDtoHAsync_v2", List.of(POINTER, LONG, LONG, LONG));
        static final MethodHandle LAUNCH_GRAPH = find("cuGraphLaunch", List.of(LONG, LONG));
        static final MethodHandle BETWEEN = find("cuMemcpyPeerAsync", List.of(LONG, LONG, LONG, LONG, LONG, LONG));
        static final MethodHandle RECORD = find("cuEventRecord", List.of(LONG, LONG));
        static final MethodHandle WAIT_FOR = find("cuStreamWaitEvent", List.of(LONG, LONG, INT));
        static final MethodHandle WAIT = find("cuStreamSynchronize", List.of(LONG));
        static final MethodHandle WAIT_EVENT = find("cuEventSynchronize", List.of(LONG));

        private Often() {}
    }

    @Override
    public void launch(MemorySegment how, long function, MemorySegment parameters) {
        try {
            check("cuLaunchKernelEx", (int) Often.LAUNCH.invokeExact(how, function, parameters, 0L));
        } catch (Throwable failure) {
            throw failed("cuLaunchKernelEx", failure);
        }
    }

    @Override
    public void copyToDevice(long to, MemorySegment from, long bytes, long stream) {
        try {
            check("cuMemcpyHtoDAsync", (int) Often.TO_DEVICE.invokeExact(to, from, bytes, stream));
        } catch (Throwable failure) {
            throw failed("cuMemcpyHtoDAsync", failure);
        }
    }

    @Override
    public void copyFromDevice(MemorySegment to, long from, long bytes, long stream) {
        try {
            check("cuMemcpyDtoHAsync", (int) Often.FROM_DEVICE.invokeExact(to, from, bytes, stream));
        } catch (Throwable failure) {
            throw failed("cuMemcpyDtoHAsync", failure);
        }
    }

    @Override
    public void await(long stream) {
        try {
            check("cuStreamSynchronize", (int) Often.WAIT.invokeExact(stream));
        } catch (Throwable failure) {
            throw failed("cuStreamSynchronize", failure);
        }
    }

    @Override
    public void awaitEvent(long event) {
        try {
            check("cuEventSynchronize", (int) Often.WAIT_EVENT.invokeExact(event));
        } catch (Throwable failure) {
            throw failed("cuEventSynchronize", failure);
        }
    }

    @Override
    public long stream() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment stream = arena.allocate(LONG);
            cu("cuStreamCreate", List.of(POINTER, INT), stream, STREAM_NON_BLOCKING);
            return stream.get(LONG, 0);
        }
    }

    @Override
    public void destroyStream(long stream) {
        cu("cuStreamDestroy_v2", List.of(LONG), stream);
    }

    @Override
    public boolean pin(MemorySegment memory) {
        int result = call(
                "cuMemHostRegister_v2",
                List.of(POINTER, LONG, INT),
                memory,
                memory.byteSize(),
                MEMHOSTREGISTER_PORTABLE_AND_MAPPED);
        if (result == HOST_MEMORY_ALREADY_REGISTERED) {
            return false;
        }
        check("cuMemHostRegister", result);
        return true;
    }

    @Override
    public void unpin(MemorySegment memory) {
        cu("cuMemHostUnregister", List.of(POINTER), memory);
    }

    @Override
    public void usePeer(long context) {
        int result = call("cuCtxEnablePeerAccess", List.of(LONG, INT), context, 0);
        if (result != PEER_ACCESS_ALREADY_ENABLED) {
            check("cuCtxEnablePeerAccess", result);
        }
    }

    private static RuntimeException failed(String name, Throwable failure) {
        if (failure instanceof Error error) {
            throw error;
        }
        return failure instanceof RuntimeException known
                ? known
                : new MoeExecutionException(name + ": " + failure, failure);
    }

    @Override
    public int cacheBytes(int device) {
        return attribute(device, L2_CACHE_SIZE);
    }

    @Override
    public boolean recordsGraphs() {
        return Version.OF_DRIVER >= RECORDS_EARLY_LAUNCHES;
    }

    @Override
    public void beginRecording(long stream) {
        cu("cuStreamBeginCapture_v2", List.of(LONG, INT), stream, CAPTURE_MODE_THREAD_LOCAL);
    }

    @Override
    public long endRecording(long stream) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment graph = arena.allocate(LONG);
            cu("cuStreamEndCapture", List.of(LONG, POINTER), stream, graph);
            try {
                MemorySegment made = arena.allocate(LONG);
                cu("cuGraphInstantiateWithFlags", List.of(POINTER, LONG, LONG), made, graph.get(LONG, 0), 0L);
                return made.get(LONG, 0);
            } finally {
                cu("cuGraphDestroy", List.of(LONG), graph.get(LONG, 0));
            }
        }
    }

    @Override
    public void launchGraph(long graph, long stream) {
        try {
            check("cuGraphLaunch", (int) Often.LAUNCH_GRAPH.invokeExact(graph, stream));
        } catch (Throwable failure) {
            throw failed("cuGraphLaunch", failure);
        }
    }

    @Override
    public void destroyGraph(long graph) {
        cu("cuGraphExecDestroy", List.of(LONG), graph);
    }

    @Override
    public long addressOfPinned(MemorySegment memory) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment pointer = arena.allocate(LONG);
            cu("cuMemHostGetDevicePointer_v2", List.of(POINTER, POINTER, INT), pointer, memory, 0);
            return pointer.get(LONG, 0);
        }
    }

    @Override
    public boolean isRecording(long stream) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment status = arena.allocate(INT);
            cu("cuStreamIsCapturing", List.of(LONG, POINTER), stream, status);
            return status.get(INT, 0) != 0;
        }
    }

    @Override
    public long allocate(long bytes) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment pointer = arena.allocate(LONG);
            cu("cuMemAlloc_v2", List.of(POINTER, LONG), pointer, bytes);
            return pointer.get(LONG, 0);
        }
    }

    @Override
    public void free(long pointer) {
        cu("cuMemFree_v2", List.of(LONG), pointer);
    }

    @Override
    public void clear(long pointer, long bytes, long stream) {
        cu("cuMemsetD8Async", List.of(LONG, ValueLayout.JAVA_BYTE, LONG, LONG), pointer, (byte) 0, bytes, stream);
    }

    @Override
    public long event() {
        return event(0);
    }

    @Override
    public long timelessEvent() {
        return event(EVENT_DISABLE_TIMING);
    }

    private static long event(int flags) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment event = arena.allocate(LONG);
            cu("cuEventCreate", List.of(POINTER, INT), event, flags);
            return event.get(LONG, 0);
        }
    }

    @Override
    public void waitFor(long event, long stream) {
        try {
            check("cuStreamWaitEvent", (int) Often.WAIT_FOR.invokeExact(stream, event, 0));
        } catch (Throwable failure) {
            throw failed("cuStreamWaitEvent", failure);
        }
    }

    @Override
    public void copyBetween(long to, long toContext, long from, long fromContext, long bytes, long stream) {
        try {
            check("cuMemcpyPeerAsync", (int)
                    Often.BETWEEN.invokeExact(to, toContext, from, fromContext, bytes, stream));
        } catch (Throwable failure) {
            throw failed("cuMemcpyPeerAsync", failure);
        }
    }

    @Override
    public void destroyEvent(long event) {
        cu("cuEventDestroy_v2", List.of(LONG), event);
    }

    @Override
    public void record(long event, long stream) {
        try {
            check("cuEventRecord", (int) Often.RECORD.invokeExact(event, stream));
        } catch (Throwable failure) {
            throw failed("cuEventRecord", failure);
        }
    }

    @Override
    public long nanosBetween(long from, long to) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment millis = arena.allocate(ValueLayout.JAVA_FLOAT);
            cu("cuEventElapsedTime", List.of(POINTER, LONG, LONG), millis, from, to);
            return Math.round(millis.get(ValueLayout.JAVA_FLOAT, 0) * 1e6);
        }
    }

    @Override
    public byte[] compile(String source, List<String> options) {
        return BINARIES.computeIfAbsent(
                Stream.concat(options.stream(), Stream.of(source)).toList(),
                key -> KernelCache.ofUser()
                        .get(
                                Stream.concat(Stream.of("nvrtc " + compilerVersion()), key.stream())
                                        .toList(),
                                () -> compileAnew(source, options)));
    }

    private static String compilerVersion() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment version = arena.allocate(INT, 2);
            nvrtc("nvrtcVersion", List.of(POINTER, POINTER), version, version.asSlice(4));
            return version.getAtIndex(INT, 0) + "." + version.getAtIndex(INT, 1);
        }
    }

    private static byte[] compileAnew(String source, List<String> options) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment slot = arena.allocate(POINTER);
            nvrtc(
                    "nvrtcCreateProgram",
                    List.of(POINTER, POINTER, POINTER, INT, POINTER, POINTER),
                    slot,
                    arena.allocateFrom(source),
                    MemorySegment.NULL,
                    0,
                    MemorySegment.NULL,
                    MemorySegment.NULL);
            MemorySegment program = slot.get(POINTER, 0);
            try {
                MemorySegment texts = arena.allocate(POINTER, options.size());
                for (int i = 0; i < options.size(); i++) {
                    texts.setAtIndex(POINTER, i, arena.allocateFrom(options.get(i)));
                }
                int result =
                        call("nvrtcCompileProgram", List.of(POINTER, INT, POINTER), program, options.size(), texts);
                if (result != 0) {
                    throw new MoeExecutionException("nvrtcCompileProgram: "
                            + new String(get("nvrtcGetProgramLog", program), StandardCharsets.UTF_8).trim());
                }
                return get("nvrtcGetCUBIN", program);
            } finally {
                // Its status is ignored, so that it can't hide an earlier error.
                call("nvrtcDestroyProgram", List.of(POINTER), slot);
            }
        }
    }

    /** The output of a compiler function; a second function returns its size. */
    private static byte[] get(String name, MemorySegment program) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment size = arena.allocate(ValueLayout.JAVA_LONG);
            nvrtc(name + "Size", List.of(POINTER, POINTER), program, size);
            MemorySegment text = arena.allocate(size.get(ValueLayout.JAVA_LONG, 0));
            nvrtc(name, List.of(POINTER, POINTER), program, text);
            return text.toArray(ValueLayout.JAVA_BYTE);
        }
    }

    private static void cu(String name, List<? extends MemoryLayout> types, Object... arguments) {
        check(name, call(name, types, arguments));
    }

    private static void check(String name, int result) {
        if (result != 0) {
            throw new MoeExecutionException(name + ": " + errorName(result));
        }
    }

    private static void nvrtc(String name, List<? extends MemoryLayout> types, Object... arguments) {
        int result = call(name, types, arguments);
        if (result != 0) {
            throw new MoeExecutionException(name + ": error " + result);
        }
    }

    private static String errorName(int result) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment name = arena.allocate(POINTER);
            if (call("cuGetErrorName", List.of(INT, POINTER), result, name) != 0) {
                return "error " + result;
            }
            return name.get(POINTER, 0).reinterpret(Long.MAX_VALUE).getString(0);
        }
    }

    private static int call(String name, List<? extends MemoryLayout> types, Object... arguments) {
        MethodHandle function = FUNCTIONS.computeIfAbsent(name, n -> find(n, types));
        try {
            return (int) function.invokeWithArguments(arguments);
        } catch (RuntimeException | Error failure) {
            throw failure;
        } catch (Throwable failure) {
            throw new MoeExecutionException(name + ": " + failure, failure);
        }
    }

    private static MethodHandle find(String name, List<? extends MemoryLayout> types) {
        List<String> libraries = name.startsWith("nvrtc")
                ? List.of("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
                : List.of("libcuda.so.1", "libcuda.so");
        String missing = "";
        for (String library : libraries) {
            try {
                MemorySegment symbol = SymbolLookup.libraryLookup(library, Arena.global())
                        .find(name)
                        .orElseThrow(() -> new IllegalArgumentException(library + " has no " + name));
                return Linker.nativeLinker()
                        .downcallHandle(symbol, FunctionDescriptor.of(INT, types.toArray(MemoryLayout[]::new)));
            } catch (IllegalArgumentException e) {
                missing = String.valueOf(e.getMessage());
            }
        }
        throw new MoeExecutionException(name + ": none of " + libraries + " can be loaded: " + missing);
    }
}
