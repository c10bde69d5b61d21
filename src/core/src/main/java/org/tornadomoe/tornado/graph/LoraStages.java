package org.tornadomoe.tornado.graph;

import java.util.List;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.kernels.LoraKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/** What adapters add to the products, where the layer has any. */
final class LoraStages {
    private final LayerArrays a;

    LoraStages(LayerArrays arrays) {
        a = arrays;
    }

    /**
     * hidden → added to gateUp, where the layer has adapters; times the router's weights where those are on the input.
     */
    List<Stage> gateUp() {
        return lora(
                "loraGateUp",
                a.work.hidden,
                a.shape.topK,
                a.adapters.w13A,
                a.adapters.w13B,
                a.work.gateUp,
                a.shape.hidden,
                a.shape.gateUpRows,
                a.shape.activation.layout(),
                a.shape.weightsOnInput ? 1 : 0);
    }

    /** activated → added to down, where the layer has adapters. */
    List<Stage> down(int weighted) {
        return lora(
                "loraDown",
                a.work.activated,
                1,
                a.adapters.w2A,
                a.adapters.w2B,
                a.work.down,
                a.shape.intermediate,
                a.shape.hidden,
                ActivationKernels.NO_GATE,
                weighted);
    }

    private List<Stage> lora(
            String name,
            FloatArray x,
            int pairsPerRow,
            FloatArray loraA,
            FloatArray loraB,
            FloatArray out,
            int cols,
            int rows,
            int layout,
            int weighted) {
        if (!a.shape.adapted) {
            return List.of();
        }
        int pairs = a.shape.topK;
        int rank = a.shape.config.maxLoraRank();
        int ranks = layout == ActivationKernels.NO_GATE ? rank : 2 * rank;
        Stage shrink = KernelTask.stage(
                name + "A",
                LoraKernels.GROUP,
                m -> Math.multiplyExact(m * pairs, ranks),
                t -> t.runs(
                        LoraKernels::shrink,
                        t.in(a.work.header),
                        t.in(a.adapters.slots),
                        t.in(a.work.keys),
                        t.in(x),
                        t.in(loraA),
                        t.out(a.adapters.shrunk),
                        pairs,
                        cols,
                        ranks,
                        a.shape.localExperts,
                        pairsPerRow));
        Stage expand = KernelTask.stage(
                name + "B",
                LoraKernels.GROUP,
                m -> KernelTask.elementGroups(m * pairs, rows, LoraKernels.GROUP),
                t -> t.runs(
                        LoraKernels::expand,
                        t.in(a.work.header),
                        t.in(a.adapters.slots),
                        t.in(a.work.keys),
                        t.in(a.work.topkWeights),
                        t.in(a.adapters.shrunk),
                        t.in(loraB),
                        t.inout(out),
                        pairs,
                        rows,
                        rank,
                        layout,
                        a.shape.localExperts,
                        weighted));
        return List.of(shrink, expand);
    }
}
