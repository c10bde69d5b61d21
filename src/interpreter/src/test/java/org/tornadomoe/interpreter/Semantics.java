package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.FIRST_EXECUTION;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.UNDER_DEMAND;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import uk.ac.manchester.tornado.api.DataRange;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.WorkerGrid;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.WorkerGrid3D;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** What is the same on a device and on the interpreter: this runs on both. */
abstract class Semantics {
    private static final int SIZE = 32;

    private final IntArray in = new IntArray(SIZE);
    private final IntArray out = new IntArray(SIZE);

    /** A tree whose levels need not be powers of two. */
    static void sumUp(KernelContext ctx, IntArray from, IntArray sums) {
        int[] partial = ctx.allocateIntLocalArray(256);
        int lane = ctx.localIdx;
        partial[lane] = from.get(ctx.globalIdx);
        for (int left = ctx.localGroupSizeX; left > 1; left = (left + 1) / 2) {
            ctx.localBarrier();
            int half = (left + 1) / 2;
            if (lane + half < left) {
                partial[lane] += partial[lane + half];
            }
        }
        if (lane == 0) {
            sums.set(ctx.groupIdx, partial[0]);
        }
    }

    @ParameterizedTest
    @CsvSource({"1,1", "7,3", "1,256", "33,100", "64,256", "5,33"})
    void sumsEveryGroup(int groups, int size) throws Exception {
        IntArray values = new IntArray(groups * size);
        for (int i = 0; i < values.getSize(); i++) {
            values.set(i, i * 7 - 3);
        }
        IntArray sums = new IntArray(groups);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, values)
                .task("t", Semantics::sumUp, new KernelContext(), values, sums)
                .transferToHost(EVERY_EXECUTION, sums);
        Grids.run(graph, groups * size, size);
        for (int group = 0; group < groups; group++) {
            int expected = 0;
            for (int i = 0; i < size; i++) {
                expected += (group * size + i) * 7 - 3;
            }
            assertThat(sums.get(group)).as("group %d", group).isEqualTo(expected);
        }
    }

    /** The barrier is in a method the kernel calls. */
    static void turn(KernelContext ctx, IntArray values) {
        int[] shared = ctx.allocateIntLocalArray(64);
        int lane = ctx.localIdx;
        shared[lane] = values.get(lane);
        meet(ctx);
        values.set(lane, shared[(lane + 1) % 64]);
    }

    private static void meet(KernelContext ctx) {
        ctx.localBarrier();
    }

    @Test
    void barrierInACalledMethodIsKept() throws Exception {
        IntArray values = new IntArray(64);
        for (int i = 0; i < 64; i++) {
            values.set(i, i);
        }
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, values)
                        .task("t", Semantics::turn, new KernelContext(), values)
                        .transferToHost(EVERY_EXECUTION, values),
                64,
                64);
        for (int i = 0; i < 64; i++) {
            assertThat(values.get(i)).isEqualTo((i + 1) % 64);
        }
    }

    static void ids(KernelContext ctx, IntArray to) {
        int global = ctx.globalIdx + ctx.globalGroupSizeX * (ctx.globalIdy + ctx.globalGroupSizeY * ctx.globalIdz);
        int group = ctx.groupIdx + 10 * ctx.groupIdy + 100 * ctx.groupIdz;
        int local = ctx.localIdx + ctx.localGroupSizeX * (ctx.localIdy + ctx.localGroupSizeY * ctx.localIdz);
        to.set(global, 1000 * group + local);
    }

    @Test
    void idsInThreeDimensions() throws Exception {
        WorkerGrid grid = new WorkerGrid3D(4, 6, 4);
        grid.setLocalWork(2, 3, 2);
        IntArray ids = new IntArray(4 * 6 * 4);
        TaskGraph graph = new TaskGraph("g")
                .task("t", Semantics::ids, new KernelContext(), ids)
                .transferToHost(EVERY_EXECUTION, ids);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(new GridScheduler("g.t", grid)).execute();
        }
        for (int z = 0; z < 4; z++) {
            for (int y = 0; y < 6; y++) {
                for (int x = 0; x < 4; x++) {
                    int group = x / 2 + 10 * (y / 3) + 100 * (z / 2);
                    int local = x % 2 + 2 * (y % 3 + 3 * (z % 2));
                    assertThat(ids.get(x + 4 * (y + 6 * z))).isEqualTo(1000 * group + local);
                }
            }
        }
    }

    static void privateArrays(KernelContext ctx, IntArray to) {
        int[] own = new int[4];
        for (int i = 0; i < 4; i++) {
            own[i] = ctx.globalIdx * i;
        }
        ctx.localBarrier();
        to.set(ctx.globalIdx, own[3] + own[1] % 2 * 1000);
    }

    @Test
    void privateArraysAreTheWorkItemsOwn() throws Exception {
        IntArray to = new IntArray(96);
        Grids.run(
                new TaskGraph("g")
                        .task("t", Semantics::privateArrays, new KernelContext(), to)
                        .transferToHost(EVERY_EXECUTION, to),
                96,
                32);
        for (int i = 0; i < 96; i++) {
            assertThat(to.get(i)).isEqualTo(3 * i + (i % 2) * 1000);
        }
    }

    static void increment(KernelContext ctx, IntArray values) {
        values.set(ctx.globalIdx, values.get(ctx.globalIdx) + 1);
    }

    static void copyOver(KernelContext ctx, IntArray from, IntArray to) {
        to.set(ctx.globalIdx, from.get(ctx.globalIdx));
    }

    @Test
    void gridChangesBetweenExecutions() throws Exception {
        IntArray counts = new IntArray(100);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, counts)
                .task("t", Semantics::increment, new KernelContext(), counts)
                .transferToHost(EVERY_EXECUTION, counts);
        WorkerGrid1D grid = Grids.of(100, 10);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(new GridScheduler("g.t", grid)).execute();
            assertThat(counts.toHeapArray()).containsOnly(1);
            grid.setGlobalWork(30, 1, 1);
            plan.execute();
            assertThat(counts.get(29)).isEqualTo(2);
            assertThat(counts.get(30)).isEqualTo(1);
        }
    }

    @Test
    void firstExecutionOnly() throws Exception {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, in)
                .task("t", Semantics::copyOver, new KernelContext(), in, out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = Grids.plan("g.t", SIZE, 16, graph)) {
            in.init(1);
            plan.execute();
            in.init(2);
            plan.execute();
            assertThat(out.toHeapArray()).containsOnly(1);
        }
    }

    @Test
    void everyExecution() throws Exception {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, in)
                .task("t", Semantics::copyOver, new KernelContext(), in, out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = Grids.plan("g.t", SIZE, 16, graph)) {
            for (int value = 1; value < 4; value++) {
                in.init(value);
                plan.execute();
                assertThat(out.toHeapArray()).containsOnly(value);
            }
        }
    }

    @Test
    void underDemand() throws Exception {
        in.init(3);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, in)
                .task("t", Semantics::copyOver, new KernelContext(), in, out)
                .transferToHost(UNDER_DEMAND, out);
        try (TornadoExecutionPlan plan = Grids.plan("g.t", SIZE, 16, graph)) {
            TornadoExecutionResult result = plan.execute();
            assertThat(out.toHeapArray()).containsOnly(0);
            result.transferToHost(out);
            assertThat(out.toHeapArray()).containsOnly(3);
            // The other way round TornadoVM copies only the part again.
            out.clear();
            result.transferToHost(new DataRange(out).withOffset(4).withSize(2));
            assertThat(out.slice(0, 8).toHeapArray()).containsExactly(0, 0, 0, 0, 3, 3, 0, 0);
        }
    }

    @Test
    void anOutputThatWasForgottenStaysOnTheDevice() throws Exception {
        in.init(5);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, in)
                .task("t", Semantics::copyOver, new KernelContext(), in, out);
        Grids.run(graph, SIZE, 16);
        assertThat(out.toHeapArray()).containsOnly(0);
    }

    @Test
    void deviceKeepsItsContentBetweenExecutions() throws Exception {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, in)
                .task("t", Semantics::increment, new KernelContext(), in)
                .task("u", Semantics::copyOver, new KernelContext(), in, out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = Grids.plan("g.t g.u", SIZE, 16, graph)) {
            plan.withWarmUpIterations(4).execute();
            assertThat(out.toHeapArray()).containsOnly(5);
            assertThat(in.toHeapArray()).as("never came back").containsOnly(0);
        }
    }

    @Test
    void graphsPassArraysOnTheDevice() throws Exception {
        IntArray between = new IntArray(SIZE);
        TaskGraph first = new TaskGraph("first")
                .transferToDevice(EVERY_EXECUTION, in)
                .task("t", Semantics::copyOver, new KernelContext(), in, between)
                .persistOnDevice(between);
        TaskGraph second = new TaskGraph("second")
                .consumeFromDevice("first", between)
                .task("t", Semantics::increment, new KernelContext(), between)
                .task("u", Semantics::copyOver, new KernelContext(), between, out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = Grids.plan("first.t second.t second.u", SIZE, 16, first, second)) {
            for (int value = 7; value < 10; value++) {
                in.init(value);
                plan.withGraph(0).execute();
                plan.withGraph(1).execute();
                assertThat(out.toHeapArray()).containsOnly(value + 1);
                assertThat(between.toHeapArray()).containsOnly(0);
            }
        }
    }
}
