package org.tornadomoe.quant;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/**
 * A router's tensors, in float; all values are finite. C choices: the routed experts, then the zero experts ({@link
 * FusedMoeConfig#numChoices}). The record keeps the arrays; don't write to them.
 *
 * @param weight [C, H], row-major; empty for a layer that gets its logits from the caller; [3C, H] for queries, keys
 *     and values ({@link ScoringFunction#ATTENTION})
 * @param bias [C], added to the logits; [C + 1] with one of the shared expert gate where the rest of it is the others'
 *     ({@link RouterConfig#mixesShared}); null for none
 * @param correctionBias [C], added to the scores for the choice only; null for none
 * @param sharedExpertGate [H]: the shared experts' weight is the sigmoid of its product with the token; [n, H] if each
 *     shared expert has a logit that is scored like the choices' ({@link FusedMoeConfig#numSharedLogits}); null for a
 *     weight of 1
 * @param expertsOfToken [V, K], the experts of each of V token ids ({@link ScoringFunction#TOKEN_TABLE}), 0 to E - 1;
 *     null for none
 * @param network a network in place of the weight ({@link ScoringFunction#NETWORK}); null for none
 */
public record RouterWeights(
        float[] weight,
        float @Nullable [] bias,
        float @Nullable [] correctionBias,
        float @Nullable [] sharedExpertGate,
        int @Nullable [] expertsOfToken,
        @Nullable RouterNetwork network) {
    /** For a layer that gets its logits from the caller. */
    public static final RouterWeights NONE = of(new float[0]);

    /** A router that chooses by logits, or by the caller's function. */
    public RouterWeights(
            float[] weight,
            float @Nullable [] bias,
            float @Nullable [] correctionBias,
            float @Nullable [] sharedExpertGate) {
        this(weight, bias, correctionBias, sharedExpertGate, null, null);
    }

    /** A router with a weight only. */
    public static RouterWeights of(float[] weight) {
        return new RouterWeights(weight, null, null, null);
    }

    /** Whether logits can be computed from hidden states. */
    public boolean hasWeight() {
        return weight.length != 0;
    }

    /** Bytes of memory held. */
    public long bytes() {
        long table = expertsOfToken == null ? 0 : expertsOfToken.length;
        return 4 * (weight.length + table + length(bias) + length(correctionBias) + length(sharedExpertGate))
                + (network == null ? 0 : network.bytes());
    }

    private static int length(float @Nullable [] values) {
        return values == null ? 0 : values.length;
    }

    /**
     * Checks that this router fits the layer.
     *
     * @throws IllegalArgumentException naming the tensor, what was expected and what came
     */
    public void requireFits(FusedMoeConfig config) {
        int h = config.hiddenDim();
        int choices = config.numChoices();
        if (weight.length != 0) {
            // Also where the caller's function has taken the place of attention.
            boolean attends = config.router().scoring() == ScoringFunction.ATTENTION
                    || (config.router().isOfCaller() && weight.length == 3L * choices * h);
            require("router weight", weight, attends ? 3 * choices : choices, h);
        }
        if (bias != null) {
            require("router bias", bias, config.router().mixesShared() ? choices + 1 : choices, 1);
        }
        // The caller's function doesn't need it, so the checkpoint may have or lack it.
        if (!config.router().isOfCaller() && config.router().scoring() != ScoringFunction.SPARSE_MIXER) {
            requirePresence(
                    "correction bias", correctionBias != null, config.router().hasCorrectionBias());
        }
        if (correctionBias != null) {
            require("router's correction bias", correctionBias, choices, 1);
        }
        if (!config.router().isOfCaller()) {
            boolean table = config.router().scoring() == ScoringFunction.TOKEN_TABLE;
            requirePresence("table of experts", expertsOfToken != null, table);
            requirePresence("network", network != null, config.router().scoring() == ScoringFunction.NETWORK);
        }
        if (expertsOfToken != null) {
            requireTable(expertsOfToken, config);
        }
        if (network != null) {
            network.requireFits(config);
        }
        if (config.router().scoring() == ScoringFunction.ATTENTION) {
            requirePresence("bias", bias != null, false);
        }
        requirePresence("shared expert gate", sharedExpertGate != null, config.numSharedLogits() > 0);
        if (sharedExpertGate != null) {
            require("shared expert gate", sharedExpertGate, config.numSharedLogits(), h);
        }
    }

    private static void requireTable(int[] experts, FusedMoeConfig config) {
        int k = config.expertsPerToken();
        if (experts.length == 0 || experts.length % k != 0) {
            throw new IllegalArgumentException(
                    "table of experts: expected " + k + " experts a token id, got " + experts.length + " in all");
        }
        for (int i = 0; i < experts.length; i++) {
            if (experts[i] < 0 || experts[i] >= config.numExperts()) {
                throw new IllegalArgumentException("table of experts: expected 0 to " + (config.numExperts() - 1)
                        + ", got " + experts[i] + " for token id " + i / k);
            }
        }
    }

    private static void requirePresence(String name, boolean present, boolean expected) {
        if (present != expected) {
            throw new IllegalArgumentException("router: expected " + (expected ? "a " : "no ") + name
                    + ", as its configuration says, got " + (present ? "one" : "none"));
        }
    }

    private static void require(String name, float[] values, int rows, int cols) {
        if (values.length != (long) rows * cols) {
            throw new IllegalArgumentException(name + ": expected [" + rows + ", " + cols + "] = " + (long) rows * cols
                    + " values, got " + values.length);
        }
        for (int i = 0; i < values.length; i++) {
            if (!Float.isFinite(values[i])) {
                throw new IllegalArgumentException(name + ": expected finite values, got " + values[i] + " at expert "
                        + i / cols + ", column " + i % cols);
            }
        }
    }
}
