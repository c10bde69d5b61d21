package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.RouterWeights;

/** What a program meets first: weights in arrays, texts of what it holds, hidden states that are no numbers. */
class FrontDoorTest {
    private static final int E = 4;
    private static final int H = 32;
    private static final int I = 16;

    private static final RandomLayer RANDOM = RandomLayer.of(E, 2, H, I, 8, 3);

    private static final MoeOptions CPU = MoeOptions.DEFAULT.withBackend("cpu").withMaxTokens(8);

    private static float[] rows(int rows, int cols, RowReader reader) {
        float[] values = new float[E * rows * cols];
        float[] row = new float[cols];
        for (int e = 0; e < E; e++) {
            for (int r = 0; r < rows; r++) {
                reader.read(e, r, row);
                System.arraycopy(row, 0, values, (e * rows + r) * cols, cols);
            }
        }
        return values;
    }

    private interface RowReader {
        void read(int expert, int row, float[] into);
    }

    private static ExpertWeights inArrays() {
        return ExpertWeights.of(
                RANDOM.config(), RANDOM.router(), rows(2 * I, H, RANDOM::gateUpRow), rows(H, I, RANDOM::downRow));
    }

    private static float[] hidden(int tokens) {
        float[] hidden = new float[tokens * H];
        for (int i = 0; i < hidden.length; i++) {
            hidden[i] = (float) Math.sin(i);
        }
        return hidden;
    }

    @Test
    void weightsInArraysAreALayerOfTheSameBits() {
        try (MoeLayer layer = MoeLayer.of(RANDOM, CPU);
                MoeLayer same = MoeLayer.of(inArrays(), CPU)) {
            assertThat(same.forward(hidden(3))).isEqualTo(layer.forward(hidden(3)));
        }
    }

    @Test
    void arraysThatDoNotFitAreRefusedByName() {
        FusedMoeConfig config = RANDOM.config();
        RouterWeights router = RANDOM.router();
        float[] w13 = new float[E * 2 * I * H];
        float[] w2 = new float[E * H * I];
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ExpertWeights.of(config, router, new float[7], w2))
                .withMessage("w13: expected 4096 values ([4, 32, 32]), got 7");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ExpertWeights.of(config, router, w13, w13))
                .withMessage("w2: expected 2048 values ([4, 32, 16]), got 4096");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ExpertWeights.of(config, RouterWeights.of(new float[5]), w13, w2))
                .withMessageContaining("router weight");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ExpertWeights.of(config, router, w13, w2, new float[E * 2 * I], new float[E * H]))
                .withMessage("biases: expected none, as the configuration says, got some");
        FusedMoeConfig biased = config.toBuilder().hasBias(true).build();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ExpertWeights.of(biased, router, w13, w2, new float[1], new float[E * H]))
                .withMessageContaining("w13Bias: expected 128 values ([4, 32]), got 1");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ExpertWeights.of(biased, router, w13, w2))
                .withMessage("biases: expected both, as the configuration says, got none");
        ExpertWeights fits = ExpertWeights.of(biased, router, w13, w2, new float[E * 2 * I], new float[E * H]);
        assertThat(fits.w2Bias()).hasSize(E * H);
        assertThat(fits.w13Bias()).hasSize(E * 2 * I);
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> fits.gateUpRow(0, 2 * I, new float[H]))
                .withMessage("row: expected 0 to 31, got 32");
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> fits.downRow(0, -1, new float[I]))
                .withMessage("row: expected 0 to 31, got -1");
    }

    @Test
    void textsSayWhatTheyAre() {
        try (MoeLayer layer = MoeLayer.of(RANDOM, CPU)) {
            assertThat(layer.toString())
                    .startsWith("MoeLayer[4 experts, top 2, hidden 32, intermediate 16, silu; w8a8_channel, CpuExperts")
                    .endsWith(", up to 8 tokens]");
        }
        assertThat(new ChosenExperts(2, new int[] {5, 1}, new float[] {0.625f, 0.375f}).toString())
                .isEqualTo("ChosenExperts[1 tokens of 2: 5 x 0.6250 + 1 x 0.3750]");
        assertThat(ChosenExperts.allocate(100, 1).toString())
                .contains("100 tokens of 1: ")
                .endsWith("; ...]");
        assertThat(MoeOptions.DEFAULT.toString()).isEqualTo("MoeOptions[as stored, auto, up to 256 tokens]");
        assertThat(MoeOptions.DEFAULT
                        .withScheme(Int8Scheme.W8A16_CHANNEL)
                        .withDevice("cuda:1")
                        .withLanes(3)
                        .withLora(2, 8)
                        .withHiddenType(ScalarType.BF16)
                        .withCheckFinite(true)
                        .toString())
                .isEqualTo(
                        "MoeOptions[w8a16_channel, auto, up to 256 tokens, devices [cuda:1], 2 adapters up to rank 8,"
                                + " 3 lanes, hidden states in bf16, checked to be finite]");
        assertThat(inArrays().toString())
                .contains("4 experts, hidden 32, intermediate 16")
                .hasSizeLessThan(100);
    }

    @Test
    void backendsThatThereAreNotAreRefusedAtOnce() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> MoeOptions.DEFAULT.withBackend("gpu"))
                .withMessage("backend: expected one of [auto, triton, cpu, reference], got 'gpu'");
    }

    @ParameterizedTest
    @ValueSource(floats = {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY})
    void aTokenThatIsNoNumberHasNoNumberForOutput(float bad) {
        float[] hidden = hidden(3);
        hidden[H + 5] = bad;
        try (MoeLayer layer = MoeLayer.of(RANDOM, CPU)) {
            float[] output = layer.forward(hidden);
            float[] without = layer.forward(hidden(3));
            for (int i = 0; i < H; i++) {
                assertThat(Float.isFinite(output[H + i])).isFalse();
            }
            assertThat(Arrays.copyOf(output, H)).isEqualTo(Arrays.copyOf(without, H));
            assertThat(Arrays.copyOfRange(output, 2 * H, 3 * H)).isEqualTo(Arrays.copyOfRange(without, 2 * H, 3 * H));
        }
    }

    @ParameterizedTest
    @EnumSource(names = {"F32", "F16", "BF16"})
    void theCheckThatIsSwitchedOnRefusesItByItsPlace(ScalarType type) {
        try (MoeLayer layer = MoeLayer.of(RANDOM, CPU.withCheckFinite(true).withHiddenType(type));
                Arena arena = Arena.ofConfined()) {
            assertThat(layer.forward(hidden(3))).hasSize(3 * H);
            float[] hidden = hidden(3);
            hidden[H + 5] = Float.NaN;
            float[] output = new float[3 * H];
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> layer.forward(hidden, 3, output, null))
                    .withMessage("hidden: expected finite values, got NaN at [1, 5]");
            assertThat(output).containsOnly(0);
            MemorySegment memory = arena.allocate(3L * H * type.bytes());
            memory.set(
                    java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED,
                    memory.byteSize() - 2, // of the last value, the upper half
                    (short) (type == ScalarType.F16 ? 0x7c00 : 0x7f80));
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> layer.forward(memory, 3, memory, null))
                    .withMessage("hidden: expected finite values, got Infinity at [2, 31]");
            layer.forward(hidden, 1, output, null); // what is not asked for isn't looked at
        }
    }

    @Test
    void nothingIsLoggedWhereNothingIsTheMatter() {
        List<String> lines = new ArrayList<>();
        Handler handler = new Handler() {
            @Override
            public void publish(LogRecord line) {
                lines.add(line.getLevel() + " " + line.getMessage());
            }

            @Override
            public void flush() {}

            @Override
            public void close() {}
        };
        Logger logger = Logger.getLogger("org.tornadomoe");
        logger.addHandler(handler);
        try (MoeLayer layer = MoeLayer.of(RandomLayer.of(E, 2, H, I, 8, 99), CPU)) {
            layer.forward(hidden(3));
        } finally {
            logger.removeHandler(handler);
        }
        assertThat(lines).isEmpty();
    }
}
