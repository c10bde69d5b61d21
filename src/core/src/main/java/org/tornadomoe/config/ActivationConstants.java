package org.tornadomoe.config;

import org.jspecify.annotations.Nullable;

/**
 * The numbers in a layer's activation; what its activation has no use for is as if it weren't there.
 *
 * @param limit what g is cut off at from above, and u from both sides; infinite for nothing. Of {@link
 *     MoeActivation#SWIGLUSTEP} it is silu(g) that is cut off
 * @param alpha g's factor inside the sigmoid
 * @param beta what is added to u; of {@link MoeActivation#SITU} what g is divided by inside tanh
 * @param linearBeta what u is divided by inside tanh; 0 if u is taken as it is
 */
public record ActivationConstants(double limit, double alpha, double beta, double linearBeta) {
    /**
     * Those of a layer: its own where it has some, else the activation's.
     *
     * @throws IllegalArgumentException if the activation needs one that isn't given, or one is no such number
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
            // A limit that isn't positive is none, as vLLM has it.
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

    /** The same cut off elsewhere; at nothing where that isn't positive. */
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
