package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.FIRST_EXECUTION;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.UNDER_DEMAND;

import java.util.Arrays;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.DataRange;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class TransferTest {
    private static final int SIZE = 32;

    private final IntArray in = new IntArray(SIZE);
    private final IntArray out = new IntArray(SIZE);

    static void copy(KernelContext ctx, IntArray from, IntArray to) {
        to.set(ctx.globalIdx, from.get(ctx.globalIdx));
    }

    static void increment(KernelContext ctx, IntArray values) {
        values.set(ctx.globalIdx, values.get(ctx.globalIdx) + 1);
    }

    @Test
    void freedMemoryIsTransferredAgain() throws Exception {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, in)
                .task("t", TransferTest::copy, new KernelContext(), in, out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = Grids.plan("g.t", SIZE, 16, graph)) {
            in.init(1);
            plan.execute();
            in.init(2);
            plan.freeDeviceMemory().execute();
            assertThat(out.toHeapArray()).containsOnly(2);
        }
    }

    @Test
    void partsThatTheDeviceHasNot() throws Exception {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, in)
                .task("t", TransferTest::copy, new KernelContext(), in, out)
                .transferToHost(UNDER_DEMAND, out);
        try (TornadoExecutionPlan plan = Grids.plan("g.t", SIZE, 16, graph)) {
            TornadoExecutionResult result = plan.execute();
            assertThatThrownBy(() -> result.transferToHost(
                            new DataRange(out).withOffset(30).withSize(3)))
                    .isInstanceOf(TornadoRuntimeException.class)
                    .hasMessageContaining("offset 30 and size 3");
            assertThatThrownBy(() -> result.transferToHost(new IntArray(4)))
                    .isInstanceOf(TornadoRuntimeException.class)
                    .hasMessageContaining("on the device");
        }
    }

    static void scale(KernelContext ctx, FloatArray from, FloatArray to) {
        to.set(ctx.globalIdx, 2 * from.get(ctx.globalIdx));
    }

    @Test
    void anInputThatWasForgottenIsNotTheHosts() throws Exception {
        in.init(5);
        TaskGraph ints = new TaskGraph("g")
                .task("t", TransferTest::copy, new KernelContext(), in, out)
                .transferToHost(EVERY_EXECUTION, out);
        Grids.run(ints, SIZE, 16);
        assertThat(out.toHeapArray()).doesNotContain(5, 0);

        FloatArray from = new FloatArray(SIZE);
        FloatArray to = new FloatArray(SIZE);
        TaskGraph floats = new TaskGraph("g")
                .task("t", TransferTest::scale, new KernelContext(), from, to)
                .transferToHost(EVERY_EXECUTION, to);
        Grids.run(floats, SIZE, 16);
        assertThat(to.toHeapArray()).containsOnly(Float.NaN);
    }

    @Test
    void plansDoNotShareMemory() throws Exception {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, in)
                .task("t", TransferTest::increment, new KernelContext(), in)
                .transferToHost(EVERY_EXECUTION, in);
        try (TornadoExecutionPlan one = Grids.plan("g.t", SIZE, 16, graph);
                TornadoExecutionPlan other = Grids.plan("g.t", SIZE, 16, graph)) {
            one.execute();
            one.execute();
            assertThat(in.toHeapArray()).containsOnly(2);
            in.init(10);
            other.execute();
            assertThat(in.toHeapArray()).containsOnly(11);
            one.execute();
            assertThat(in.toHeapArray()).containsOnly(3);
        }
    }

    /** A graph that may run after several names each of them, whichever of them has run. */
    @Test
    void anArrayMayBeConsumedFromSeveralGraphs() throws Exception {
        TaskGraph first = new TaskGraph("first")
                .transferToDevice(FIRST_EXECUTION, in)
                .task("t", TransferTest::increment, new KernelContext(), in)
                .persistOnDevice(in);
        TaskGraph again = new TaskGraph("again")
                .consumeFromDevice("first", in)
                .consumeFromDevice("later", in)
                .task("t", TransferTest::increment, new KernelContext(), in)
                .transferToHost(EVERY_EXECUTION, in);
        TaskGraph later = new TaskGraph("later")
                .consumeFromDevice("again", in)
                .task("t", TransferTest::increment, new KernelContext(), in)
                .persistOnDevice(in);
        try (TornadoExecutionPlan plan = Grids.plan("first.t again.t later.t", SIZE, 16, first, again, later)) {
            for (int graph : new int[] {0, 1, 2, 1}) {
                plan.withGraph(graph).execute();
            }
            assertThat(in.toHeapArray()).containsOnly(4);
        }
    }

    @Test
    void graphsPassArraysOnTheDevice() throws Exception {
        IntArray between = new IntArray(SIZE);
        TaskGraph first = new TaskGraph("first")
                .transferToDevice(EVERY_EXECUTION, in)
                .task("t", TransferTest::copy, new KernelContext(), in, between)
                .persistOnDevice(between);
        TaskGraph named = new TaskGraph("named")
                .consumeFromDevice("first", between)
                .task("t", TransferTest::increment, new KernelContext(), between)
                .persistOnDevice(between);
        TaskGraph last = new TaskGraph("last")
                .consumeFromDevice(between)
                .task("t", TransferTest::copy, new KernelContext(), between, out)
                .transferToHost(EVERY_EXECUTION, out);
        try (TornadoExecutionPlan plan = Grids.plan("first.t named.t last.t", SIZE, 16, first, named, last)) {
            assertThatThrownBy(() -> plan.withGraph(1).execute())
                    .isInstanceOf(TornadoRuntimeException.class)
                    .hasMessageContaining(
                            "graph named consumes a IntArray from graph first, which has not been executed");
            in.init(7);
            plan.withAllGraphs().execute();
            assertThat(out.toHeapArray()).containsOnly(8);
            plan.withGraph(1).execute();
            plan.withGraph(2).execute();
            assertThat(out.toHeapArray()).containsOnly(9);
            assertThat(between.toHeapArray()).containsOnly(0);
        }
    }

    static void doubles(KernelContext ctx, float[] values) {
        values[ctx.globalIdx] *= 2;
    }

    @Test
    void javaArraysAreCopiedToo() throws Exception {
        float[] values = new float[SIZE];
        Arrays.fill(values, 1.5f);
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, values)
                        .task("t", TransferTest::doubles, new KernelContext(), values)
                        .transferToHost(EVERY_EXECUTION, values),
                SIZE,
                16);
        assertThat(values).containsOnly(3f);
    }

    @Test
    void wrongDeclarationsAreNamed() {
        TaskGraph graph = new TaskGraph("g");
        assertThatThrownBy(() -> graph.transferToDevice(EVERY_EXECUTION, in, null))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("graph g: transferToDevice")
                .hasMessageContaining("null");
        assertThatThrownBy(() -> graph.transferToHost(EVERY_EXECUTION, "text"))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("java.lang.String");
        assertThatThrownBy(() -> graph.transferToDevice(7, in))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("got 7");
        graph.task("t", TransferTest::increment, new KernelContext(), in);
        assertThatThrownBy(() -> graph.task("t", TransferTest::increment, new KernelContext(), in))
                .hasMessageContaining("task t");
    }
}
