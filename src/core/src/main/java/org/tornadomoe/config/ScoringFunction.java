package org.tornadomoe.config;

import java.util.Arrays;
import java.util.Locale;

/** What makes a router's logits into scores, which choose experts and become their weights. */
public enum ScoringFunction {
    /** exp(x) over the sum of all. */
    SOFTMAX,
    /**
     * As {@link #SOFTMAX}, and of each of the router's groups as many experts are chosen, the best K / groups (Pangu
     * Pro MoE, Intern-S1-Pro). It runs on the host.
     */
    SOFTMAX_EACH_GROUP,
    /** 1 / (1 + exp(-x)), each logit by itself. */
    SIGMOID,
    /** The square root of ln(1 + exp(x)), each logit by itself. */
    SQRTSOFTPLUS,
    /** The logits themselves. */
    IDENTITY,
    /**
     * PhiMoE's sparsemixer, which scores and chooses by turns: the greatest logit that is left, m, is chosen; its
     * weight is its softmax among those left that are at most a share of {@value #SPARSE_MIXER_MARGIN} below it: (m -
     * x) / max(|x|, m). It runs on the host.
     */
    SPARSE_MIXER,
    /**
     * The experts are those that a table has for the token's id, which a call brings (DeepSeek-V4's first layers);
     * their scores are as of {@link #SQRTSOFTPLUS}. It runs on the host.
     */
    TOKEN_TABLE,
    /** A network of the model's own in place of one matrix, whose last choice is no expert (ZAYA); on the host. */
    NETWORK,
    /** A function of the caller's that gives ids and weights; it runs on the host. */
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

    /** Whether scores are a softmax of all logits, whichever are chosen by them. */
    public boolean isSoftmax() {
        return this == SOFTMAX || this == SOFTMAX_EACH_GROUP;
    }

    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
