package org.tornadomoe.quant;

import java.util.Locale;
import org.tornadomoe.config.FusedMoeConfig;

/**
 * A low-rank adapter (LoRA) of a layer's experts, which uses W + B·A in place of W in both projections. E experts
 * (shared ones included), H hidden, I this rank's intermediate size, r the adapter's rank. S is 2 if the activation has
 * a gate, because gate and up then have one A each, else 1. Each of the four arrays is [E, …], or [1, …] if all experts
 * share it. The record keeps the arrays; don't write to them.
 *
 * @param rank r
 * @param w13A [E, S, r, H], the gate's A first
 * @param w13B [E, rows of w13, r], in the order of w13's rows
 * @param w2A [E, r, I]
 * @param w2B [E, H, r]
 */
public record LoraAdapter(int rank, float[] w13A, float[] w13B, float[] w2A, float[] w2B) {
    /**
     * An adapter in its trained form: merges alpha / r into B. The other parameters are those of the record; arrays are
     * copied.
     *
     * @throws IllegalArgumentException for a rank that isn't positive
     */
    public static LoraAdapter of(int rank, double alpha, float[] w13A, float[] w13B, float[] w2A, float[] w2B) {
        if (rank < 1) {
            throw new IllegalArgumentException("rank: expected a positive number, got " + rank);
        }
        return new LoraAdapter(rank, w13A.clone(), scaled(w13B, alpha / rank), w2A.clone(), scaled(w2B, alpha / rank));
    }

    private static float[] scaled(float[] values, double factor) {
        float[] scaled = new float[values.length];
        for (int i = 0; i < values.length; i++) {
            scaled[i] = (float) (values[i] * factor);
        }
        return scaled;
    }

    /** S, the number of A matrices that an expert has for w13. */
    public static int slices(FusedMoeConfig config) {
        return config.activation().isGated() ? 2 : 1;
    }

    /** The index of the A matrix for a row of w13. */
    public static int slice(FusedMoeConfig config, int row) {
        return config.activation().isInterleaved() ? row % 2 : row / config.intermediateSizePerPartition();
    }

    /**
     * Checks the adapter against a layer.
     *
     * @throws IllegalArgumentException naming the array that doesn't fit or isn't finite
     */
    public void requireFits(FusedMoeConfig config) {
        if (!config.isLoraEnabled()) {
            throw new IllegalArgumentException(
                    "adapter: expected none, the layer was loaded without room for adapters");
        }
        if (rank < 1 || rank > config.maxLoraRank()) {
            throw new IllegalArgumentException("rank: expected 1 to " + config.maxLoraRank()
                    + " (the most that the layer" + " was loaded for), got " + rank);
        }
        long h = config.hiddenDim();
        long i = config.intermediateSizePerPartition();
        require("w13A", w13A, config, h * slices(config) * rank);
        require("w13B", w13B, config, (long) config.gateUpRows() * rank);
        require("w2A", w2A, config, i * rank);
        require("w2B", w2B, config, h * rank);
    }

    private static void require(String name, float[] values, FusedMoeConfig config, long each) {
        if (values.length != each && values.length != config.globalNumExperts() * each) {
            throw new IllegalArgumentException(String.format(
                    Locale.ROOT,
                    "%s: expected %d values for each of %d experts, or for all of them together, got %d",
                    name,
                    each,
                    config.globalNumExperts(),
                    values.length));
        }
        for (int v = 0; v < values.length; v++) {
            if (!Float.isFinite(values[v])) {
                throw new IllegalArgumentException(
                        name + ": expected finite values, got " + values[v] + " at index " + v);
            }
        }
    }

    /** The offset of an expert's values in one of the four arrays, with {@code each} values per expert. */
    public static int offset(float[] values, int expert, int each) {
        return values.length == each ? 0 : Math.multiplyExact(expert, each);
    }
}
