package org.tornadomoe.tornado;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;

/**
 * Device time of every kernel of a layer, by TornadoVM's profiler, at the shapes and token counts that the project measures
 * itself at. Weights are random int8, hidden states are drawn anew for every run, so that routing and with it the experts
 * read differ from run to run; the median of the runs is taken.
 *
 * <p>{@code java @$TORNADOVM_HOME/tornado-argfile -Dtornado.recover.bailout=False -Dtornado.device.memory=60GB
 * -XX:MaxDirectMemorySize=60g -cp ... org.tornadomoe.tornado.KernelTimes OUT.json [DEVICE [SHAPE[,SHAPE] [M[,M]]]]}
 */
final class KernelTimes {
    /** E, I, H, K. */
    private static final Map<String, int[]> SHAPES = new LinkedHashMap<>();

    static {
        SHAPES.put("mixtral-8x7b", new int[] {8, 14336, 4096, 2});
        SHAPES.put("qwen3-30b-a3b", new int[] {128, 768, 2048, 8});
        SHAPES.put("deepseek-v2-lite", new int[] {64, 1408, 2048, 6});
        SHAPES.put("gpt-oss-20b", new int[] {32, 2880, 2880, 4});
    }

    private static final int RUNS = 15;
    private static final int WARM_UP = 3;
    private static final Pattern TASK =
            Pattern.compile("\"moe\\.(\\w+)\": \\{[^}]*?\"TASK_KERNEL_TIME\" *: *\"(\\d+)\"");

    private KernelTimes() {}

    public static void main(String[] args) throws IOException {
        String wanted = args.length > 1 ? args[1] : "";
        Device device = TornadoHome.current().devices().stream()
                .filter(d -> d.id().startsWith(wanted))
                .findFirst()
                .orElseThrow(() -> new IllegalArgumentException("no device " + wanted));
        List<String> shapes = args.length > 2 ? List.of(args[2].split(",")) : List.copyOf(SHAPES.keySet());
        int[] sizes = args.length > 3
                ? Arrays.stream(args[3].split(",")).mapToInt(Integer::parseInt).toArray()
                : new int[] {1, 4, 16, 64, 256, 1024, 4096};
        List<String> rows = new ArrayList<>();
        for (String name : shapes) {
            int[] s = SHAPES.get(name);
            if (s == null) {
                throw new IllegalArgumentException("no shape " + name + ", there are " + SHAPES.keySet());
            }
            FusedMoeConfig config = FusedMoeConfig.builder()
                    .numExperts(s[0])
                    .intermediateSize(s[1])
                    .hiddenDim(s[2])
                    .expertsPerToken(s[3])
                    .maxNumTokens(Arrays.stream(sizes).max().orElseThrow())
                    .build();
            long begin = System.nanoTime();
            try (Int8Experts experts = random(config);
                    TornadoMoeKernel kernel = TornadoMoeKernel.load(
                            device, config, experts, (device.lacksDp4a() == null), config.activationFormat())) {
                System.out.printf("%s loaded in %.1f s%n", name, (System.nanoTime() - begin) / 1e9);
                for (int tokens : sizes) {
                    rows.add(measure(name, config, device, kernel, tokens));
                }
            }
        }
        Files.writeString(
                Path.of(args[0]),
                "{\"date\": \"" + LocalDate.now() + "\", \"device\": \"" + device + "\", \"dp4a\": "
                        + (device.lacksDp4a() == null)
                        + ", \"runs\": " + RUNS + ", \"unit\": \"microseconds\", \"rows\": [\n"
                        + String.join(",\n", rows) + "\n]}\n");
    }

    private static String measure(
            String shape, FusedMoeConfig config, Device device, TornadoMoeKernel kernel, int tokens) {
        int values = tokens * config.hiddenDim();
        Map<String, double[]> times = new LinkedHashMap<>();
        double[] wall = new double[RUNS];
        SplittableRandom random = new SplittableRandom(tokens);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment hidden = arena.allocate(4L * values, 64);
            MemorySegment output = arena.allocate(4L * values, 64);
            for (int run = -WARM_UP; run < RUNS; run++) {
                for (int i = 0; i < values; i++) {
                    hidden.setAtIndex(ValueLayout.JAVA_FLOAT, i, (float) random.nextGaussian());
                }
                long begin = System.nanoTime();
                kernel.forward(hidden, tokens, output, null);
                double micros = (System.nanoTime() - begin) / 1e3;
                Map<String, Long> profile = lastRun(kernel.profile(hidden, tokens));
                if (run >= 0) {
                    wall[run] = micros;
                    for (Map.Entry<String, Long> task : profile.entrySet()) {
                        times.computeIfAbsent(task.getKey(), t -> new double[RUNS])[run] = task.getValue() / 1e3;
                    }
                }
            }
        }
        StringBuilder json = new StringBuilder();
        StringBuilder line = new StringBuilder();
        double total = 0;
        for (Map.Entry<String, double[]> task : times.entrySet()) {
            double median = median(task.getValue());
            total += median;
            json.append(String.format(", \"%s\": %.1f", task.getKey(), median));
            line.append(String.format(" %s %.1f", task.getKey(), median));
        }
        System.out.printf(
                "%s %s M=%d: kernels %.1f us, call %.1f us;%s%n",
                device.id(), shape, tokens, total, median(wall), line);
        return String.format(
                "{\"shape\": \"%s\", \"tokens\": %d, \"kernels\": %.1f, \"call\": %.1f%s}",
                shape, tokens, total, median(wall), json);
    }

    /** The kernel times of the last run, in nanoseconds: the profiler's log grows by one object a run. */
    private static Map<String, Long> lastRun(String log) {
        Map<String, Long> last = new LinkedHashMap<>();
        Matcher task = TASK.matcher(log);
        while (task.find()) {
            last.put(task.group(1), Long.parseLong(task.group(2)));
        }
        return last;
    }

    private static double median(double[] values) {
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted[sorted.length / 2];
    }

    private static Int8Experts random(FusedMoeConfig config) {
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = random(arena, config.numExperts(), config.gateUpRows(), config.hiddenDim());
        Int8Tensor w2 = random(arena, config.numExperts(), config.hiddenDim(), config.intermediateSize());
        float[] router = new float[config.numExperts() * config.hiddenDim()];
        SplittableRandom random = new SplittableRandom(7);
        for (int i = 0; i < router.length; i++) {
            router[i] = (float) random.nextGaussian();
        }
        return Int8Experts.of(config, Int8Scheme.W8A8_CHANNEL, w13, w2, RouterWeights.of(router), arena);
    }

    private static Int8Tensor random(Arena arena, int experts, int rows, int cols) {
        Int8Tensor tensor = Int8Tensor.allocate(arena, experts, rows, cols);
        Arrays.fill(tensor.scales(), 1e-3f);
        MemorySegment values = tensor.values();
        IntStream.range(0, experts * rows).parallel().forEach(row -> {
            byte[] bytes = new byte[cols];
            new SplittableRandom(row).nextBytes(bytes);
            MemorySegment.copy(bytes, 0, values, ValueLayout.JAVA_BYTE, (long) row * tensor.rowBytes(), cols);
        });
        return tensor;
    }
}
