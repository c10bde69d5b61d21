package org.tornadomoe.config;

import org.jspecify.annotations.Nullable;

/**
 * The constants of a layer's activation function. Constants that the activation doesn't use have neutral values.
 *
 * @param limit the upper bound of g, and the bound of |u|; infinite for no limit. {@link MoeActivation#SWIGLUSTEP}
 *     bounds silu(g) instead of g
 * @param alpha the factor of g inside the sigmoid
 * @param beta added to u; for {@link MoeActivation#SITU}, the divisor of g inside tanh
 * @param linearBeta the divisor of u inside tanh; 0 to use u unchanged
 */
public record ActivationConstants(double limit, double alpha, double beta, double linearBeta) {
    /**
     * A layer's constants: its own if given, else the activation's defaults.
     *
     * @throws IllegalArgumentException if a constant that the activation needs is missing, or one is out of range
     */
    static ActivationConstants of(
            MoeActivation activation,
            @Nullable Double swigluLimit,
            @Nullable Double swigluAlpha,
            @Nullable Double swigluBeta,
            @Nullable Double situBeta,
            @Nullable Double situLinearBeta) {
        double limit = finite("swigluLimit", swigluLimit, Double.POSITIVE_INFINITY);
        double alpha = finite("swigluAlpha", swigluAlpha, 1);
        double beta = finite("swigluBeta", swigluBeta, 0);
        double situ = positive("activationSituBeta", situBeta, 1);
        double linear = positive("activationSituLinearBeta", situLinearBeta, 0);
        return switch (activation) {
            // A limit that isn't positive means no limit, as in vLLM.
            case SILU -> new ActivationConstants(limit > 0 ? limit : Double.POSITIVE_INFINITY, 1, 0, 0);
            case SWIGLUOAI ->
                new ActivationConstants(
                        positive("swigluLimit", swigluLimit, 7),
                        swigluAlpha == null ? 1.702 : alpha,
                        swigluBeta == null ? 1 : beta,
                        0);
            case SWIGLUOAI_UNINTERLEAVE -> {
                if (swigluLimit == null) {
                    throw new IllegalArgumentException(
                            "swigluLimit: SWIGLUOAI_UNINTERLEAVE requires clamp_limit, got none");
                }
                yield new ActivationConstants(positive("swigluLimit", swigluLimit, 0), alpha, beta, 0);
            }
            case SWIGLUSTEP -> new ActivationConstants(positive("swigluLimit", swigluLimit, 7), 1, 0, 0);
            case SITU -> {
                if (situBeta == null) {
                    throw new IllegalArgumentException(
                            "activationSituBeta: SITU requires activation_situ_beta from FusedMoeConfig, got none");
                }
                yield new ActivationConstants(Double.POSITIVE_INFINITY, 1, situ, linear);
            }
            default -> new ActivationConstants(Double.POSITIVE_INFINITY, 1, 0, 0);
        };
    }

    /** The same with another limit; without a limit if it isn't positive. */
    ActivationConstants withLimit(double other) {
        return new ActivationConstants(other > 0 ? other : Double.POSITIVE_INFINITY, alpha, beta, linearBeta);
    }

    private static double finite(String field, @Nullable Double value, double otherwise) {
        if (value != null && !Double.isFinite(value)) {
            throw new IllegalArgumentException(field + ": expected a finite number, got " + value);
        }
        return value == null ? otherwise : value;
    }

    private static double positive(String field, @Nullable Double value, double otherwise) {
        if (value != null && !(value > 0 && Double.isFinite(value))) {
            throw new IllegalArgumentException(field + ": expected a positive number, got " + value);
        }
        return value == null ? otherwise : value;
    }
}
