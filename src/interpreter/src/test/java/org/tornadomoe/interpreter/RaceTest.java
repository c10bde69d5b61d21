package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.parallel.ResourceLock;
import org.junit.jupiter.api.parallel.Resources;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

@ResourceLock(Resources.SYSTEM_PROPERTIES)
class RaceTest {
    private static final String SWITCH = "tornadomoe.interpreter.races";

    private final IntArray values = new IntArray(64);

    @BeforeEach
    void lookForRaces() {
        System.setProperty(SWITCH, "true");
    }

    @AfterEach
    void reset() {
        System.clearProperty(SWITCH);
    }

    static void neighbour(KernelContext ctx, IntArray out) {
        int[] tile = ctx.allocateIntLocalArray(64);
        int lane = ctx.localIdx;
        tile[lane] = lane;
        if (out.get(ctx.globalIdx) == 0) {
            ctx.localBarrier();
        }
        out.set(ctx.globalIdx, tile[(lane + 63) % 64]);
    }

    @Test
    void localMemoryWithAndWithoutABarrier() throws Exception {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, values)
                .task("t", RaceTest::neighbour, new KernelContext(), values)
                .transferToHost(EVERY_EXECUTION, values);
        Grids.run(graph, 64, 64);
        assertThat(values.get(0)).isEqualTo(63);
        values.init(1);
        assertThatThrownBy(() -> Grids.run(graph, 64, 64))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("RaceTest.neighbour")
                .hasMessageContaining("of tile");
    }

    static void readsThenWrites(KernelContext ctx, IntArray data) {
        int next = data.get((ctx.globalIdx + 1) % 64);
        data.set(ctx.globalIdx, next);
    }

    @Test
    void globalMemoryReadByOneAndWrittenByAnother() {
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, values)
                .task("t", RaceTest::readsThenWrites, new KernelContext(), values);
        assertThatThrownBy(() -> Grids.run(graph, 64, 32))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("work-item (1, 0, 0) of group (0, 0, 0)")
                .hasMessageContaining("writes element 1 of data")
                .hasMessageContaining("work-item (0, 0, 0) of group (0, 0, 0) read");
    }

    static void barrierBetween(KernelContext ctx, IntArray data, int from) {
        int lane = ctx.localIdx;
        data.set(ctx.globalIdx, lane);
        ctx.localBarrier();
        int other = data.get((ctx.globalIdx + from) % 64);
        ctx.localBarrier();
        data.set(ctx.globalIdx, other);
    }

    @Test
    void aBarrierOrdersItsGroupAndNoOther() throws Exception {
        TaskGraph within = new TaskGraph("g")
                .task("t", RaceTest::barrierBetween, new KernelContext(), values, 1)
                .transferToHost(EVERY_EXECUTION, values);
        Grids.run(within, 64, 64);
        assertThat(values.get(0)).isEqualTo(1);
        TaskGraph across = new TaskGraph("g").task("t", RaceTest::barrierBetween, new KernelContext(), values, 32);
        assertThatThrownBy(() -> Grids.run(across, 64, 32))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("element")
                .hasMessageContaining("of data")
                .hasMessageContaining("group (0, 0, 0)")
                .hasMessageContaining("group (1, 0, 0)");
    }

    static void allWriteOne(KernelContext ctx, IntArray data) {
        data.set(0, ctx.globalIdx);
    }

    @Test
    void twoWritersOfOneElement() {
        TaskGraph graph = new TaskGraph("g").task("t", RaceTest::allWriteOne, new KernelContext(), values);
        assertThatThrownBy(() -> Grids.run(graph, 4, 1)).hasMessageContaining("writes element 0 of data");
    }

    @Test
    void nothingIsSaidWhereRacesAreNotLookedFor() throws Exception {
        System.clearProperty(SWITCH);
        TaskGraph graph = new TaskGraph("g")
                .task("t", RaceTest::allWriteOne, new KernelContext(), values)
                .transferToHost(EVERY_EXECUTION, values);
        Grids.run(graph, 4, 1);
        assertThat(values.get(0)).isBetween(0, 3);
    }

    static void atomic(KernelContext ctx, IntArray data) {
        int[] count = ctx.allocateIntLocalArray(1);
        if (ctx.localIdx == 0) {
            count[0] = 0;
        }
        ctx.localBarrier();
        ctx.atomicAdd(count, 0, 1);
        ctx.atomicAdd(data, 0, 1);
        ctx.localBarrier();
        if (ctx.localIdx == 0) {
            data.set(1 + ctx.groupIdx, count[0]);
        }
    }

    @Test
    void atomicsDoNotRaceWithEachOther() throws Exception {
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, values)
                        .task("t", RaceTest::atomic, new KernelContext(), values)
                        .transferToHost(EVERY_EXECUTION, values),
                64,
                16);
        assertThat(values.slice(0, 5).toHeapArray()).containsExactly(64, 16, 16, 16, 16);
    }

    static void atomicThenPlain(KernelContext ctx, IntArray data) {
        ctx.atomicAdd(data, 0, 1);
        data.set(1 + ctx.globalIdx, data.get(0));
    }

    @Test
    void aPlainReadRacesWithAtomics() {
        TaskGraph graph = new TaskGraph("g").task("t", RaceTest::atomicThenPlain, new KernelContext(), values);
        assertThatThrownBy(() -> Grids.run(graph, 8, 8)).hasMessageContaining("element 0 of data");
    }
}
