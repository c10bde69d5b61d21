package org.tornadomoe;

import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RouterWeights;

/** A layer of random weights, for tests: the same seed gives the same layer. */
public record RandomLayer(FusedMoeConfig config, long seed) implements ExpertWeights {
    /** E experts, K of them a token, H hidden, I intermediate, at most M tokens. */
    public static RandomLayer of(int experts, int topK, int hidden, int intermediate, int tokens, long seed) {
        return new RandomLayer(
                FusedMoeConfig.builder()
                        .numExperts(experts)
                        .expertsPerToken(topK)
                        .hiddenDim(hidden)
                        .intermediateSize(intermediate)
                        .maxNumTokens(tokens)
                        .build(),
                seed);
    }

    /** The same weights under another way of routing. */
    public RandomLayer routedBy(RoutingMethodType method) {
        return new RandomLayer(
                config.toBuilder().router(RouterConfig.of(method)).build(), seed);
    }

    /** The same weights under another router. */
    public RandomLayer routedBy(RouterConfig router) {
        return new RandomLayer(config.toBuilder().router(router).build(), seed);
    }

    /** The same weights, and shared experts beside them. */
    public RandomLayer sharing(int experts) {
        return new RandomLayer(config.toBuilder().numFusedSharedExperts(experts).build(), seed);
    }

    /** The same weights, the router's applied on the input. */
    public RandomLayer weighedOnInput() {
        return new RandomLayer(config.toBuilder().applyRouterWeightOnInput(true).build(), seed);
    }

    /** The same weights, as far as both have them, with another activation, cut off at 1.5 where it has a limit. */
    public RandomLayer activatedBy(MoeActivation activation) {
        return new RandomLayer(
                config.toBuilder()
                        .activation(activation)
                        .swigluLimit(1.5)
                        .activationSituBeta(2.0)
                        .activationSituLinearBeta(1.0)
                        .build(),
                seed);
    }

    /** The same weights, with biases. */
    public RandomLayer withBiases() {
        return new RandomLayer(config.toBuilder().hasBias(true).build(), seed);
    }

    /** The same weights, a token's bits to be the same whatever comes with it. */
    public RandomLayer batchInvariant() {
        return new RandomLayer(config.toBuilder().batchInvariant(true).build(), seed);
    }

    /** The same weights for calls of up to so many tokens. */
    public RandomLayer forUpTo(int tokens) {
        return new RandomLayer(config.withMaxNumTokens(tokens), seed);
    }

    /** The same weights, and room for adapters. */
    public RandomLayer withLora(int adapters, int maxRank) {
        return new RandomLayer(config.toBuilder().lora(adapters, maxRank).build(), seed);
    }

    /** The same weights, hidden states of that type. */
    public RandomLayer ofType(ScalarType type) {
        return new RandomLayer(config.toBuilder().inDtype(type).build(), seed);
    }

    /** The same weights, all experts here, activations in the batched format. */
    public RandomLayer batched() {
        return new RandomLayer(
                config.toBuilder()
                        .moeParallelConfig(FusedMoeParallelConfig.builder()
                                .dp(2, 0)
                                .expertParallel(true)
                                .all2allBackend("nixl_ep")
                                .build())
                        .numLocalExperts(config.globalNumExperts())
                        .build(),
                seed);
    }

    /** The same weights on that device. */
    public RandomLayer on(String device) {
        return new RandomLayer(config.toBuilder().device(device).build(), seed);
    }

    @Override
    public void gateUpRow(int expert, int row, float[] into) {
        fill(into, 31L * expert + row, Math.sqrt(2.0 / config.hiddenDim()));
    }

    @Override
    public void downRow(int expert, int row, float[] into) {
        fill(into, 1_000_003L + 31L * expert + row, Math.sqrt(2.0 / config.intermediateSize()));
    }

    @Override
    public RouterWeights router() {
        float[] weight = new float[(config.numRouterLogits() - config.numSharedLogits()) * config.hiddenDim()];
        fill(weight, 2_000_003L, 1.0);
        float[] correctionBias = null;
        if (config.router().hasCorrectionBias()) {
            correctionBias = new float[config.numChoices()];
            fill(correctionBias, 2_000_029L, 0.3);
        }
        float[] gate = null;
        if (config.numSharedLogits() > 0) {
            gate = new float[config.numSharedLogits() * config.hiddenDim()];
            fill(gate, 2_000_039L, 0.2);
        }
        float[] bias = null;
        if (config.router().mixesShared()) {
            bias = new float[config.numRouterLogits()];
            fill(bias, 2_000_081L, 0.3);
        }
        return new RouterWeights(weight, bias, correctionBias, gate);
    }

    @Override
    public float @Nullable [] w13Bias() {
        return bias(4_000_037L, config.gateUpRows());
    }

    @Override
    public float @Nullable [] w2Bias() {
        return bias(5_000_011L, config.hiddenDim());
    }

    private float @Nullable [] bias(long stream, int rows) {
        if (!config.hasBias()) {
            return null;
        }
        float[] bias = new float[config.globalNumExperts() * rows];
        fill(bias, stream, 0.5);
        return bias;
    }

    /**
     * An adapter that changes outputs about as much as the weights do; its outer matrices, H wide, may be shared by all
     * experts.
     */
    public LoraAdapter adapter(int rank, boolean shared) {
        int e = config.globalNumExperts();
        int h = config.hiddenDim();
        int i = config.intermediateSizePerPartition();
        float[] w13A = new float[(shared ? 1 : e) * LoraAdapter.slices(config) * rank * h];
        float[] w13B = new float[e * config.gateUpRows() * rank];
        float[] w2A = new float[e * rank * i];
        float[] w2B = new float[(shared ? 1 : e) * h * rank];
        fill(w13A, 6_000_011L + rank, Math.sqrt(1.0 / h));
        fill(w13B, 7_000_003L + rank, Math.sqrt(1.0 / rank));
        fill(w2A, 8_000_009L + rank, Math.sqrt(1.0 / i));
        fill(w2B, 9_000_011L + rank, Math.sqrt(1.0 / rank));
        return LoraAdapter.of(rank, 1.5 * rank, w13A, w13B, w2A, w2B);
    }

    /** Hidden states [tokens, H]. */
    public float[] hidden(int tokens, long draw) {
        float[] hidden = new float[tokens * config.hiddenDim()];
        fill(hidden, 3_000_017L + draw, 1.0);
        return hidden;
    }

    private void fill(float[] into, long stream, double deviation) {
        SplittableRandom random = new SplittableRandom(seed * 1_000_000_007L + stream);
        for (int i = 0; i < into.length; i++) {
            into[i] = (float) (random.nextGaussian() * deviation);
        }
    }
}
