package org.tornadomoe.quant;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;

/** Weights in the caller's arrays. */
record ArrayWeights(
        FusedMoeConfig config,
        RouterWeights router,
        float[] w13,
        float[] w2,
        float @Nullable [] w13Bias,
        float @Nullable [] w2Bias)
        implements ExpertWeights {
    ArrayWeights {
        router.requireFits(config);
        long experts = config.globalNumExperts();
        long rows = config.gateUpRows();
        long h = config.hiddenDim();
        long i = config.intermediateSizePerPartition();
        require("w13", w13.length, experts, rows, h);
        require("w2", w2.length, experts, h, i);
        if (config.hasBias() != (w13Bias != null) || config.hasBias() != (w2Bias != null)) {
            throw new IllegalArgumentException("biases: expected " + (config.hasBias() ? "both" : "none")
                    + ", as the configuration says, got " + (w13Bias != null || w2Bias != null ? "some" : "none"));
        }
        if (w13Bias != null && w2Bias != null) {
            require("w13Bias", w13Bias.length, experts, rows, 1);
            require("w2Bias", w2Bias.length, experts, h, 1);
        }
    }

    private static void require(String name, int length, long experts, long rows, long cols) {
        if (length != experts * rows * cols) {
            throw new IllegalArgumentException(name + ": expected " + experts * rows * cols + " values ([" + experts
                    + ", " + rows + (cols == 1 ? "" : ", " + cols) + "]), got " + length);
        }
    }

    @Override
    public void gateUpRow(int expert, int row, float[] into) {
        int h = config.hiddenDim();
        copy(w13, expert, row, config.gateUpRows(), h, into);
    }

    @Override
    public void downRow(int expert, int row, float[] into) {
        copy(w2, expert, row, config.hiddenDim(), config.intermediateSizePerPartition(), into);
    }

    private static void copy(float[] from, int expert, int row, int rows, int cols, float[] into) {
        if (row < 0 || row >= rows) {
            throw new IndexOutOfBoundsException("row: expected 0 to " + (rows - 1) + ", got " + row);
        }
        System.arraycopy(from, (expert * rows + row) * cols, into, 0, cols);
    }

    @Override
    public float @Nullable [] w13Bias() {
        return w13Bias == null ? null : w13Bias.clone();
    }

    @Override
    public float @Nullable [] w2Bias() {
        return w2Bias == null ? null : w2Bias.clone();
    }

    @Override
    public String toString() {
        return "ExpertWeights[" + config.globalNumExperts() + " experts, hidden " + config.hiddenDim()
                + ", intermediate " + config.intermediateSizePerPartition() + "]";
    }
}
