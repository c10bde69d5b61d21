package org.tornadomoe.checkpoint;

import java.util.Objects;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.RouterWeights;

/** The matrices of one expert as a layer, without router or biases: for quantising them by themselves. */
record OneExpert(Projections projections, FusedMoeConfig config) implements ExpertWeights {
    static OneExpert of(Projections projections) {
        return new OneExpert(
                projections,
                FusedMoeConfig.builder()
                        .numExperts(1)
                        .expertsPerToken(1)
                        .hiddenDim(projections.down().rows())
                        .intermediateSize(projections.gate().rows())
                        .maxNumTokens(1)
                        .build());
    }

    @Override
    public void gateUpRow(int expert, int row, float[] into) {
        Objects.checkIndex(expert, 1);
        int i = config.intermediateSize();
        (row < i ? projections.gate() : projections.up()).row(row < i ? row : row - i, into);
    }

    @Override
    public String gateUpSource(int expert, int row) {
        return (row < config.intermediateSize() ? projections.gate() : projections.up()).source();
    }

    @Override
    public String downSource(int expert) {
        return projections.down().source();
    }

    @Override
    public void downRow(int expert, int row, float[] into) {
        Objects.checkIndex(expert, 1);
        projections.down().row(row, into);
    }

    @Override
    public RouterWeights router() {
        return RouterWeights.NONE;
    }
}
