package org.tornadomoe.cli;

import java.io.PrintWriter;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.tornado.LayersInOnePlan;

/** {@code moe bench --layers}: measures a layer among the layers of a model, which the host launches together. */
final class BenchLayers {
    /** The number of layers with their own weights, if there is room; these exceed any cache. */
    private static final int DISTINCT = 8;

    private BenchLayers() {}

    /**
     * @param layer microseconds per layer by the host's clock: an execution of the plan divided by the number of
     *     layers, the median of all runs
     * @param onDevice microseconds per layer by the device's clock; null if no kernel reads it
     * @param relativeL2 error of the last layer's first and last token against the definition
     */
    record Row(
            BenchShape shape,
            int tokens,
            int layers,
            int distinct,
            String kernels,
            double layer,
            @Nullable Double onDevice,
            double relativeL2) {
        boolean ok() {
            return relativeL2 < Measurement.TOLERANCE;
        }

        Map<String, @Nullable Object> json() {
            Map<String, @Nullable Object> fields = new LinkedHashMap<>();
            fields.put("shape", shape.name());
            fields.put("tokens", tokens);
            fields.put("layers", layers);
            fields.put("distinctWeights", distinct);
            fields.put("kernelClass", kernels);
            fields.put("layer", layer);
            fields.put("onDevice", onDevice);
            fields.put("relativeL2", relativeL2);
            fields.put("passed", ok());
            return fields;
        }

        List<String> text() {
            return List.of(
                    shape.name(),
                    Integer.toString(tokens),
                    Integer.toString(layers),
                    kernels,
                    Output.seconds(layer / 1e6),
                    onDevice == null ? "" : Output.seconds(onDevice / 1e6),
                    String.format(Locale.ROOT, "%.2e", relativeL2));
        }
    }

    /** Measures each token count in its own plan, with as many distinct weights as fit the device. */
    static List<Row> measure(
            BenchShape shape,
            FusedMoeConfig config,
            Int8Experts experts,
            List<Integer> sizes,
            int layers,
            int runs,
            PrintWriter err) {
        List<Row> rows = new ArrayList<>();
        for (int m : sizes) {
            for (int distinct = Math.min(layers, DISTINCT); distinct > 0; distinct--) {
                try {
                    rows.add(measure(shape, config.withMaxNumTokens(m), experts, m, layers, distinct, runs));
                    break;
                } catch (InsufficientMemoryException e) {
                    if (distinct == 1) {
                        throw e;
                    }
                }
            }
            err.println("moe: " + String.join(", ", rows.getLast().text()));
        }
        return rows;
    }

    private static Row measure(
            BenchShape shape, FusedMoeConfig config, Int8Experts experts, int m, int layers, int distinct, int runs) {
        try (Arena arena = Arena.ofConfined()) {
            long values = (long) m * shape.hidden();
            MemorySegment hidden = arena.allocate(4 * values, 64);
            SplittableRandom random = new SplittableRandom(m);
            for (long i = 0; i < values; i++) {
                hidden.setAtIndex(ValueLayout.JAVA_FLOAT, i, (float) random.nextGaussian());
            }
            try (LayersInOnePlan plan = new LayersInOnePlan(config, experts, layers, distinct, hidden, m)) {
                int count = Math.min(m, 2);
                float[] got = Measurement.rows(plan.output(), m, shape.hidden(), count);
                float[] some = Measurement.rows(hidden, m, shape.hidden(), count);
                double error = Numerics.relativeL2(
                        Numerics.widen(got),
                        Reference.forward(experts, some, count).output());
                List<Double> times = new ArrayList<>();
                List<Double> device = new ArrayList<>();
                for (int run = 0; run < runs + 5; run++) {
                    long begin = System.nanoTime();
                    plan.run();
                    times.add((System.nanoTime() - begin) / 1e3 / layers);
                    plan.nanosOnDevice().ifPresent(nanos -> device.add(nanos / 1e3 / layers));
                }
                return new Row(
                        shape,
                        m,
                        layers,
                        distinct,
                        plan.kernels(),
                        Measurement.median(times.subList(5, times.size())),
                        device.isEmpty() ? null : Measurement.median(device.subList(5, device.size())),
                        error);
            }
        }
    }
}
