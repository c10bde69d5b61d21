package org.tornadomoe.tornado.graph;

import static java.util.Collections.nCopies;

import java.util.ArrayList;
import java.util.List;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A layer with {@link AmdGemm} on halves: its kernel packs activations in float before each product. */
final class AmdProgram extends LayerProgram {
    private final AmdGemm amd;

    AmdProgram(AmdGemm gemm, LayerArrays arrays) {
        super(gemm, arrays);
        amd = gemm;
    }

    /** hidden → hiddenQ. */
    @Override
    List<Stage> quantizeTokens() {
        int perToken = a.shape.config.inputRowsPerToken();
        int weighted = a.shape.weightsOnInput ? 1 : 0;
        return pack("packTokens", a.weights.w13.packing(), a.work.hidden, a.work.hiddenQ, perToken, weighted, 0);
    }

    @Override
    List<Stage> activateAndQuantize() {
        return inOrder(super.activateAndQuantize(), quantizePairs());
    }

    /** activated → activatedQ. */
    @Override
    List<Stage> quantizePairs() {
        return pack("packPairs", a.weights.w2.packing(), a.work.activated, a.work.activatedQ, a.shape.topK, 0, 1);
    }

    /**
     * Packing of the rows of a matrix.
     *
     * @param perToken its rows for a token
     * @param weighted 1 if it has one for all of a token's rows, which are to be multiplied by the router's weights
     * @param keyed 1 if rows are pairs, and those of key −1 aren't there
     */
    private List<Stage> pack(
            String name, IntArray sizes, FloatArray from, IntArray into, int perToken, int weighted, int keyed) {
        int cols = keyed == 1 ? a.shape.intermediate : a.shape.hidden;
        PrebuiltGemm.setSizes(sizes, AmdGemm.sizesOfPacking(perToken, weighted, cols, keyed));
        // The kernel ignores its arguments for a product's other arrays.
        List<Object> reads = new ArrayList<>(List.of(a.work.header, sizes));
        reads.addAll(nCopies(4, a.work.keys));
        reads.addAll(nCopies(4, from));
        reads.add(a.work.topkWeights);
        return List.of(new Stage(
                name,
                m -> amd.smallestGroup(),
                m -> m * perToken,
                m -> 1,
                (graph, device, task) -> amd.kernel(a).addTask(graph, device, task, reads, into),
                reads,
                List.of(into)));
    }
}
