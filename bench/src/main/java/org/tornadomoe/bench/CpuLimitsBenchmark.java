package org.tornadomoe.bench;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.TimeUnit;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Threads;
import org.openjdk.jmh.annotations.Warmup;

/**
 * Measures the limits of all cores together: bytes per second of a copy (each byte is read once and written once), and
 * multiply-adds of int8 values in float lanes, as in the CPU's layer. Per operation: {@value #BYTES} bytes, {@value
 * #MULTIPLY_ADDS} multiply-adds per lane.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
@Threads(Threads.MAX)
@Fork(value = 3, jvmArgsAppend = "--add-modules=jdk.incubator.vector")
public class CpuLimitsBenchmark {
    static final long BYTES = 128L << 20;
    static final int MULTIPLY_ADDS = 12 * 100_000;

    private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;

    private MemorySegment from;
    private MemorySegment to;
    private float value = 1e-3f;

    @Setup
    public void allocate() {
        from = Arena.ofAuto().allocate(BYTES, 64).fill((byte) 1);
        to = Arena.ofAuto().allocate(BYTES, 64).fill((byte) 2);
    }

    @Benchmark
    public MemorySegment copy() {
        return to.copyFrom(from);
    }

    @Benchmark
    public float multiplyAdd() {
        FloatVector x = FloatVector.broadcast(F, value);
        FloatVector y = FloatVector.broadcast(F, value + 1);
        FloatVector a = x;
        FloatVector b = x;
        FloatVector c = x;
        FloatVector d = x;
        FloatVector e = x;
        FloatVector f = x;
        FloatVector g = x;
        FloatVector h = x;
        FloatVector i = x;
        FloatVector j = x;
        FloatVector k = x;
        FloatVector l = x;
        for (int n = 0; n < MULTIPLY_ADDS / 12; n++) {
            a = x.fma(y, a);
            b = x.fma(y, b);
            c = x.fma(y, c);
            d = x.fma(y, d);
            e = x.fma(y, e);
            f = x.fma(y, f);
            g = x.fma(y, g);
            h = x.fma(y, h);
            i = x.fma(y, i);
            j = x.fma(y, j);
            k = x.fma(y, k);
            l = x.fma(y, l);
        }
        return a.add(b)
                .add(c)
                .add(d)
                .add(e)
                .add(f)
                .add(g)
                .add(h)
                .add(i)
                .add(j)
                .add(k)
                .add(l)
                .reduceLanes(VectorOperators.ADD);
    }
}
