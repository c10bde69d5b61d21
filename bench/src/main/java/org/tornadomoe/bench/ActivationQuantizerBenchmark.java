package org.tornadomoe.bench;

import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;
import org.tornadomoe.quant.Int8Activations;

/** Quantises one token of H values to int8, on one core. */
@State(Scope.Thread)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.NANOSECONDS)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
@Fork(1)
public class ActivationQuantizerBenchmark {
    @Param({"2048", "4096"})
    int hidden;

    private float[] token;
    private byte[] quantized;

    @Setup
    public void fill() {
        Random random = new Random(1);
        token = new float[hidden];
        for (int i = 0; i < hidden; i++) {
            token[i] = (float) random.nextGaussian();
        }
        quantized = new byte[hidden];
    }

    @Benchmark
    public float quantize() {
        return Int8Activations.quantize(token, 0, hidden, quantized, 0);
    }
}
