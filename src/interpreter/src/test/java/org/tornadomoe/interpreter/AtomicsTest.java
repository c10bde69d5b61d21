package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;

import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.types.arrays.DoubleArray;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.LongArray;

class AtomicsTest {
    private static final int ITEMS = 100_000;

    static void count(KernelContext ctx, IntArray ints, LongArray longs, FloatArray floats, DoubleArray doubles) {
        int slot = ctx.globalIdx % 2;
        ctx.atomicAdd(ints, slot, 1);
        ctx.atomicAdd(longs, slot, 1L << 32);
        ctx.atomicAdd(floats, slot, 1f);
        ctx.atomicAdd(doubles, slot, 0.5);
    }

    @Test
    void nothingIsLostBetweenGroups() throws Exception {
        IntArray ints = new IntArray(2);
        LongArray longs = new LongArray(2);
        FloatArray floats = new FloatArray(2);
        DoubleArray doubles = new DoubleArray(2);
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, ints, longs, floats, doubles)
                        .task("t", AtomicsTest::count, new KernelContext(), ints, longs, floats, doubles)
                        .transferToHost(EVERY_EXECUTION, ints, longs, floats, doubles),
                ITEMS,
                100);
        assertThat(ints.toHeapArray()).containsOnly(ITEMS / 2);
        assertThat(longs.toHeapArray()).containsOnly(ITEMS * (1L << 31));
        assertThat(floats.toHeapArray()).containsOnly(ITEMS / 2);
        assertThat(doubles.toHeapArray()).containsOnly(ITEMS / 4);
    }

    static void histogram(KernelContext ctx, IntArray values, IntArray counts) {
        int[] own = ctx.allocateIntLocalArray(8);
        if (ctx.localIdx < 8) {
            own[ctx.localIdx] = 0;
        }
        ctx.localBarrier();
        ctx.atomicAdd(own, values.get(ctx.globalIdx), 1);
        ctx.localBarrier();
        if (ctx.localIdx < 8) {
            ctx.atomicAdd(counts, ctx.localIdx, own[ctx.localIdx]);
        }
    }

    @Test
    void histogramInLocalMemory() throws Exception {
        IntArray values = new IntArray(640);
        int[] expected = new int[8];
        for (int i = 0; i < 640; i++) {
            values.set(i, i * i % 8);
            expected[i * i % 8]++;
        }
        IntArray counts = new IntArray(8);
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, values, counts)
                        .task("t", AtomicsTest::histogram, new KernelContext(), values, counts)
                        .transferToHost(EVERY_EXECUTION, counts),
                640,
                64);
        assertThat(counts.toHeapArray()).isEqualTo(expected);
    }
}
