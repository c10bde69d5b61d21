package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;

import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.common.TornadoFunctions;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class WorkGroupTest {
    static void mark(KernelContext ctx, IntArray out) {
        out.set(ctx.globalIdx, ctx.globalGroupSizeX);
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

    static void privateBooleans(KernelContext ctx, IntArray out) {
        boolean[] odd = new boolean[4];
        for (int i = 0; i < 4; i++) {
            odd[i] = (ctx.globalIdx + i) % 2 != 0;
        }
        ctx.localBarrier();
        out.set(ctx.globalIdx, odd[1] ? 1 : 0);
    }

    @Test
    void booleansAreNoBytes() throws Exception {
        IntArray out = new IntArray(96);
        Grids.run(
                new TaskGraph("g")
                        .task("t", WorkGroupTest::privateBooleans, new KernelContext(), out)
                        .transferToHost(EVERY_EXECUTION, out),
                96,
                32);
        for (int i = 0; i < 96; i++) {
            assertThat(out.get(i)).isEqualTo(1 - i % 2);
        }
    }

    /** No method can be found behind an object's, so it is run as it is. */
    @Test
    void aKernelThatCannotBeReadIsRunAsItIs() throws Exception {
        IntArray out = new IntArray(8);
        TornadoFunctions.Task2<KernelContext, IntArray> kernel = new TornadoFunctions.Task2<>() {
            @Override
            public void apply(KernelContext ctx, IntArray to) {
                int[] shared = ctx.allocateIntLocalArray(4);
                shared[ctx.localIdx] = ctx.globalIdx;
                ctx.localBarrier();
                to.set(ctx.globalIdx, shared[3 - ctx.localIdx]);
            }
        };
        Grids.run(
                new TaskGraph("g").task("t", kernel, new KernelContext(), out).transferToHost(EVERY_EXECUTION, out),
                8,
                4);
        assertThat(out.toHeapArray()).containsExactly(3, 2, 1, 0, 7, 6, 5, 4);
    }

    /** What a work-item has in its variables is still there behind a barrier, in a loop, a branch, or a parameter. */
    static void variablesOfEveryType(KernelContext ctx, IntArray out, int turns, float factor) {
        int[] shared = ctx.allocateIntLocalArray(32);
        int lane = ctx.localIdx;
        boolean odd = lane % 2 != 0;
        byte small = (byte) (lane - 16);
        char letter = (char) ('a' + lane);
        short negative = (short) -lane;
        long large = (1L << 40) + lane;
        double half = lane / 2.0;
        long[] own = {lane, large};
        int sum = 0;
        shared[lane] = lane;
        while (turns > 0) {
            float scaled = factor * turns;
            turns--;
            ctx.localBarrier();
            int next = shared[(lane + 1) % 32];
            if (scaled > 1.0f) {
                ctx.globalBarrier();
                sum += next;
            } else {
                int twice = 2 * next;
                ctx.localBarrier();
                sum += twice;
            }
            factor = scaled / (turns + 1);
            shared[lane] = next;
        }
        boolean kept = odd == (lane % 2 != 0)
                && small == lane - 16
                && letter == 'a' + lane
                && negative == -lane
                && own[1] == large
                && large - own[0] == 1L << 40
                && half == lane / 2.0;
        out.set(ctx.globalIdx, kept ? sum : -1);
    }

    static void inAnotherMethod(KernelContext ctx, IntArray out) {
        int[] shared = ctx.allocateIntLocalArray(32);
        int lane = ctx.localIdx;
        shared[lane] = lane;
        int next = next(ctx, shared, lane);
        out.set(ctx.globalIdx, next);
    }

    private static int next(KernelContext ctx, int[] shared, int lane) {
        ctx.localBarrier();
        return shared[(lane + 1) % 32];
    }

    @Test
    void variablesAreKeptAtABarrier() throws Exception {
        IntArray out = new IntArray(96);
        Grids.run(
                new TaskGraph("g")
                        .task("t", WorkGroupTest::variablesOfEveryType, new KernelContext(), out, 3, 0.5f)
                        .transferToHost(EVERY_EXECUTION, out),
                96,
                32);
        for (int i = 0; i < 96; i++) {
            int lane = i % 32;
            // 0.5 x 3 is greater than 1, 0.5 x 2 and 0.5 are not: these are counted twice.
            assertThat(out.get(i)).isEqualTo((lane + 1) % 32 + 2 * ((lane + 2) % 32) + 2 * ((lane + 3) % 32));
        }
    }

    @Test
    void aBarrierInAMethodThatTheKernelCalls() throws Exception {
        IntArray out = new IntArray(96);
        Grids.run(
                new TaskGraph("g")
                        .task("t", WorkGroupTest::inAnotherMethod, new KernelContext(), out)
                        .transferToHost(EVERY_EXECUTION, out),
                96,
                32);
        for (int i = 0; i < 96; i++) {
            assertThat(out.get(i)).isEqualTo((i % 32 + 1) % 32);
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
