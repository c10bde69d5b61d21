package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.assertj.core.api.Assertions.within;

import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

class QuantizedWeightsTest {
    private static final RandomLayer LAYER = RandomLayer.of(2, 1, 16, 16, 1, 1);
    private static final Int8Quantization GROUPS_OF_8 =
            Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 8));

    /** Groups of 8 columns; which scheme they were loaded in is kept, and what was loaded. */
    private record Stored(List<Int8Scheme> loaded, List<Int8Experts> experts) implements QuantizedWeights {
        Stored(List<Int8Scheme> loaded) {
            this(loaded, new ArrayList<>());
        }

        @Override
        public Int8Quantization quantization() {
            return GROUPS_OF_8;
        }

        @Override
        public boolean serves(Int8Scheme scheme) {
            return scheme == Int8Scheme.W8A16_GROUP || scheme == Int8Scheme.W8A8_BLOCK;
        }

        @Override
        public Int8Experts load(Int8Scheme scheme, Progress progress) {
            loaded.add(scheme);
            experts.add(Int8Quantizer.quantize(LAYER, GROUPS_OF_8, progress));
            return experts.getLast();
        }

        @Override
        public FusedMoeConfig config() {
            return LAYER.config();
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            LAYER.gateUpRow(expert, row, into);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            LAYER.downRow(expert, row, into);
        }

        @Override
        public RouterWeights router() {
            return LAYER.router();
        }
    }

    /** As stored where the scheme is served and the grid is the stored one or nobody chose one. */
    @ParameterizedTest
    @CsvSource({
        "W8A16_GROUP, 128, true, 8",
        "W8A16_GROUP, 8, true, 8",
        "W8A16_GROUP, 4, false, 4",
        "W8A16_CHANNEL, -1, false, 16",
    })
    void weightsAreTakenAsTheyAreStoredOrQuantisedAgain(Int8Scheme scheme, int group, boolean asStored, int columns) {
        Int8Quantization wanted = group < 0
                ? Int8Quantization.of(scheme)
                : Int8Quantization.of(scheme).withGrid(new GroupShape(1, group));
        Stored stored = new Stored(new ArrayList<>());
        try (Int8Experts experts = QuantizedWeights.int8(stored, wanted, Progress.NONE)) {
            assertThat(experts.w13().colsPerScale()).isEqualTo(columns);
            assertThat(experts.scheme()).isEqualTo(scheme);
        }
        assertThat(stored.loaded()).isEqualTo(asStored ? List.of(scheme) : List.of());
    }

    @Test
    void aSchemeAloneTakesWhatIsStored() {
        Stored stored = new Stored(new ArrayList<>());
        QuantizedWeights.int8(stored, Int8Scheme.W8A8_BLOCK, Progress.NONE).close();
        assertThat(stored.loaded()).containsExactly(Int8Scheme.W8A8_BLOCK);
    }

    @Test
    void floatsAreQuantisedAndTheFastestSchemeIsTheirOwn() {
        try (Int8Experts experts = QuantizedWeights.int8(LAYER, Int8Scheme.W8A16_CHANNEL, Progress.NONE)) {
            assertThat(experts.scheme()).isEqualTo(Int8Scheme.W8A16_CHANNEL);
        }
        assertThat(LAYER.quantization()).isEqualTo(Int8Quantization.of(Int8Scheme.W8A8_CHANNEL));
        assertThat(LAYER.quantization().scheme()).isEqualTo(Int8Scheme.W8A8_CHANNEL);
        Stored stored = new Stored(new ArrayList<>());
        assertThat(stored.quantization()).isEqualTo(GROUPS_OF_8);
        assertThat(stored.quantization().scheme()).isEqualTo(Int8Scheme.W8A16_GROUP);
    }

    /** Which errors somebody was told of. */
    private record Told(boolean wantsError, List<Double> errors) implements Progress {
        @Override
        public void advanced(long done, long total) {}

        @Override
        public void quantized(double relativeL2) {
            errors.add(relativeL2);
        }
    }

    private static List<Double> errors(boolean wanted, ExpertWeights weights, Int8Quantization quantization) {
        Told told = new Told(wanted, new ArrayList<>());
        QuantizedWeights.int8(weights, quantization, told).close();
        return told.errors;
    }

    /** As the definition has it: of what is read of the weights and of the int8 values. */
    @ParameterizedTest
    @CsvSource({"W8A8_CHANNEL, false", "W8A8_BLOCK, false", "W8A16_GROUP, false", "W8A16_GROUP, true"})
    void theErrorIsThatOfTheWeights(Int8Scheme scheme, boolean zeroPoints) {
        Int8Quantization quantization = Int8Quantization.of(scheme).withZeroPoints(zeroPoints);
        double error = 0;
        double square = 0;
        try (Int8Experts experts = QuantizedWeights.int8(LAYER, quantization, Progress.NONE)) {
            float[] row = new float[16]; // H and I
            for (Int8Tensor tensor : List.of(experts.w13(), experts.w2())) {
                for (int e = 0; e < tensor.experts(); e++) {
                    for (int r = 0; r < tensor.rows(); r++) {
                        if (tensor == experts.w13()) {
                            LAYER.gateUpRow(e, r, row);
                        } else {
                            LAYER.downRow(e, r, row);
                        }
                        for (int c = 0; c < tensor.cols(); c++) {
                            int steps = tensor.get(e, r, c) - tensor.zeroPoint(e, r, c);
                            error += Math.pow(row[c] - steps * tensor.scale(e, r, c), 2);
                            square += Math.pow(row[c], 2);
                        }
                    }
                }
            }
        }
        double expected = Math.sqrt(error / square);
        assertThat(expected).isBetween(1e-3, 2e-2);
        assertThat(errors(true, LAYER, quantization))
                .singleElement()
                .satisfies(told -> assertThat(told).isCloseTo(expected, within(1e-9)));
        assertThat(errors(false, LAYER, quantization)).isEmpty();
    }

    /** What rounds nothing isn't read twice. */
    @Test
    void whatIsHeldAsItIsHasNoError() {
        assertThat(errors(true, new Stored(new ArrayList<>()), GROUPS_OF_8)).containsExactly(0.0);
    }

    @Test
    void nobodyAsksForTheErrorUnasked() {
        assertThat(Progress.NONE.wantsError()).isFalse();
    }

    @Test
    void aListenerThatFailsLeavesNothingOpen() {
        Progress failing = new Progress() {
            @Override
            public void advanced(long done, long total) {}

            @Override
            public boolean wantsError() {
                throw new IllegalStateException("no");
            }
        };
        Stored stored = new Stored(new ArrayList<>());
        assertThatIllegalStateException()
                .isThrownBy(() -> QuantizedWeights.int8(stored, Int8Scheme.W8A16_GROUP, failing))
                .withMessage("no");
        assertThatIllegalStateException()
                .isThrownBy(stored.experts().getFirst()::w13)
                .withMessageContaining("closed");
    }
}
