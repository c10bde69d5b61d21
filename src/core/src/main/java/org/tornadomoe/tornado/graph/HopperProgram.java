package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import java.util.function.IntUnaryOperator;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.layout.HopperWeights;

/** A layer with {@link HopperGemm}: for few tokens what is quantised is in one kernel with the router's logits. */
final class HopperProgram extends CudaProgram {
    HopperProgram(LayerArrays arrays) {
        super(new HopperGemm(), arrays);
    }

    /** Whether all activations have one scale, which nobody knows before the last of them. */
    private boolean hasOneScale() {
        return HopperGemm.hasOneScale(a);
    }

    @Override
    List<Stage> first() {
        return hasOneScale() ? logits() : prepare("prepare", !a.shape.weightsOnInput);
    }

    @Override
    List<Stage> sortAndPack(IntPredicate sorts) {
        if (hasOneScale()) {
            return inOrder(List.of(sort(sorts)), quantizeTokens());
        }
        // Those for which the first kernel hasn't done it.
        IntPredicate packs = m -> a.shape.weightsOnInput || !a.shape.routes || isTiled(m);
        IntPredicate both = sorts.and(packs).and(m -> m >= many());
        return List.of(sort(sorts.and(both.negate())), sortAndQuantize(both), quantize(packs.and(both.negate())));
    }

    @Override
    List<Stage> quantizeTokens() {
        return hasOneScale()
                ? packRows(QuantizedMatrix.tokens(a), m -> m * a.shape.config.inputRowsPerToken())
                : List.of(quantize(m -> true));
    }

    /** Packs rows that are quantised by one scale for all. */
    private List<Stage> packRows(QuantizedMatrix x, IntUnaryOperator count) {
        int chunks = 2 * HopperWeights.chunks(x.cols());
        return packRows(x, chunks, 64 * chunks, 0, count);
    }

    /** hidden → int8 tokens. */
    private Stage quantize(IntPredicate when) {
        int rowsPerToken = a.shape.config.inputRowsPerToken();
        return prepare(
                "quantizeTokens",
                m -> when.test(m) ? new Launch("prepare", 128, m * rowsPerToken, 1, 0) : Launch.NONE,
                0,
                rowsPerToken);
    }

    @Override
    List<Stage> packPairs() {
        if (hasOneScale()) {
            return packRows(QuantizedMatrix.pairs(a), a.shape::pairs);
        }
        int i = a.shape.intermediate;
        return List.of(pack(
                "quantizePairs",
                i,
                m -> {
                    if (HopperGemm.isSkinny(a, m) && a.shape.pairs(m) <= packedOften()) {
                        return Launch.NONE;
                    }
                    return m >= MANY
                            ? new Launch("quantizePairs", 128, Math.ceilDiv(a.shape.pairs(m), 4), 1, 0)
                            : new Launch("quantizePairs", 128, a.shape.pairs(m), Math.ceilDiv(i, 2048), 0);
                },
                List.of(a.work.keys, a.work.activated, a.work.amax),
                List.of(a.work.activatedQ, a.work.activatedScales),
                List.of(),
                List.of(a.shape.topK, i, HopperWeights.chunks(i), MANY)));
    }

    @Override
    int packedOften() {
        return hasOneScale() ? 0 : packedOften(HopperWeights.CHUNK * HopperWeights.chunks(a.shape.intermediate));
    }
}
