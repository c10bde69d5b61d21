package org.tornadomoe.quant;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;

/**
 * What is around a layer's routed experts if they compute in a narrower space (Kimi K3): a token is projected into it,
 * the sum over its experts is normed and projected back, and what shared experts compute of the token itself is added.
 * L is the width of that space, H that of hidden states. The record keeps the arrays; don't write to them.
 *
 * @param config the layer's, as callers see it: hidden states of H, and the router, which reads them; no shared experts
 * @param router of the layer
 * @param into [L, H], row-major
 * @param norm [L], the weight of the sum's RMS norm; null for none
 * @param epsilon of the norm
 * @param back [H, L], row-major
 * @param shared a layer of experts that every token has, all with weight 1, on hidden states of H; null for none
 */
public record LatentSpace(
        FusedMoeConfig config,
        RouterWeights router,
        float[] into,
        float @Nullable [] norm,
        double epsilon,
        float[] back,
        @Nullable ExpertWeights shared) {
    /** Replaces a sum over experts [L] by its norm: divided by the root of its mean square, times the weight. */
    public void normalize(double[] sum) {
        if (norm == null) {
            return;
        }
        double squares = 0;
        for (double value : sum) {
            squares += value * value;
        }
        double root = Math.sqrt(squares / sum.length + epsilon);
        for (int i = 0; i < sum.length; i++) {
            sum[i] = sum[i] / root * norm[i];
        }
    }
}
