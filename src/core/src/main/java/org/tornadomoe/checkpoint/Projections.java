package org.tornadomoe.checkpoint;

import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The three matrices of one expert.
 *
 * @param modules what a checkpoint with a tensor for each calls them, without {@code .weight}: gate, up, down
 * @param gate [I, H]
 * @param up [I, H]
 * @param down [H, I]
 * @param gateBias [I]; null, as the other two, where the family has no biases
 * @param upBias [I]
 * @param downBias [H]
 */
record Projections(
        List<String> modules,
        Matrix gate,
        Matrix up,
        Matrix down,
        float @Nullable [] gateBias,
        float @Nullable [] upBias,
        float @Nullable [] downBias) {
    /** Gate, up, down. */
    List<Matrix> matrices() {
        return List.of(gate, up, down);
    }
}
