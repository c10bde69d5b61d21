package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;

import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class KernelErrorTest {
    static void readsPastTheEnd(KernelContext ctx, IntArray source, IntArray target) {
        int i = ctx.globalIdx;
        target.set(i, source.get(i + 1));
    }

    @Test
    void indexOutOfBoundsNamesTheParameter() {
        IntArray in = new IntArray(64);
        IntArray out = new IntArray(64);
        TaskGraph graph = new TaskGraph("layer")
                .transferToDevice(EVERY_EXECUTION, in)
                .task("t", KernelErrorTest::readsPastTheEnd, new KernelContext(), in, out);
        assertThatThrownBy(() -> Grids.run(graph, 64, 16))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("task layer.t")
                .hasMessageContaining("KernelErrorTest.readsPastTheEnd (KernelErrorTest.java:")
                .hasMessageContaining("work-item (63, 0, 0) of group (3, 0, 0)")
                .hasMessageContaining("index 64 of source is out of bounds for length 64");
    }

    static void writesBeforeTheStart(KernelContext ctx, IntArray target) {
        target.set(ctx.globalIdx - 1, 1);
    }

    @Test
    void theHeaderOfAnArrayCannotBeReached() {
        IntArray out = new IntArray(8);
        TaskGraph graph = new TaskGraph("g").task("t", KernelErrorTest::writesBeforeTheStart, new KernelContext(), out);
        assertThatThrownBy(() -> Grids.run(graph, 8, 8)).hasMessageContaining("index -1 of target");
    }

    static void overrunsLocalMemory(KernelContext ctx, IntArray out) {
        int[] other = ctx.allocateIntLocalArray(4);
        int[] window = ctx.allocateIntLocalArray(8);
        other[0] = 1;
        window[ctx.localIdx * 2] = 1;
        ctx.localBarrier();
        out.set(ctx.globalIdx, other[0]);
    }

    @Test
    void indexOutOfBoundsNamesTheLocalVariable() {
        IntArray out = new IntArray(8);
        TaskGraph graph = new TaskGraph("g").task("t", KernelErrorTest::overrunsLocalMemory, new KernelContext(), out);
        assertThatThrownBy(() -> Grids.run(graph, 8, 8))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("index 8 of window is out of bounds for length 8")
                .hasMessageContaining("work-item (4, 0, 0)");
    }

    static void overrunsAPrivateArray(KernelContext ctx, IntArray out) {
        int[] own = new int[4];
        out.set(ctx.globalIdx, own[ctx.globalIdx]);
    }

    @Test
    void indexOutOfBoundsOfAPrivateArray() {
        IntArray out = new IntArray(8);
        TaskGraph graph =
                new TaskGraph("g").task("t", KernelErrorTest::overrunsAPrivateArray, new KernelContext(), out);
        assertThatThrownBy(() -> Grids.run(graph, 8, 4))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("work-item (4, 0, 0)")
                .hasCauseInstanceOf(IndexOutOfBoundsException.class);
    }

    static void divides(KernelContext ctx, IntArray values) {
        int[] shared = ctx.allocateIntLocalArray(8);
        shared[ctx.localIdx] = values.get(ctx.globalIdx);
        ctx.localBarrier();
        values.set(ctx.globalIdx, 10 / shared[ctx.localIdx]);
    }

    @Test
    void aPlanSurvivesAFailedKernel() throws Exception {
        IntArray values = new IntArray(16);
        values.init(2);
        values.set(11, 0);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, values)
                .task("t", KernelErrorTest::divides, new KernelContext(), values)
                .transferToHost(EVERY_EXECUTION, values);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(new GridScheduler("g.t", Grids.of(16, 8)));
            assertThatThrownBy(plan::execute)
                    .isInstanceOf(TornadoRuntimeException.class)
                    .hasMessageContaining("work-item (11, 0, 0)")
                    .hasCauseInstanceOf(ArithmeticException.class);
            assertThat(values.get(0)).as("nothing came back").isEqualTo(2);
            values.set(11, 5);
            plan.execute();
            assertThat(values.get(11)).isEqualTo(2);
            assertThat(values.get(0)).isEqualTo(5);
        }
    }

    static void plus(IntArray values, int amount) {
        for (int i = 0; i <= values.getSize(); i++) {
            values.set(i, values.get(i) + amount);
        }
    }

    @Test
    void aFailedLoopNamesItsTask() {
        IntArray values = new IntArray(4);
        TaskGraph graph = new TaskGraph("g").task("loop", KernelErrorTest::plus, values, 1);
        assertThatThrownBy(() -> {
                    try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
                        plan.execute();
                    }
                })
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("task g.loop")
                .hasMessageContaining("index 4");
    }

    @Test
    void aLambdaIsAKernelToo() throws Exception {
        IntArray values = new IntArray(4);
        Grids.run(
                new TaskGraph("g")
                        .task(
                                "t",
                                (KernelContext ctx, IntArray out) -> {
                                    int[] shared = ctx.allocateIntLocalArray(4);
                                    shared[ctx.localIdx] = ctx.localIdx;
                                    ctx.localBarrier();
                                    out.set(ctx.localIdx, shared[3 - ctx.localIdx]);
                                },
                                new KernelContext(),
                                values)
                        .transferToHost(EVERY_EXECUTION, values),
                4,
                4);
        assertThat(values.toHeapArray()).containsExactly(3, 2, 1, 0);
    }
}
