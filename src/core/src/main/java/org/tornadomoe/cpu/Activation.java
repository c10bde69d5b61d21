package org.tornadomoe.cpu;

import org.tornadomoe.config.ActivationConstants;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
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
     */
    void apply(double[] x, int gate, int up, int count, float[] into, int at) {
        boolean gated = activation.isGated();
        for (int c = 0; c < count; c++) {
            into[at + c] = (float) apply(x[gate + c], gated ? x[up + c] : 1);
        }
    }

    private double apply(double gate, double up) {
        double g = Math.min(gate, limit);
        double u = Math.clamp(up, -limit, limit);
        return switch (activation) {
            case SILU, SILU_NO_MUL -> g / (1 + Math.exp(-g)) * u;
            case GELU, GELU_NO_MUL -> gate * (1 + Erf.erf(gate / Math.sqrt(2))) / 2 * up;
            case GELU_TANH, GELU_TANH_NO_MUL ->
                gate / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (gate + 0.044715 * gate * gate * gate))) * up;
            case RELU2, RELU2_NO_MUL -> Math.max(gate, 0) * Math.max(gate, 0) * up;
            case SWIGLUOAI, SWIGLUOAI_UNINTERLEAVE -> g * sigmoid(alpha * g) * (u + beta);
            case SWIGLUSTEP -> Math.min(gate / (1 + Math.exp(-gate)), limit) * u;
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
