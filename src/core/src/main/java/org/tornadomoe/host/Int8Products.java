package org.tornadomoe.host;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;

/**
 * Products of int8 weights and activations, exact in int32: blocks of {@value Arithmetic#ROWS} rows times up to {@value
 * #TOKENS} tokens, with one sum per group of columns; of few tokens by Java's loops, of more by oneDNN. Activations are
 * shifted by {@value #SHIFT} to unsigned values, because the processor's instructions need that; the caller subtracts
 * {@value #SHIFT} times the sums of weights. Thread-safe except {@link #close}. It holds some kilobytes of native
 * memory for each thread that multiplies, until it is closed.
 */
public final class Int8Products implements AutoCloseable {
    /** The maximum number of tokens at once; a caller's activations need as many rows more than it asks for. */
    public static final int TOKENS = 64;

    /**
     * Consecutive blocks with one group that one call multiplies, to save the overhead of a call. All groups of a block
     * are one call anyway.
     */
    public static final int WIDE = 4;

    /** The offset added to activations. */
    public static final int SHIFT = 128;

    /** Columns are padded to a multiple of this, with zero weights. */
    public static final int COLUMNS = 64;

    /** The maximum number of columns whose products, 255 · 128 each, fit an int. */
    static final int MOST_COLUMNS = (Integer.MAX_VALUE / (255 * 128)) / COLUMNS * COLUMNS;

    /** The number of sizes, in tokens per call: powers of 2 up to 64. */
    private static final int SIZES = 7;

    /** Until the JVM has compiled Java's loops, oneDNN multiplies few tokens, too; each so many'th time tries them. */
    private static final int TRY_EVERY = 8;

    private static final int TRY_COLUMNS = 16;

    /** A trial of compiled loops takes about a microsecond, of others a hundred or more. */
    private static final long COMPILED_NANOS = 10_000;

    /** The trials that have to be as quick. */
    private static final int QUICK_TRIALS = 8;

    private static final AtomicInteger TRIALS = new AtomicInteger();
    private static final AtomicInteger QUICK = new AtomicInteger();

    /**
     * Whether the processor is AMD's. Zen 4 reads memory faster in the order of Java's loops than in oneDNN's, an Intel
     * Xeon in oneDNN's.
     */
    private static final boolean AMD = isAmd();

    private static final long LINE = 64;
    private static final long PAGE = 4096;

    private static final int SOURCE = 1;
    private static final int TARGET = 17;
    private static final int WEIGHTS = 33;
    private static final int SCRATCHPAD = 80;

    private static final Set<List<Integer>> CHECKED = new HashSet<>();

    private final OneDnn library;
    private final Arithmetic java;
    private final int cols;
    private final int groups;
    private final int stride;
    private final int few;
    private final List<Long> descriptions = new ArrayList<>();
    private final List<Shaped> matmuls = new ArrayList<>();
    private final Map<Scratch, Place> places = new ConcurrentHashMap<>();

    /**
     * Prepares products for a number of columns.
     *
     * @param java multiplies few tokens
     * @param cols columns per group, a multiple of {@value #COLUMNS}
     * @param anyhow whether to accept oneDNN's reference loops
     * @throws OneDnn.RefusedException if oneDNN has no fast implementation for them, or one that isn't exact
     */
    Int8Products(OneDnn library, Arithmetic java, int cols, int groups, boolean anyhow) throws OneDnn.RefusedException {
        this.library = library;
        this.java = java;
        this.cols = cols;
        this.groups = groups;
        stride = groups * cols;
        if (cols > MOST_COLUMNS) {
            throw new OneDnn.RefusedException("expected at most " + MOST_COLUMNS + " columns, got " + cols);
        }
        try {
            addMatmuls(1);
            if (groups == 1) {
                addMatmuls(WIDE);
            }
            if (!anyhow && !name().startsWith("brg")) {
                throw new OneDnn.RefusedException(
                        "this processor has no int8 instructions that oneDNN would use; it has " + name());
            }
            few = AMD || groups > 1 ? java.productTokens() : 0; // each group is an overhead in oneDNN
            check();
        } catch (RuntimeException | Error | OneDnn.RefusedException failure) {
            close();
            throw failure;
        }
    }

    private static boolean isAmd() {
        try (Stream<String> lines = Files.lines(Path.of("/proc/cpuinfo"))) {
            return lines.anyMatch(line -> line.startsWith("vendor_id") && line.endsWith("AuthenticAMD"));
        } catch (IOException | UncheckedIOException unknown) {
            return false;
        }
    }

    private void addMatmuls(int blocks) {
        int rows = blocks * Arithmetic.ROWS;
        long weights = description(library.weights(groups, cols, rows));
        for (int size = 0; size < SIZES; size++) {
            long source = description(library.matrix(groups, 1 << size, cols, OneDnn.U8));
            long target = description(library.matrix(groups, 1 << size, rows, OneDnn.S32));
            matmuls.add(new Shaped(library.matmul(source, weights, target), source, weights, target));
        }
    }

    /** A matmul primitive and the memory descriptors of its inputs and output. */
    private record Shaped(OneDnn.Matmul matmul, long source, long weights, long target) {}

    /** The implementation that oneDNN chose for many tokens: {@code brg_matmul:avx512_core_vnni}. */
    String name() {
        return matmuls.get(SIZES - 1).matmul().name();
    }

    /** Whether {@value #WIDE} blocks can be multiplied at once. */
    public boolean isWide() {
        return matmuls.size() > SIZES;
    }

    private long description(long made) {
        descriptions.add(made);
        return made;
    }

    /** The index of a value in a block of weights. */
    public static long index(int row, int col) {
        return (col / 4 * Arithmetic.ROWS + row) * 4L + col % 4;
    }

    /**
     * Multiplies consecutive blocks of weights by some tokens. {@code s.products} receives [t, block, group, r] int32,
     * the sum over c of a[from + t · stride + c] · w[at + {@link #index}(r, c)], for each further group the columns
     * continue, and for each further block w continues.
     *
     * @param w int8, in native memory
     * @param blocks 1 or, where {@link #isWide}, {@value #WIDE}
     * @param shifts [block, group, r] from {@code first} on: {@value #SHIFT} times the sums of w
     * @param a unsigned, in native memory, with {@value #TOKENS} rows of all groups' columns from {@code from} on
     * @param tokens 1 to {@value #TOKENS}
     */
    public void multiply(
            MemorySegment w,
            long at,
            int blocks,
            int[] shifts,
            int first,
            MemorySegment a,
            long from,
            int tokens,
            Scratch s) {
        Objects.checkFromIndexSize(at, (long) blocks * stride * Arithmetic.ROWS, w.byteSize());
        Objects.checkFromIndexSize(from, (long) TOKENS * stride, a.byteSize());
        s.requireProducts(4L * TOKENS * blocks * groups * Arithmetic.ROWS);
        if (tokens <= few && isCompiled()) {
            java.products(w, at, blocks, cols, groups, shifts, first, a, from, tokens, s);
            return;
        }
        if (tokens <= few && TRIALS.incrementAndGet() % TRY_EVERY == 0) {
            tryJava(w, at, shifts, first, a, from, s);
        }
        multiplyByLibrary(w, at, blocks, a, from, tokens, s);
    }

    /** Whether Java's loops multiply few tokens by now. */
    static boolean isCompiled() {
        return QUICK.get() >= QUICK_TRIALS;
    }

    /** Computes a small part of a block. */
    private void tryJava(MemorySegment w, long at, int[] shifts, int first, MemorySegment a, long from, Scratch s) {
        long begin = System.nanoTime();
        for (int tokens = 1; tokens <= few; tokens++) {
            java.products(w, at, 1, TRY_COLUMNS, 1, shifts, first, a, from, tokens, s);
        }
        if (System.nanoTime() - begin < COMPILED_NANOS) {
            QUICK.incrementAndGet();
        }
    }

    private void multiplyByLibrary(
            MemorySegment w, long at, int blocks, MemorySegment a, long from, int tokens, Scratch s) {
        Place place = places.get(s);
        if (place == null) {
            place = new Place();
            places.put(s, place);
        }
        long sums = 4L * blocks * groups * Arithmetic.ROWS; // bytes per token
        int first = blocks == 1 ? 0 : SIZES;
        for (int t = 0; t < tokens; ) {
            int size = size(tokens - t);
            long source = a.address() + from + (long) t * stride;
            place.multiply(first + size, source, w.address() + at, s.products.address() + t * sums);
            t += 1 << size;
        }
    }

    /** The next power of 2, or the one before if more than a fifth of the next would be wasted. */
    private static int size(int tokens) {
        int size = Integer.SIZE - Integer.numberOfLeadingZeros(tokens - 1);
        return 4 << size <= 5 * tokens ? size : size - 1;
    }

    /** A thread's arguments for oneDNN: one memory object of each kind for every size. */
    private final class Place {
        private static final int ARGUMENTS = 4;

        private final Arena arena = Arena.ofShared();
        private final long stream = library.stream();
        private final long[] memories = new long[matmuls.size() * ARGUMENTS];
        private final long[] arguments = new long[matmuls.size()];

        Place() {
            long most = LINE;
            for (Shaped shaped : matmuls) {
                most = Math.max(most, shaped.matmul().scratchpad());
            }
            long ofAll = arena.allocate(most, PAGE).address();
            for (int m = 0; m < matmuls.size(); m++) {
                Shaped shaped = matmuls.get(m);
                long bytes = Math.max(LINE, shaped.matmul().scratchpad());
                long scratchpad = library.matrix(1, 1, Math.toIntExact(bytes), OneDnn.U8);
                int[] numbers = {SOURCE, WEIGHTS, TARGET, SCRATCHPAD};
                long[] of = {shaped.source(), shaped.weights(), shaped.target(), scratchpad};
                MemorySegment list = arena.allocate(16L * ARGUMENTS, 16);
                for (int n = 0; n < ARGUMENTS; n++) {
                    memories[m * ARGUMENTS + n] = library.memory(of[n]);
                    list.set(JAVA_INT, 16L * n, numbers[n]);
                    list.set(JAVA_LONG, 16L * n + 8, memories[m * ARGUMENTS + n]);
                }
                library.destroyDescription(scratchpad);
                library.place(memories[m * ARGUMENTS + 3], ofAll);
                arguments[m] = list.address();
            }
        }

        void multiply(int m, long source, long weights, long into) {
            library.place(memories[m * ARGUMENTS], source);
            library.place(memories[m * ARGUMENTS + 1], weights);
            library.place(memories[m * ARGUMENTS + 2], into);
            library.execute(matmuls.get(m).matmul(), stream, ARGUMENTS, arguments[m]);
        }

        void close() {
            for (long memory : memories) {
                library.destroyMemory(memory);
            }
            library.destroyStream(stream);
            arena.close();
        }
    }

    /** Checks every size against scalar sums, including the largest and the smallest possible; once for each shape. */
    private void check() throws OneDnn.RefusedException {
        synchronized (CHECKED) {
            List<Integer> shape = List.of(cols, groups);
            if (CHECKED.contains(shape)) {
                return;
            }
            SplittableRandom random = new SplittableRandom(cols);
            byte[] w = new byte[(isWide() ? WIDE : 1) * Arithmetic.ROWS * stride];
            byte[] a = new byte[TOKENS * stride];
            random.nextBytes(w);
            random.nextBytes(a);
            for (int c = 0; c < stride; c++) {
                w[(int) index(0, c)] = -128;
                w[(int) index(1, c)] = 127;
                w[(int) index(2, c)] = (byte) (c / 2 % 2 == 0 ? 127 : -128);
                a[c] = (byte) 255;
                a[stride + c] = (byte) (c % 4 / 2 * 255);
            }
            Scratch scratch = new Scratch();
            try (Arena arena = Arena.ofConfined()) {
                MemorySegment weights = arena.allocate(w.length, 64);
                MemorySegment activations = arena.allocate(a.length, 64);
                MemorySegment.copy(w, 0, weights, JAVA_BYTE, 0, w.length);
                MemorySegment.copy(a, 0, activations, JAVA_BYTE, 0, a.length);
                for (int blocks = 1; blocks <= (isWide() ? WIDE : 1); blocks += WIDE - 1) {
                    int[] exact = exact(w, blocks, a);
                    scratch.requireProducts(4L * exact.length);
                    for (int size = 0; size < SIZES; size++) {
                        multiplyByLibrary(weights, 0, blocks, activations, 0, 1 << size, scratch);
                        compare(scratch.products, exact, (blocks * groups * Arithmetic.ROWS) << size, size);
                    }
                }
                CHECKED.add(shape);
            } finally {
                Place place = places.remove(scratch);
                if (place != null) {
                    place.close();
                }
            }
        }
    }

    private void compare(MemorySegment products, int[] exact, int count, int size) throws OneDnn.RefusedException {
        for (int v = 0; v < count; v++) {
            int product = products.getAtIndex(JAVA_INT, v);
            if (product != exact[v]) {
                throw new OneDnn.RefusedException("it does not compute exactly: " + name() + ", " + cols + " columns, "
                        + (1 << size) + " tokens: expected " + exact[v] + ", got " + product);
            }
        }
    }

    private int[] exact(byte[] w, int blocks, byte[] a) {
        int parts = blocks * groups; // 1 for a single group and block
        int[] sums = new int[TOKENS * parts * Arithmetic.ROWS];
        for (int v = 0; v < TOKENS * parts; v++) {
            for (int c = 0; c < cols; c++) {
                int x = a[v / parts * stride + v % groups * cols + c] & 0xff;
                int at = v % parts * Arithmetic.ROWS * cols + (int) index(0, c);
                for (int r = 0; r < Arithmetic.ROWS; r++) {
                    sums[v * Arithmetic.ROWS + r] += x * w[at + 4 * r];
                }
            }
        }
        return sums;
    }

    /** Frees the native memory; no thread may be multiplying. */
    @Override
    public void close() {
        places.values().forEach(Place::close);
        places.clear();
        matmuls.forEach(shaped -> library.destroyMatmul(shaped.matmul()));
        matmuls.clear();
        descriptions.forEach(library::destroyDescription);
        descriptions.clear();
    }
}
