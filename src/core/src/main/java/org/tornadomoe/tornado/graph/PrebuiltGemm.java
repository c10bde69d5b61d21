package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntUnaryOperator;
import java.util.stream.Stream;
import org.tornadomoe.tornado.cuda.PrebuiltKernel;
import org.tornadomoe.tornado.device.Quirks;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A GEMM whose products are prebuilt tasks of one kernel among kernels in Java; an array passes the sizes. */
abstract class PrebuiltGemm extends JavaGemm {
    /** Arrays that the kernel reads. */
    private static final int READS = 11;

    /** The same for all products of a layer. */
    abstract PrebuiltKernel kernel(LayerArrays a);

    /** The kernel's work-group size. */
    abstract int smallestGroup();

    /**
     * Where TornadoVM {@linkplain Quirks#takesPrebuiltTasksForTheFirst takes each prebuilt task for the graph's first},
     * one that does nothing before everything else in a graph. Its arguments are ignored.
     */
    @Override
    public final List<Stage> preparations(LayerArrays a) {
        if (!Quirks.HERE.takesPrebuiltTasksForTheFirst()) {
            return List.of();
        }
        List<Object> reads = Stream.concat(Stream.of(a.work.header), Stream.generate(() -> a.work.noSizes))
                .limit(READS)
                .map(Object.class::cast)
                .toList();
        return List.of(new Stage(
                "first",
                m -> smallestGroup(),
                m -> 1,
                m -> 1,
                (graph, device, task) -> kernel(a).addTask(graph, device, task, reads, a.work.gateUp),
                List.of(a.work.header, a.work.noSizes),
                List.of(a.work.gateUp)));
    }

    /** False: a caller's graph begins with other tasks. */
    @Override
    public final boolean joinsOtherTasks() {
        return false;
    }

    /** Passes the sizes to the kernel. */
    static void setSizes(IntArray into, int... sizes) {
        for (int i = 0; i < sizes.length; i++) {
            into.set(i, sizes[i]);
        }
    }

    /**
     * A product, one task per part of the weights. Packed floats contain their scales, so the scales' argument holds
     * zero points.
     */
    final List<Stage> stages(
            LayerArrays a, Product p, IntUnaryOperator group, IntUnaryOperator groupsX, IntUnaryOperator groupsY) {
        return a.shape.parts.each(part -> {
            List<Object> reads = List.of(
                    a.work.header,
                    p.projection().sizes(),
                    a.work.sortedIds(part),
                    a.work.expertIds(part),
                    a.work.numPostPadded,
                    p.quantized(),
                    packsFloats() ? p.projection().zeroPoints().get(part) : p.scales(),
                    p.projection().values().get(part),
                    p.projection().scales().get(part),
                    p.projection().bias().get(part),
                    a.work.topkWeights);
            return new Stage(
                    p.name() + a.shape.parts.suffix(part),
                    group,
                    groupsX,
                    groupsY,
                    (graph, device, task) -> kernel(a).addTask(graph, device, task, reads, p.out()),
                    reads,
                    List.of(p.out()));
        });
    }
}
