package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.stream.Stream;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.layout.ActivationCode;

/** The stage between the products: the activation, and its quantisation if that is by whole rows. */
final class ActivationStages {
    private final LayerArrays a;

    ActivationStages(LayerArrays arrays) {
        a = arrays;
    }

    /** gateUp → activated, and its int8 and scales. */
    List<Stage> activateAndQuantize() {
        if (a.shape.scheme != Int8Scheme.W8A8_CHANNEL) {
            // Nothing to quantise, or not with one scale per row.
            return Stream.of(activate(), new QuantizeStages(a).activated())
                    .flatMap(List::stream)
                    .toList();
        }
        int i = a.shape.intermediate;
        ActivationCode f = a.shape.activation;
        return List.of(KernelTask.stage(
                "activateAndQuantize",
                ActivationKernels.ROW_GROUP,
                a.shape::pairs,
                t -> t.runs(
                        ActivationKernels::activateAndQuantize,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.gateUp),
                        t.out(a.work.activated),
                        t.out(a.work.activatedQ),
                        t.out(a.work.activatedScales),
                        a.shape.topK,
                        i,
                        a.shape.intermediateInts,
                        f.function(),
                        f.layout(),
                        f.limit(),
                        f.alpha(),
                        f.beta(),
                        f.linearBeta())));
    }

    /** gateUp → activated. */
    private List<Stage> activate() {
        int i = a.shape.intermediate;
        ActivationCode f = a.shape.activation;
        return List.of(KernelTask.stage(
                "activate",
                ActivationKernels.GROUP,
                m -> KernelTask.elementGroups(a.shape.pairs(m), i, ActivationKernels.GROUP),
                t -> t.runs(
                        ActivationKernels::activate,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.gateUp),
                        t.out(a.work.activated),
                        a.shape.topK,
                        i,
                        f.function(),
                        f.layout(),
                        f.limit(),
                        f.alpha(),
                        f.beta(),
                        f.linearBeta())));
    }
}
