package org.tornadomoe.bench;

import java.lang.foreign.Arena;
import java.util.SplittableRandom;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/**
 * Calls one layer on the CPU from as many threads as {@code -t} says, and measures calls per second of all threads
 * together. The layer is the one of {@link CpuMoeBenchmark}.
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.Throughput)
@OutputTimeUnit(TimeUnit.SECONDS)
@Fork(1)
@Warmup(iterations = 2, time = 2)
@Measurement(iterations = 3, time = 3)
public class CallersBenchmark {
    private static final int E = 16;
    private static final int H = 2048;
    private static final int I = 768;
    private static final int K = 2;

    @Param({"1", "16"})
    public int tokens;

    @Param({"1", "2"})
    public int lanes;

    private MoeLayer layer;
    private final SplittableRandom random = new SplittableRandom(1);

    /** A caller's own hidden states and output. */
    @State(Scope.Thread)
    public static class Caller {
        private final SplittableRandom random =
                new SplittableRandom(Thread.currentThread().threadId());
        private float[] hidden;
        private float[] output;

        @Setup(Level.Trial)
        public void fill(CallersBenchmark benchmark) {
            hidden = new float[benchmark.tokens * H];
            output = new float[hidden.length];
            for (int i = 0; i < hidden.length; i++) {
                hidden[i] = (float) random.nextGaussian();
            }
        }
    }

    @Setup
    public void load() {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(E)
                .expertsPerToken(K)
                .hiddenDim(H)
                .intermediateSize(I)
                .maxNumTokens(tokens)
                .build();
        float[] router = new float[E * H];
        for (int i = 0; i < router.length; i++) {
            router[i] = (float) (random.nextGaussian() / Math.sqrt(H));
        }
        Arena arena = Arena.ofShared();
        try (Int8Experts experts = Int8Experts.of(
                config,
                Int8Scheme.W8A8_CHANNEL,
                tensor(arena, 2 * I, H),
                tensor(arena, H, I),
                RouterWeights.of(router),
                arena)) {
            layer = MoeLayer.of(
                    experts,
                    MoeOptions.DEFAULT.withBackend("cpu").withMaxTokens(tokens).withLanes(lanes));
            float[] hidden = new float[tokens * H];
            for (int i = 0; i < hidden.length; i++) {
                hidden[i] = (float) random.nextGaussian();
            }
            double error = Numerics.relativeL2(
                    Numerics.widen(layer.forward(hidden)),
                    Reference.forward(experts, hidden, tokens).output());
            if (!(error < 1e-5)) {
                throw new IllegalStateException("expected an error below 1e-5, got " + error);
            }
        }
    }

    @Benchmark
    public float[] call(Caller caller) {
        layer.forward(caller.hidden, tokens, caller.output, null);
        return caller.output;
    }

    @TearDown
    public void close() {
        layer.close();
    }

    private Int8Tensor tensor(Arena arena, int rows, int cols) {
        Int8Tensor tensor = Int8Tensor.allocate(arena, E, rows, cols);
        byte[] row = new byte[cols];
        for (int e = 0; e < E; e++) {
            for (int r = 0; r < rows; r++) {
                for (int c = 0; c < cols; c++) {
                    row[c] = (byte) random.nextInt(-127, 128);
                }
                tensor.setRow(e, r, row, 0, (float) (random.nextDouble(0.5, 1.5) / 73 / Math.sqrt(cols)));
            }
        }
        return tensor;
    }
}
