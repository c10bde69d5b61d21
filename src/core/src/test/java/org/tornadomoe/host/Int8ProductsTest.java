package org.tornadomoe.host;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.sun.management.ThreadMXBean;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Objects;
import java.util.Scanner;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** oneDNN's products, where its library is on the class path or named; on any processor, by plain loops if need be. */
@Tag("hot")
class Int8ProductsTest {
    private static final int COLS = 64;
    private static final int GROUPS = 3;
    private static final int STRIDE = GROUPS * COLS;
    private static final int[] NO_SHIFTS = new int[GROUPS * Arithmetic.ROWS];

    private final Arena arena = Arena.ofConfined();
    private final MemorySegment w = arena.allocate(2L * Arithmetic.ROWS * STRIDE, 64);
    private final MemorySegment a = arena.allocate(3L * Int8Products.TOKENS * STRIDE, 64);
    private Arithmetic arithmetic = new ScalarArithmetic();

    @BeforeEach
    void open() {
        boolean there = System.getProperty(Arithmetic.ONEDNN) != null
                || (Int8Products.class.getResource("/org/bytedeco/dnnl/linux-x86_64/libdnnl.so.3") != null
                        && System.getProperty("os.name").equals("Linux")
                        && System.getProperty("os.arch").equals("amd64"));
        assumeTrue(there, "oneDNN's library is not on the class path");
        arithmetic = Arithmetic.find("onednn");
        SplittableRandom random = new SplittableRandom(3);
        for (MemorySegment memory : new MemorySegment[] {w, a}) {
            for (long i = 0; i < memory.byteSize(); i++) {
                memory.set(JAVA_BYTE, i, (byte) random.nextInt());
            }
        }
    }

    @AfterEach
    void close() {
        arena.close();
    }

    private Int8Products products() {
        return Objects.requireNonNull(arithmetic.products(COLS, GROUPS));
    }

    @Test
    void everyNumberOfTokensIsExact() {
        Scratch scratch = new Scratch();
        try (Int8Products products = products()) {
            for (int tokens = 1; tokens <= Int8Products.TOKENS; tokens++) {
                long at = tokens % 2 * (long) Arithmetic.ROWS * STRIDE;
                long from = tokens * (long) STRIDE;
                products.multiply(w, at, 1, shifts(w, at, 1, COLS, GROUPS), 0, a, from, tokens, scratch);
                int[] expected = new int[tokens * GROUPS * Arithmetic.ROWS];
                for (int v = 0; v < expected.length; v++) {
                    int t = v / Arithmetic.ROWS / GROUPS;
                    int group = v / Arithmetic.ROWS % GROUPS;
                    expected[v] = product(
                            from + (long) t * STRIDE, w, at, v % Arithmetic.ROWS, group * COLS, (group + 1) * COLS);
                }
                assertThat(sums(scratch, expected.length))
                        .as("%d tokens, [token, group, row]", tokens)
                        .isEqualTo(expected);
            }
        }
    }

    @Test
    void fewTokensAreExactBeforeTheJvmHasCompiledItsLoopsAndAfter() {
        Scratch scratch = new Scratch();
        int[] shifts = shifts(w, 0, 1, COLS, GROUPS);
        int[] expected = new int[2 * GROUPS * Arithmetic.ROWS];
        for (int v = 0; v < expected.length; v++) {
            int group = v / Arithmetic.ROWS % GROUPS;
            long token = (long) v / Arithmetic.ROWS / GROUPS * STRIDE;
            expected[v] = product(token, w, 0, v % Arithmetic.ROWS, group * COLS, (group + 1) * COLS);
        }
        try (Int8Products products = products()) {
            for (int after = 0, call = 0; after < 4 && call < 1_000_000; call++) {
                after += Int8Products.isCompiled() ? 1 : 0;
                int tokens = 2 - call % 2;
                products.multiply(w, 0, 1, shifts, 0, a, 0, tokens, scratch);
                int count = tokens * GROUPS * Arithmetic.ROWS;
                if (after > 0 || call % 100 < 2) {
                    assertThat(sums(scratch, count)).as("call %d", call).isEqualTo(Arrays.copyOf(expected, count));
                }
            }
        }
    }

    /** Of blocks of weights: [block, group, row]. */
    private static int[] shifts(MemorySegment weights, long at, int blocks, int cols, int groups) {
        int[] shifts = new int[blocks * groups * Arithmetic.ROWS];
        for (int v = 0; v < shifts.length; v++) {
            long part = at + (long) v / Arithmetic.ROWS * cols * Arithmetic.ROWS;
            for (int c = 0; c < cols; c++) {
                shifts[v] +=
                        Int8Products.SHIFT * weights.get(JAVA_BYTE, part + Int8Products.index(v % Arithmetic.ROWS, c));
            }
        }
        return shifts;
    }

    private static int[] sums(Scratch scratch, int count) {
        return scratch.products.asSlice(0, 4L * count).toArray(JAVA_INT);
    }

    /** Columns [from, to) of a token's values, unsigned, and of a row of the weights that begin there. */
    private int product(long token, MemorySegment weights, long at, int row, int from, int to) {
        int sum = 0;
        for (int c = from; c < to; c++) {
            sum += (a.get(JAVA_BYTE, token + c) & 0xff) * weights.get(JAVA_BYTE, at + Int8Products.index(row, c));
        }
        return sum;
    }

    @Test
    void severalBlocksAtOnceAreExact() {
        Scratch scratch = new Scratch();
        int cols = 128;
        MemorySegment blocks = arena.allocate(5L * Arithmetic.ROWS * cols, 64);
        for (long i = 0; i < blocks.byteSize(); i++) {
            blocks.set(JAVA_BYTE, i, (byte) (i * 31 + i / 64));
        }
        try (Int8Products products = Objects.requireNonNull(arithmetic.products(cols, 1))) {
            assertThat(products.isWide()).isTrue();
            for (int tokens = 1; tokens <= Int8Products.TOKENS; tokens++) {
                long at = (long) Arithmetic.ROWS * cols;
                int[] shifts = shifts(blocks, at, Int8Products.WIDE, cols, 1);
                products.multiply(blocks, at, Int8Products.WIDE, shifts, 0, a, cols, tokens, scratch);
                int[] expected = new int[Int8Products.WIDE * tokens * Arithmetic.ROWS];
                for (int v = 0; v < expected.length; v++) {
                    int block = v / Arithmetic.ROWS % Int8Products.WIDE;
                    int t = v / Arithmetic.ROWS / Int8Products.WIDE;
                    expected[v] = product((1L + t) * cols, blocks, at * (1 + block), v % Arithmetic.ROWS, 0, cols);
                }
                assertThat(sums(scratch, expected.length))
                        .as("%d tokens, [token, block, row]", tokens)
                        .isEqualTo(expected);
            }
        }
        try (Int8Products products = products()) {
            assertThat(products.isWide()).isFalse();
        }
    }

    @Test
    void nothingIsAllocatedAndNoThreadIsStarted() throws IOException {
        Scratch scratch = new Scratch();
        ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
        try (Int8Products products = products()) {
            long before = nativeThreads();
            for (int tokens = 1; tokens <= 8; tokens++) {
                products.multiply(w, 0, 1, NO_SHIFTS, 0, a, 0, tokens, scratch);
            }
            long least = Long.MAX_VALUE; // that is after the JVM has compiled it
            for (int round = 0; round < 11 && least / 100 >= 64; round++) {
                long allocated = threads.getCurrentThreadAllocatedBytes();
                for (int call = 0; call < 100; call++) {
                    products.multiply(w, 0, 1, NO_SHIFTS, 0, a, 0, 5, scratch);
                }
                least = Math.min(least, threads.getCurrentThreadAllocatedBytes() - allocated);
            }
            assertThat(least / 100).isLessThan(64);
            assertThat(nativeThreads()).isLessThanOrEqualTo(before + 1); // a compiler's of the JVM may come
        }
    }

    private static long nativeThreads() throws IOException {
        try (Stream<Path> tasks = Files.list(Path.of("/proc/self/task"))) {
            return tasks.count();
        }
    }

    @Test
    void whatLiesOutsideIsRefused() {
        Scratch scratch = new Scratch();
        try (Int8Products products = products()) {
            assertThatThrownBy(() -> products.multiply(w, w.byteSize() - 64, 1, NO_SHIFTS, 0, a, 0, 1, scratch))
                    .isInstanceOf(IndexOutOfBoundsException.class);
            assertThatThrownBy(() -> products.multiply(w, 0, 1, NO_SHIFTS, 0, a, a.byteSize() - 64, 1, scratch))
                    .isInstanceOf(IndexOutOfBoundsException.class);
        }
    }

    @Test
    void moreColumnsThanAnIntHoldsAreRefused() {
        assertThat(arithmetic.products(Int8Products.MOST_COLUMNS + Int8Products.COLUMNS, 1))
                .isNull();
    }

    /** Layers come and go: what they held is given back. What else the process comes to hold, it does once. */
    @Test
    void nativeMemoryIsGivenBack() throws IOException {
        Scratch[] threads = Stream.generate(Scratch::new).limit(64).toArray(Scratch[]::new);
        long least = Long.MAX_VALUE;
        for (int round = 0; round < 12 && least >= 3L << 20; round++) {
            long before = resident();
            for (int layer = 0; layer < 20; layer++) {
                try (Int8Products products = products()) {
                    for (Scratch thread : threads) {
                        products.multiply(w, 0, 1, NO_SHIFTS, 0, a, 0, 5, thread);
                    }
                }
            }
            least = Math.min(least, resident() - before);
        }
        // What a round's 20 layers of 64 threads hold is 20 * 64 pages and more.
        assertThat(least).isLessThan(3L << 20);
    }

    private static long resident() throws IOException {
        try (Scanner pages = new Scanner(Path.of("/proc/self/statm"), StandardCharsets.UTF_8)) {
            pages.nextLong();
            return pages.nextLong() * 4096;
        }
    }
}
