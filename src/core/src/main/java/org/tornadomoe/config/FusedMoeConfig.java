package org.tornadomoe.config;

import static org.tornadomoe.config.ConfigChecks.requireAddressableAdapters;
import static org.tornadomoe.config.ConfigChecks.requireAddressableRows;
import static org.tornadomoe.config.ConfigChecks.requireAtMost;
import static org.tornadomoe.config.ConfigChecks.requireMultiple;
import static org.tornadomoe.config.ConfigChecks.requireRange;
import static org.tornadomoe.config.ConfigChecks.requireRouter;
import static org.tornadomoe.config.ConfigChecks.requireShared;

import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * One MoE layer's sizes and how it runs (vLLM: {@code FusedMoEConfig}). Letters used everywhere: M tokens, E experts, H
 * hidden, I intermediate, K top-k.
 *
 * @param numExperts E, 1 to {@value #MAX_EXPERTS}: the model's routed experts on all ranks
 * @param expertsPerToken K, 1 to {@value #MAX_EXPERTS_PER_TOKEN} and at most E
 * @param hiddenDim H, the width of a token
 * @param intermediateSize I, the width between the two GEMMs, after the activation, on all ranks; a multiple of the
 *     tensor-parallel size
 * @param numLocalExperts number of experts on this rank, shared ones included
 * @param numFusedSharedExperts number of shared experts. They are n further experts of the same width I, with the ids E
 *     to E + n - 1; every token goes to them beside its K. A shared expert of another width Is counts as ⌈Is / I⌉ of
 *     them, padded with zeros
 * @param activation the function between the two GEMMs
 * @param router how router logits become ids and weights
 * @param moeParallelConfig how the layer is spread over ranks
 * @param moeBackend {@code auto}, or the name of the backend to take
 * @param device the device, such as {@code ptx:0}, or its first part, {@code ptx}; null for the best one
 * @param inDtype of hidden states
 * @param routerLogitsDtype of router logits
 * @param maxNumTokens the maximum M of a call; it sets the size of buffers
 * @param hasBias whether the experts' projections have biases
 * @param isLoraEnabled whether adapters may be added
 * @param maxLoras number of adapter slots
 * @param maxLoraRank the maximum rank of an adapter
 * @param batchInvariant whether a token's output must not depend on the other tokens of a call; vLLM's {@code
 *     VLLM_BATCH_INVARIANT}
 * @param applyRouterWeightOnInput whether the router's weight multiplies an expert's input, before quantisation,
 *     instead of its output; only with K = 1
 * @param swigluLimit a constant of the activation, see {@link ActivationConstants}; null for the activation's default
 * @param swigluAlpha likewise
 * @param swigluBeta likewise
 * @param activationSituBeta likewise
 * @param activationSituLinearBeta likewise
 */
public record FusedMoeConfig(
        int numExperts,
        int expertsPerToken,
        int hiddenDim,
        int intermediateSize,
        int numLocalExperts,
        int numFusedSharedExperts,
        MoeActivation activation,
        RouterConfig router,
        FusedMoeParallelConfig moeParallelConfig,
        String moeBackend,
        @Nullable String device,
        ScalarType inDtype,
        ScalarType routerLogitsDtype,
        int maxNumTokens,
        boolean hasBias,
        boolean isLoraEnabled,
        int maxLoras,
        int maxLoraRank,
        boolean batchInvariant,
        boolean applyRouterWeightOnInput,
        @Nullable Double swigluLimit,
        @Nullable Double swigluAlpha,
        @Nullable Double swigluBeta,
        @Nullable Double activationSituBeta,
        @Nullable Double activationSituLinearBeta,
        @Nullable Double sharedSwigluLimit) {

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
        requireAtMost("expertsPerToken", expertsPerToken, "numExperts", numExperts);
        requireShared(numFusedSharedExperts, numExperts, expertsPerToken);
        requireRouter(router, numExperts, expertsPerToken, numFusedSharedExperts);
        requireRange("hiddenDim", hiddenDim, Integer.MAX_VALUE);
        requireRange("intermediateSize", intermediateSize, Integer.MAX_VALUE);
        requireRange("maxNumTokens", maxNumTokens, Integer.MAX_VALUE);
        Objects.requireNonNull(activation, "activation");
        Objects.requireNonNull(router, "router");
        Objects.requireNonNull(moeParallelConfig, "moeParallelConfig");
        Objects.requireNonNull(moeBackend, "moeBackend");
        Objects.requireNonNull(inDtype, "inDtype");
        Objects.requireNonNull(routerLogitsDtype, "routerLogitsDtype");
        int shards = activation.isGated() ? 2 : 1;
        int tpSize = moeParallelConfig.tpSize();
        requireMultiple("intermediateSize", intermediateSize, "the tensor-parallel size", tpSize);
        int intermediate = intermediateSize / tpSize;
        requireRange("numLocalExperts", numLocalExperts, MAX_EXPERTS);
        requireAtMost(
                "numLocalExperts",
                numLocalExperts,
                numFusedSharedExperts == 0 ? "numExperts" : "globalNumExperts",
                numExperts + numFusedSharedExperts);
        if (applyRouterWeightOnInput && expertsPerToken != 1) {
            throw new IllegalArgumentException(
                    "apply_router_weight_on_input is only implemented for topk=1, got expertsPerToken "
                            + expertsPerToken);
        }
        ActivationConstants.of(
                activation, swigluLimit, swigluAlpha, swigluBeta, activationSituBeta, activationSituLinearBeta);
        if (sharedSwigluLimit != null && !Double.isFinite(sharedSwigluLimit)) {
            throw new IllegalArgumentException("sharedSwigluLimit: expected a finite number, got " + sharedSwigluLimit);
        }
        requireRange("maxLoras", maxLoras, MAX_EXPERTS);
        requireRange("maxLoraRank", maxLoraRank, Integer.MAX_VALUE);
        ConfigChecks.requireAddressableWeights("w13", 1, (long) shards * intermediate, hiddenDim);
        requireAddressableRows(
                maxNumTokens, expertsPerToken + numFusedSharedExperts, (long) shards * intermediate, hiddenDim);
        requireRange("intermediateSize", intermediateSize, Integer.MAX_VALUE / shards); // on all ranks together
        if (isLoraEnabled) {
            int pairs = expertsPerToken + numFusedSharedExperts;
            requireAddressableAdapters(maxLoraRank, shards, Math.max(intermediate, hiddenDim), pairs, maxNumTokens);
        }
    }

    /**
     * The number of experts with weights: the routed ones and, from id E on, the shared ones (vLLM: {@code
     * global_num_experts}).
     */
    public int globalNumExperts() {
        return numExperts + numFusedSharedExperts;
    }

    /** The number of experts per token: the K chosen ones, then the shared ones. */
    public int pairsPerToken() {
        return expertsPerToken + numFusedSharedExperts;
    }

    /**
     * The number of experts from which a token's K are chosen: the routed experts, then the zero experts, whose ids
     * start at {@link #globalNumExperts}.
     */
    public int numChoices() {
        return numExperts + router.numZeroExperts();
    }

    /** The number of logits per token, L: one per choice, or three for attention, then those of shared experts. */
    public int numRouterLogits() {
        return (router.scoring() == ScoringFunction.ATTENTION ? 3 : 1) * numChoices() + numSharedLogits();
    }

    /** The number of logits per token for shared experts: one for all with a gate, one each if they are normalised. */
    public int numSharedLogits() {
        return router.normalizesShared() ? numFusedSharedExperts : router.hasSharedExpertGate() ? 1 : 0;
    }

    /** Rows per token in the first GEMM's input: 1, or one per pair if the router weights multiply the input. */
    public int inputRowsPerToken() {
        return applyRouterWeightOnInput ? pairsPerToken() : 1;
    }

    /** The number of pairs that share a row of the first GEMM's input: all of a token's, or one. */
    public int pairsPerInputRow() {
        return applyRouterWeightOnInput ? 1 : pairsPerToken();
    }

    /** vLLM's name of the method that turns router logits into ids and weights. */
    public RoutingMethodType routingMethod() {
        return router.method();
    }

    /** This rank's part of I. */
    public int intermediateSizePerPartition() {
        return intermediateSize / moeParallelConfig.tpSize();
    }

    /** The constants of the activation. */
    public ActivationConstants activationConstants() {
        return ActivationConstants.of(
                activation, swigluLimit, swigluAlpha, swigluBeta, activationSituBeta, activationSituLinearBeta);
    }

    /** The constants of the shared experts' activation. */
    public ActivationConstants sharedActivationConstants() {
        ActivationConstants routed = activationConstants();
        return sharedSwigluLimit == null ? routed : routed.withLimit(sharedSwigluLimit);
    }

    /** Whether shared experts have another activation limit than routed ones. */
    public boolean hasOwnSharedLimit() {
        return numFusedSharedExperts > 0
                && sharedActivationConstants().limit() != activationConstants().limit();
    }

    /**
     * Rows of one expert's w13 on this rank: the gate's, then the up projection's, or the two alternating if the
     * activation is interleaved; without a gate only the up projection's.
     */
    public int gateUpRows() {
        return activation.isGated() ? 2 * intermediateSizePerPartition() : intermediateSizePerPartition();
    }

    /** The name of a row of w13, for messages: {@code up projection, row 3}. */
    public String gateUpRow(int row) {
        int rows = intermediateSizePerPartition();
        boolean gate = activation.isInterleaved() ? row % 2 == 0 : row < rows && activation.isGated();
        return (gate ? "gate" : "up") + " projection, row " + (activation.isInterleaved() ? row / 2 : row % rows);
    }

    /** The format in which activations reach the experts. */
    public FusedMoeActivationFormat activationFormat() {
        return moeParallelConfig.useBatchedActivationFormat()
                ? FusedMoeActivationFormat.BATCHED_EXPERTS
                : FusedMoeActivationFormat.STANDARD;
    }

    /**
     * A short description of the layer: {@code 60 experts, top 4 and 1 shared, hidden 2048, intermediate 1408, silu}.
     */
    public String summary() {
        return numExperts + " experts, top " + expertsPerToken
                + (numFusedSharedExperts == 0 ? "" : " and " + numFusedSharedExperts + " shared")
                + ", hidden " + hiddenDim + ", intermediate " + intermediateSize + ", " + activation;
    }

    /** The same layer, for calls of at most that many tokens. */
    public FusedMoeConfig withMaxNumTokens(int tokens) {
        return toBuilder().maxNumTokens(tokens).build();
    }

    /**
     * A builder with the defaults SiLU, softmax-top-k-renormalise, one rank and {@value #DEFAULT_MAX_NUM_TOKENS}
     * tokens; the four sizes are required.
     */
    public static Builder builder() {
        return new Builder();
    }

    /** A builder with everything that was given for this layer; it derives the rest again. */
    public Builder toBuilder() {
        Builder builder = new Builder();
        builder.numExperts = numExperts;
        builder.expertsPerToken = expertsPerToken;
        builder.hiddenDim = hiddenDim;
        builder.intermediateSize = intermediateSize;
        builder.numLocalExperts =
                numLocalExperts == linearShare(moeParallelConfig, globalNumExperts()) ? 0 : numLocalExperts;
        builder.activation = activation;
        builder.router = router;
        builder.numFusedSharedExperts = numFusedSharedExperts;
        builder.moeParallelConfig = moeParallelConfig;
        builder.moeBackend = moeBackend;
        builder.device = device;
        builder.inDtype = inDtype;
        builder.routerLogitsDtype = routerLogitsDtype == inDtype ? null : routerLogitsDtype;
        builder.maxNumTokens = maxNumTokens;
        builder.hasBias = hasBias;
        builder.isLoraEnabled = isLoraEnabled;
        builder.maxLoras = maxLoras;
        builder.maxLoraRank = maxLoraRank;
        builder.batchInvariant = batchInvariant;
        builder.applyRouterWeightOnInput = applyRouterWeightOnInput;
        builder.swigluLimit = swigluLimit;
        builder.swigluAlpha = swigluAlpha;
        builder.swigluBeta = swigluBeta;
        builder.activationSituBeta = activationSituBeta;
        builder.activationSituLinearBeta = activationSituLinearBeta;
        builder.sharedSwigluLimit = sharedSwigluLimit;
        return builder;
    }

    private static int linearShare(FusedMoeParallelConfig parallel, int numExperts) {
        return ExpertMap.determineExpertMap(
                        parallel.epSize(), parallel.epRank(), numExperts, ExpertPlacementStrategy.LINEAR)
                .numLocalExperts();
    }

    /**
     * Checks that kernels can index the weights of this rank's experts. On one rank some layers are too large for that.
     *
     * @throws IllegalArgumentException naming the projection and a remedy
     */
    public void requireAddressableWeights() {
        ConfigChecks.requireAddressableWeights("w13", numLocalExperts, gateUpRows(), hiddenDim);
        ConfigChecks.requireAddressableWeights("w2", numLocalExperts, hiddenDim, intermediateSizePerPartition());
    }

    /** Collects the fields; {@link #build} validates them and derives those that are not given. */
    public static final class Builder {
        private int numExperts;
        private int expertsPerToken;
        private int hiddenDim;
        private int intermediateSize;
        private int numLocalExperts;
        private MoeActivation activation = MoeActivation.SILU;
        private int numFusedSharedExperts;
        private RouterConfig router = RouterConfig.of(ScoringFunction.SOFTMAX, true);
        private FusedMoeParallelConfig moeParallelConfig = FusedMoeParallelConfig.NO_PARALLEL;
        private String moeBackend = "auto";
        private @Nullable String device;
        private ScalarType inDtype = ScalarType.F32;
        private @Nullable ScalarType routerLogitsDtype;
        private int maxNumTokens = DEFAULT_MAX_NUM_TOKENS;
        private boolean hasBias;
        private boolean isLoraEnabled;
        private int maxLoras = 1;
        private int maxLoraRank = 16;
        private boolean batchInvariant;
        private boolean applyRouterWeightOnInput;
        private @Nullable Double swigluLimit;
        private @Nullable Double swigluAlpha;
        private @Nullable Double swigluBeta;
        private @Nullable Double activationSituBeta;
        private @Nullable Double activationSituLinearBeta;
        private @Nullable Double sharedSwigluLimit;

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

        /** The experts of this rank; by default those of linear placement. */
        public Builder numLocalExperts(int value) {
            numLocalExperts = value;
            return this;
        }

        public Builder activation(MoeActivation value) {
            activation = value;
            return this;
        }

        public Builder numFusedSharedExperts(int value) {
            numFusedSharedExperts = value;
            return this;
        }

        public Builder router(RouterConfig value) {
            router = value;
            return this;
        }

        public Builder moeParallelConfig(FusedMoeParallelConfig value) {
            moeParallelConfig = value;
            return this;
        }

        public Builder moeBackend(String value) {
            moeBackend = value;
            return this;
        }

        public Builder device(@Nullable String value) {
            device = value;
            return this;
        }

        public Builder inDtype(ScalarType value) {
            inDtype = value;
            return this;
        }

        /** The type of router logits; by default that of hidden states. */
        public Builder routerLogitsDtype(ScalarType value) {
            routerLogitsDtype = value;
            return this;
        }

        public Builder maxNumTokens(int value) {
            maxNumTokens = value;
            return this;
        }

        public Builder hasBias(boolean value) {
            hasBias = value;
            return this;
        }

        /** If true, there is room for one adapter of rank up to 16, unless {@link #lora} says otherwise. */
        public Builder isLoraEnabled(boolean value) {
            isLoraEnabled = value;
            return this;
        }

        /** Sets the room for adapters. */
        public Builder lora(int adapters, int maxRank) {
            isLoraEnabled = true;
            maxLoras = adapters;
            maxLoraRank = maxRank;
            return this;
        }

        public Builder batchInvariant(boolean value) {
            batchInvariant = value;
            return this;
        }

        public Builder applyRouterWeightOnInput(boolean value) {
            applyRouterWeightOnInput = value;
            return this;
        }

        public Builder swigluLimit(@Nullable Double value) {
            swigluLimit = value;
            return this;
        }

        public Builder swigluAlpha(@Nullable Double value) {
            swigluAlpha = value;
            return this;
        }

        public Builder swigluBeta(@Nullable Double value) {
            swigluBeta = value;
            return this;
        }

        public Builder activationSituBeta(@Nullable Double value) {
            activationSituBeta = value;
            return this;
        }

        public Builder activationSituLinearBeta(@Nullable Double value) {
            activationSituLinearBeta = value;
            return this;
        }

        /** The limit of the shared experts' activation; by default that of routed experts. */
        public Builder sharedSwigluLimit(@Nullable Double value) {
            sharedSwigluLimit = value;
            return this;
        }

        /**
         * The configuration.
         *
         * @throws IllegalArgumentException as {@link FusedMoeConfig#FusedMoeConfig}
         */
        public FusedMoeConfig build() {
            requireRange("numExperts", numExperts, MAX_EXPERTS);
            requireShared(numFusedSharedExperts, numExperts, expertsPerToken);
            return new FusedMoeConfig(
                    numExperts,
                    expertsPerToken,
                    hiddenDim,
                    intermediateSize,
                    numLocalExperts == 0
                            ? linearShare(moeParallelConfig, numExperts + numFusedSharedExperts)
                            : numLocalExperts,
                    numFusedSharedExperts,
                    activation,
                    router,
                    moeParallelConfig,
                    moeBackend,
                    device,
                    inDtype,
                    routerLogitsDtype == null ? inDtype : routerLogitsDtype,
                    maxNumTokens,
                    hasBias,
                    isLoraEnabled,
                    maxLoras,
                    maxLoraRank,
                    batchInvariant,
                    applyRouterWeightOnInput,
                    swigluLimit,
                    swigluAlpha,
                    swigluBeta,
                    activationSituBeta,
                    activationSituLinearBeta,
                    sharedSwigluLimit);
        }
    }
}
