package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.tornadomoe.tornado.kernels.AlignKernels;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Alignment: the pairs sorted by expert, each expert's run padded to whole blocks. */
final class AlignStages {
    private final LayerArrays a;

    AlignStages(LayerArrays arrays) {
        a = arrays;
    }

    /**
     * ids → pairs sorted by expert; those of experts that live elsewhere are left out. A layer for so few tokens that
     * their pairs hardly share experts gives each pair a block of its own; in the batched format each has its slot.
     */
    List<Stage> align() {
        long mostPairs = (long) a.shape.maxTokens * a.shape.topK;
        boolean allHere = a.shape.localExperts == a.shape.experts && !a.shape.balanced;
        return allHere && !a.shape.batched && 4 * mostPairs <= a.shape.experts ? List.of(assignBlocks()) : align(0);
    }

    private Stage assignBlocks() {
        int e = a.shape.experts;
        int k = a.shape.topK;
        return KernelTask.stage(
                "assignBlocks",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(m * k * a.blockSize(m), AlignKernels.SCATTER_GROUP),
                t -> t.runs(
                        AlignKernels::assignBlocks,
                        t.in(a.work.header),
                        t.in(a.work.placedIds),
                        t.in(a.weights.expertMap),
                        t.out(a.work.keys),
                        t.out(a.work.sortedIds),
                        t.out(a.work.expertIds),
                        t.out(a.work.numPostPadded),
                        k,
                        e));
    }

    /**
     * ids → pairs sorted by expert, in blocks of the size in the header.
     *
     * @param keep 1 to keep the pairs of experts that live elsewhere, in blocks of expert −1, whatever the format
     */
    List<Stage> align(int keep) {
        int e = a.shape.experts;
        int k = a.shape.topK;
        int keyCount = keep == 1 ? e : a.shape.localExperts;
        Stage count = count(keyCount, keep);
        Stage offsets = KernelTask.stage(
                "alignOffsets",
                AlignKernels.SCAN_GROUP,
                m -> 1,
                t -> t.runs(
                        AlignKernels::offsets,
                        t.in(a.work.header),
                        t.in(a.weights.expertMap),
                        t.inout(a.work.counts),
                        t.out(a.work.sortedIds),
                        t.out(a.work.expertIds),
                        t.out(a.work.numPostPadded),
                        k,
                        keyCount,
                        keep,
                        keep == 0 && a.shape.batched ? 1 : 0));
        Stage scatter = KernelTask.stage(
                "alignScatter",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(m * k, AlignKernels.SCATTER_GROUP),
                t -> t.runs(
                        AlignKernels::scatter,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.ranks),
                        t.in(a.work.counts),
                        t.inout(a.work.sortedIds),
                        k,
                        keyCount));
        return Stream.of(List.of(count), keep == 0 ? loads() : List.<Stage>of(), List.of(offsets, scatter))
                .flatMap(List::stream)
                .toList();
    }

    /** ids → keys, ranks and the chunks' counts. */
    Stage count(int keyCount, int keep) {
        int e = a.shape.experts;
        int k = a.shape.topK;
        return KernelTask.stage(
                "alignCount",
                AlignKernels.CHUNK,
                m -> Math.ceilDiv(m * k, AlignKernels.CHUNK),
                t -> t.runs(
                        AlignKernels::count,
                        t.in(a.work.header),
                        t.in(a.work.placedIds),
                        t.in(a.weights.expertMap),
                        t.out(a.work.keys),
                        t.out(a.work.ranks),
                        t.out(a.work.counts),
                        k,
                        e,
                        keyCount,
                        keep));
    }

    /** The chunks' counts → loads; none where experts stay where they are. */
    List<Stage> loads() {
        if (!a.shape.balanced) {
            return List.of();
        }
        int local = a.shape.localExperts;
        int k = a.shape.topK;
        return List.of(KernelTask.stage(
                "loads",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(local, AlignKernels.SCATTER_GROUP),
                t -> t.runs(
                        AlignKernels::loads, t.in(a.work.header), t.in(a.work.counts), t.out(a.work.loads), k, local)));
    }

    /** Aligned pairs → those of each part's experts; none where there is one part, or a GEMM that takes all at once. */
    List<Stage> parts() {
        return IntStream.range(0, a.work.partSortedIds.size())
                .mapToObj(this::part)
                .toList();
    }

    private Stage part(int part) {
        String name = "alignPart" + part;
        IntArray sortedIds = a.work.partSortedIds.get(part);
        IntArray expertIds = a.work.partExpertIds.get(part);
        return KernelTask.stage(
                name,
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(Math.multiplyExact(a.blocks(m), a.blockSize(m)), AlignKernels.SCATTER_GROUP),
                t -> t.runs(
                        AlignKernels::part,
                        t.in(a.work.header),
                        t.in(a.work.sortedIds),
                        t.in(a.work.expertIds),
                        t.in(a.work.numPostPadded),
                        t.out(sortedIds),
                        t.out(expertIds),
                        a.shape.topK,
                        a.shape.parts.first(part),
                        a.shape.parts.experts(part)));
    }
}
