package org.tornadomoe.tornado;

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
import org.tornadomoe.modular.MoeExecutionException;

/**
 * What is called of NVIDIA's driver ({@code libcuda}) and run-time compiler ({@code libnvrtc}), both of which TornadoVM's CUDA backend
 * has loaded already. Every call that fails is a {@link MoeExecutionException} with the driver's name for the error. Thread-safe.
 */
@SuppressWarnings("restricted") // native calls are what it is for
final class CudaDriver {
    private static final int COMPUTE_CAPABILITY_MAJOR = 75;
    private static final int MULTIPROCESSORS = 16;
    private static final int FUNC_MAX_DYNAMIC_SHARED_SIZE = 8;
    private static final AddressLayout POINTER = ValueLayout.ADDRESS;
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT;
    private static final Map<String, MethodHandle> FUNCTIONS = new ConcurrentHashMap<>();

    /** Compiled kernels by their options and source: the same are wanted for every layer. */
    private static final Map<List<String>, byte[]> BINARIES = new ConcurrentHashMap<>();

    private CudaDriver() {}

    /** The major number of a device's compute capability: 9 for Hopper. */
    static int computeCapability(int device) {
        return attribute(device, COMPUTE_CAPABILITY_MAJOR);
    }

    static int multiprocessors(int device) {
        return attribute(device, MULTIPROCESSORS);
    }

    private static int attribute(int device, int attribute) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment value = arena.allocate(INT);
            cu("cuDeviceGetAttribute", List.of(POINTER, INT, INT), value, attribute, device);
            return value.get(INT, 0);
        }
    }

    /** The device of the calling thread's context. */
    static int currentDevice() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment value = arena.allocate(INT);
            cu("cuCtxGetDevice", List.of(POINTER), value);
            return value.get(INT, 0);
        }
    }

    static void setContext(long context) {
        cu("cuCtxSetCurrent", List.of(POINTER), MemorySegment.ofAddress(context));
    }

    /** Loads a module into the calling thread's context. */
    static long loadModule(byte[] binary) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment module = arena.allocate(POINTER);
            MemorySegment image = arena.allocateFrom(ValueLayout.JAVA_BYTE, binary);
            cu("cuModuleLoadData", List.of(POINTER, POINTER), module, image);
            return module.get(POINTER, 0).address();
        }
    }

    static void unloadModule(long module) {
        cu("cuModuleUnload", List.of(POINTER), MemorySegment.ofAddress(module));
    }

    /** A kernel of a module, with so much dynamic shared memory allowed. */
    static long function(long module, String name, int sharedBytes) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment function = arena.allocate(POINTER);
            cu(
                    "cuModuleGetFunction",
                    List.of(POINTER, POINTER, POINTER),
                    function,
                    MemorySegment.ofAddress(module),
                    arena.allocateFrom(name));
            MemorySegment found = function.get(POINTER, 0);
            if (sharedBytes > 0) {
                cu("cuFuncSetAttribute", List.of(POINTER, INT, INT), found, FUNC_MAX_DYNAMIC_SHARED_SIZE, sharedBytes);
            }
            return found.address();
        }
    }

    /**
     * Puts a kernel on a stream.
     *
     * @param parameters pointers to its parameters' values
     */
    static void launch(
            long function, int gridX, int gridY, int block, int sharedBytes, long stream, MemorySegment parameters) {
        cu(
                "cuLaunchKernel",
                List.of(POINTER, INT, INT, INT, INT, INT, INT, INT, POINTER, POINTER, POINTER),
                MemorySegment.ofAddress(function),
                gridX,
                gridY,
                1,
                block,
                1,
                1,
                sharedBytes,
                MemorySegment.ofAddress(stream),
                parameters,
                MemorySegment.NULL);
    }

    /** CUDA C to machine code. */
    static byte[] compile(String source, List<String> options) {
        return BINARIES.computeIfAbsent(
                Stream.concat(options.stream(), Stream.of(source)).toList(), key -> compileAnew(source, options));
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
                nvrtc("nvrtcDestroyProgram", List.of(POINTER), slot);
            }
        }
    }

    /** What a function of the compiler's writes, of the size that its twin tells. */
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
        int result = call(name, types, arguments);
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
