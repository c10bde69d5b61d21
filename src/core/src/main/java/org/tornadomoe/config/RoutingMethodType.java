package org.tornadomoe.config;

import org.jspecify.annotations.Nullable;

/** How router logits become expert ids and weights. Numbers as in vLLM's {@code RoutingMethodType}. */
public enum RoutingMethodType {
    /** Softmax over all experts, then the top k; the weights are the probabilities. */
    DEFAULT(0),
    /** The top k logits, then softmax over those k. */
    RENORMALIZE(1),
    /**
     * Sigmoid plus bias; the groups with the highest sum of their two best, the top k of those groups, renormalised.
     */
    DEEPSEEK_V3(2),
    /** The top logit, then its sigmoid. */
    LLAMA4(3),
    /** Softmax over all experts, then the top k, divided by their sum. */
    RENORMALIZE_NAIVE(4),
    /** The top k scores, unchanged. */
    TOP_K(5),
    /** Sigmoid, then the top k, divided by their sum. */
    SIGMOID_RENORM(6),
    /** Sigmoid plus bias, then the top k, divided by their sum. */
    MINIMAX2(7),
    /** Sigmoid, then the top k. */
    SIGMOID(8),
    /** Another method, which no kernel needs to know. */
    UNSPECIFIED(9),
    /** Square root of softplus, plus bias, then the top k, divided by their sum. */
    DEEPSEEK_V4(100),
    /** The model's own function. */
    CUSTOM(101),
    /** Ids from a simulator. */
    SIMULATED(102);

    private final int number;

    RoutingMethodType(int number) {
        this.number = number;
    }

    /** vLLM's number for it. */
    public int number() {
        return number;
    }

    /**
     * The method that results from a model's router settings (vLLM: {@code get_routing_method_type}).
     *
     * @param scoringFunc {@code softmax}, {@code sigmoid} or {@code sqrtsoftplus}
     * @param renormalize whether the chosen weights are divided by their sum
     * @param numExpertGroup number of expert groups; 0 or null for none
     * @param hasEScoreBias whether a bias per expert is added for the choice
     * @param routedScalingFactor factor of the weights; null for none
     */
    public static RoutingMethodType getRoutingMethodType(
            String scoringFunc,
            boolean renormalize,
            @Nullable Integer numExpertGroup,
            boolean hasEScoreBias,
            @Nullable Double routedScalingFactor) {
        boolean grouped = numExpertGroup != null && numExpertGroup > 0;
        boolean unscaled = routedScalingFactor == null || routedScalingFactor == 1.0;
        if (scoringFunc.equals("sqrtsoftplus")) {
            return renormalize ? DEEPSEEK_V4 : UNSPECIFIED;
        }
        if (hasEScoreBias) {
            if (!scoringFunc.equals("sigmoid") || !renormalize) {
                return UNSPECIFIED;
            }
            return grouped ? DEEPSEEK_V3 : unscaled ? MINIMAX2 : UNSPECIFIED;
        }
        return switch (scoringFunc) {
            case "sigmoid" -> renormalize ? SIGMOID_RENORM : SIGMOID;
            case "softmax" -> renormalize ? RENORMALIZE_NAIVE : DEFAULT;
            default -> UNSPECIFIED;
        };
    }
}
