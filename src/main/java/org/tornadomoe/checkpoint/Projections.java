package org.tornadomoe.checkpoint;

import org.jspecify.annotations.Nullable;

/**
 * The three matrices of one expert.
 *
 * @param gate [I, H]
 * @param up [I, H]
 * @param down [H, I]
 * @param gateBias [I]; null, as the other two, where the family has no biases
 * @param upBias [I]
 * @param downBias [H]
 */
record Projections(
        Matrix gate,
        Matrix up,
        Matrix down,
        float @Nullable [] gateBias,
        float @Nullable [] upBias,
        float @Nullable [] downBias) {}
