package org.tornadomoe.tornado;

import java.util.List;
import java.util.stream.Stream;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tornado.kernels.CombineKernels;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tornado.kernels.PermuteKernels;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The kernels of a layer in the batched format, [E, maxNumTokens, H]: a token's row is copied to a slot of each of its
 * experts, in the order of tokens, and the GEMMs run on slots, unweighted; combining picks each pair's slot, weighs and
 * sums. A token is quantised once and its int8 row copied, which gives the same bits as quantising every slot (vLLM).
 *
 * <p>vLLM has the format for activations that come from other ranks; its int8 isn't implemented there. An expert gets at
 * most every token once, so {@code maxNumTokens} slots are enough.
 */
final class BatchedStages extends LayerStages {
    BatchedStages(LayerArrays arrays) {
        super(arrays);
    }

    /** ids → the slot of each pair, and the slots in use in blocks of one expert. */
    @Override
    List<Stage> align() {
        int k = config.pairsPerToken();
        int local = a.localExperts;
        int maxTokens = config.maxNumTokens();
        Stage countTokens = new Stage(
                "countTokens",
                PermuteKernels.GROUP,
                m -> Math.ceilDiv(local, PermuteKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task, PermuteKernels::countTokens, context, a.header, a.counts, a.expertNumTokens, k, local),
                List.of(a.header, a.counts),
                List.of(a.counts, a.expertNumTokens));
        Stage slots = new Stage(
                "slots",
                PermuteKernels.GROUP,
                m -> Math.ceilDiv(Math.max(m * k, rows(m)), PermuteKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::slots,
                        context,
                        a.header,
                        a.keys,
                        a.ranks,
                        a.counts,
                        a.expertNumTokens,
                        a.pairOfRow,
                        a.rowOfPair,
                        k,
                        local,
                        maxTokens),
                List.of(a.header, a.keys, a.ranks, a.counts, a.expertNumTokens),
                List.of(a.pairOfRow, a.rowOfPair));
        Stage blocks = new Stage(
                "batchedBlocks",
                AlignKernels.SCAN_GROUP,
                m -> 1,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::batchedBlocks,
                        context,
                        a.expertNumTokens,
                        a.firstPlaces,
                        a.expertIds,
                        a.padded,
                        local,
                        maxTokens,
                        GemmKernels.BLOCK),
                List.of(a.expertNumTokens),
                List.of(a.firstPlaces, a.expertIds, a.padded));
        Stage places = new Stage(
                "batchedPlaces",
                PermuteKernels.GROUP,
                m -> Math.ceilDiv(a.blocks(m) * GemmKernels.BLOCK, PermuteKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::batchedPlaces,
                        context,
                        a.expertNumTokens,
                        a.firstPlaces,
                        a.expertIds,
                        a.padded,
                        a.sortedIds,
                        local,
                        maxTokens,
                        GemmKernels.BLOCK),
                List.of(a.expertNumTokens, a.firstPlaces, a.expertIds, a.padded),
                List.of(a.sortedIds));
        return Stream.of(List.of(alignCount(local, 0)), loads(), List.of(countTokens, slots, blocks, places))
                .flatMap(List::stream)
                .toList();
    }

    /** tokens → slots. */
    @Override
    List<Stage> dispatch() {
        int k = config.pairsPerToken();
        if (a.scheme.quantizesActivations()) {
            return List.of(new Stage(
                    "dispatch",
                    PermuteKernels.GROUP,
                    m -> m * k,
                    m -> 1,
                    (g, task) -> g.task(
                            task,
                            PermuteKernels::copyInt8,
                            context,
                            a.header,
                            a.rowOfPair,
                            a.tokens,
                            a.tokenScales,
                            a.slots,
                            a.slotScales,
                            k,
                            config.pairsPerInputRow(),
                            a.hiddenInts,
                            a.hiddenGroups),
                    List.of(a.header, a.rowOfPair, a.tokens, a.tokenScales),
                    List.of(a.slots, a.slotScales)));
        }
        int h = config.hiddenDim();
        int weighted = config.applyRouterWeightOnInput() ? 1 : 0;
        return List.of(new Stage(
                "dispatch",
                PermuteKernels.GROUP,
                m -> m * k,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::copyFloats,
                        context,
                        a.header,
                        a.rowOfPair,
                        a.topkWeights,
                        a.hidden,
                        a.slotFloats,
                        k,
                        h,
                        weighted),
                List.of(a.header, a.rowOfPair, a.topkWeights, a.hidden),
                List.of(a.slotFloats)));
    }

    @Override
    List<Stage> gateUp() {
        return gemm(
                "gateUp",
                a.slots,
                a.slotScales,
                a.slotFloats,
                a.w13,
                a.gateUp,
                1,
                config.gateUpRows(),
                a.hiddenInts,
                config.hiddenDim(),
                0);
    }

    @Override
    List<Stage> down() {
        return gemm(
                "down",
                a.pairs,
                a.pairScales,
                a.activated,
                a.w2,
                a.down,
                1,
                config.hiddenDim(),
                a.intermediateInts,
                config.intermediateSizePerPartition(),
                0);
    }

    /** Unweighted, as what it is added to: combining weighs. */
    @Override
    List<Stage> loraDown() {
        return loraDown(0);
    }

    @Override
    int loraRows() {
        return 2;
    }

    /** down → output, with the router's weights unless they are applied on the input. */
    @Override
    List<Stage> combine() {
        int k = config.pairsPerToken();
        int h = config.hiddenDim();
        int weighted = config.applyRouterWeightOnInput() ? 0 : 1;
        return List.of(new Stage(
                "combine",
                CombineKernels.GROUP,
                m -> elementGroups(m, h, CombineKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::unpermute,
                        context,
                        a.header,
                        a.rowOfPair,
                        a.topkWeights,
                        a.down,
                        a.output,
                        k,
                        h,
                        weighted),
                List.of(a.header, a.rowOfPair, a.topkWeights, a.down),
                List.of(a.output)));
    }

    @Override
    IntArray rowHeader() {
        return a.rows;
    }

    @Override
    int rowsPerHeader() {
        return 1;
    }

    /** All slots, whatever M is. */
    @Override
    int rows(int tokens) {
        return a.rows.get(0);
    }

    @Override
    IntArray rowKeys() {
        return a.pairOfRow;
    }
}
