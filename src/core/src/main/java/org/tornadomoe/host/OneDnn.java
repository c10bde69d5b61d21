package org.tornadomoe.host;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The part of oneDNN's C API, version 3, that int8 products need. Pointers are longs, so that a call allocates nothing.
 * The library is the one that {@value Arithmetic#ONEDNN} names, else the one for Linux on x86-64 in the jar {@code
 * org.bytedeco:dnnl} on the class path; the latter is unpacked to a temporary directory, opened and deleted.
 */
@SuppressWarnings("restricted") // this class exists for native calls
final class OneDnn {
    /** Why oneDNN isn't used, in human-readable form. */
    static final class RefusedException extends Exception {
        private static final long serialVersionUID = 1L;

        RefusedException(String reason) {
            super(reason);
        }
    }

    static final int S32 = 4;
    static final int S8 = 5;
    static final int U8 = 6;

    private static final int CPU = 1;
    private static final int IN_ORDER = 1;
    private static final int USER_SCRATCHPAD = 1;
    private static final int QUERY_NAME = 8;
    private static final int QUERY_SCRATCHPAD = 136;
    private static final int TAGS = 4096;
    private static final int MAX_DIMENSIONS = 12;

    private static final String RESOURCES = "org/bytedeco/dnnl/linux-x86_64/";
    private static final List<String> FILES = List.of("libgomp.so.1", "libdnnl.so.3");

    private static final Object LOADING = new Object();
    private static @Nullable SymbolLookup library;

    /** Linked once the library is open. */
    private static final class Functions {
        static final MethodHandle VERSION = link("dnnl_version", JAVA_LONG);
        static final MethodHandle ENGINE_CREATE = link("dnnl_engine_create", JAVA_INT, JAVA_LONG, JAVA_INT, JAVA_LONG);
        static final MethodHandle STREAM_CREATE = link("dnnl_stream_create", JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_INT);
        static final MethodHandle STREAM_DESTROY = link("dnnl_stream_destroy", JAVA_INT, JAVA_LONG);
        static final MethodHandle TAG_NAME = link("dnnl_fmt_tag2str", JAVA_LONG, JAVA_INT);
        static final MethodHandle DESC_STRIDES = link(
                "dnnl_memory_desc_create_with_strides", JAVA_INT, JAVA_LONG, JAVA_INT, JAVA_LONG, JAVA_INT, JAVA_LONG);
        static final MethodHandle DESC_TAG =
                link("dnnl_memory_desc_create_with_tag", JAVA_INT, JAVA_LONG, JAVA_INT, JAVA_LONG, JAVA_INT, JAVA_INT);
        static final MethodHandle DESC_SIZE = link("dnnl_memory_desc_get_size", JAVA_LONG, JAVA_LONG);
        static final MethodHandle DESC_DESTROY = link("dnnl_memory_desc_destroy", JAVA_INT, JAVA_LONG);
        static final MethodHandle ATTR_CREATE = link("dnnl_primitive_attr_create", JAVA_INT, JAVA_LONG);
        static final MethodHandle ATTR_SCRATCHPAD =
                link("dnnl_primitive_attr_set_scratchpad_mode", JAVA_INT, JAVA_LONG, JAVA_INT);
        static final MethodHandle ATTR_DESTROY = link("dnnl_primitive_attr_destroy", JAVA_INT, JAVA_LONG);
        static final MethodHandle MATMUL_CREATE = link(
                "dnnl_matmul_primitive_desc_create",
                JAVA_INT,
                JAVA_LONG,
                JAVA_LONG,
                JAVA_LONG,
                JAVA_LONG,
                JAVA_LONG,
                JAVA_LONG,
                JAVA_LONG);
        static final MethodHandle QUERY =
                link("dnnl_primitive_desc_query", JAVA_INT, JAVA_LONG, JAVA_INT, JAVA_INT, JAVA_LONG);
        static final MethodHandle QUERY_DESC =
                link("dnnl_primitive_desc_query_md", JAVA_LONG, JAVA_LONG, JAVA_INT, JAVA_INT);
        static final MethodHandle MATMUL_DESTROY = link("dnnl_primitive_desc_destroy", JAVA_INT, JAVA_LONG);
        static final MethodHandle PRIMITIVE_CREATE = link("dnnl_primitive_create", JAVA_INT, JAVA_LONG, JAVA_LONG);
        static final MethodHandle PRIMITIVE_DESTROY = link("dnnl_primitive_destroy", JAVA_INT, JAVA_LONG);
        static final MethodHandle MEMORY_CREATE =
                link("dnnl_memory_create", JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
        static final MethodHandle MEMORY_SET = link("dnnl_memory_set_data_handle", JAVA_INT, JAVA_LONG, JAVA_LONG);
        static final MethodHandle MEMORY_DESTROY = link("dnnl_memory_destroy", JAVA_INT, JAVA_LONG);
        static final MethodHandle EXECUTE =
                link("dnnl_primitive_execute", JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_INT, JAVA_LONG);
        static final MethodHandle OMP_SET_THREADS = link("omp_set_num_threads", null, JAVA_INT);
        static final MethodHandle OMP_THREADS = link("omp_get_max_threads", JAVA_INT);

        private static MethodHandle link(String name, @Nullable MemoryLayout result, MemoryLayout... arguments) {
            SymbolLookup in = library;
            MemorySegment function = in == null ? null : in.find(name).orElse(null);
            if (function == null) {
                throw new UnsatisfiedLinkError("it has no " + name);
            }
            return Linker.nativeLinker()
                    .downcallHandle(
                            function,
                            result == null
                                    ? FunctionDescriptor.ofVoid(arguments)
                                    : FunctionDescriptor.of(result, arguments));
        }
    }

    private final long engine;
    private final int weightsTag;
    private final int groupsTag;

    /** In human-readable form: {@code 3.13.0}. */
    final String version;

    private OneDnn() throws RefusedException {
        engine = created("engine", out -> (int) Functions.ENGINE_CREATE.invokeExact(out, CPU, 0L));
        try {
            MemorySegment numbers = at((long) Functions.VERSION.invokeExact(), 12);
            int major = numbers.getAtIndex(JAVA_INT, 0);
            version = major + "." + numbers.getAtIndex(JAVA_INT, 1) + "." + numbers.getAtIndex(JAVA_INT, 2);
            if (major != 3) {
                throw new RefusedException("expected oneDNN 3, got " + version);
            }
            weightsTag = tag("BA16a64b4a");
            groupsTag = tag("aCB16b64c4b");
        } catch (RefusedException refused) {
            throw refused;
        } catch (Throwable thrown) {
            throw unchecked(thrown);
        }
    }

    private static int tag(String name) throws Throwable {
        for (int tag = 0; tag < TAGS; tag++) {
            if (string((long) Functions.TAG_NAME.invokeExact(tag)).equals(name)) {
                return tag;
            }
        }
        throw new RefusedException("it has no layout " + name);
    }

    /** The library, opened by the first call. */
    static OneDnn open() throws RefusedException {
        if (!OneDnn.class.getModule().isNativeAccessEnabled()) {
            throw new RefusedException("native access is not enabled: start the JVM with --enable-native-access="
                    + (OneDnn.class.getModule().isNamed()
                            ? OneDnn.class.getModule().getName()
                            : "ALL-UNNAMED"));
        }
        synchronized (LOADING) {
            try {
                if (library == null) {
                    library = load();
                }
                return new OneDnn();
            } catch (IOException | IllegalArgumentException | LinkageError failure) {
                Throwable cause = failure instanceof ExceptionInInitializerError error && error.getCause() != null
                        ? error.getCause()
                        : failure;
                throw new RefusedException("the library does not open: " + cause.getMessage());
            }
        }
    }

    private static SymbolLookup load() throws IOException, RefusedException {
        String path = System.getProperty(Arithmetic.ONEDNN);
        if (path != null) {
            return SymbolLookup.libraryLookup(Path.of(path).toAbsolutePath(), Arena.global());
        }
        if (!System.getProperty("os.name").equals("Linux")
                || !System.getProperty("os.arch").equals("amd64")) {
            throw new RefusedException("expected Linux on x86-64, got " + System.getProperty("os.name") + " on "
                    + System.getProperty("os.arch"));
        }
        ClassLoader loader = OneDnn.class.getClassLoader();
        if (loader.getResource(RESOURCES + FILES.getLast()) == null) {
            throw new RefusedException("org.bytedeco:dnnl for linux-x86_64 is not on the class path");
        }
        Path directory = Files.createTempDirectory("tornado-moe-onednn");
        try {
            for (String file : FILES) {
                try (InputStream from = loader.getResourceAsStream(RESOURCES + file)) {
                    if (from != null) {
                        Files.copy(from, directory.resolve(file));
                    }
                }
            }
            return SymbolLookup.libraryLookup(directory.resolve(FILES.getLast()), Arena.global());
        } finally { // an opened library stays open
            for (String file : FILES) {
                Files.deleteIfExists(directory.resolve(file));
            }
            Files.delete(directory);
        }
    }

    /**
     * A memory descriptor of [groups, rows, cols], stored as [rows, groups, cols]; with one group, of a matrix [rows,
     * cols].
     */
    long matrix(int groups, int rows, int cols, int type) {
        try (Arena arena = Arena.ofConfined()) {
            int dimensions = groups == 1 ? 2 : 3;
            long skipped = (3L - dimensions) * Long.BYTES;
            long dims = longs(arena, groups, rows, cols) + skipped;
            long strides = longs(arena, cols, (long) groups * cols, 1) + skipped;
            return created(
                    "matrix", out -> (int) Functions.DESC_STRIDES.invokeExact(out, dimensions, dims, type, strides));
        }
    }

    /**
     * A memory descriptor of int8 weights [groups, cols, rows], stored as [groups, rows / 64, cols / 4, 64, 4]; with
     * one group, of a matrix.
     */
    long weights(int groups, int cols, int rows) {
        try (Arena arena = Arena.ofConfined()) {
            int dimensions = groups == 1 ? 2 : 3;
            int tag = groups == 1 ? weightsTag : groupsTag;
            long dims = longs(arena, groups, cols, rows) + (3L - dimensions) * Long.BYTES;
            return created("weights", out -> (int) Functions.DESC_TAG.invokeExact(out, dimensions, dims, S8, tag));
        }
    }

    void destroyDescription(long description) {
        destroy(Functions.DESC_DESTROY, description);
    }

    /**
     * A matrix product.
     *
     * @param primitive oneDNN's primitive, which runs on the calling thread only
     * @param name the implementation that oneDNN chose
     * @param scratchpad the temporary memory that a call needs
     */
    record Matmul(long primitive, String name, long scratchpad) {}

    /** Makes the product with these memory descriptors. */
    Matmul matmul(long source, long weights, long target) {
        long attributes = created("attributes", out -> (int) Functions.ATTR_CREATE.invokeExact(out));
        long matmul = 0;
        try {
            check("scratchpad", (int) Functions.ATTR_SCRATCHPAD.invokeExact(attributes, USER_SCRATCHPAD));
            long made = onOneThread(() -> created("matmul", out ->
                    (int) Functions.MATMUL_CREATE.invokeExact(out, engine, source, weights, 0L, target, attributes)));
            matmul = made;
            long name = created("name", out -> (int) Functions.QUERY.invokeExact(made, QUERY_NAME, 0, out));
            long scratchpad = (long) Functions.QUERY_DESC.invokeExact(made, QUERY_SCRATCHPAD, 0);
            long size = scratchpad == 0 ? 0 : (long) Functions.DESC_SIZE.invokeExact(scratchpad);
            long primitive = onOneThread(
                    () -> created("primitive", out -> (int) Functions.PRIMITIVE_CREATE.invokeExact(out, made)));
            return new Matmul(primitive, string(name), size);
        } catch (Throwable thrown) {
            throw unchecked(thrown);
        } finally {
            if (matmul != 0) {
                destroy(Functions.MATMUL_DESTROY, matmul);
            }
            destroy(Functions.ATTR_DESTROY, attributes);
        }
    }

    void destroyMatmul(Matmul matmul) {
        destroy(Functions.PRIMITIVE_DESTROY, matmul.primitive());
    }

    /** A memory object with that descriptor, without an address yet. */
    long memory(long description) {
        return created("memory", out -> (int) Functions.MEMORY_CREATE.invokeExact(out, description, engine, 0L));
    }

    void place(long memory, long address) {
        try {
            check("memory", (int) Functions.MEMORY_SET.invokeExact(memory, address));
        } catch (Throwable thrown) {
            throw unchecked(thrown);
        }
    }

    void destroyMemory(long memory) {
        destroy(Functions.MEMORY_DESTROY, memory);
    }

    long stream() {
        return created("stream", out -> (int) Functions.STREAM_CREATE.invokeExact(out, engine, IN_ORDER));
    }

    void destroyStream(long stream) {
        destroy(Functions.STREAM_DESTROY, stream);
    }

    /** Computes a product on this thread. */
    void execute(Matmul matmul, long stream, int count, long arguments) {
        try {
            int threads = (int) Functions.OMP_THREADS.invokeExact();
            Functions.OMP_SET_THREADS.invokeExact(1);
            int status = (int) Functions.EXECUTE.invokeExact(matmul.primitive(), stream, count, arguments);
            Functions.OMP_SET_THREADS.invokeExact(threads);
            check("execution", status);
        } catch (Throwable thrown) {
            throw unchecked(thrown);
        }
    }

    @FunctionalInterface
    private interface Making {
        long make() throws Throwable;
    }

    /** oneDNN reads the number of OpenMP threads when it makes a primitive, and later runs on that many. */
    private static long onOneThread(Making making) throws Throwable {
        int threads = (int) Functions.OMP_THREADS.invokeExact();
        Functions.OMP_SET_THREADS.invokeExact(1);
        try {
            return making.make();
        } finally {
            Functions.OMP_SET_THREADS.invokeExact(threads);
        }
    }

    @FunctionalInterface
    private interface Creator {
        /** Writes a pointer to {@code out}; returns the status. */
        int create(long out) throws Throwable;
    }

    private static long created(String what, Creator creator) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment out = arena.allocate(JAVA_LONG);
            check(what, creator.create(out.address()));
            return out.get(JAVA_LONG, 0);
        } catch (Throwable thrown) {
            throw unchecked(thrown);
        }
    }

    /**
     * The exception of a call, to rethrow. It is always unchecked, although method handles are declared to throw
     * anything.
     */
    private static RuntimeException unchecked(Throwable thrown) {
        return switch (thrown) {
            case RuntimeException failure -> failure;
            case Error error -> throw error;
            default -> throw new AssertionError(thrown);
        };
    }

    private static void check(String what, int status) {
        if (status != 0) {
            throw new IllegalStateException("oneDNN: " + what + ": status " + status);
        }
    }

    private static void destroy(MethodHandle function, long object) {
        try {
            int status = (int) function.invokeExact(object);
            check("destroying", status);
        } catch (Throwable thrown) {
            throw unchecked(thrown);
        }
    }

    private static long longs(Arena arena, long... values) {
        MemorySegment all = arena.allocate(JAVA_LONG, MAX_DIMENSIONS);
        MemorySegment.copy(values, 0, all, JAVA_LONG, 0, values.length);
        return all.address();
    }

    private static MemorySegment at(long address, long bytes) {
        return MemorySegment.ofAddress(address).reinterpret(bytes);
    }

    private static String string(long address) {
        return address == 0 ? "" : at(address, Long.MAX_VALUE).getString(0);
    }
}
