package org.tornadomoe.cli;

import java.io.PrintWriter;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.time.LocalDate;
import java.time.ZoneId;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.CheckpointException;
import org.tornadomoe.checkpoint.WholeFile;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.ExpertBalance;
import org.tornadomoe.parallel.ShardedLayer;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.tornado.TornadoHome;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import tools.jackson.jr.ob.JSON;

/** {@code moe bench}: what a layer and each of its kernels take, at the sizes of known models, with random weights. */
@Command(
        name = "bench",
        description = {
            "Measures layers with random weights at the sizes of known models: each kernel by the device's own clock,"
                    + " the",
            "whole call by the wall's, medians of many runs, the results of every size checked against the definition."
        })
final class Bench implements Callable<Integer> {
    /** E, I, H and K of known models, and of one that the interpreter gets done. */
    private static final Map<String, Shape> SHAPES = new LinkedHashMap<>();

    static {
        for (Shape shape : List.of(
                new Shape("mixtral-8x7b", 8, 14336, 4096, 2),
                new Shape("qwen3-30b-a3b", 128, 768, 2048, 8),
                new Shape("deepseek-v2-lite", 64, 1408, 2048, 6),
                new Shape("gpt-oss-20b", 32, 2880, 2880, 4),
                new Shape("deepseek-v3", 256, 2048, 7168, 8),
                new Shape("tiny", 8, 192, 128, 2))) {
            SHAPES.put(shape.name, shape);
        }
    }

    private static final List<Integer> TOKENS = List.of(1, 4, 16, 64, 256, 1024, 4096);
    private static final List<Integer> FEW_TOKENS = List.of(1, 4, 16);

    /** Windows of hidden states that runs take in turn, so that each finds other experts than the one before. */
    private static final int WINDOWS = 8;

    /** Tokens of a call that are compared with the definition: the first and the last. */
    private static final int CHECKED = 2;

    /** What one wrong rounding here and there makes of it stays far below. */
    static final double TOLERANCE = 1e-2;

    @Spec
    CommandSpec spec;

    @Option(
            names = "--shape",
            paramLabel = "NAME",
            split = ",",
            description =
                    "Names of models, or of sizes E:I:H:K, with commas between them. By default the models without"
                            + " 'tiny', and on the interpreter 'tiny' alone.")
    List<String> shapes = List.of();

    @Option(
            names = "--tokens",
            paramLabel = "M",
            split = ",",
            description = "Tokens of a call; default 1,4,16,64,256,1024,4096, on the interpreter 1,4,16.")
    List<Integer> tokens = List.of();

    @Option(
            names = "--runs",
            paramLabel = "N",
            defaultValue = "20",
            description = "Runs of which the median is taken; default ${DEFAULT-VALUE}.")
    int runs = 20;

    @Option(
            names = "--seconds",
            paramLabel = "S",
            defaultValue = "20",
            description = "Fewer runs, but at least one, where they would take longer; default ${DEFAULT-VALUE}.")
    double seconds = 20;

    @Option(
            names = "--scheme",
            paramLabel = "S",
            defaultValue = "w8a8_channel",
            description = "What is int8: ${COMPLETION-CANDIDATES}; default ${DEFAULT-VALUE}.")
    Int8Scheme scheme = Int8Scheme.W8A8_CHANNEL;

    @Option(
            names = "--limit-gbs",
            paramLabel = "X",
            description =
                    "What memory gives, 10^9 bytes/s: the GEMMs' times are also told in per cent of the best that it"
                            + " allows.")
    @Nullable
    Double limitGbs;

    @Option(
            names = "--limit-tops",
            paramLabel = "X",
            description = "What int8 arithmetic gives, 10^12 operations/s: likewise.")
    @Nullable
    Double limitTops;

    @Option(names = "--output", paramLabel = "F", description = "Write the JSON object to a file as well.")
    @Nullable
    Path file;

    @Option(
            names = "--separate",
            description =
                    "Load the layer for each token count by itself, as for calls of that size only: what a call moves"
                            + " and reserves is then no more than it needs.")
    boolean separate;

    @Option(
            names = "--layers",
            paramLabel = "N",
            description =
                    "Instead of single calls, N layers in one task graph, as a model has them: time of one layer, by"
                            + " the wall's clock. Routing and alignment are in it.")
    @Nullable
    Integer layers;

    @Option(
            names = "--skew",
            paramLabel = "S",
            defaultValue = "0",
            description = "How much the router prefers some experts: the nth one's scores, from the middle on, are n^S"
                    + " times lower than the first's, about Zipf's law; default ${DEFAULT-VALUE}, all alike.")
    double skew;

    @Mixin
    Target target;

    @Mixin
    Output output;

    /** What each shape took of the device's memory, for the last calls that it was loaded for. */
    private final Map<String, @Nullable Object> memory = new LinkedHashMap<>();

    /** The sizes of a layer: E experts, I intermediate, H hidden, K experts a token. */
    record Shape(String name, int experts, int intermediate, int hidden, int topK) {
        static Shape of(String text) {
            Shape known = SHAPES.get(text);
            if (known != null) {
                return known;
            }
            if (!text.matches("\\d{1,9}(:\\d{1,9}){3}")) {
                throw new IllegalArgumentException(
                        "--shape: expected one of " + SHAPES.keySet() + " or sizes E:I:H:K, got '" + text + "'");
            }
            int[] sizes =
                    Arrays.stream(text.split(":")).mapToInt(Integer::parseInt).toArray();
            return new Shape(text, sizes[0], sizes[1], sizes[2], sizes[3]);
        }

        FusedMoeConfig config(int maxTokens) {
            return FusedMoeConfig.builder()
                    .numExperts(experts)
                    .intermediateSize(intermediate)
                    .hiddenDim(hidden)
                    .expertsPerToken(topK)
                    .maxNumTokens(maxTokens)
                    .build();
        }
    }

    /**
     * What was measured at a shape and a token count.
     *
     * @param kernels microseconds of each on the device, by name, in order; empty where the device doesn't tell
     * @param call microseconds of a whole call
     * @param activeExperts that a run reads, on average
     * @param bytes of memory of each device, in their order
     * @param relativeL2 error of the checked tokens against the definition
     * @param unbalanced the devices' loads until experts moved for the first time; null if that wasn't in these calls
     * @param balance the same after the calls; null if experts don't move
     */
    record Row(
            Shape shape,
            int tokens,
            int runs,
            Map<String, Double> kernels,
            double call,
            double activeExperts,
            List<Long> bytes,
            double relativeL2,
            @Nullable ExpertBalance unbalanced,
            @Nullable ExpertBalance balance) {

        double gemm(String name) {
            return kernels.entrySet().stream()
                    .filter(kernel -> kernel.getKey().startsWith(name))
                    .mapToDouble(Map.Entry::getValue)
                    .sum();
        }

        double allKernels() {
            return kernels.values().stream().mapToDouble(Double::doubleValue).sum();
        }

        /** Microseconds of both GEMMs; without a clock on the device, of the call. */
        double gemms() {
            double both = gemm("gateUp") + gemm("down");
            return both > 0 ? both : call;
        }

        /** 10^9 bytes/s of the weights of the experts that got a token. */
        double gbs() {
            return weightBytes() / gemms() / 1e3;
        }

        private double weightBytes() {
            return activeExperts * 3.0 * shape.intermediate * shape.hidden;
        }

        /** 10^12 operations/s, a multiplication and an addition being two. */
        double tops() {
            return operations() / gemms() / 1e6;
        }

        private double operations() {
            return 2.0 * tokens * shape.topK * 3 * shape.intermediate * shape.hidden;
        }

        /** The least that the GEMMs could take, per cent of what they take; null where neither limit is known. */
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
    }

    @Override
    public Integer call() {
        check();
        boolean interpreter = TornadoHome.current().kind() == TornadoHome.Kind.INTERPRETER
                && (target.backend.equals("auto") || target.backend.equals("triton"));
        boolean slow = interpreter || target.backend.equals("reference");
        List<Integer> sizes = !tokens.isEmpty() ? tokens : slow ? FEW_TOKENS : TOKENS;
        List<Shape> wanted = !shapes.isEmpty()
                ? shapes.stream().map(Shape::of).toList()
                : SHAPES.values().stream()
                        .filter(shape -> slow == shape.name.equals("tiny"))
                        .toList();
        List<Row> rows = new ArrayList<>();
        List<BenchLayers.Row> inPlans = new ArrayList<>();
        Map<String, String> skipped = new LinkedHashMap<>();
        // With what a user should know told once, whatever becomes of the shapes.
        Shape asked = target.devices.size() > 1 ? wanted.getFirst() : Shape.of("tiny");
        Sharding first = target.choose(asked.config(1), scheme.weightKey(), scheme.activationKey());
        PrintWriter err = spec.commandLine().getErr();
        for (Shape shape : wanted) {
            try {
                if (layers == null) {
                    measure(shape, sizes, rows, err);
                } else {
                    FusedMoeConfig config = target.select(shape.config(1), scheme)
                            .ranks()
                            .getFirst()
                            .config();
                    try (Int8Experts experts = random(config, scheme, skew)) {
                        inPlans.addAll(BenchLayers.measure(shape, config, experts, sizes, layers, runs, err));
                    }
                }
            } catch (InsufficientMemoryException
                    | MoeExecutionException
                    | UnsupportedOperationException
                    | OutOfMemoryError e) {
                skipped.put(shape.name, String.valueOf(e.getMessage()));
                Output.say(spec, shape.name + " is left out: " + e.getMessage());
            }
        }
        Map<String, @Nullable Object> json = json(first, rows, inPlans, skipped);
        if (file != null) {
            write(file, json);
        }
        output.print(json, text(rows, inPlans, skipped));
        return rows.stream().allMatch(Row::ok) && inPlans.stream().allMatch(BenchLayers.Row::ok) && skipped.isEmpty()
                ? Moe.DONE
                : Moe.NO;
    }

    private void check() {
        if (layers != null && target.devices.size() > 1) {
            throw new IllegalArgumentException("--layers: expected one device with it, got " + target.devices);
        }
        if (runs < 1) {
            throw new IllegalArgumentException("--runs: expected a positive number, got " + runs);
        }
        if (!(seconds > 0)) {
            throw new IllegalArgumentException("--seconds: expected a positive number, got " + seconds);
        }
        for (int m : tokens) {
            if (m < 1) {
                throw new IllegalArgumentException("--tokens: expected positive numbers, got " + m);
            }
        }
        if (layers != null && layers < 1) {
            throw new IllegalArgumentException("--layers: expected a positive number, got " + layers);
        }
        if (!(skew >= 0 && skew < Double.POSITIVE_INFINITY)) {
            throw new IllegalArgumentException("--skew: expected a number, 0 or more, got " + skew);
        }
        positive("--limit-gbs", limitGbs);
        positive("--limit-tops", limitTops);
        shapes.forEach(shape -> Shape.of(shape).config(1));
        if (file != null) {
            try {
                WholeFile.requireWritable(file); // found out now, not after the work
            } catch (CheckpointException e) {
                throw new IllegalArgumentException(
                        "--output: expected a file that can be written: " + e.getMessage(), e);
            }
        }
    }

    private static void positive(String option, @Nullable Double value) {
        if (value != null && !(value > 0)) {
            throw new IllegalArgumentException(option + ": expected a positive number, got " + value);
        }
    }

    static void write(Path file, Map<String, @Nullable Object> json) {
        JSON pretty = JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES, JSON.Feature.PRETTY_PRINT_OUTPUT);
        WholeFile.write(file, pretty.asString(json) + "\n");
    }

    private void measure(Shape shape, List<Integer> sizes, List<Row> rows, PrintWriter err) {
        int most = sizes.stream().mapToInt(Integer::intValue).max().orElseThrow();
        FusedMoeConfig config = target.select(shape.config(most), scheme).config();
        try (Int8Experts experts = random(config, scheme, skew)) {
            for (List<Integer> together :
                    separate ? sizes.stream().map(List::of).toList() : List.of(sizes)) {
                int largest =
                        together.stream().mapToInt(Integer::intValue).max().orElseThrow();
                Sharding sharding = target.select(shape.config(largest), scheme);
                long begin = System.nanoTime();
                try (MoeKernel kernel =
                        ShardedLayer.load(sharding, Int8MoeOracle.installed(), experts, (_, _, _) -> {})) {
                    List<@Nullable DeviceMemory> takes = sharding.memory(scheme.weightKey(), scheme.activationKey());
                    // Of several devices that of the first, which has the most.
                    memory.put(shape.name, Output.json(takes.getFirst()));
                    err.printf(
                            Locale.ROOT,
                            "moe: %s loaded for %d tokens in %s%n",
                            shape.name,
                            largest,
                            Output.seconds(elapsed(begin)));
                    for (int rank = 0; rank < takes.size(); rank++) {
                        DeviceMemory there = takes.get(rank);
                        if (there != null) {
                            err.println("moe: " + sharding.ranks().get(rank).device() + ": " + Output.memory(there));
                        }
                    }
                    for (int m : together) {
                        Row row = measure(shape, sharding, experts, kernel, m, runs, seconds);
                        rows.add(row);
                        err.printf(
                                Locale.ROOT,
                                "moe: %s, %d tokens: GEMMs %s, all kernels %s, call %s%s%n",
                                shape.name,
                                m,
                                Output.seconds(row.gemms() / 1e6),
                                Output.seconds(row.allKernels() / 1e6),
                                Output.seconds(row.call / 1e6),
                                row.ok() ? "" : "; WRONG: relative L2 " + row.relativeL2);
                    }
                }
            }
        }
    }

    /** @param seconds fewer runs where they would take longer */
    static Row measure(
            Shape shape, Sharding sharding, Int8Experts experts, MoeKernel kernel, int m, int runs, double seconds) {
        int h = shape.hidden;
        long rowBytes = 4L * h;
        try (Arena arena = Arena.ofShared()) {
            MemorySegment pool = arena.allocate((m + WINDOWS - 1) * rowBytes, 64);
            IntStream.range(0, m + WINDOWS - 1).parallel().forEach(row -> {
                SplittableRandom random = new SplittableRandom(31L * m + row);
                for (int i = 0; i < h; i++) {
                    pool.set(ValueLayout.JAVA_FLOAT, row * rowBytes + 4L * i, (float) random.nextGaussian());
                }
            });
            MemorySegment out = arena.allocate(m * rowBytes, 64);
            ChosenExperts chosen = ChosenExperts.allocate(m, shape.topK);
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

            // While the host checked, the device fell asleep, and what calls it cooled down.
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
            // Apart from the calls, since the profiler is slow to be turned on and off.
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
            return new Row(
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

    /** Calls of a new layer until experts move; 0 if they don't. */
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

    /** Of the first and the last token. */
    private static double error(
            Sharding sharding, Int8Experts experts, MoeKernel kernel, MemorySegment hidden, int m, MemorySegment out) {
        int h = experts.config().hiddenDim();
        int count = Math.min(m, CHECKED);
        float[] some = rows(hidden, m, h, count);
        float[] got = rows(out, m, h, count);
        if (dependsOnOtherTokens(experts.scheme())) {
            kernel.forward(MemorySegment.ofArray(some), count, MemorySegment.ofArray(got), null, null);
        }
        return Numerics.relativeL2(Numerics.widen(got), ShardedReference.forward(sharding, experts, some, count));
    }

    /** A scale that all tokens of a call share differs with their company. */
    private static boolean dependsOnOtherTokens(Int8Scheme scheme) {
        QuantKey key = scheme.activationKey();
        return key != null
                && !key.scale().isStatic()
                && key.scale().groupShape().isPerTensor();
    }

    static float[] rows(MemorySegment from, int m, int h, int count) {
        float[] rows = new float[count * h];
        for (int row = 0; row < count; row++) {
            long at = 4L * h * (row == 0 ? 0 : m - 1);
            MemorySegment.copy(from, ValueLayout.JAVA_FLOAT, at, rows, row * h, h);
        }
        return rows;
    }

    /**
     * Weights of any int8, with scales that keep what goes through them at the size of 1.
     *
     * @param skew the nth expert's logit, from the middle on, is lower by so many times the logarithm of n
     */
    static Int8Experts random(FusedMoeConfig config, Int8Scheme scheme, double skew) {
        Arena arena = Arena.ofShared();
        try {
            Int8Tensor w13 = random(arena, scheme, config.numExperts(), config.gateUpRows(), config.hiddenDim(), 1);
            Int8Tensor w2 =
                    random(arena, scheme, config.numExperts(), config.hiddenDim(), config.intermediateSize(), 2);
            float[] router = new float[config.numExperts() * config.hiddenDim()];
            SplittableRandom random = new SplittableRandom(3);
            for (int i = 0; i < router.length; i++) {
                router[i] = (float) (random.nextGaussian() / Math.sqrt(config.hiddenDim()));
            }
            float[] bias = new float[config.numExperts()];
            for (int n = 1; n <= bias.length; n++) {
                bias[(bias.length / 2 + n - 1) % bias.length] = (float) (-skew * Math.log(n));
            }
            RouterWeights weights = new RouterWeights(router, skew == 0 ? null : bias, null, null);
            return Int8Experts.of(config, scheme, w13, w2, weights, arena);
        } catch (RuntimeException | Error failure) {
            arena.close();
            throw failure;
        }
    }

    private static Int8Tensor random(Arena arena, Int8Scheme scheme, int experts, int rows, int cols, long seed) {
        Int8Quantization grid = Int8Quantization.of(scheme);
        Int8Tensor tensor = Int8Tensor.allocate(
                arena, experts, rows, cols, grid.rowsPerScale(rows), grid.colsPerScale(cols), false);
        Arrays.fill(tensor.scales(), (float) (1 / (74 * Math.sqrt(cols)))); // 74: of a random int8's magnitude
        MemorySegment values = tensor.values();
        IntStream.range(0, experts * rows).parallel().forEach(row -> {
            byte[] bytes = new byte[cols];
            new SplittableRandom(seed << 32 | row).nextBytes(bytes);
            MemorySegment.copy(bytes, 0, values, ValueLayout.JAVA_BYTE, (long) row * tensor.rowBytes(), cols);
        });
        return tensor;
    }

    private Map<String, @Nullable Object> json(
            Sharding sharding, List<Row> rows, List<BenchLayers.Row> inPlans, Map<String, String> skipped) {
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("date", LocalDate.now(ZoneId.systemDefault()).toString());
        json.put("backend", sharding.backend());
        json.put("kernelClass", sharding.kernelClass());
        json.put("device", sharding.device());
        List<String> devices = sharding.ranks().stream().map(Selection::device).toList();
        json.put("tornadovm", TornadoHome.current().version());
        json.put("java", Runtime.version().toString());
        json.put("version", new Moe.Version().getVersion()[0]);
        json.put("scheme", scheme.toString());
        json.put("limitGbs", limitGbs);
        json.put("limitTops", limitTops);
        json.put("separate", separate);
        json.put("skew", skew);
        json.put("memory", memory);
        json.put("unit", "microseconds");
        List<Object> list = new ArrayList<>();
        for (Row row : rows) {
            Map<String, @Nullable Object> fields = new LinkedHashMap<>();
            fields.put("shape", row.shape.name);
            fields.put("experts", row.shape.experts);
            fields.put("intermediate", row.shape.intermediate);
            fields.put("hidden", row.shape.hidden);
            fields.put("topK", row.shape.topK);
            fields.put("devices", devices);
            fields.put("parallel", sharding.parallelism());
            fields.put("bytesByDevice", row.bytes);
            fields.put("tokens", row.tokens);
            fields.put("runs", row.runs);
            fields.put("activeExperts", row.activeExperts);
            fields.put("call", row.call);
            fields.put("allKernels", row.kernels.isEmpty() ? null : row.allKernels());
            fields.put("gateUp", row.kernels.isEmpty() ? null : row.gemm("gateUp"));
            fields.put("down", row.kernels.isEmpty() ? null : row.gemm("down"));
            fields.put("kernels", row.kernels);
            fields.put("gbs", row.gbs());
            fields.put("tops", row.tops());
            fields.put("percentOfLimit", row.percentOfLimit(limitGbs, limitTops));
            fields.put("tokensPerSecond", row.tokens / row.call * 1e6);
            fields.put("relativeL2", row.relativeL2);
            fields.put("unbalanced", Output.json(row.unbalanced));
            fields.put("balance", Output.json(row.balance));
            fields.put("passed", row.ok());
            list.add(fields);
        }
        json.put("rows", list);
        json.put("layers", inPlans.stream().map(BenchLayers.Row::json).toList());
        json.put("skipped", skipped);
        return json;
    }

    private String text(List<Row> rows, List<BenchLayers.Row> inPlans, Map<String, String> skipped) {
        List<List<String>> table = new ArrayList<>();
        if (layers != null) {
            table.add(List.of("shape", "tokens", "layers", "kernels", "a layer", "on device", "error"));
            inPlans.forEach(row -> table.add(row.text()));
            return Output.table(table);
        }
        table.add(List.of(
                "shape",
                "tokens",
                "memory",
                "GEMM 1",
                "GEMM 2",
                "kernels",
                "call",
                "GB/s",
                "TOPS",
                "of limit",
                "tokens/s",
                "error"));
        for (Row row : rows) {
            Double percent = row.percentOfLimit(limitGbs, limitTops);
            boolean told = !row.kernels.isEmpty();
            table.add(List.of(
                    row.shape.name,
                    Integer.toString(row.tokens),
                    row.bytes.stream().map(Output::bytes).collect(Collectors.joining(" + ")),
                    told ? Output.seconds(row.gemm("gateUp") / 1e6) : "",
                    told ? Output.seconds(row.gemm("down") / 1e6) : "",
                    told ? Output.seconds(row.allKernels() / 1e6) : "",
                    Output.seconds(row.call / 1e6),
                    String.format(Locale.ROOT, "%.1f", row.gbs()),
                    String.format(Locale.ROOT, "%.2f", row.tops()),
                    percent == null ? "" : String.format(Locale.ROOT, "%.1f %%", percent),
                    String.format(Locale.ROOT, "%.0f", row.tokens / row.call * 1e6),
                    (row.ok() ? "" : "WRONG: ") + Output.number(row.relativeL2)));
        }
        StringBuilder text = new StringBuilder(Output.table(table));
        for (Row row : rows) {
            tell(text, row, "before experts moved", row.unbalanced);
            tell(text, row, "after the calls", row.balance);
        }
        skipped.forEach((shape, reason) -> text.append(System.lineSeparator())
                .append(shape)
                .append(" was left out: ")
                .append(reason));
        return text.toString();
    }

    private static void tell(StringBuilder into, Row row, String when, @Nullable ExpertBalance balance) {
        if (balance != null) {
            into.append(System.lineSeparator())
                    .append(row.shape.name + ", " + row.tokens + " tokens, " + when + ": ")
                    .append(Output.balance(balance));
        }
    }
}
