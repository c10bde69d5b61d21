package org.tornadomoe.quant;

import java.util.List;
import java.util.Random;
import org.tornadomoe.config.FusedMoeConfig;

/** Weights in arrays: w13 [E, 2I, H], w2 [E, H, I]. */
record SmallWeights(FusedMoeConfig config, float[] w13, float[] w2, RouterWeights router) implements ExpertWeights {
    /** A layer of that many experts, one per token. */
    static FusedMoeConfig config(int experts, int hidden, int intermediate) {
        return FusedMoeConfig.builder()
                .numExperts(experts)
                .expertsPerToken(1)
                .hiddenDim(hidden)
                .intermediateSize(intermediate)
                .build();
    }

    static SmallWeights random(FusedMoeConfig config, long seed) {
        Random random = new Random(seed);
        int e = config.numExperts();
        int h = config.hiddenDim();
        int i = config.intermediateSize();
        SmallWeights weights = new SmallWeights(
                config, new float[e * 2 * i * h], new float[e * h * i], RouterWeights.of(new float[e * h]));
        for (float[] values : List.of(weights.w13, weights.w2, weights.router.weight())) {
            for (int n = 0; n < values.length; n++) {
                values[n] = (float) random.nextGaussian();
            }
        }
        return weights;
    }

    @Override
    public void gateUpRow(int expert, int row, float[] into) {
        int h = config.hiddenDim();
        System.arraycopy(w13, (expert * config.gateUpRows() + row) * h, into, 0, h);
    }

    @Override
    public void downRow(int expert, int row, float[] into) {
        int i = config.intermediateSize();
        System.arraycopy(w2, (expert * config.hiddenDim() + row) * i, into, 0, i);
    }
}
