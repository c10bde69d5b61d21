package org.tornadomoe.tornado.graph;

import org.tornadomoe.tornado.kernels.HalfKernels;

/** Hidden states of 16 bits, and output of 16 bits. */
final class HalfStages {
    private final LayerArrays a;

    HalfStages(LayerArrays arrays) {
        a = arrays;
    }

    /** hiddenHalves → hidden. */
    Stage widenHidden() {
        int h = a.shape.hidden;
        return KernelTask.stage(
                "widenHidden",
                HalfKernels.GROUP,
                this::halfGroups,
                t -> t.runs(
                        HalfKernels::widenHalves,
                        t.in(a.work.header),
                        t.in(a.work.hiddenHalves),
                        t.in(a.halves.widened),
                        t.out(a.work.hidden),
                        h));
    }

    /** output → outputHalves. */
    Stage narrowOutput() {
        int h = a.shape.hidden;
        int infinity = HalfTables.infinity(a.shape.config.inDtype());
        int nan = infinity | ((infinity >> 1) & ~infinity); // quiet
        return KernelTask.stage(
                "narrowOutput",
                HalfKernels.GROUP,
                this::halfGroups,
                t -> t.runs(
                        HalfKernels::narrowToHalves,
                        t.in(a.work.header),
                        t.in(a.work.output),
                        t.in(a.halves.roundingThresholds),
                        t.out(a.work.outputHalves),
                        h,
                        infinity,
                        nan));
    }

    private int halfGroups(int tokens) {
        return Math.ceilDiv(Math.ceilDiv(tokens * a.shape.hidden, 2), HalfKernels.GROUP);
    }
}
