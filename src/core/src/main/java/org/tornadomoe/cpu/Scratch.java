package org.tornadomoe.cpu;

/** What one thread needs for itself within a task. */
final class Scratch {
    /** [tokens, rows] of a block, as {@link Arithmetic#dot} gives it. */
    final float[] tile = new float[Arithmetic.TOKENS * PackedWeights.ROWS];

    /** [tokens, rows], the sum over what shares a scale. */
    final double[] sum = new double[tile.length];

    /** [tokens, rows], the sum over all columns, scaled. */
    final double[] total = new double[tile.length];

    /** Where each token's row begins, then how many there are. */
    final int[] from = new int[Arithmetic.TOKENS];

    /** A row in int8. */
    byte[] bytes = new byte[0];

    /** A token's logits, scores, and what choices are compared by. */
    double[] logits = new double[0];

    double[] scores = new double[0];
    double[] keys = new double[0];
    double[] groupKeys = new double[0];

    /** Makes room; helpers serve layers of all sizes. */
    void require(int width, int logitCount, int groups) {
        if (bytes.length < width) {
            bytes = new byte[width];
        }
        if (logits.length < logitCount) {
            logits = new double[logitCount];
            scores = new double[logitCount];
            keys = new double[logitCount];
        }
        if (groupKeys.length < groups) {
            groupKeys = new double[groups];
        }
    }
}
