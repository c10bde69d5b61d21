package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RouterWeights;

/** Shared experts as more experts of the same width are the shared MLP that a model computes beside its experts. */
class SharedExpertsTest {
    private static final int TOKENS = 7;

    /** The shared MLP's width: two and a half experts. */
    private static final int WIDTH = 35;

    /** Routed experts of a random layer, and a dense MLP of another width cut into experts, filled up with zeros. */
    private record WithDense(RandomLayer routed, RandomLayer dense) implements ExpertWeights {
        @Override
        public FusedMoeConfig config() {
            return routed.config();
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            int experts = config().numExperts();
            int i = config().intermediateSize();
            if (expert < experts) {
                routed.gateUpRow(expert, row, into);
                return;
            }
            int from = (expert - experts) * i + row % i;
            if (from < WIDTH) {
                dense.gateUpRow(0, row < i ? from : WIDTH + from, into);
            } else {
                Arrays.fill(into, 0);
            }
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            int experts = config().numExperts();
            int i = config().intermediateSize();
            if (expert < experts) {
                routed.downRow(expert, row, into);
                return;
            }
            float[] whole = new float[WIDTH];
            dense.downRow(0, row, whole);
            int from = (expert - experts) * i;
            Arrays.fill(into, 0);
            System.arraycopy(whole, from, into, 0, Math.min(i, WIDTH - from));
        }

        @Override
        public RouterWeights router() {
            return routed.router();
        }
    }

    private static WithDense layer(boolean gated) {
        RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, true).withRoutedScalingFactor(2.5);
        RandomLayer routed = RandomLayer.of(5, 2, 22, 14, TOKENS, 1)
                .sharing((WIDTH + 13) / 14)
                .routedBy(gated ? router.withSharedExpertGate() : router);
        return new WithDense(routed, RandomLayer.of(1, 1, 22, WIDTH, TOKENS, 2));
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void theyAreTheDenseMlpBesideTheExperts(boolean gated) {
        WithDense layer = layer(gated);
        assertThat(layer.config().numFusedSharedExperts()).isEqualTo(3);
        float[] x = layer.routed.hidden(TOKENS, 1);
        int h = 22;
        RouterConfig plain = RouterConfig.of(ScoringFunction.SIGMOID, true).withRoutedScalingFactor(2.5);
        RandomLayer alone = RandomLayer.of(5, 2, h, 14, TOKENS, 1).routedBy(plain);
        double[] expected = Reference.forward(alone, x, TOKENS).output();
        float[] gate = layer.router().sharedExpertGate();
        for (int m = 0; m < TOKENS; m++) {
            double weight = 1;
            if (gate != null) {
                double logit = 0;
                for (int c = 0; c < h; c++) {
                    logit += (double) x[m * h + c] * gate[c];
                }
                weight = 1 / (1 + Math.exp(-logit));
            }
            double[] mlp = mlp(layer.dense, x, m * h, h);
            for (int c = 0; c < h; c++) {
                expected[m * h + c] += weight * mlp[c];
            }
        }
        assertThat(Numerics.relativeL2(Reference.forward(layer, x, TOKENS).output(), expected))
                .isLessThan(1e-12);
    }

    private static double[] mlp(RandomLayer dense, float[] x, int at, int h) {
        double[] act = new double[WIDTH];
        float[] row = new float[h];
        for (int i = 0; i < WIDTH; i++) {
            double[] gateUp = new double[2];
            for (int half = 0; half < 2; half++) {
                dense.gateUpRow(0, half * WIDTH + i, row);
                for (int c = 0; c < h; c++) {
                    gateUp[half] += (double) x[at + c] * row[c];
                }
            }
            act[i] = gateUp[0] / (1 + Math.exp(-gateUp[0])) * gateUp[1];
        }
        double[] out = new double[h];
        float[] down = new float[WIDTH];
        for (int c = 0; c < h; c++) {
            dense.downRow(0, c, down);
            for (int i = 0; i < WIDTH; i++) {
                out[c] += act[i] * down[i];
            }
        }
        return out;
    }

    @Test
    void whatFillsThemUpStaysZeroInInt8() {
        WithDense layer = layer(false);
        try (Int8Experts experts = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            Int8Tensor w13 = experts.w13();
            assertThat(w13.experts()).isEqualTo(8);
            byte[] row = new byte[22];
            w13.row(7, 6, row);
            assertThat(row).as("the last row in use").isNotEqualTo(new byte[22]);
            w13.row(7, 7, row);
            assertThat(row).containsOnly(0);
            byte[] columns = new byte[14];
            experts.w2().row(7, 3, columns);
            assertThat(Arrays.copyOfRange(columns, 7, 14)).containsOnly(0);
            float[] x = layer.routed.hidden(TOKENS, 1);
            assertThat(Numerics.relativeL2(
                            Reference.forward(experts, x, TOKENS).output(),
                            Reference.forward(layer, x, TOKENS).output()))
                    .isBetween(1e-3, 3e-2);
        }
    }
}
