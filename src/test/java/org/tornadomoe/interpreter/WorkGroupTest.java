package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.FIRST_EXECUTION;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.WorkerGrid3D;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class WorkGroupTest {
    /** A tree whose levels need not be powers of two. */
    static void sum(KernelContext ctx, IntArray in, IntArray out) {
        int[] partial = ctx.allocateIntLocalArray(1024);
        int lane = ctx.localIdx;
        partial[lane] = in.get(ctx.globalIdx);
        for (int left = ctx.localGroupSizeX; left > 1; left = (left + 1) / 2) {
            ctx.localBarrier();
            int half = (left + 1) / 2;
            if (lane + half < left) {
                partial[lane] += partial[lane + half];
            }
        }
        if (lane == 0) {
            out.set(ctx.groupIdx, partial[0]);
        }
    }

    @ParameterizedTest
    @CsvSource({"1,1", "7,3", "1,1024", "33,100", "64,256", "5,33"})
    void sumsEveryGroup(int groups, int size) throws Exception {
        IntArray in = new IntArray(groups * size);
        for (int i = 0; i < in.getSize(); i++) {
            in.set(i, i * 7 - 3);
        }
        IntArray out = new IntArray(groups);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, in)
                .task("t", WorkGroupTest::sum, new KernelContext(), in, out)
                .transferToHost(EVERY_EXECUTION, out);
        Grids.run(graph, groups * size, size);
        for (int group = 0; group < groups; group++) {
            int expected = 0;
            for (int i = 0; i < size; i++) {
                expected += (group * size + i) * 7 - 3;
            }
            assertThat(out.get(group)).as("group %d", group).isEqualTo(expected);
        }
    }

    /** The barrier is in a method the kernel calls. */
    static void rotate(KernelContext ctx, IntArray values) {
        int[] shared = ctx.allocateIntLocalArray(64);
        int lane = ctx.localIdx;
        put(ctx, shared, lane, values.get(lane));
        values.set(lane, shared[(lane + 1) % 64]);
    }

    private static void put(KernelContext ctx, int[] into, int index, int value) {
        into[index] = value;
        ctx.globalBarrier();
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
                        .task("t", WorkGroupTest::rotate, new KernelContext(), values)
                        .transferToHost(EVERY_EXECUTION, values),
                64,
                64);
        for (int i = 0; i < 64; i++) {
            assertThat(values.get(i)).isEqualTo((i + 1) % 64);
        }
    }

    static void ids(KernelContext ctx, IntArray out) {
        int global = ctx.globalIdx + ctx.globalGroupSizeX * (ctx.globalIdy + ctx.globalGroupSizeY * ctx.globalIdz);
        int group = ctx.groupIdx + 10 * ctx.groupIdy + 100 * ctx.groupIdz;
        int local = ctx.localIdx + ctx.localGroupSizeX * (ctx.localIdy + ctx.localGroupSizeY * ctx.localIdz);
        out.set(global, 1000 * group + local);
    }

    @Test
    void idsInThreeDimensions() throws Exception {
        WorkerGrid grid = new WorkerGrid3D(4, 6, 4);
        grid.setLocalWork(2, 3, 2);
        IntArray out = new IntArray(4 * 6 * 4);
        TaskGraph graph = new TaskGraph("g")
                .task("t", WorkGroupTest::ids, new KernelContext(), out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(new GridScheduler("g.t", grid)).execute();
        }
        for (int z = 0; z < 4; z++) {
            for (int y = 0; y < 6; y++) {
                for (int x = 0; x < 4; x++) {
                    int group = x / 2 + 10 * (y / 3) + 100 * (z / 2);
                    int local = x % 2 + 2 * (y % 3 + 3 * (z % 2));
                    assertThat(out.get(x + 4 * (y + 6 * z))).isEqualTo(1000 * group + local);
                }
            }
        }
    }

    static void mark(KernelContext ctx, IntArray out) {
        out.set(ctx.globalIdx, ctx.globalGroupSizeX);
    }

    @Test
    void gridChangesBetweenExecutions() throws Exception {
        IntArray out = new IntArray(100);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, out)
                .task("t", WorkGroupTest::mark, new KernelContext(), out)
                .transferToHost(EVERY_EXECUTION, out);
        WorkerGrid1D grid = Grids.of(100, 10);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(new GridScheduler("g.t", grid)).execute();
            assertThat(out.get(99)).isEqualTo(100);
            grid.setGlobalWork(30, 1, 1);
            plan.execute();
            assertThat(out.get(29)).isEqualTo(30);
            assertThat(out.get(30)).isEqualTo(100);
        }
    }

    @Test
    void groupIsChosenWhereNoneIsGiven() throws Exception {
        IntArray out = new IntArray(1009);
        TaskGraph graph = new TaskGraph("g")
                .task("t", WorkGroupTest::mark, new KernelContext(), out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(new GridScheduler("g.t", new WorkerGrid1D(1009)))
                    .execute();
        }
        assertThat(out.toHeapArray()).containsOnly(1009);
    }

    static void someReturn(KernelContext ctx, IntArray out) {
        if (ctx.globalIdx == 37) {
            return;
        }
        ctx.localBarrier();
        out.set(ctx.globalIdx, 1);
    }

    @Test
    void barrierThatNotAllReach() {
        IntArray out = new IntArray(64);
        TaskGraph graph = new TaskGraph("g").task("t", WorkGroupTest::someReturn, new KernelContext(), out);
        assertThatThrownBy(() -> Grids.run(graph, 64, 32))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("task g.t")
                .hasMessageContaining("WorkGroupTest.someReturn")
                .hasMessageContaining("work-item (32, 0, 0) of group (1, 0, 0)")
                .hasMessageContaining("barrier")
                .hasMessageContaining("work-item (37, 0, 0) of group (1, 0, 0) has returned");
    }

    static void readsUnwritten(KernelContext ctx, FloatArray out) {
        float[] tile = ctx.allocateFloatLocalArray(16);
        int lane = ctx.localIdx;
        if (lane != 5) {
            tile[lane] = lane;
        }
        ctx.localBarrier();
        out.set(lane, tile[lane]);
    }

    @Test
    void readOfLocalMemoryNobodyWrote() {
        FloatArray out = new FloatArray(16);
        TaskGraph graph = new TaskGraph("g").task("t", WorkGroupTest::readsUnwritten, new KernelContext(), out);
        assertThatThrownBy(() -> Grids.run(graph, 16, 16))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("element 5 of tile is read")
                .hasMessageContaining("WorkGroupTest.readsUnwritten")
                .hasMessageContaining("WorkGroupTest.java:")
                .hasMessageContaining("work-item (5, 0, 0)");
    }

    /** Local memory is the group's own: what the group before left in it is no value. */
    static void readsWhatAGroupBeforeWrote(KernelContext ctx, IntArray out) {
        int[] shared = ctx.allocateIntLocalArray(4);
        if (ctx.groupIdx == 0) {
            shared[ctx.localIdx] = 1;
        }
        out.set(ctx.globalIdx, shared[ctx.localIdx]);
    }

    @Test
    void localMemoryIsFreshInEveryGroup() {
        IntArray out = new IntArray(8);
        TaskGraph graph =
                new TaskGraph("g").task("t", WorkGroupTest::readsWhatAGroupBeforeWrote, new KernelContext(), out);
        assertThatThrownBy(() -> Grids.run(graph, 8, 4))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("of shared is read")
                .hasMessageContaining("of group (1, 0, 0)");
    }

    /** Every value can be stored, also those that unwritten memory looks like. */
    static void storesEveryByte(KernelContext ctx, IntArray out) {
        byte[] bytes = ctx.allocateByteLocalArray(256);
        int lane = ctx.localIdx;
        bytes[lane] = (byte) lane;
        ctx.localBarrier();
        out.set(lane, bytes[255 - lane]);
    }

    @Test
    void everyByteIsAValue() throws Exception {
        IntArray out = new IntArray(256);
        Grids.run(
                new TaskGraph("g")
                        .task("t", WorkGroupTest::storesEveryByte, new KernelContext(), out)
                        .transferToHost(EVERY_EXECUTION, out),
                256,
                256);
        for (int i = 0; i < 256; i++) {
            assertThat(out.get(i)).isEqualTo((byte) (255 - i));
        }
    }

    static void privateArrays(KernelContext ctx, IntArray out) {
        int[] own = new int[4];
        boolean[] odd = new boolean[4];
        for (int i = 0; i < 4; i++) {
            own[i] = ctx.globalIdx * i;
            odd[i] = own[i] % 2 != 0;
        }
        ctx.localBarrier();
        out.set(ctx.globalIdx, own[3] + (odd[1] ? 1000 : 0));
    }

    @Test
    void privateArraysAreTheWorkItemsOwn() throws Exception {
        IntArray out = new IntArray(96);
        Grids.run(
                new TaskGraph("g")
                        .task("t", WorkGroupTest::privateArrays, new KernelContext(), out)
                        .transferToHost(EVERY_EXECUTION, out),
                96,
                32);
        for (int i = 0; i < 96; i++) {
            assertThat(out.get(i)).isEqualTo(3 * i + (i % 2) * 1000);
        }
    }

    static void warp(KernelContext ctx, FloatArray values) {
        int lane = ctx.localIdx;
        float value = values.get(lane);
        float sum = ctx.simdSum(value);
        float next = ctx.simdShuffleDown(value, 1);
        float first = ctx.simdBroadcastFirst(value);
        values.set(lane, sum + 1000 * next + 1_000_000 * first);
    }

    @Test
    void warpsAddShuffleAndBroadcast() throws Exception {
        FloatArray values = new FloatArray(64);
        for (int i = 0; i < 64; i++) {
            values.set(i, i % 32 + (i >= 32 ? 1 : 0));
        }
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, values)
                        .task("t", WorkGroupTest::warp, new KernelContext(), values)
                        .transferToHost(EVERY_EXECUTION, values),
                64,
                64);
        for (int i = 0; i < 64; i++) {
            int warp = i / 32;
            int sum = 31 * 16 + 32 * warp;
            int next = Math.min(i % 32 + 1, 31) + warp;
            assertThat(values.get(i)).isEqualTo(sum + 1000 * next + 1_000_000 * warp);
        }
    }

    static void halfAWarp(KernelContext ctx, FloatArray values) {
        if (ctx.localIdx < 16) {
            values.set(ctx.localIdx, ctx.simdSum(1));
        }
    }

    @Test
    void divergenceInAWarp() {
        FloatArray values = new FloatArray(32);
        TaskGraph graph = new TaskGraph("g").task("t", WorkGroupTest::halfAWarp, new KernelContext(), values);
        assertThatThrownBy(() -> Grids.run(graph, 32, 32))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("lane 16")
                .hasMessageContaining("has returned");
    }
}
