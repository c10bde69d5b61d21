package org.tornadomoe.checkpoint.weights;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;

/**
 * The three matrices of one expert; two where it has no gate, the up projection standing in both places.
 *
 * @param modules what a checkpoint with a tensor for each calls them, without {@code .weight}: gate, up, down; none
 *     where the matrices are not what any tensor holds
 * @param gate [I, H]
 * @param up [I, H]
 * @param down [H, I]
 * @param gateBias [I]; null, as the other two, where the family has no biases
 * @param upBias [I]
 * @param downBias [H]
 */
public record Projections(
        List<String> modules,
        Matrix gate,
        Matrix up,
        Matrix down,
        float @Nullable [] gateBias,
        float @Nullable [] upBias,
        float @Nullable [] downBias) {
    /** Whether there is a gate. */
    public boolean isGated() {
        return gate != up;
    }

    /** The same with another bias of the down projection. */
    public Projections withDownBias(float[] bias) {
        return new Projections(modules, gate, up, down, gateBias, upBias, bias);
    }

    /** The same with one more of what the up projection computes, as a bias. */
    public Projections withUpPlusOne() {
        float[] more = upBias == null ? new float[up.rows()] : upBias.clone();
        for (int r = 0; r < more.length; r++) {
            more[r]++;
        }
        return new Projections(List.of(), gate, up, down, gateBias, more, downBias);
    }

    /** The same of which the output is so many times as great. */
    public Projections scaled(float factor) {
        if (factor == 1) {
            return this;
        }
        float[] bias = downBias == null ? null : downBias.clone();
        for (int c = 0; bias != null && c < bias.length; c++) {
            bias[c] *= factor;
        }
        return new Projections(List.of(), gate, up, Matrix.scaled(down, factor), gateBias, upBias, bias);
    }

    /** The same with GroveMoE's smaller expert beside it, what that computes being scaled where a row has a scale. */
    public Projections withAdjugate(Matrix besideGate, Matrix besideUp, Matrix besideDown) {
        return new Projections(
                List.of(),
                new MatrixView.Above(gate, besideGate),
                new MatrixView.Above(up, Matrix.scaled(besideUp, LayerShape.ADJUGATE_SCALE)),
                new MatrixView.Beside(List.of(down, besideDown)),
                null,
                null,
                null);
    }

    /** The same of a token that is projected first by [L, H] and then back by [H, L]: one expert on H columns. */
    public Projections between(Matrix into, Matrix back) {
        Matrix first = new MatrixView.Product(up, into);
        return new Projections(
                List.of(),
                isGated() ? new MatrixView.Product(gate, into) : first,
                first,
                new MatrixView.Product(back, down),
                gateBias,
                upBias,
                downBias);
    }

    /** Gate, up, down. */
    public List<Matrix> matrices() {
        return List.of(gate, up, down);
    }
}
