package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.function.BiConsumer;
import org.tornadomoe.reference.Alignment;
import org.tornadomoe.reference.BatchedFormat;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Permutation;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageRun;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tornado.kernels.PermuteKernels;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** What must hold of permutation, counts and batched alignment on any device, the interpreter included. */
final class PermuteChecks {
    private static final int WIDTH = 5;
    private static final int BLOCK = GemmKernels.BLOCK;

    private PermuteChecks() {}

    /** One rank's part of the experts; ids at random, all the same, and some of them no expert's. */
    static void matchReference(Device device, int experts, int topK, int tokens, int ranks) {
        int pairs = tokens * topK;
        SplittableRandom random = new SplittableRandom(pairs);
        int[] map = new int[experts];
        int local = 0;
        for (int e = 0; e < experts; e++) {
            map[e] = e % ranks == 0 ? local++ : -1;
        }
        int[] oneExpert = new int[pairs];
        Arrays.fill(oneExpert, (experts - 1) / ranks * ranks);
        for (int[] ids : List.of(
                random.ints(pairs, 0, experts).toArray(),
                oneExpert,
                random.ints(pairs, -2, experts + 2).toArray())) {
            // All pairs of an expert have a slot.
            int slots = Math.max(
                    1,
                    Arrays.stream(BatchedFormat.countExpertTokens(ids, map))
                            .max()
                            .orElse(0));
            matchReference(device, ids, map, local, topK, slots);
            if (slots > 1) {
                matchReference(device, ids, map, local, topK, slots - 1);
            }
        }
    }

    private static void matchReference(Device device, int[] ids, int[] map, int local, int topK, int slots) {
        int pairs = ids.length;
        int tokens = pairs / topK;
        int rows = local * slots;
        int places = Math.min(pairs, (pairs + local * (BLOCK - 1)) / BLOCK) * BLOCK;
        KernelContext ctx = new KernelContext();
        IntArray header = IntArray.fromElements(tokens);
        IntArray topkIds = IntArray.fromArray(ids);
        IntArray expertMap = IntArray.fromArray(map);
        IntArray keys = new IntArray(pairs);
        IntArray ranks = new IntArray(pairs);
        IntArray counts = new IntArray(Math.ceilDiv(pairs, AlignKernels.CHUNK) * local);
        IntArray numTokens = new IntArray(local);
        IntArray first = new IntArray(local + 1);
        IntArray permutedIdx = new IntArray(pairs);
        IntArray rowOfPair = new IntArray(pairs);
        IntArray slotOfPair = new IntArray(pairs);
        IntArray pairOfSlot = new IntArray(rows);
        IntArray firstPlaces = new IntArray(local);
        IntArray expertIds = new IntArray(places / BLOCK);
        IntArray padded = new IntArray(1);
        IntArray sortedIds = new IntArray(places);
        FloatArray hidden = new FloatArray(tokens * WIDTH);
        FloatArray weights = new FloatArray(pairs);
        FloatArray permuted = new FloatArray(pairs * WIDTH);
        FloatArray output = new FloatArray(tokens * WIDTH);
        IntArray packed = new IntArray(tokens * WIDTH);
        FloatArray scales = new FloatArray(tokens);
        IntArray permutedInts = new IntArray(pairs * WIDTH);
        FloatArray permutedScales = new FloatArray(pairs);
        SplittableRandom random = new SplittableRandom(slots);
        for (int i = 0; i < tokens * WIDTH; i++) {
            hidden.set(i, (float) random.nextGaussian());
            packed.set(i, random.nextInt());
        }
        for (int i = 0; i < tokens; i++) {
            scales.set(i, (float) random.nextDouble());
        }
        for (int i = 0; i < pairs; i++) {
            weights.set(i, (float) random.nextDouble());
        }

        int globalExperts = map.length;
        Stage count = stage(
                "count",
                AlignKernels.CHUNK,
                pairs,
                (g, task) -> g.task(
                        task,
                        AlignKernels::count,
                        ctx,
                        header,
                        topkIds,
                        expertMap,
                        keys,
                        ranks,
                        counts,
                        topK,
                        globalExperts,
                        local,
                        0),
                List.of(header, topkIds, expertMap),
                List.of(keys, ranks, counts));
        Stage countTokens = stage(
                "countTokens",
                PermuteKernels.GROUP,
                local,
                (g, task) -> g.task(task, PermuteKernels::countTokens, ctx, header, counts, numTokens, topK, local),
                List.of(header, counts),
                List.of(counts, numTokens));
        Stage firstRows = stage(
                "firstRows",
                AlignKernels.SCAN_GROUP,
                1,
                (g, task) -> g.task(task, PermuteKernels::firstRows, ctx, numTokens, first, local),
                List.of(numTokens),
                List.of(first));
        Stage permute = stage(
                "permute",
                PermuteKernels.GROUP,
                pairs,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::permute,
                        ctx,
                        header,
                        keys,
                        ranks,
                        counts,
                        first,
                        permutedIdx,
                        rowOfPair,
                        topK,
                        local),
                List.of(header, keys, ranks, counts, first),
                List.of(permutedIdx, rowOfPair));
        Stage copyFloats = stage(
                "copyFloats",
                PermuteKernels.GROUP,
                pairs * PermuteKernels.GROUP,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::copyFloats,
                        ctx,
                        header,
                        rowOfPair,
                        weights,
                        hidden,
                        permuted,
                        topK,
                        WIDTH,
                        0),
                List.of(header, rowOfPair, weights, hidden),
                List.of(permuted));
        Stage copyInt8 = stage(
                "copyInt8",
                PermuteKernels.GROUP,
                pairs * PermuteKernels.GROUP,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::copyInt8,
                        ctx,
                        header,
                        rowOfPair,
                        packed,
                        scales,
                        permutedInts,
                        permutedScales,
                        topK,
                        topK,
                        WIDTH,
                        1),
                List.of(header, rowOfPair, packed, scales),
                List.of(permutedInts, permutedScales));
        Stage unpermute = stage(
                "unpermute",
                PermuteKernels.GROUP,
                tokens * WIDTH,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::unpermute,
                        ctx,
                        header,
                        rowOfPair,
                        weights,
                        permuted,
                        output,
                        topK,
                        WIDTH,
                        1),
                List.of(header, rowOfPair, weights, permuted),
                List.of(output));
        Stage slotsOfPairs = stage(
                "slots",
                PermuteKernels.GROUP,
                Math.max(pairs, rows),
                (g, task) -> g.task(
                        task,
                        PermuteKernels::slots,
                        ctx,
                        header,
                        keys,
                        ranks,
                        counts,
                        numTokens,
                        pairOfSlot,
                        slotOfPair,
                        topK,
                        local,
                        slots),
                List.of(header, keys, ranks, counts, numTokens),
                List.of(pairOfSlot, slotOfPair));
        Stage batchedBlocks = stage(
                "batchedBlocks",
                AlignKernels.SCAN_GROUP,
                1,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::batchedBlocks,
                        ctx,
                        numTokens,
                        firstPlaces,
                        expertIds,
                        padded,
                        local,
                        slots,
                        BLOCK),
                List.of(numTokens),
                List.of(firstPlaces, expertIds, padded));
        Stage batchedPlaces = stage(
                "batchedPlaces",
                PermuteKernels.GROUP,
                places,
                (g, task) -> g.task(
                        task,
                        PermuteKernels::batchedPlaces,
                        ctx,
                        numTokens,
                        firstPlaces,
                        expertIds,
                        padded,
                        sortedIds,
                        local,
                        slots,
                        BLOCK),
                List.of(numTokens, firstPlaces, expertIds, padded),
                List.of(sortedIds));
        StageRun.execute(
                device,
                "permutation",
                List.of(
                        count,
                        countTokens,
                        firstRows,
                        permute,
                        copyFloats,
                        copyInt8,
                        unpermute,
                        slotsOfPairs,
                        batchedBlocks,
                        batchedPlaces),
                tokens);

        int[] expectedCounts = BatchedFormat.countExpertTokens(ids, map);
        Permutation expected = BatchedFormat.permute(ids, map);
        assertThat(numTokens.toHeapArray()).as("tokens of experts").isEqualTo(expectedCounts);
        assertThat(first.toHeapArray()).as("first rows").isEqualTo(expected.expertFirstTokenOffset());
        assertThat(permutedIdx.toHeapArray()).as("pairs of rows").isEqualTo(expected.permutedIdx());
        assertThat(rowOfPair.toHeapArray()).as("rows of pairs").isEqualTo(expected.rowOfPair());
        double[] expectedRows = BatchedFormat.permuteRows(Numerics.widen(hidden.toHeapArray()), topK, WIDTH, expected);
        assertThat(Numerics.widen(Arrays.copyOf(permuted.toHeapArray(), expectedRows.length)))
                .as("rows")
                .isEqualTo(expectedRows);
        for (int row = 0; row < expected.rows(); row++) {
            int token = expected.permutedIdx()[row] / topK;
            assertThat(permutedScales.get(row)).isEqualTo(scales.get(token));
            for (int i = 0; i < WIDTH; i++) {
                assertThat(permutedInts.get(row * WIDTH + i)).isEqualTo(packed.get(token * WIDTH + i));
            }
        }
        double[] expectedOutput = BatchedFormat.unpermute(
                expectedRows, expected.rowOfPair(), Numerics.widen(weights.toHeapArray()), topK, WIDTH);
        for (int i = 0; i < expectedOutput.length; i++) {
            assertThat((double) output.get(i)).as("output[%d]", i).isCloseTo(expectedOutput[i], within(1e-5));
        }

        int[] used = Arrays.stream(expectedCounts).map(n -> Math.min(n, slots)).toArray();
        Alignment batched = BatchedFormat.align(slots, BLOCK, used);
        assertThat(padded.get(0)).isEqualTo(batched.numTokensPostPadded());
        assertThat(Arrays.copyOf(sortedIds.toHeapArray(), padded.get(0))).isEqualTo(batched.sortedTokenIds());
        assertThat(Arrays.copyOf(expertIds.toHeapArray(), padded.get(0) / BLOCK))
                .isEqualTo(batched.expertIds());
        int[] expectedPairs = new int[rows];
        int[] expectedSlots = new int[pairs];
        Arrays.fill(expectedPairs, -1);
        Arrays.fill(expectedSlots, -1);
        for (int e = 0; e < local; e++) {
            for (int slot = 0; slot < used[e]; slot++) {
                int pair = expected.permutedIdx()[expected.expertFirstTokenOffset()[e] + slot];
                expectedPairs[e * slots + slot] = pair;
                expectedSlots[pair] = e * slots + slot;
            }
        }
        assertThat(pairOfSlot.toHeapArray()).as("pairs of slots").isEqualTo(expectedPairs);
        assertThat(slotOfPair.toHeapArray()).as("slots of pairs").isEqualTo(expectedSlots);
    }

    private static Stage stage(
            String name,
            int group,
            int items,
            BiConsumer<TaskGraph, String> task,
            List<Object> reads,
            List<Object> writes) {
        return new Stage(name, group, m -> Math.ceilDiv(items, group), m -> 1, task, reads, writes);
    }
}
