package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.cpu.CpuExperts;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Stages;

/** What must hold of hidden states of any finite magnitude. */
public final class MagnitudeChecks {
    private static final float[] MAGNITUDES = {
        Float.MIN_VALUE,
        1e-41f,
        1e-38f,
        1e-30f,
        1e-10f,
        1,
        1e10f,
        1e20f,
        9e29f,
        1e31f,
        1e33f,
        1e34f,
        1e35f,
        1e36f,
        1e37f,
        1e38f,
        3e38f
    };

    /** Up to where kernels that quantise, and the router's, go. */
    private static final float LARGEST = 1e30f;

    private static final float LARGEST_BY_OPENCL = 1e20f;

    private MagnitudeChecks() {}

    /** An output is the definition's or, where float's range ends in between, no number; never another. */
    public static void noOutputIsAnotherNumber(
            FusedMoeExperts experts, String device, Int8Quantization quantization, MoeActivation activation) {
        int h = 40;
        int tokens = MAGNITUDES.length;
        RandomLayer layer =
                RandomLayer.of(4, 2, h, 24, tokens, 3).activatedBy(activation).on(device);
        float[] hidden = layer.hidden(tokens, 1);
        for (int v = 0; v < hidden.length; v++) {
            hidden[v] = Math.clamp(hidden[v] / 3, -1f, 1f) * MAGNITUDES[v / h];
        }
        boolean cpu = experts instanceof CpuExperts;
        boolean openCl = device.startsWith("opencl");
        float largest = openCl ? LARGEST_BY_OPENCL : LARGEST;
        for (float[] factors : new float[][] {{1, 1}, {1e-18f, 1}, {1e-34f, 1}, {1e-37f, 1e3f}, {1, 1e-30f}}) {
            if (openCl && factors[0] == 1e-37f) {
                continue; // the weights' scales are below float's normal range, which NVIDIA's compiler takes for 0
            }
            boolean known = quantization.scheme() == Int8Scheme.W8A8_TENSOR;
            try (Int8Experts found = Int8Quantizer.quantize(layer, quantization, Progress.NONE);
                    Int8Experts int8 = found.with(
                                    found.config(),
                                    times(factors[0], found.w13()),
                                    times(factors[1], found.w2()),
                                    Arena.ofShared())
                            .activationScales(known ? 1e25f : null, known ? 0.02f : null)
                            .build();
                    MoeKernel kernel = experts.load(layer.config(), int8)) {
                Stages definition = Reference.forward(int8, hidden, tokens);
                float[] output = BatchChecks.forward(kernel, hidden, ChosenExperts.allocate(tokens, 2));
                for (int m = 0; m < tokens; m++) {
                    String what = "token of " + MAGNITUDES[m] + ", weights times " + factors[0] + " and " + factors[1];
                    boolean inRange =
                            greatest(definition.act(), m * 2 * 24, 2 * 24) <= (cpu ? Float.MAX_VALUE : largest)
                                    && (cpu || MAGNITUDES[m] <= largest);
                    double least = 1e-36 * Math.max(1, factors[1]);
                    requireRight(
                            definition.output(),
                            output,
                            m * h,
                            h,
                            inRange,
                            least,
                            tolerance(experts, quantization),
                            what);
                }
            }
        }
    }

    @SuppressWarnings("NullAway") // which takes a record's array for one that isn't null
    private static Int8Tensor times(float factor, Int8Tensor weights) {
        float[] scales = weights.scales().clone();
        for (int i = 0; i < scales.length; i++) {
            scales[i] *= factor;
        }
        return new Int8Tensor(
                weights.experts(),
                weights.rows(),
                weights.cols(),
                weights.rowsPerScale(),
                weights.colsPerScale(),
                weights.values(),
                scales,
                weights.zeroPoints());
    }

    /**
     * Where activations are quantised, a rounding may go the other way; halves have 11 bits, of sums far beyond where
     * an activation is steep.
     */
    private static double tolerance(FusedMoeExperts experts, Int8Quantization quantization) {
        if (experts instanceof CpuExperts) {
            return 1e-5;
        }
        boolean halves = experts.name().endsWith("HalfExperts");
        return quantization.scheme().quantizesActivations() ? 3e-2 : halves ? 1e-2 : 1e-4;
    }

    private static double greatest(double[] values, int from, int count) {
        double greatest = 0;
        for (int i = from; i < from + count; i++) {
            greatest = Math.max(greatest, Math.abs(values[i]));
        }
        return greatest;
    }

    /** @param least what underflow may make of it */
    private static void requireRight(
            double[] expected,
            float[] got,
            int from,
            int count,
            boolean inRange,
            double least,
            double tolerance,
            String what) {
        double near = least + tolerance * Math.min(greatest(expected, from, count), Float.MAX_VALUE);
        for (int i = from; i < from + count; i++) {
            float definition = (float) expected[i];
            if (!Float.isFinite(got[i])) {
                assertThat(inRange && Math.abs(expected[i]) < 0.99 * Float.MAX_VALUE && Float.isFinite(definition))
                        .as("%s: %s where the definition has %s", what, got[i], expected[i])
                        .isFalse();
            } else {
                assertThat(Math.abs(got[i] - expected[i]))
                        .as("%s: %s where the definition has %s", what, got[i], expected[i])
                        .isLessThanOrEqualTo(near);
            }
        }
    }
}
