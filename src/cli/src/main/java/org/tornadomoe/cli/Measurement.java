package org.tornadomoe.cli;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.parallel.ExpertBalance;
import org.tornadomoe.parallel.ShardedLayer;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.reference.Numerics;

/**
 * The measurements at a shape and a token count.
 *
 * @param kernels microseconds of each kernel on the device, by name, in order; empty if the device can't measure them
 * @param call microseconds of a whole call
 * @param activeExperts number of experts that a run reads, on average
 * @param bytes bytes of memory of each device, in order
 * @param relativeL2 error of the checked tokens against the definition
 * @param unbalanced the devices' loads until experts first moved; null if they didn't move in these calls
 * @param balance the same after the calls; null without load balancing
 */
record Measurement(
        BenchShape shape,
        int tokens,
        int runs,
        Map<String, Double> kernels,
        double call,
        double activeExperts,
        List<Long> bytes,
        double relativeL2,
        @Nullable ExpertBalance unbalanced,
        @Nullable ExpertBalance balance) {
    /** Windows of hidden states that runs use in turn, so that consecutive runs choose different experts. */
    private static final int WINDOWS = 8;

    /** The number of a call's tokens that are compared with the definition: the first and the last. */
    private static final int CHECKED = 2;

    /** A few values that round the other way stay far below it. */
    static final double TOLERANCE = 1e-2;

    double gemm(String name) {
        return kernels.entrySet().stream()
                .filter(kernel -> kernel.getKey().startsWith(name))
                .mapToDouble(Map.Entry::getValue)
                .sum();
    }

    double allKernels() {
        return kernels.values().stream().mapToDouble(Double::doubleValue).sum();
    }

    /** Microseconds of both GEMMs, or of the call if the device has no clock. */
    double gemms() {
        double both = gemm("gateUp") + gemm("down");
        return both > 0 ? both : call;
    }

    /** 10^9 bytes/s, counting the weights of the experts that got a token. */
    double gbs() {
        return weightBytes() / gemms() / 1e3;
    }

    private double weightBytes() {
        return activeExperts * 3.0 * shape.intermediate() * shape.hidden();
    }

    /** 10^12 operations/s; a multiplication and an addition count as two. */
    double tops() {
        return operations() / gemms() / 1e6;
    }

    private double operations() {
        return 2.0 * tokens * shape.topK() * 3 * shape.intermediate() * shape.hidden();
    }

    /** The GEMMs' least possible time under the limits, in per cent of their time; null if neither limit is known. */
    @Nullable
    Double percentOfLimit(@Nullable Double limitGbs, @Nullable Double limitTops) {
        if (limitGbs == null && limitTops == null) {
            return null;
        }
        double memory = limitGbs == null ? 0 : weightBytes() / limitGbs / 1e3;
        double arithmetic = limitTops == null ? 0 : operations() / limitTops / 1e6;
        return 100 * Math.max(memory, arithmetic) / gemms();
    }

    boolean ok() {
        return relativeL2 < TOLERANCE;
    }

    /**
     * Measures calls of a loaded layer.
     *
     * @param seconds maximum time; limits the number of runs
     * @param allocated whether the kernel allocates the memory of hidden states and output
     */
    static Measurement of(
            BenchShape shape,
            Sharding sharding,
            Int8Experts experts,
            MoeKernel kernel,
            int m,
            int runs,
            double seconds,
            boolean allocated) {
        int h = shape.hidden();
        ScalarType type = sharding.config().inDtype();
        long rowBytes = (long) type.bytes() * h;
        try (Arena arena = Arena.ofShared()) {
            long poolBytes = (m + WINDOWS - 1) * rowBytes;
            MemorySegment pool = allocated ? kernel.allocate(poolBytes, arena) : arena.allocate(poolBytes, 64);
            IntStream.range(0, m + WINDOWS - 1).parallel().forEach(row -> {
                SplittableRandom random = new SplittableRandom(31L * m + row);
                float[] values = new float[h];
                for (int i = 0; i < h; i++) {
                    values[i] = (float) random.nextGaussian();
                }
                HiddenStates.write(type, values, h, pool.asSlice(row * rowBytes));
            });
            MemorySegment out = allocated ? kernel.allocate(m * rowBytes, arena) : arena.allocate(m * rowBytes, 64);
            ChosenExperts chosen = ChosenExperts.allocate(m, shape.topK());
            int active = 0;
            int warm = 0;
            int least = Math.max(WINDOWS, firstMove(sharding.eplb()));
            ExpertBalance unbalanced = null;
            long begin = System.nanoTime();
            do { // warms up, and counts the experts of each window
                kernel.forward(window(pool, warm, m, rowBytes), m, out, chosen, null);
                active += (int) Arrays.stream(chosen.ids()).distinct().count();
                warm++;
                ExpertBalance now = ShardedLayer.balance(kernel);
                unbalanced = now == null || now.rearrangements() > 0 ? unbalanced : now;
            } while (warm < least && elapsed(begin) < seconds);
            double error = error(sharding, experts, kernel, window(pool, warm - 1, m, rowBytes), m, out);

            // During the host's check the device's clock went down, and the calling code left the caches.
            begin = System.nanoTime();
            for (int run = 0; run < 50L * (runs - 1) && elapsed(begin) < seconds / 4; run++) {
                kernel.forward(window(pool, run, m, rowBytes), m, out, null, null);
            }
            List<Double> calls = new ArrayList<>();
            Map<String, List<Double>> kernels = new LinkedHashMap<>();
            begin = System.nanoTime();
            do {
                MemorySegment hidden = window(pool, calls.size(), m, rowBytes);
                long start = System.nanoTime();
                kernel.forward(hidden, m, out, null, null);
                calls.add((System.nanoTime() - start) / 1e3);
            } while (calls.size() < runs && elapsed(begin) < seconds);
            // Separate from the calls, because turning the profiler on and off is slow.
            begin = System.nanoTime();
            for (int run = 0; run < calls.size() && (run == 0 || elapsed(begin) < seconds); run++) {
                Profiled.profile(kernel, window(pool, run, m, rowBytes), m)
                        .forEach((name, nanos) -> kernels.computeIfAbsent(name, _ -> new ArrayList<>())
                                .add(nanos / 1e3));
            }
            Map<String, Double> medians = new LinkedHashMap<>();
            kernels.forEach((name, times) -> medians.put(name, median(times)));
            ExpertBalance balance = ShardedLayer.balance(kernel);
            boolean moved = balance != null && balance.rearrangements() > 0;
            return new Measurement(
                    shape,
                    m,
                    calls.size(),
                    medians,
                    median(calls),
                    (double) active / warm,
                    kernel.bytesByDevice(),
                    error,
                    moved ? unbalanced : null,
                    balance);
        }
    }

    /** The number of calls of a new layer until experts move; 0 if they don't move. */
    private static int firstMove(@Nullable EplbConfig eplb) {
        return eplb == null ? 0 : Math.max(1, eplb.stepInterval() / 4);
    }

    static double elapsed(long begin) {
        return (System.nanoTime() - begin) / 1e9;
    }

    private static MemorySegment window(MemorySegment pool, int run, int m, long rowBytes) {
        return pool.asSlice(run % WINDOWS * rowBytes, m * rowBytes);
    }

    static double median(List<Double> values) {
        List<Double> sorted = values.stream().sorted().toList();
        return sorted.get(sorted.size() / 2);
    }

    /** The error of the first and the last token. */
    private static double error(
            Sharding sharding, Int8Experts experts, MoeKernel kernel, MemorySegment hidden, int m, MemorySegment out) {
        int h = experts.config().hiddenDim();
        ScalarType type = sharding.config().inDtype();
        int count = Math.min(m, CHECKED);
        float[] some = rows(type, hidden, m, h, count);
        float[] got = rows(type, out, m, h, count);
        if (dependsOnOtherTokens(experts.scheme())) {
            try (Arena arena = Arena.ofShared()) {
                MemorySegment in = arena.allocate((long) type.bytes() * some.length, 16);
                MemorySegment alone = arena.allocate(in.byteSize(), 16);
                HiddenStates.write(type, some, some.length, in);
                kernel.forward(in, count, alone, null, null);
                HiddenStates.read(type, alone, got, got.length);
            }
        }
        return Numerics.relativeL2(Numerics.widen(got), ShardedReference.forward(sharding, experts, some, count));
    }

    /** A scale that all tokens of a call share depends on all of them. */
    private static boolean dependsOnOtherTokens(Int8Scheme scheme) {
        QuantKey key = scheme.activationKey();
        return key != null
                && !key.scale().isStatic()
                && key.scale().groupShape().isPerTensor();
    }

    static float[] rows(MemorySegment from, int m, int h, int count) {
        return rows(ScalarType.F32, from, m, h, count);
    }

    private static float[] rows(ScalarType type, MemorySegment from, int m, int h, int count) {
        float[] rows = new float[count * h];
        float[] values = new float[h];
        for (int row = 0; row < count; row++) {
            HiddenStates.read(type, from.asSlice((long) type.bytes() * h * (row == 0 ? 0 : m - 1)), values, h);
            System.arraycopy(values, 0, rows, row * h, h);
        }
        return rows;
    }
}
