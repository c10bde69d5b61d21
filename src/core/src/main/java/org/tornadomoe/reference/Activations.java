package org.tornadomoe.reference;

import java.util.function.IntPredicate;
import org.tornadomoe.config.ActivationConstants;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;

/**
 * The activations of {@link MoeActivation} in float64. (vLLM: {@code fused_moe/activation.py}, {@code
 * activation_kernels.cu}.)
 */
public final class Activations {
    private Activations() {}

    /**
     * Applies the activation: [rows, 2I] to [rows, I], or [rows, I] to [rows, I] without a gate. vLLM rounds silu(g) to
     * the layer's type before it multiplies; here nothing is rounded.
     *
     * @param gateUp GEMM 1's output, one row per pair, a token's shared experts after its K: gate then up, or
     *     alternating if the activation is interleaved
     */
    public static double[] apply(FusedMoeConfig config, double[] gateUp, int rows) {
        return apply(config, gateUp, rows, row -> row % config.pairsPerToken() >= config.expertsPerToken());
    }

    /** The same for rows in another order; {@code isShared} says whether a row belongs to a shared expert. */
    static double[] apply(FusedMoeConfig config, double[] gateUp, int rows, IntPredicate isShared) {
        MoeActivation activation = config.activation();
        ActivationConstants routed = config.activationConstants();
        ActivationConstants shared = config.sharedActivationConstants();
        int width = config.intermediateSizePerPartition();
        int columns = config.gateUpRows();
        if (gateUp.length != (long) rows * columns) {
            throw new IllegalArgumentException("gateUp: expected [" + rows + ", " + columns + "] = "
                    + (long) rows * columns + " values, got " + gateUp.length);
        }
        boolean alternating = activation.isInterleaved();
        double[] act = new double[rows * width];
        for (int i = 0; i < act.length; i++) {
            int row = i / width * columns;
            int column = i % width;
            double gate = gateUp[row + (alternating ? 2 * column : column)];
            double up = activation.isGated() ? gateUp[row + (alternating ? 2 * column + 1 : width + column)] : 1;
            act[i] = apply(activation, isShared.test(i / width) ? shared : routed, gate, up);
        }
        return act;
    }

    /** The activation of one value. Without a gate, {@code gate} is the argument and {@code up} is 1. */
    static double apply(MoeActivation activation, ActivationConstants c, double gate, double up) {
        double g = Math.min(gate, c.limit());
        double u = Math.clamp(up, -c.limit(), c.limit());
        return switch (activation) {
            case SILU, SILU_NO_MUL -> silu(g) * u;
            case GELU, GELU_NO_MUL -> gate * erfc(-gate / Math.sqrt(2)) / 2 * up;
            case GELU_TANH, GELU_TANH_NO_MUL ->
                gate / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (gate + 0.044715 * gate * gate * gate))) * up;
            case RELU2, RELU2_NO_MUL -> Math.max(gate, 0) * Math.max(gate, 0) * up;
            case RELU, RELU_NO_MUL -> Math.max(gate, 0) * up;
            case SWIGLUOAI, SWIGLUOAI_UNINTERLEAVE -> g * sigmoid(c.alpha() * g) * (u + c.beta());
            case SWIGLUSTEP -> Math.min(silu(gate), c.limit()) * u;
            case SITU -> {
                double linear = c.linearBeta() == 0 ? up : c.linearBeta() * Math.tanh(up / c.linearBeta());
                yield c.beta() * Math.tanh(gate / c.beta()) * sigmoid(gate) * linear;
            }
        };
    }

    private static double silu(double x) {
        return x / (1 + Math.exp(-x));
    }

    private static double sigmoid(double x) {
        return 1 / (1 + Math.exp(-x));
    }

    /**
     * 1 - erf(x). Below 2.5 it uses the series erf(x) = 2/sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (1 3 5 .. (2n+1)),
     * above the continued fraction exp(-x^2)/sqrt(pi) / (x + 1/2 / (x + 2/2 / (x + 3/2 / ..))) (Abramowitz and Stegun
     * 7.1.6, 7.1.14).
     */
    static double erfc(double x) {
        if (x < 0) {
            return 2 - erfc(-x);
        }
        double gauss = Math.exp(-x * x) / Math.sqrt(Math.PI);
        if (x < 2.5) {
            double term = x;
            double sum = x;
            for (int n = 1; term > 1e-17 * sum; n++) {
                term *= 2 * x * x / (2 * n + 1);
                sum += term;
            }
            return 1 - 2 * gauss * sum;
        }
        double fraction = x;
        for (int n = 100; n > 0; n--) {
            fraction = x + n / 2.0 / fraction;
        }
        return gauss / fraction;
    }
}
