package org.tornadomoe.tornado.layout;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.quant.UnreadValues;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Weights that are packed from where they are stored are, bit for bit, those that are packed from memory. */
class UnreadWeightsTest {
    private static final Path STORED = Path.of("src/test/resources/golden/stored");
    private static final List<Integer> GATES =
            List.of(ActivationKernels.NO_GATE, ActivationKernels.HALVES, ActivationKernels.ALTERNATING);

    private static List<WeightLayout> layouts() {
        return List.of(
                new HopperWeights(),
                new MmaWeights(false),
                new MmaWeights(true),
                new FragmentWeights(false),
                new FragmentWeights(true),
                new PanelWeights(),
                new RowWeights(),
                new TiledWeights(),
                new AmdWeights(false),
                new AmdWeights(true));
    }

    private static Stream<Path> stored() throws IOException {
        try (Stream<Path> all = Files.list(STORED)) {
            return all.sorted().toList().stream();
        }
    }

    private static byte[] packed(WeightLayout layout, Int8Tensor from, int gate) {
        long ints = layout.ints(from.experts(), from.rows(), from.cols(), gate);
        IntArray into = new IntArray(Math.toIntExact(layout.weightPad() + ints));
        into.init(0);
        layout.pack(from, gate, into);
        return into.getSegment().toArray(ValueLayout.JAVA_BYTE);
    }

    /** Packs both in each order, whole and in parts. */
    private static void assertAlike(Int8Tensor unread, Int8Tensor loaded, int gate) {
        for (WeightLayout layout : layouts()) {
            assertThat(packed(layout, unread, gate)).as(layout + " " + loaded).isEqualTo(packed(layout, loaded, gate));
            int half = Math.max(1, loaded.experts() / 2);
            Int8Tensor part = unread.experts(loaded.experts() - half, half);
            assertThat(packed(layout, part, gate))
                    .isEqualTo(packed(layout, loaded.experts(loaded.experts() - half, half), gate));
        }
    }

    /** A tensor with random values and scales. */
    private static Int8Tensor random(SplittableRandom random, Arena arena) {
        int rows = 2 * random.nextInt(1, 150);
        int cols = random.nextInt(1, 300);
        Int8Tensor tensor = Int8Tensor.allocate(
                arena, random.nextInt(1, 6), rows, cols, 1, random.nextInt(1, cols + 1), random.nextBoolean());
        byte[] row = new byte[cols];
        for (int r = 0; r < tensor.experts() * rows; r++) {
            random.nextBytes(row);
            tensor.setRow(r / rows, r % rows, row, 0);
        }
        for (int i = 0; i < tensor.scales().length; i++) {
            tensor.scales()[i] = random.nextFloat();
        }
        return tensor;
    }

    /** The same whose values are read from another, and how often each expert was. */
    private static Int8Tensor unread(Int8Tensor stored, Arena arena, AtomicLong experts) {
        return new Int8Tensor(
                        stored.experts(),
                        stored.rows(),
                        stored.cols(),
                        stored.rowsPerScale(),
                        stored.colsPerScale(),
                        arena.allocate(stored.values().byteSize(), 64),
                        stored.scales(),
                        stored.zeroPoints())
                .unread(new UnreadValues.Source() {
                    @Override
                    public void read(int expert, Int8Tensor into) {
                        experts.incrementAndGet();
                        byte[] values = new byte[stored.cols()];
                        for (int row = 0; row < stored.rows(); row++) {
                            stored.row(expert, row, values);
                            into.setRow(0, row, values, 0);
                        }
                    }

                    @Override
                    public void row(int expert, int row, byte[] into, int at) {
                        stored.row(expert, row, into, at);
                    }
                });
    }

    @Test
    void everyOrderOfEverySize() {
        SplittableRandom random = new SplittableRandom(20);
        for (int i = 0; i < 40; i++) {
            try (Arena arena = Arena.ofShared()) {
                Int8Tensor loaded = random(random, arena);
                Int8Tensor unread = unread(loaded, arena, new AtomicLong());
                assertAlike(unread, loaded, GATES.get(i % GATES.size()));
                assertThat(unread.isUnread()).isTrue();
                assertThat(unread.values().toArray(ValueLayout.JAVA_BYTE))
                        .isEqualTo(loaded.values().toArray(ValueLayout.JAVA_BYTE));
                assertThat(unread.isUnread()).isFalse();
                assertAlike(unread, loaded, GATES.get(i % GATES.size()));
            }
        }
    }

    @Test
    void isReadOnceAndNotAfterTheArenaIsClosed() {
        AtomicLong experts = new AtomicLong();
        Int8Tensor unread;
        Int8Tensor part;
        byte[] row;
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor loaded = random(new SplittableRandom(3), arena);
            row = new byte[loaded.cols()];
            Int8Tensor other = unread(loaded, arena, experts);
            other.values();
            other.values();
            assertThat(experts).hasValue(loaded.experts());
            unread = unread(loaded, arena, experts);
            unread.row(loaded.experts() - 1, 1, row);
            byte[] expected = new byte[row.length];
            loaded.row(loaded.experts() - 1, 1, expected);
            assertThat(row).isEqualTo(expected);
            part = unread.experts(0, 1);
        }
        assertThatIllegalStateException().isThrownBy(() -> unread.row(0, 0, row));
        assertThatIllegalStateException().isThrownBy(() -> part.row(0, 0, row));
        assertThatIllegalStateException().isThrownBy(unread::values);
    }

    /** What a source throws is thrown, and nothing is read from then on that was freed. */
    @Test
    void aSourceThatFails() {
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor loaded = random(new SplittableRandom(4), arena);
            Int8Tensor unread = Int8Tensor.allocate(arena, 3, loaded.rows(), loaded.cols())
                    .unread(new UnreadValues.Source() {
                        @Override
                        public void read(int expert, Int8Tensor into) {
                            throw new IllegalArgumentException("expert " + expert);
                        }

                        @Override
                        public void row(int expert, int row, byte[] into, int at) {}
                    });
            for (WeightLayout layout : layouts()) {
                assertThatExceptionOfType(IllegalArgumentException.class)
                        .isThrownBy(() -> packed(layout, unread, ActivationKernels.NO_GATE))
                        .withMessageContaining("expert ");
            }
        }
    }

    /** From files: what is opened is packed as what is loaded, and progress is told to the end, once. */
    @ParameterizedTest
    @MethodSource("stored")
    void everyFormatThatIsStoredAsInt8(Path directory) {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            ExpertWeights weights = checkpoint.layer(checkpoint.moeLayers().getFirst());
            Int8Quantization quantization = weights.quantization();
            long[] last = new long[2];
            Progress progress = (done, total) -> {
                assertThat(done).isGreaterThan(last[0]).isLessThanOrEqualTo(total);
                last[0] = done;
                last[1] = total;
            };
            try (Int8Experts opened = QuantizedWeights.opened(weights, quantization, progress);
                    Int8Experts loaded = QuantizedWeights.int8(weights, quantization, Progress.NONE)) {
                boolean exact = weights instanceof QuantizedWeights stored && stored.isExact();
                assertThat(opened.w13().isUnread()).isEqualTo(exact);
                int gate = weights.config().activation().isInterleaved()
                        ? ActivationKernels.ALTERNATING
                        : ActivationKernels.HALVES;
                byte[] expected = new byte[loaded.w13().cols()];
                byte[] row = new byte[expected.length];
                for (int r = 0; r < loaded.w13().rows(); r++) {
                    loaded.w13().row(0, r, expected);
                    opened.w13().row(0, r, row);
                    assertThat(row).isEqualTo(expected);
                }
                assertAlike(opened.w13(), loaded.w13(), gate);
                assertAlike(opened.w2(), loaded.w2(), ActivationKernels.NO_GATE);
                assertThat(opened.w13().scales()).isEqualTo(loaded.w13().scales());
                assertThat(Arrays.equals(opened.w2().zeroPoints(), loaded.w2().zeroPoints()))
                        .isTrue();
                opened.requireUnchanged();
                assertThat(last[0]).isPositive().isEqualTo(last[1]);
            }
        }
    }
}
