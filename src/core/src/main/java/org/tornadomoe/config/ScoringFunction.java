package org.tornadomoe.config;

import java.util.Arrays;
import java.util.Locale;

/**
 * The function that turns a router's logits into scores. Scores decide the choice of experts and become their weights.
 */
public enum ScoringFunction {
    /** exp(x) over the sum of all. */
    SOFTMAX,
    /**
     * As {@link #SOFTMAX}, but the best K / groups experts are chosen from each of the router's groups (Pangu Pro MoE,
     * Intern-S1-Pro). It runs on the host.
     */
    SOFTMAX_EACH_GROUP,
    /** 1 / (1 + exp(-x)), each logit by itself. */
    SIGMOID,
    /** The square root of ln(1 + exp(x)), each logit by itself. */
    SQRTSOFTPLUS,
    /** The logits themselves. */
    IDENTITY,
    /**
     * PhiMoE's sparsemixer, which alternately chooses and scores. It chooses the largest remaining logit m; its weight
     * is its softmax among those remaining logits x for which (m - x) / max(|x|, m) is at most {@value
     * #SPARSE_MIXER_MARGIN}. It runs on the host.
     */
    SPARSE_MIXER,
    /**
     * As {@link #SOFTMAX}, of experts that attend to each other (Yuan): a token has a query, a key and a value for each
     * expert, 3E logits in this order, and an expert's logit becomes the mean of all values, weighted by the softmax of
     * its query times all keys. It runs on the host.
     */
    ATTENTION,
    /**
     * A table gives the experts for each token's id, which the call passes (DeepSeek-V4's first layers). Their scores
     * are those of {@link #SQRTSOFTPLUS}. It runs on the host.
     */
    TOKEN_TABLE,
    /** The model's own network instead of one matrix; its last choice is no expert (ZAYA). It runs on the host. */
    NETWORK,
    /** The caller's own function, which gives ids and weights. It runs on the host. */
    CUSTOM,
    /** A simulator's ids instead of the model's. */
    SIMULATED;

    /** Twice PhiMoE's {@code router_jitter_noise}. */
    public static final double SPARSE_MIXER_MARGIN = 0.02;

    /**
     * The function of that name in a model's configuration ({@code scoring_func}): {@code softmax}, {@code sigmoid} or
     * {@code sqrtsoftplus}.
     *
     * @throws IllegalArgumentException if it is another
     */
    public static ScoringFunction fromString(String name) {
        return Arrays.stream(new ScoringFunction[] {SOFTMAX, SIGMOID, SQRTSOFTPLUS})
                .filter(f -> f.toString().equals(name))
                .findFirst()
                .orElseThrow(() -> new IllegalArgumentException("Unsupported scoring function: " + name));
    }

    /** Whether scores are a softmax over all logits, however experts are chosen by them. */
    public boolean isSoftmax() {
        return this == SOFTMAX || this == SOFTMAX_EACH_GROUP || this == ATTENTION;
    }

    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
