package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import java.util.SplittableRandom;
import java.util.function.BiConsumer;
import java.util.stream.IntStream;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageRun;
import org.tornadomoe.tornado.kernels.AlignKernels;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * What must hold on any device, the interpreter included, of how it finds its pairs where experts are on several, and
 * counts them.
 */
final class ReplicaChecks {
    private static final int POISON = 0x7fc0_dead;

    private ReplicaChecks() {}

    /**
     * Ids at random, some of them no expert's or zero experts'; experts with up to five replicas, some of which are
     * here.
     */
    static void match(Device device, int experts, int topK, int tokens) {
        int pairs = tokens * topK;
        SplittableRandom random = new SplittableRandom(pairs);
        int[] table = new int[Replicas.ROW * (experts + 1)];
        for (int row = 0; row < table.length; row += Replicas.ROW) {
            table[row] = random.nextInt(1, 6);
            table[row + 1] = random.nextInt(0, table[row]);
            table[row + 2] = random.nextInt(0, table[row] - table[row + 1] + 1);
        }
        int[] ids = random.ints(pairs, -2, experts + 2).toArray();
        Replicas replicas = new Replicas(table);
        int[] expected = IntStream.range(0, pairs)
                .map(p -> replicas.isHere(ids[p], p / topK) ? ids[p] : -1)
                .toArray();
        int chunks = Math.ceilDiv(pairs, AlignKernels.CHUNK);
        int[] counted =
                random.ints((long) chunks * experts, 0, AlignKernels.CHUNK + 1).toArray();
        int[] sums = IntStream.range(0, experts)
                .map(e -> IntStream.range(0, chunks)
                        .map(chunk -> counted[chunk * experts + e])
                        .sum())
                .toArray();

        KernelContext ctx = new KernelContext();
        IntArray header = IntArray.fromElements(tokens);
        IntArray topkIds = IntArray.fromArray(ids);
        IntArray rows = IntArray.fromArray(table);
        IntArray counts = IntArray.fromArray(counted);
        IntArray placedIds = new IntArray(pairs);
        IntArray loads = new IntArray(experts);
        placedIds.init(POISON);
        loads.init(POISON);
        run(
                device,
                "place",
                pairs,
                (g, task) -> g.task(task, AlignKernels::place, ctx, header, topkIds, rows, placedIds, topK, experts),
                List.of(header, topkIds, rows),
                placedIds);
        assertThat(placedIds.toHeapArray()).isEqualTo(expected);
        run(
                device,
                "loads",
                experts,
                (g, task) -> g.task(task, AlignKernels::loads, ctx, header, counts, loads, topK, experts),
                List.of(header, counts),
                loads);
        assertThat(loads.toHeapArray()).isEqualTo(sums);
    }

    private static void run(
            Device device,
            String name,
            int items,
            BiConsumer<TaskGraph, String> task,
            List<Object> reads,
            IntArray writes) {
        Stage stage = new Stage(
                name,
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(items, AlignKernels.SCATTER_GROUP),
                m -> 1,
                task,
                reads,
                List.of(writes));
        StageRun.execute(device, name, List.of(stage), 1);
    }
}
