package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import java.util.function.IntUnaryOperator;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.tornado.layout.MmaWeights;

/** A layer with {@link MmaGemm}: activations are brought into the form that its products take by kernels of its own. */
final class MmaProgram extends CudaProgram {
    private final MmaGemm mma;

    MmaProgram(MmaGemm gemm, LayerArrays arrays) {
        super(gemm, arrays);
        mma = gemm;
    }

    @Override
    List<Stage> first() {
        return logits();
    }

    @Override
    List<Stage> sortAndPack(IntPredicate sorts) {
        return inOrder(List.of(sort(sorts)), quantizeTokens());
    }

    @Override
    List<Stage> packPairs() {
        return packPairs(packedOften());
    }

    /** hidden → hiddenQ and scales, and amax is 0. */
    @Override
    List<Stage> quantizeTokens() {
        return packRows(QuantizedMatrix.tokens(a), m -> m * a.shape.config.inputRowsPerToken());
    }

    /** activated → activatedQ and scales. */
    @Override
    List<Stage> quantizePairs() {
        return packPairs(0);
    }

    /** @param often pairs up to which the GEMM does it */
    private List<Stage> packPairs(int often) {
        return packRows(
                QuantizedMatrix.pairs(a),
                m -> MmaGemm.isSkinny(a.blockSize(m)) && a.shape.pairs(m) <= often ? 0 : a.shape.pairs(m));
    }

    private List<Stage> packRows(QuantizedMatrix x, IntUnaryOperator count) {
        return packRows(x, MmaWeights.chunks(x.cols()), mma.columnsOfGroup(a, x.cols()), mma.ordersFrom(), count);
    }

    /** Where rows have one scale each, which is known from the first product. */
    @Override
    int packedOften() {
        boolean perRow = a.shape.scheme == Int8Scheme.W8A8_CHANNEL || !a.shape.int8;
        return perRow ? packedOften(4 * mma.layout().rowInts(a.shape.intermediate)) : 0;
    }
}
