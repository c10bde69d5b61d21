package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.stream.Stream;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tornado.kernels.CombineKernels;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tornado.kernels.PermuteKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/**
 * The kernels of a layer in the batched format, [E, maxNumTokens, H]: a token's row is copied to a slot of each of its
 * experts, in the order of tokens, and the GEMMs run on slots, unweighted; combining picks each pair's slot, weighs and
 * sums. A token is quantised once and its int8 row copied, which gives the same bits as quantising every slot (vLLM).
 *
 * <p>vLLM has the format for activations that come from other ranks; its int8 isn't implemented there. An expert gets
 * at most every token once, so {@code maxNumTokens} slots are enough.
 */
final class BatchedProgram extends LayerProgram {
    BatchedProgram(ExpertGemm gemm, LayerArrays arrays) {
        super(
                gemm,
                arrays,
                new Rows(arrays.work.rowHeader, 1, _ -> arrays.work.rowHeader.get(0), arrays.work.pairOfRow));
    }

    /** ids → the slot of each pair, and the slots in use in blocks of one expert. */
    @Override
    List<Stage> align() {
        int k = a.shape.topK;
        int local = a.shape.localExperts;
        int maxTokens = a.shape.maxTokens;
        Stage countTokens = KernelTask.stage(
                "countTokens",
                PermuteKernels.GROUP,
                m -> Math.ceilDiv(local, PermuteKernels.GROUP),
                t -> t.runs(
                        PermuteKernels::countTokens,
                        t.in(a.work.header),
                        t.inout(a.work.counts),
                        t.out(a.work.expertNumTokens),
                        k,
                        local));
        Stage slots = KernelTask.stage(
                "slots",
                PermuteKernels.GROUP,
                m -> Math.ceilDiv(Math.max(m * k, rows.of(m)), PermuteKernels.GROUP),
                t -> t.runs(
                        PermuteKernels::slots,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.ranks),
                        t.in(a.work.counts),
                        t.in(a.work.expertNumTokens),
                        t.out(a.work.pairOfRow),
                        t.out(a.work.rowOfPair),
                        k,
                        local,
                        maxTokens));
        Stage blocks = KernelTask.stage(
                "batchedBlocks",
                AlignKernels.SCAN_GROUP,
                m -> 1,
                t -> t.runs(
                        PermuteKernels::batchedBlocks,
                        t.in(a.work.expertNumTokens),
                        t.out(a.work.firstPlaces),
                        t.out(a.work.expertIds),
                        t.out(a.work.numPostPadded),
                        local,
                        maxTokens,
                        GemmKernels.BLOCK));
        Stage places = KernelTask.stage(
                "batchedPlaces",
                PermuteKernels.GROUP,
                m -> Math.ceilDiv(a.blocks(m) * GemmKernels.BLOCK, PermuteKernels.GROUP),
                t -> t.runs(
                        PermuteKernels::batchedPlaces,
                        t.in(a.work.expertNumTokens),
                        t.in(a.work.firstPlaces),
                        t.in(a.work.expertIds),
                        t.in(a.work.numPostPadded),
                        t.out(a.work.sortedIds),
                        local,
                        maxTokens,
                        GemmKernels.BLOCK));
        return Stream.of(
                        List.of(alignment.count(local, 0)),
                        alignment.loads(),
                        List.of(countTokens, slots, blocks, places))
                .flatMap(List::stream)
                .toList();
    }

    /** tokens → slots. */
    @Override
    List<Stage> dispatch() {
        int k = a.shape.topK;
        if (a.shape.int8) {
            return List.of(KernelTask.stage(
                    "dispatch",
                    PermuteKernels.GROUP,
                    m -> m * k,
                    t -> t.runs(
                            PermuteKernels::copyInt8,
                            t.in(a.work.header),
                            t.in(a.work.rowOfPair),
                            t.in(a.work.hiddenQ),
                            t.in(a.work.hiddenScales),
                            t.out(a.work.slots),
                            t.out(a.work.slotScales),
                            k,
                            a.shape.config.pairsPerInputRow(),
                            a.shape.hiddenInts,
                            a.shape.hiddenGroups)));
        }
        int h = a.shape.hidden;
        int weighted = a.shape.weightsOnInput ? 1 : 0;
        return List.of(KernelTask.stage(
                "dispatch",
                PermuteKernels.GROUP,
                m -> m * k,
                t -> t.runs(
                        PermuteKernels::copyFloats,
                        t.in(a.work.header),
                        t.in(a.work.rowOfPair),
                        t.in(a.work.topkWeights),
                        t.in(a.work.hidden),
                        t.out(a.work.slotFloats),
                        k,
                        h,
                        weighted)));
    }

    @Override
    Product gateUpProduct(FloatArray out) {
        return new Product(
                "gateUp",
                true,
                a.work.slots,
                a.work.slotScales,
                a.work.slotFloats,
                a.weights.w13,
                out,
                1,
                a.shape.gateUpRows,
                a.shape.hidden,
                0);
    }

    /** Combining weighs. */
    @Override
    boolean weightsDown() {
        return false;
    }

    /** down → output, with the router's weights unless they are applied on the input. */
    @Override
    List<Stage> combine() {
        int k = a.shape.topK;
        int h = a.shape.hidden;
        int weighted = a.shape.weightsOnInput ? 0 : 1;
        return List.of(KernelTask.stage(
                "combine",
                CombineKernels.GROUP,
                m -> KernelTask.elementGroups(m, h, CombineKernels.GROUP),
                t -> t.runs(
                        PermuteKernels::unpermute,
                        t.in(a.work.header),
                        t.in(a.work.rowOfPair),
                        t.in(a.work.topkWeights),
                        t.in(a.work.down),
                        t.out(a.work.output),
                        k,
                        h,
                        weighted)));
    }
}
