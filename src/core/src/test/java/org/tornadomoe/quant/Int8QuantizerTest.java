package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.tornadomoe.quant.SmallWeights.config;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CancellationException;
import java.util.stream.Stream;
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

    @Property(tries = 20)
    void everyRowFollowsTheRule(Draw draw) {
        int experts = draw.between(1, 4);
        int hidden = draw.between(1, 40);
        int intermediate = draw.between(1, 40);
        long seed = draw.aLong();
        SmallWeights weights = SmallWeights.random(config(experts, hidden, intermediate), seed);
        try (Int8Experts quantized = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            assertRule(weights.w13(), quantized.w13());
            assertRule(weights.w2(), quantized.w2());
            assertThat(quantized.router().weight()).isEqualTo(weights.router().weight());
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
        SmallWeights weights = new SmallWeights(config, w13, new float[8], RouterWeights.of(new float[8]));
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
        SmallWeights weights = SmallWeights.random(config(2, hidden, intermediate), seed);
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, cols));
        for (Int8Quantization quantization : List.of(
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(rows, cols)),
                group,
                group.withZeroPoints(true))) {
            try (Int8Experts quantized = Int8Quantizer.quantize(weights, quantization, Progress.NONE)) {
                assertClose(weights.w13(), quantized.w13());
                assertClose(weights.w2(), quantized.w2());
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
        SmallWeights weights = new SmallWeights(config(1, 4, 1), w13, new float[4], RouterWeights.of(new float[4]));
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
        SmallWeights weights = new SmallWeights(config, w13, new float[4], RouterWeights.of(new float[4]));
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
        Int8Quantizer.quantize(SmallWeights.random(config, 1), Int8Scheme.W8A8_CHANNEL, progress)
                .close();
        assertThat(seen).isSorted().doesNotHaveDuplicates().last().isEqualTo(1250L);
        assertThat(seen.getFirst()).as("a chunk of w13").isLessThanOrEqualTo(64);
    }

    @Test
    void theFirstBadWeightIsNamed() {
        SmallWeights weights = SmallWeights.random(config(4, 33, 100), 2);
        int h = 33;
        weights.w13()[(2 * 200 + 105) * h + 7] = Float.NaN;
        weights.w13()[(3 * 200 + 1) * h] = Float.NEGATIVE_INFINITY;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage("weight: expected finite values, got NaN at expert 2, up projection, row 5, column 7");
        weights.w13()[(2 * 200 + 105) * h + 7] = 0;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage(
                        "weight: expected finite values, got -Infinity at expert 3, gate projection, row 1, column 0");
        weights.w13()[(3 * 200 + 1) * h] = 0;
        weights.w2()[100 * 33 - 1] = Float.POSITIVE_INFINITY;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage(
                        "weight: expected finite values, got Infinity at expert 0, down projection, row 32, column 99");
        weights.w2()[100 * 33 - 1] = 0;
        weights.router().weight()[34] = Float.NaN;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage("router weight: expected finite values, got NaN at expert 1, column 1");
    }

    /** Weights that know their tensors. */
    private record Named(SmallWeights weights) implements ExpertWeights {
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
        SmallWeights weights = SmallWeights.random(config(2, 33, 100), 2);
        weights.w2()[33 * 100 + 7] = Float.POSITIVE_INFINITY;
        Int8Quantization groups = Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                .withGrid(new GroupShape(1, 16))
                .withZeroPoints(zeroPoints);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(new Named(weights), groups, Progress.NONE))
                .withMessage("file: tensor 'down.1': expected finite values, got Infinity at expert 1, down projection,"
                        + " row 0, column 7");
        weights.w13()[200 * 33 + 33 + 2] = Float.NaN;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(new Named(weights), groups, Progress.NONE))
                .withMessage("file: tensor 'up.1': expected finite values, got NaN at expert 1, gate projection, row 1,"
                        + " column 2");
    }

    @Test
    void aRouterThatDoesNotFitIsRefusedBeforeAnythingIsRead() {
        StoredNumbersTest.Counted counted = new StoredNumbersTest.Counted(new SmallWeights(
                SMALL, new float[3 * 74 * 21], new float[3 * 21 * 37], RouterWeights.of(new float[5])));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(counted, Int8Scheme.W8A8_CHANNEL, Progress.NONE))
                .withMessage("router weight: expected [3, 21] = 63 values, got 5");
        assertThat(counted.floats()).hasValue(0);
    }

    @Test
    void aFailingListenerOrSourceEndsTheJobWithItsOwnException() {
        SmallWeights weights = SmallWeights.random(SMALL, 3);
        Progress failing = (done, total) -> {
            throw new UnsupportedOperationException("listener");
        };
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(() -> Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, failing))
                .withMessage("listener");
        SmallWeights tooShort = new SmallWeights(SMALL, weights.w13(), new float[5], weights.router());
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> Int8Quantizer.quantize(tooShort, Int8Scheme.W8A8_CHANNEL, Progress.NONE));
    }

    @Test
    void aFailureHalfWayFreesEverything() {
        SmallWeights weights = SmallWeights.random(config(4, 33, 100), 8);
        weights.w2()[weights.w2().length - 1] = Float.NaN;
        Arena arena = Arena.ofShared();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Quantizer.quantize(
                        weights, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE, arena));
        assertThat(arena.scope().isAlive()).isFalse();
    }

    @Test
    void noThreadIsLeftBehind() {
        Int8Quantizer.quantize(
                        SmallWeights.random(SMALL, 4),
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
                        SmallWeights.random(config(64, 256, 256), 5), Int8Scheme.W8A8_CHANNEL, Progress.NONE));
        assertThat(Thread.interrupted()).isTrue();
    }

    @Test
    void closedWeightsSaySo() {
        Int8Experts experts =
                Int8Quantizer.quantize(SmallWeights.random(SMALL, 6), Int8Scheme.W8A8_CHANNEL, Progress.NONE);
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
                Int8Quantizer.quantize(SmallWeights.random(SMALL, 7), Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
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
}
