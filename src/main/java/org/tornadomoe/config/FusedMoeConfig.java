package org.tornadomoe.config;

import java.util.Objects;

/**
 * What one MoE layer is. The letters used everywhere else: M tokens, E experts, H hidden, I intermediate, K top-k.
 *
 * @param numExperts E, 1 to {@value #MAX_EXPERTS}
 * @param expertsPerToken K, 1 to {@value #MAX_EXPERTS_PER_TOKEN} and at most E
 * @param hiddenDim H, the width of a token
 * @param intermediateSize I, the width between the two GEMMs, after the activation
 * @param activation the function between the two GEMMs
 * @param routingMethod how router logits become ids and weights
 * @param maxNumTokens the largest M one call may bring; buffers are sized for it
 */
public record FusedMoeConfig(
        int numExperts,
        int expertsPerToken,
        int hiddenDim,
        int intermediateSize,
        MoeActivation activation,
        RoutingMethodType routingMethod,
        int maxNumTokens) {

    public static final int MAX_EXPERTS = 1024;
    public static final int MAX_EXPERTS_PER_TOKEN = 32;
    public static final int DEFAULT_MAX_NUM_TOKENS = 4096;

    /**
     * Checks every field.
     *
     * @throws IllegalArgumentException naming the field, what was expected and what came
     */
    public FusedMoeConfig {
        requireRange("numExperts", numExperts, MAX_EXPERTS);
        requireRange("expertsPerToken", expertsPerToken, MAX_EXPERTS_PER_TOKEN);
        if (expertsPerToken > numExperts) {
            throw new IllegalArgumentException(
                    "expertsPerToken: expected at most numExperts = " + numExperts + ", got " + expertsPerToken);
        }
        requireRange("hiddenDim", hiddenDim, Integer.MAX_VALUE);
        requireRange("intermediateSize", intermediateSize, Integer.MAX_VALUE);
        requireRange("maxNumTokens", maxNumTokens, Integer.MAX_VALUE);
        Objects.requireNonNull(activation, "activation");
        Objects.requireNonNull(routingMethod, "routingMethod");
        int shards = activation.isGated() ? 2 : 1;
        requireAddressableWeights("w13", numExperts, (long) shards * intermediateSize, hiddenDim);
        requireAddressableWeights("w2", numExperts, hiddenDim, intermediateSize);
        requireAddressableRows(maxNumTokens, expertsPerToken, (long) shards * intermediateSize, hiddenDim);
    }

    /** Rows of one expert's w13: the gate's I, then the up projection's I (the activation's I alone if not gated). */
    public int gateUpRows() {
        return activation.isGated() ? 2 * intermediateSize : intermediateSize;
    }

    /** The same layer for calls of at most that many tokens. */
    public FusedMoeConfig withMaxNumTokens(int tokens) {
        return new FusedMoeConfig(
                numExperts, expertsPerToken, hiddenDim, intermediateSize, activation, routingMethod, tokens);
    }

    /** A builder that knows SiLU, softmax-top-k-renormalise and {@value #DEFAULT_MAX_NUM_TOKENS} tokens; the four sizes must be given. */
    public static Builder builder() {
        return new Builder();
    }

    private static void requireRange(String field, int value, int max) {
        if (value < 1 || value > max) {
            String expected = max == Integer.MAX_VALUE ? "a positive number" : "1 to " + max;
            throw new IllegalArgumentException(field + ": expected " + expected + ", got " + value);
        }
    }

    /** Kernels index weights as int32 words of four int8 values, so a projection holds fewer than 2^31 of them. */
    private static void requireAddressableWeights(String name, long experts, long rows, long cols) {
        double words = (double) experts * rows * ((cols + 15) / 16 * 4);
        if (rows > Integer.MAX_VALUE || words > Integer.MAX_VALUE) {
            throw new IllegalArgumentException(String.format(
                    "%s [numExperts %d, rows %d, cols %d]: expected fewer than 2^33 int8 values, got %.0f; "
                            + "give the layer fewer experts (expert parallelism) or a part of the intermediate size "
                            + "(tensor parallelism)",
                    name, experts, rows, cols, words * 4));
        }
    }

    /** Kernels index the rows of all token-expert pairs by int. */
    private static void requireAddressableRows(int tokens, int topK, long gateUp, int hidden) {
        long width = Math.max(gateUp, hidden);
        long most = Integer.MAX_VALUE / topK / width;
        if (tokens > most) {
            throw new IllegalArgumentException("maxNumTokens: expected at most " + most + " for expertsPerToken " + topK
                    + " and rows of " + width + " values (int indices), got " + tokens
                    + "; lower it and call the layer more often");
        }
    }

    /** Collects the fields; {@link #build} validates. */
    public static final class Builder {
        private int numExperts;
        private int expertsPerToken;
        private int hiddenDim;
        private int intermediateSize;
        private MoeActivation activation = MoeActivation.SILU;
        private RoutingMethodType routingMethod = RoutingMethodType.RENORMALIZE_NAIVE;
        private int maxNumTokens = DEFAULT_MAX_NUM_TOKENS;

        private Builder() {}

        public Builder numExperts(int value) {
            numExperts = value;
            return this;
        }

        public Builder expertsPerToken(int value) {
            expertsPerToken = value;
            return this;
        }

        public Builder hiddenDim(int value) {
            hiddenDim = value;
            return this;
        }

        public Builder intermediateSize(int value) {
            intermediateSize = value;
            return this;
        }

        public Builder activation(MoeActivation value) {
            activation = value;
            return this;
        }

        public Builder routingMethod(RoutingMethodType value) {
            routingMethod = value;
            return this;
        }

        public Builder maxNumTokens(int value) {
            maxNumTokens = value;
            return this;
        }

        /**
         * The configuration.
         *
         * @throws IllegalArgumentException as {@link FusedMoeConfig#FusedMoeConfig}
         */
        public FusedMoeConfig build() {
            return new FusedMoeConfig(
                    numExperts, expertsPerToken, hiddenDim, intermediateSize, activation, routingMethod, maxNumTokens);
        }
    }
}
