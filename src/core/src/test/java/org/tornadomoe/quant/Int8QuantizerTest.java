package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CancellationException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.Draw;
import org.tornadomoe.Draw.Property;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

class Int8QuantizerTest {
    private static final FusedMoeConfig SMALL = config(3, 21, 37);

    private static FusedMoeConfig config(int experts, int hidden, int intermediate) {
        return FusedMoeConfig.builder()
                .numExperts(experts)
                .expertsPerToken(1)
                .hiddenDim(hidden)
                .intermediateSize(intermediate)
                .build();
    }

    /** Weights in arrays: w13 [E, 2I, H], w2 [E, H, I]. */
    private record ArrayWeights(FusedMoeConfig config, float[] w13, float[] w2, RouterWeights router)
            implements ExpertWeights {
        static ArrayWeights random(FusedMoeConfig config, long seed) {
            Random random = new Random(seed);
            int e = config.numExperts();
            int h = config.hiddenDim();
            int i = config.intermediateSize();
            ArrayWeights weights = new ArrayWeights(
                    config, new float[e * 2 * i * h], new float[e * h * i], RouterWeights.of(new float[e * h]));
            for (float[] values : List.of(weights.w13, weights.w2, weights.router.weight())) {
                for (int n = 0; n < values.length; n++) {
                    values[n] = (float) random.nextGaussian();
                }
            }
            return weights;
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            int h = config.hiddenDim();
            System.arraycopy(w13, (expert * config.gateUpRows() + row) * h, into, 0, h);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            int i = config.intermediateSize();
            System.arraycopy(w2, (expert * config.hiddenDim() + row) * i, into, 0, i);
        }
    }

    @Property(tries = 20)
    void everyRowFollowsTheRule(Draw draw) {
        int experts = draw.between(1, 4);
        int hidden = draw.between(1, 40);
        int intermediate = draw.between(1, 40);
        long seed = draw.aLong();
        ArrayWeights weights = ArrayWeights.random(config(experts, hidden, intermediate), seed);
        try (Int8Experts quantized = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            assertRule(weights.w13, quantized.w13());
            assertRule(weights.w2, quantized.w2());
            assertThat(quantized.router().weight()).isEqualTo(weights.router.weight());
        }
    }

    private static void assertRule(float[] weights, Int8Tensor tensor) {
        int cols = tensor.cols();
        for (int r = 0; r < tensor.experts() * tensor.rows(); r++) {
            int expert = r / tensor.rows();
            int row = r % tensor.rows();
            float absMax = 1e-10f;
            for (int c = 0; c < cols; c++) {
                absMax = Math.max(absMax, Math.abs(weights[r * cols + c]));
            }
            float scale = absMax / 127f;
            assertThat(tensor.scale(expert, row)).isEqualTo(scale);
            byte[] values = new byte[cols];
            tensor.row(expert, row, values);
            for (int c = 0; c < cols; c++) {
                assertThat((double) tensor.get(expert, row, c)).isEqualTo(Math.rint(weights[r * cols + c] / scale));
                assertThat(values[c]).isEqualTo(tensor.get(expert, row, c));
            }
            long padding = (long) r * tensor.rowBytes();
            for (int c = cols; c < tensor.rowBytes(); c++) {
                assertThat(tensor.values().get(ValueLayout.JAVA_BYTE, padding + c))
                        .isZero();
            }
        }
    }

    @Test
    void halvesGoToEvenAndARowOfZerosIsFinite() {
        FusedMoeConfig config = config(1, 8, 1);
        float[] w13 = {127f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 0f, 0f, 0f, 0f, 0f, 0f, 0f, 0f, 0f};
        ArrayWeights weights = new ArrayWeights(config, w13, new float[8], RouterWeights.of(new float[8]));
        try (Int8Experts quantized = Int8Quantizer.quantize(weights, Int8Scheme.W8A16_CHANNEL, Progress.NONE)) {
            byte[] row = new byte[8];
            quantized.w13().row(0, 0, row);
            assertThat(row).containsExactly(127, 0, 2, 2, 0, -2, -2, 0);
            quantized.w13().row(0, 1, row);
            assertThat(row).containsOnly(0);
            assertThat(quantized.w13().scales()).containsExactly(1f, 1e-10f / 127f);
            assertThat(quantized.scheme()).isEqualTo(Int8Scheme.W8A16_CHANNEL);
        }
    }

    @Property(tries = 20)
    void everyWeightIsWithinHalfAStepOfItsScale(Draw draw) {
        int hidden = draw.between(1, 40);
        int intermediate = draw.between(1, 40);
        int rows = draw.between(1, 20);
        int cols = draw.between(1, 20);
        long seed = draw.aLong();
        ArrayWeights weights = ArrayWeights.random(config(2, hidden, intermediate), seed);
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, cols));
        for (Int8Quantization quantization : List.of(
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(rows, cols)),
                group,
                group.withZeroPoints(true))) {
            try (Int8Experts quantized = Int8Quantizer.quantize(weights, quantization, Progress.NONE)) {
                assertClose(weights.w13, quantized.w13());
                assertClose(weights.w2, quantized.w2());
                assertThat(quantized.scheme()).isEqualTo(quantization.scheme());
            }
        }
    }

    private static void assertClose(float[] weights, Int8Tensor tensor) {
        for (int i = 0; i < weights.length; i++) {
            int expert = i / (tensor.rows() * tensor.cols());
            int row = i / tensor.cols() % tensor.rows();
            int col = i % tensor.cols();
            double scale = tensor.scale(expert, row, col);
            double back = (tensor.get(expert, row, col) - tensor.zeroPoint(expert, row, col)) * scale;
            assertThat(Math.abs(back - weights[i])).as("%s %d", tensor, i).isLessThanOrEqualTo(scale * 0.5001);
        }
    }

    @Test
    void zeroPointsSpreadTheRange() {
        float[] w13 = {0f, 255f, 51f, 102f, -255f, 0f, -51f, -1f};
        ArrayWeights weights = new ArrayWeights(config(1, 4, 1), w13, new float[4], RouterWeights.of(new float[4]));
        Int8Quantization rows = Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                .withGrid(GroupShape.PER_TOKEN)
                .withZeroPoints(true);
        try (Int8Experts quantized = Int8Quantizer.quantize(weights, rows, Progress.NONE)) {
            byte[] row = new byte[4];
            quantized.w13().row(0, 0, row);
            assertThat(row).containsExactly(-128, 127, -77, -26);
            quantized.w13().row(0, 1, row);
            assertThat(row).containsExactly(-128, 127, 76, 126);
            assertThat(quantized.w13().zeroPoints()).containsExactly(-128, 127);
            assertThat(quantized.w13().scales()).containsExactly(1f, 1f);
            // A row of zeros is zeros.
            assertThat(quantized.w2().get(0, 0, 0) - quantized.w2().zeroPoint(0, 0, 0))
                    .isZero();
            assertThat(quantized.w2().scales()).containsOnly(1e-10f / 255f);
        }
    }

    @Test
    void gridsAndScalesThatDoNotFitTheSchemeAreRefused() {
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = Int8Tensor.allocate(arena, 3, 74, 21, 16, 8, false);
        Int8Tensor w2 = Int8Tensor.allocate(arena, 3, 21, 37, 16, 4, false);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Experts.builder(SMALL, Int8Scheme.W8A8_BLOCK, w13, w2, arena)
                        .build())
                .withMessageStartingWith("w2: expected a scale for 16 x 8 values");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Experts.builder(SMALL, Int8Scheme.W8A8_CHANNEL, w13, w2, arena)
                        .build())
                .withMessageStartingWith("w13: expected a scale for 1 x 21 values");
        Int8Tensor one13 = Int8Tensor.allocate(arena, 3, 74, 21, 74, 21, false);
        Int8Tensor one2 = Int8Tensor.allocate(arena, 3, 21, 37, 21, 37, false);
        Int8Experts.Builder tensor = Int8Experts.builder(SMALL, Int8Scheme.W8A8_TENSOR, one13, one2, arena);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> tensor.activationScales(1f, null).build())
                .withMessage("a1_scale and a2_scale must both be provided or both be None");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> tensor.activationScales(1f, 0f).build())
                .withMessage("a2Scale: expected a positive finite scale, got 0.0");
        assertThatIllegalStateException().isThrownBy(() -> one13.scale(0, 0)).withMessageContaining("74 x 21");
        tensor.activationScales(1f, 2f).build().close();
    }

    @Test
    void theLargestFloatsDoNotOverflow() {
        FusedMoeConfig config = config(1, 4, 1);
        float max = Float.MAX_VALUE;
        float[] w13 = {max, -max, max / 4, 0f, Float.MIN_VALUE, 0f, -1e-12f, 0f};
        ArrayWeights weights = new ArrayWeights(config, w13, new float[4], RouterWeights.of(new float[4]));
        try (Int8Experts quantized = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            byte[] row = new byte[4];
            quantized.w13().row(0, 0, row);
            assertThat(row).containsExactly(127, -127, 32, 0);
            quantized.w13().row(0, 1, row);
            assertThat(row).containsExactly(0, 0, -1, 0);
        }
    }

    @Test
    void progressCountsEveryRowOnceAndEndsAtTheTotal() {
        FusedMoeConfig config = config(5, 70, 90);
        List<Long> seen = new ArrayList<>();
        Progress progress = (done, total) -> {
            assertThat(total).isEqualTo(5 * (180 + 70));
            seen.add(done);
        };
        Int8Quantizer.quantize(ArrayWeights.random(config, 1), Int8Scheme.W8A8_CHANNEL, progress)
                .close();
        assertThat(seen).isSorted().doesNotHaveDuplicates().last().isEqualTo(1250L);
        assertThat(seen.getFirst()).as("a chunk of w13").isLessThanOrEqualTo(64);
    }

    @Test
    void theFirstBadWeightIsNamed() {
        ArrayWeights weights = ArrayWeights.random(config(4, 33, 100), 2);
        int h = 33;
        weights.w13[(2 * 200 + 105) * h + 7] = Float.NaN;
        weights.w13[(3 * 200 + 1) * h] = Float.NEGATIVE_INFINITY;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage("weight: expected finite values, got NaN at expert 2, up projection, row 5, column 7");
        weights.w13[(2 * 200 + 105) * h + 7] = 0;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage(
                        "weight: expected finite values, got -Infinity at expert 3, gate projection, row 1, column 0");
        weights.w13[(3 * 200 + 1) * h] = 0;
        weights.w2[100 * 33 - 1] = Float.POSITIVE_INFINITY;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage(
                        "weight: expected finite values, got Infinity at expert 0, down projection, row 32, column 99");
        weights.w2[100 * 33 - 1] = 0;
        weights.router.weight()[34] = Float.NaN;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage("router weight: expected finite values, got NaN at expert 1, column 1");
    }

    /** Weights that know their tensors. */
    private record Named(ArrayWeights weights) implements ExpertWeights {
        @Override
        public FusedMoeConfig config() {
            return weights.config;
        }

        @Override
        public RouterWeights router() {
            return weights.router;
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            weights.gateUpRow(expert, row, into);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            weights.downRow(expert, row, into);
        }

        @Override
        public String gateUpSource(int expert, int row) {
            return "file: tensor 'up." + expert + "'";
        }

        @Override
        public String downSource(int expert) {
            return "file: tensor 'down." + expert + "'";
        }
    }

    /** In groups with zero points and without, which are read differently. */
    @ParameterizedTest
    @CsvSource({"false", "true"})
    void theTensorOfABadWeightIsNamed(boolean zeroPoints) {
        ArrayWeights weights = ArrayWeights.random(config(2, 33, 100), 2);
        weights.w2[33 * 100 + 7] = Float.POSITIVE_INFINITY;
        Int8Quantization groups = Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                .withGrid(new GroupShape(1, 16))
                .withZeroPoints(zeroPoints);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(new Named(weights), groups, Progress.NONE))
                .withMessage("file: tensor 'down.1': expected finite values, got Infinity at expert 1, down projection,"
                        + " row 0, column 7");
        weights.w13[200 * 33 + 33 + 2] = Float.NaN;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(new Named(weights), groups, Progress.NONE))
                .withMessage("file: tensor 'up.1': expected finite values, got NaN at expert 1, gate projection, row 1,"
                        + " column 2");
    }

    @Test
    void aRouterThatDoesNotFitIsRefusedBeforeAnythingIsRead() {
        Counted counted = new Counted(new ArrayWeights(
                SMALL, new float[3 * 74 * 21], new float[3 * 21 * 37], RouterWeights.of(new float[5])));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(counted, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage("router weight: expected [3, 21] = 63 values, got 5");
        assertThat(counted.floats).hasValue(0);
    }

    @Test
    void aFailingListenerOrSourceEndsTheJobWithItsOwnException() {
        ArrayWeights weights = ArrayWeights.random(SMALL, 3);
        Progress failing = (done, total) -> {
            throw new UnsupportedOperationException("listener");
        };
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, failing))
                .withMessage("listener");
        ArrayWeights tooShort = new ArrayWeights(SMALL, weights.w13, new float[5], weights.router);
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> Int8Quantizer.quantize(tooShort, Int8Scheme.W8A8_CHANNEL, Progress.NONE));
    }

    @Test
    void aFailureHalfWayFreesEverything() {
        ArrayWeights weights = ArrayWeights.random(config(4, 33, 100), 8);
        weights.w2[weights.w2.length - 1] = Float.NaN;
        Arena arena = Arena.ofShared();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(
                        weights, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE, arena));
        assertThat(arena.scope().isAlive()).isFalse();
    }

    @Test
    void noThreadIsLeftBehind() {
        Int8Quantizer.quantize(
                        ArrayWeights.random(SMALL, 4),
                        Int8Scheme.W8A8_CHANNEL,
                        (done, total) -> Thread.currentThread().setName("quantizer under test"))
                .close();
        assertThat(Thread.getAllStackTraces().keySet())
                .extracting(Thread::getName)
                .doesNotContain("quantizer under test");
    }

    @Test
    void anInterruptCancelsAndStaysSet() {
        Thread.currentThread().interrupt();
        assertThatExceptionOfType(CancellationException.class)
                .isThrownBy(() -> Int8Quantizer.quantize(
                        ArrayWeights.random(config(64, 256, 256), 5), Int8Scheme.W8A8_CHANNEL, Progress.NONE));
        assertThat(Thread.interrupted()).isTrue();
    }

    @Test
    void closedWeightsSaySo() {
        Int8Experts experts =
                Int8Quantizer.quantize(ArrayWeights.random(SMALL, 6), Int8Scheme.W8A8_CHANNEL, Progress.NONE);
        Int8Tensor kept = experts.w13();
        experts.close();
        experts.close();
        assertThatIllegalStateException().isThrownBy(experts::w13).withMessage("the layer's int8 weights are closed");
        assertThatIllegalStateException().isThrownBy(experts::w2);
        assertThatIllegalStateException().isThrownBy(() -> kept.get(0, 0, 0));
    }

    @Test
    void theSizeInMemoryIsTheValuesScalesAndRouter() {
        try (Int8Experts experts =
                Int8Quantizer.quantize(ArrayWeights.random(SMALL, 7), Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            long w13 = 3 * 74 * 32;
            long w2 = 3 * 21 * 48;
            assertThat(experts.bytes()).isEqualTo(w13 + w2 + 4 * (3 * 74 + 3 * 21 + 3 * 21));
            assertThat(experts.w13().values().byteSize()).isEqualTo(w13);
            assertThat(experts.w13().values().address() % 64).isZero();
        }
    }

    @Test
    void tensorsThatDoNotFitTheLayerAreRefused() {
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor w13 = Int8Tensor.allocate(arena, 3, 74, 21);
            Int8Tensor w2 = Int8Tensor.allocate(arena, 3, 21, 37);
            assertThatIllegalArgumentException()
                    .isThrownBy(
                            () -> Int8Experts.of(SMALL, Int8Scheme.W8A8_CHANNEL, w2, w13, RouterWeights.NONE, arena))
                    .withMessage("w13: expected [3, 74, 21], got Int8Tensor[3, 21, 37]");
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8Experts.of(
                            SMALL, Int8Scheme.W8A8_CHANNEL, w13, w2, RouterWeights.of(new float[5]), arena))
                    .withMessage("router weight: expected [3, 21] = 63 values, got 5");
            try (Int8Experts experts =
                    Int8Experts.of(SMALL, Int8Scheme.W8A8_CHANNEL, w13, w2, RouterWeights.NONE, arena)) {
                assertThat(experts.hasRouter()).isFalse();
                assertThat(experts.router().hasWeight()).isFalse();
            }
            assertThat(arena.scope().isAlive()).isFalse();
        } catch (IllegalStateException alreadyClosedByTheExperts) {
            assertThat(alreadyClosedByTheExperts).hasMessageContaining("closed");
        }
    }

    @Test
    void aTensorChecksItsParts() {
        try (Arena arena = Arena.ofConfined()) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8Tensor.allocate(arena, 1, 0, 4))
                    .withMessageContaining("[1, 0, 4]");
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8Tensor.allocate(arena, 1 << 16, 1 << 16, 4))
                    .withMessageContaining("fewer than 2^31 rows");
            MemorySegment tooShort = arena.allocate(8);
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> new Int8Tensor(1, 1, 1, tooShort, new float[1]))
                    .withMessage("values: expected 16 bytes for [1, 1, 1], got 8");
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> new Int8Tensor(1, 1, 1, arena.allocate(16), new float[2]))
                    .withMessage("scales: expected 1 values for [1, 1, 1], got 2");
            Int8Tensor tensor = Int8Tensor.allocate(arena, 2, 3, 4);
            assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> tensor.get(2, 0, 0));
            assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> tensor.get(0, 3, 0));
            assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> tensor.get(0, 0, 4));
        }
    }

    /** Or weights would stay zero. */
    @Test
    void aThreadThatCanNotBeginIsAFailure() {
        OutOfMemoryError full = new OutOfMemoryError("no room for a band");
        assertThatExceptionOfType(OutOfMemoryError.class)
                .isThrownBy(() -> Int8Quantizer.inParallel(
                        10,
                        2,
                        () -> {
                            throw full;
                        },
                        _ -> {}))
                .isSameAs(full);
    }

    /** After each chunk that a thread takes, also the last, which may be shorter. */
    @ParameterizedTest
    @CsvSource({"4, 2, '2,4'", "5, 2, '2,4,5'", "2, 3, 2"})
    void progressIsToldOnceAChunk(int bands, int chunk, String expected) {
        List<Long> told = new ArrayList<>();
        Int8Quantizer.inParallel(bands, chunk, () -> _ -> 1, told::add);
        assertThat(told)
                .isEqualTo(Stream.of(expected.split(",")).map(Long::valueOf).toList());
    }

    @Test
    void moreMemoryThanThereIsSaysHowMuchItWas() {
        try (Arena arena = Arena.ofConfined()) {
            assertThatExceptionOfType(OutOfMemoryError.class)
                    .isThrownBy(() -> Int8Tensor.allocate(arena, 64, 1024, Integer.MAX_VALUE - 64))
                    .withMessageContaining(
                            "int8 tensor [64, 1024, 2147483583] needs 140737484161024 bytes off the heap");
        }
    }

    /** Weights in codes with a scale for each 64 columns of 32 rows: read as floats, and by their codes. */
    private record Coded(FusedMoeConfig config, byte[] codes, float[] scales, boolean told) implements ExpertWeights {
        static final float[] VALUES = new float[256];

        static {
            for (int code = 0; code < 128; code++) {
                VALUES[code] = code == 127 ? Float.NaN : code / 8 * code * 0.25f;
                VALUES[code + 128] = -VALUES[code];
            }
        }

        private int at(int expert, int row, boolean down) {
            int h = config.hiddenDim();
            int i = config.intermediateSize();
            int all = config.numExperts();
            return down ? all * 2 * i * h + (expert * h + row) * i : (expert * 2 * i + row) * h;
        }

        private float scale(int row, int col) {
            return scales[(row / 32 * 7 + col / 64) % scales.length];
        }

        private void row(int expert, int row, float[] into, boolean down) {
            int at = at(expert, row, down);
            for (int c = 0; c < into.length; c++) {
                into[c] = VALUES[codes[at + c] & 0xff] * scale(row, c);
            }
        }

        private float @Nullable [] codes(
                int expert, int row, int colsPerScale, byte[] into, float[] intoScales, boolean down) {
            if (!told || 64 % colsPerScale != 0) {
                return null;
            }
            System.arraycopy(codes, at(expert, row, down), into, 0, into.length);
            for (int n = 0; n * colsPerScale < into.length; n++) {
                intoScales[n] = scale(row, n * colsPerScale);
            }
            return VALUES;
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            row(expert, row, into, false);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            row(expert, row, into, true);
        }

        @Override
        public float @Nullable [] gateUpCodes(int expert, int row, int per, byte[] into, float[] intoScales) {
            return codes(expert, row, per, into, intoScales, false);
        }

        @Override
        public float @Nullable [] downCodes(int expert, int row, int per, byte[] into, float[] intoScales) {
            return codes(expert, row, per, into, intoScales, true);
        }

        @Override
        public RouterWeights router() {
            return RouterWeights.NONE;
        }
    }

    /** Blocks as large as the stored ones, smaller, larger than them in rows, and rows that are too short for it. */
    @ParameterizedTest
    @CsvSource({"32, 64", "32, 32", "16, 64", "48, 64", "96, 16", "1, 64", "32, 128"})
    void codesGiveTheBitsOfTheirFloats(int blockRows, int blockCols) {
        FusedMoeConfig config = config(2, 203, 96);
        Random random = new Random(5);
        byte[] codes = new byte[2 * 3 * 203 * 96];
        random.nextBytes(codes);
        for (int i = 0; i < codes.length; i++) {
            codes[i] = (codes[i] & 0x7f) > 100 ? (byte) (codes[i] & 0x83) : codes[i]; // most blocks' greatest differ
            codes[i] = i % 1231 == 0 ? 126 : codes[i];
        }
        float[] scales = {1, 0.1f, 3e-3f, 0, 1.7e30f, 1e-38f, 0.7f, -0.3f, 11, 5e-20f, 0.037f};
        Int8Quantization quantization =
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(blockRows, blockCols));
        List<Long> rows = new ArrayList<>();
        try (Int8Experts floats =
                        Int8Quantizer.quantize(new Coded(config, codes, scales, false), quantization, Progress.NONE);
                Int8Experts coded = Int8Quantizer.quantize(
                        new Coded(config, codes, scales, true), quantization, (done, _) -> rows.add(done))) {
            assertThat(rows.getLast()).isEqualTo(2 * (2 * 96 + 203));
            for (boolean down : List.of(false, true)) {
                Int8Tensor expected = down ? floats.w2() : floats.w13();
                Int8Tensor actual = down ? coded.w2() : coded.w13();
                assertThat(actual.scales()).isEqualTo(expected.scales());
                assertThat(actual.values().mismatch(expected.values())).isEqualTo(-1);
            }
        }
    }

    /** Weights in whole numbers with a scale and a least value a group: read as floats, and by their numbers. */
    private record Numbered(
            FusedMoeConfig config, byte[] numbers, int group, float[] scales, float[] mins, boolean told)
            implements ExpertWeights {
        private int at(int expert, int row, boolean down) {
            int h = config.hiddenDim();
            int i = config.intermediateSize();
            return expert * 3 * h * i + (down ? 2 * h * i + row * i : row * h);
        }

        private void row(int at, int cols, float[] into) {
            for (int c = 0; c < cols; c++) {
                int g = (at + c) / group;
                into[c] = numbers[at + c] * scales[g % scales.length] - mins[g % mins.length];
            }
        }

        private boolean numbers(int at, int cols, int per, byte[] into, float[] intoScales, float[] intoMins) {
            if (!told || per != group) {
                return false;
            }
            System.arraycopy(numbers, at, into, 0, cols);
            for (int g = 0; g < cols / group; g++) {
                intoScales[g] = scales[(at / group + g) % scales.length];
                intoMins[g] = mins[(at / group + g) % mins.length];
            }
            return true;
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            row(at(expert, row, false), config.hiddenDim(), into);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            row(at(expert, row, true), config.intermediateSize(), into);
        }

        @Override
        public boolean gateUpNumbers(int expert, int row, int per, byte[] into, float[] scales, float[] mins) {
            return numbers(at(expert, row, false), config.hiddenDim(), per, into, scales, mins);
        }

        @Override
        public boolean downNumbers(int expert, int row, int per, byte[] into, float[] scales, float[] mins) {
            return numbers(at(expert, row, true), config.intermediateSize(), per, into, scales, mins);
        }

        @Override
        public RouterWeights router() {
            return RouterWeights.NONE;
        }
    }

    /** Numbers of 2, 4 and 5 bits, scales of any sign and size; groups that are asked for in other sizes, too. */
    @ParameterizedTest
    @CsvSource({
        "3, 16, 16",
        "15, 32, 32",
        "31, 32, 32",
        "31, 16, 16",
        "15, 32, 16",
        "15, 32, 64",
        "4, 32, 32",
        "16, 16, 16"
    })
    void numbersGiveTheBitsOfTheirFloats(int most, int group, int asked) {
        FusedMoeConfig config = config(2, 224, 96);
        Random random = new Random(most + group);
        byte[] numbers = new byte[2 * 3 * 224 * 96];
        for (int i = 0; i < numbers.length; i++) {
            int range = 1 + i / group % (most + 1); // some groups have few of the numbers
            numbers[i] = (byte) (most - random.nextInt(range));
        }
        float[] scales = new float[1009];
        float[] mins = new float[1013];
        for (int i = 0; i < scales.length; i++) {
            scales[i] = (float) Math.scalb(random.nextGaussian(), random.nextInt(-8, 3));
            mins[i] = i % 5 == 0 ? scales[i] * random.nextInt(most + 1) : random.nextFloat(-1, 8);
        }
        System.arraycopy(new float[] {0, -0f, 1e-30f, 1e36f, Float.MIN_VALUE, -3, 1e-11f}, 0, scales, 0, 7);
        System.arraycopy(new float[] {0, 0, 0, 0, -0f, 1e-12f, 3e38f}, 0, mins, 0, 7);
        Int8Quantization quantization =
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, asked));
        Numbered floats = new Numbered(config, numbers, group, scales, mins, false);
        Numbered told = new Numbered(config, numbers, group, scales, mins, true);
        try (Int8Experts expected = Int8Quantizer.quantize(floats, quantization, Progress.NONE);
                Int8Experts actual = Int8Quantizer.quantize(told, quantization, Progress.NONE)) {
            assertThat(actual.w13().scales()).isEqualTo(expected.w13().scales());
            assertThat(actual.w2().scales()).isEqualTo(expected.w2().scales());
            assertThat(actual.w13().values().mismatch(expected.w13().values())).isEqualTo(-1);
            assertThat(actual.w2().values().mismatch(expected.w2().values())).isEqualTo(-1);
        }
    }

    @Test
    void numbersWhoseValuesAreTooLargeAreRefusedAsFloatsAre() {
        FusedMoeConfig config = config(2, 224, 96);
        byte[] numbers = new byte[2 * 3 * 224 * 96];
        numbers[40] = 31;
        for (boolean told : List.of(false, true)) {
            Numbered weights = new Numbered(config, numbers, 32, new float[] {3e37f}, new float[] {-3e38f}, told);
            Int8Quantization quantization =
                    Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 32));
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8Quantizer.quantize(weights, quantization, Progress.NONE))
                    .withMessage("weight: expected finite values, got Infinity at expert 0, " + config.gateUpRow(0)
                            + ", column 40");
        }
    }

    @Test
    void numbersMayStandForTheLargestFloat() {
        FusedMoeConfig config = config(2, 224, 96);
        byte[] numbers = new byte[2 * 3 * 224 * 96];
        numbers[40] = 1;
        Numbered weights = new Numbered(config, numbers, 32, new float[] {Float.MAX_VALUE}, new float[] {0}, true);
        Int8Quantization quantization =
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 32));
        assumeTrue(ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent());
        Counted counted = new Counted(weights);
        try (Int8Experts experts = Int8Quantizer.quantize(counted, quantization, Progress.NONE)) {
            assertThat(experts.w13().get(0, 0, 40)).isEqualTo((byte) 127);
            assertThat(experts.w13().scale(0, 0, 40)).isEqualTo(Float.MAX_VALUE / 127);
        }
        assertThat(counted.floats).hasValue(0);
    }

    @Test
    void codesThatStandForNoNumberAreRefusedAsFloatsAre() {
        FusedMoeConfig config = config(2, 200, 96);
        byte[] codes = new byte[2 * 3 * 200 * 96];
        codes[200 * 96 + 5] = -1;
        Int8Quantization quantization =
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(32, 64));
        for (float[] scales : List.of(new float[] {1}, new float[] {0})) {
            for (boolean told : List.of(false, true)) {
                assertThatIllegalArgumentException()
                        .isThrownBy(() -> Int8Quantizer.quantize(
                                new Coded(config, codes, scales, told), quantization, Progress.NONE))
                        .withMessage("weight: expected finite values, got NaN at expert 0, " + config.gateUpRow(96)
                                + ", column 5");
            }
        }
    }

    /** As a matrix outside the experts. */
    private record Rows(int rows, int cols, float[] values) implements WeightRows {
        @Override
        public void row(int row, float[] into) {
            System.arraycopy(values, row * cols, into, 0, cols);
        }

        @Override
        public String source() {
            return "a file, tensor 'm'";
        }
    }

    @ParameterizedTest
    @CsvSource({"1, 16", "1, 32", "3, 16", "70, 48"})
    void oneMatrixFollowsTheRule(int rows, int group) {
        int cols = 48;
        float[] values = new float[rows * cols];
        Random random = new Random(group);
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) random.nextGaussian();
        }
        Int8Quantization groups = Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, group));
        try (Arena arena = Arena.ofShared()) {
            Rows matrix = new Rows(rows, cols, values);
            Int8Tensor whole = Int8Quantizer.quantize(matrix, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), arena);
            assertThat(whole).hasToString("Int8Tensor[1, " + rows + ", 48]");
            assertRule(values, whole);
            assertClose(values, Int8Quantizer.quantize(matrix, groups, arena));
        }
    }

    @Test
    void aWeightOfOneMatrixThatIsNotFiniteIsNamed() {
        float[] values = new float[6 * 8];
        values[5 * 8 + 3] = Float.NEGATIVE_INFINITY;
        try (Arena arena = Arena.ofShared()) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8Quantizer.quantize(
                            new Rows(6, 8, values), Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), arena))
                    .withMessage(
                            "a file, tensor 'm': expected finite values, got -Infinity at expert 0, row 5, column 3");
        }
    }

    /** Weights of a mapped file that may be changed: then numbers are worth nothing, and a page may be gone. */
    private record Changed(ArrayWeights weights, boolean cut) implements ExpertWeights {
        @Override
        public FusedMoeConfig config() {
            return weights.config;
        }

        @Override
        public RouterWeights router() {
            return weights.router;
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            if (cut) {
                throw new InternalError("a fault occurred in an unsafe memory access operation");
            }
            weights.gateUpRow(expert, row, into);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            weights.downRow(expert, row, into);
        }

        @Override
        public void requireUnchanged() {
            throw new IllegalStateException("the file was changed");
        }
    }

    @ParameterizedTest
    @CsvSource({"false", "true"})
    void weightsOfAFileThatWasChangedAreRefused(boolean cut) {
        Changed changed = new Changed(ArrayWeights.random(SMALL, 8), cut);
        Arena arena = Arena.ofShared();
        assertThatIllegalStateException()
                .isThrownBy(() -> Int8Quantizer.quantize(
                        changed, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE, arena))
                .withMessage("the file was changed");
        assertThat(arena.scope().isAlive()).isFalse();
    }

    @Test
    void anErrorAgainstAFileThatWasChangedIsNone() {
        ArrayWeights weights = ArrayWeights.random(SMALL, 9);
        try (Int8Experts quantized = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            assertThat(quantized.relativeL2(weights)).isBetween(1e-3, 1e-2);
            assertThatIllegalStateException()
                    .isThrownBy(() -> quantized.relativeL2(new Changed(weights, false)))
                    .withMessage("the file was changed");
        }
    }

    /** Counts the rows of gate and up that are read as floats. */
    private record Counted(ExpertWeights weights, AtomicInteger floats) implements ExpertWeights {
        Counted(ExpertWeights weights) {
            this(weights, new AtomicInteger());
        }

        @Override
        public FusedMoeConfig config() {
            return weights.config();
        }

        @Override
        public RouterWeights router() {
            return weights.router();
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            floats.incrementAndGet();
            weights.gateUpRow(expert, row, into);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            weights.downRow(expert, row, into);
        }

        @Override
        public float @Nullable [] gateUpCodes(int expert, int row, int per, byte[] into, float[] intoScales) {
            return weights.gateUpCodes(expert, row, per, into, intoScales);
        }

        @Override
        public boolean gateUpNumbers(int expert, int row, int per, byte[] into, float[] scales, float[] mins) {
            return weights.gateUpNumbers(expert, row, per, into, scales, mins);
        }
    }

    private static int floatsRead(ExpertWeights weights, Int8Quantization quantization) {
        Counted counted = new Counted(weights);
        Int8Quantizer.quantize(counted, quantization, Progress.NONE).close();
        return counted.floats.get();
    }

    /** Rows that share scales are kept, and read a second time where they are too many. */
    @ParameterizedTest
    @CsvSource({"256, 1", "257, 2"})
    void rowsAreReadOnceIfTheyCanBeKept(int intermediate, int times) {
        ArrayWeights weights = ArrayWeights.random(config(2, 1024, intermediate), 10);
        assertThat(floatsRead(weights, Int8Quantization.of(Int8Scheme.W8A8_TENSOR)))
                .isEqualTo(times * 2 * 2 * intermediate);
    }

    /** A table for the codes of a scale pays from 1024 values on that share it. */
    @ParameterizedTest
    @CsvSource({"32, 32, 0", "16, 64, 0", "15, 64, 384", "31, 32, 384", "32, 128, 384"})
    void codesAreNotDecoded(int blockRows, int blockCols, int floats) {
        byte[] codes = new byte[2 * 3 * 200 * 96];
        new Random(6).nextBytes(codes);
        for (int i = 0; i < codes.length; i++) {
            codes[i] &= (byte) 0x83;
        }
        Coded coded = new Coded(config(2, 200, 96), codes, new float[] {1, 0.1f}, true);
        assertThat(floatsRead(
                        coded,
                        Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(blockRows, blockCols))))
                .isEqualTo(floats);
    }

    @ParameterizedTest
    @CsvSource({"16, false, 0", "32, false, 0", "48, false, 384", "32, true, 384"})
    void numbersAreNotDecoded(int group, boolean zeroPoints, int floats) {
        assumeTrue(ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent());
        int hidden = 192;
        byte[] numbers = new byte[2 * 3 * hidden * 96];
        Arrays.fill(numbers, (byte) 3);
        Numbered numbered =
                new Numbered(config(2, hidden, 96), numbers, group, new float[] {1, 0.1f}, new float[] {0.5f}, true);
        assertThat(floatsRead(
                        numbered,
                        Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                                .withGrid(new GroupShape(1, group))
                                .withZeroPoints(zeroPoints)))
                .isEqualTo(floats);
    }
}
