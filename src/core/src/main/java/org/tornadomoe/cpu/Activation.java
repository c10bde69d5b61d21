package org.tornadomoe.cpu;

import org.tornadomoe.config.ActivationConstants;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.Erf;

/** A layer's activation, in float64; see {@link MoeActivation}. */
final class Activation {
    private final MoeActivation activation;
    private final double limit;
    private final double alpha;
    private final double beta;
    private final double linearBeta;

    /** @param constants those of routed or of shared experts */
    Activation(FusedMoeConfig config, ActivationConstants constants) {
        activation = config.activation();
        limit = constants.limit();
        alpha = constants.alpha();
        beta = constants.beta();
        linearBeta = constants.linearBeta();
    }

    /**
     * Some values of a row.
     *
     * @param x gates from {@code gate} on and ups from {@code up} on; without a gate, the arguments from {@code gate}
     *     on
     * @param work of at least {@code count} values and up to the next multiple of 8; is written over
     */
    void apply(Arithmetic arithmetic, double[] x, int gate, int up, int count, double[] work, float[] into, int at) {
        boolean gated = activation.isGated();
        switch (activation) {
            case SILU, SILU_NO_MUL, SWIGLUOAI, SWIGLUOAI_UNINTERLEAVE -> {
                for (int c = 0; c < count; c++) {
                    work[c] = -alpha * Math.min(x[gate + c], limit);
                }
                arithmetic.exp(work, count);
                for (int c = 0; c < count; c++) {
                    double u = gated ? Math.max(-limit, Math.min(x[up + c], limit)) + beta : 1;
                    into[at + c] = (float) (Math.min(x[gate + c], limit) / (1 + work[c]) * u);
                }
            }
            default -> {
                for (int c = 0; c < count; c++) {
                    into[at + c] = (float) apply(x[gate + c], gated ? x[up + c] : 1);
                }
            }
        }
    }

    private double apply(double gate, double up) {
        return switch (activation) {
            case SILU, SILU_NO_MUL, SWIGLUOAI, SWIGLUOAI_UNINTERLEAVE -> throw new AssertionError(activation);
            case GELU, GELU_NO_MUL -> gate * (1 + Erf.erf(gate / Math.sqrt(2))) / 2 * up;
            case GELU_TANH, GELU_TANH_NO_MUL ->
                gate / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (gate + 0.044715 * gate * gate * gate))) * up;
            case RELU2, RELU2_NO_MUL -> Math.max(gate, 0) * Math.max(gate, 0) * up;
            case RELU, RELU_NO_MUL -> Math.max(gate, 0) * up;
            case SWIGLUSTEP -> Math.min(gate / (1 + Math.exp(-gate)), limit) * Math.clamp(up, -limit, limit);
            case SITU -> {
                double linear = linearBeta == 0 ? up : linearBeta * Math.tanh(up / linearBeta);
                yield beta * Math.tanh(gate / beta) * sigmoid(gate) * linear;
            }
        };
    }

    private static double sigmoid(double x) {
        return 1 / (1 + Math.exp(-x));
    }
}
