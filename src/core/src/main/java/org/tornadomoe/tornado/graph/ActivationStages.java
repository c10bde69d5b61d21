package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.stream.Stream;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.layout.ActivationCode;

/** Between the products: the activation, and its quantisation where that is of whole rows. */
final class ActivationStages {
    private final LayerArrays a;
    private final Rows rows;

    ActivationStages(LayerArrays arrays, Rows rows) {
        a = arrays;
        this.rows = rows;
    }

    /** gateUp → activated, and its int8 and scales. */
    List<Stage> activateAndQuantize() {
        if (a.shape.scheme != Int8Scheme.W8A8_CHANNEL) {
            // Nothing to quantise, or not by a scale a row.
            return Stream.of(activate(), new QuantizeStages(a, rows).activated())
                    .flatMap(List::stream)
                    .toList();
        }
        int i = a.shape.intermediate;
        ActivationCode f = a.shape.activation;
        return List.of(KernelTask.stage(
                "activateAndQuantize",
                ActivationKernels.ROW_GROUP,
                rows.count(),
                t -> t.runs(
                        ActivationKernels::activateAndQuantize,
                        t.in(rows.header()),
                        t.in(rows.keys()),
                        t.in(a.work.gateUp),
                        t.out(a.work.activated),
                        t.out(a.work.activatedQ),
                        t.out(a.work.activatedScales),
                        rows.perHeader(),
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
                m -> KernelTask.elementGroups(rows.of(m), i, ActivationKernels.GROUP),
                t -> t.runs(
                        ActivationKernels::activate,
                        t.in(rows.header()),
                        t.in(rows.keys()),
                        t.in(a.work.gateUp),
                        t.out(a.work.activated),
                        rows.perHeader(),
                        i,
                        f.function(),
                        f.layout(),
                        f.limit(),
                        f.alpha(),
                        f.beta(),
                        f.linearBeta())));
    }
}
