package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.junit.jupiter.api.Assumptions.assumeTrue;
import static org.tornadomoe.quant.SmallWeights.config;

import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.atomic.AtomicInteger;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/** Weights that come in codes or in whole numbers, which are quantised without decoding, and from files that change. */
class StoredNumbersTest {
    private static final FusedMoeConfig SMALL = config(3, 21, 37);

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

    /** Weights of a mapped file that may be changed: then numbers are worth nothing, and a page may be gone. */
    private record Changed(SmallWeights weights, boolean cut) implements ExpertWeights {
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
        Changed changed = new Changed(SmallWeights.random(SMALL, 8), cut);
        Arena arena = Arena.ofShared();
        assertThatIllegalStateException()
                .isThrownBy(() -> Int8Quantizer.quantize(
                        changed, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE, arena))
                .withMessage("the file was changed");
        assertThat(arena.scope().isAlive()).isFalse();
    }

    @Test
    void anErrorAgainstAFileThatWasChangedIsNone() {
        SmallWeights weights = SmallWeights.random(SMALL, 9);
        try (Int8Experts quantized = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            assertThat(quantized.relativeL2(weights)).isBetween(1e-3, 1e-2);
            assertThatIllegalStateException()
                    .isThrownBy(() -> quantized.relativeL2(new Changed(weights, false)))
                    .withMessage("the file was changed");
        }
    }

    /** Counts the rows of gate and up that are read as floats. */
    record Counted(ExpertWeights weights, AtomicInteger floats) implements ExpertWeights {
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
        SmallWeights weights = SmallWeights.random(config(2, 1024, intermediate), 10);
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
