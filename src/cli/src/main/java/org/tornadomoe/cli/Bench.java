package org.tornadomoe.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.WholeFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.parallel.ShardedLayer;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.device.TornadoHome;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import tools.jackson.jr.ob.JSON;

/** {@code moe bench}: measures a layer and each of its kernels, at the sizes of known models, with random weights. */
@Command(
        name = "bench",
        description = {
            "Measures layers with random weights, of a known model's sizes or your own.",
            "Prints medians of many runs: of each kernel by the device's clock, of the whole call by wall-clock time."
                    + " Compares every size's results with the float64 reference."
        },
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe bench --shape qwen3-30b-a3b --tokens 1,64,4096",
            "  moe bench --shape 16:768:2048:2 --backend cpu --tokens 1,16 --output times.json"
        })
final class Bench implements Callable<Integer> {
    private static final List<Integer> TOKENS = List.of(1, 4, 16, 64, 256, 1024, 4096);
    private static final List<Integer> FEW_TOKENS = List.of(1, 4, 16);

    @Spec
    CommandSpec spec;

    @Option(
            names = "--shape",
            paramLabel = "NAME",
            split = ",",
            description =
                    "A model's name (a wrong one lists them), or sizes E:I:H:K (experts, intermediate, hidden, experts"
                            + " per token). Default all models but 'tiny', on the interpreter only 'tiny'.")
    List<String> shapes = List.of();

    @Option(
            names = "--tokens",
            paramLabel = "M",
            split = ",",
            description = "Numbers of tokens in a call; default 1,4,16,64,256,1024,4096, on the interpreter 1,4,16.")
    List<Integer> tokens = List.of();

    @Option(
            names = "--seconds",
            paramLabel = "S",
            defaultValue = "20",
            description =
                    "The time limit of one measurement: if its runs would take longer, there are fewer, but at least"
                            + " one; default ${DEFAULT-VALUE}.")
    double seconds = 20;

    @Option(
            names = "--limit-gbs",
            paramLabel = "X",
            description = "The device's memory bandwidth, 10^9 bytes/s: also prints the GEMMs' speed in per cent of the"
                    + " limit.")
    @Nullable
    Double limitGbs;

    @Option(
            names = "--limit-tops",
            paramLabel = "X",
            description =
                    "The device's int8 arithmetic, 10^12 operations/s: also prints the GEMMs' speed in per cent of the"
                            + " limit.")
    @Nullable
    Double limitTops;

    @Option(names = "--output", paramLabel = "F", description = "Also write the JSON object into file F.")
    @Nullable
    Path file;

    @Option(
            names = "--plot",
            paramLabel = "F.png",
            description = "Draw a chart of the times by token count, and the roofline.")
    @Nullable
    Path plot;

    @Option(
            names = "--separate",
            description =
                    "Load the layer anew for each token count, for calls of that size only, so that a call copies and"
                            + " reserves no more than it needs.")
    boolean separate;

    @Option(
            names = "--layers",
            paramLabel = "N",
            description =
                    "Instead of single calls, run N layers in one task graph, as in a model, and print the wall-clock"
                            + " time per layer, routing and alignment included.")
    @Nullable
    Integer layers;

    @Option(
            names = "--skew",
            paramLabel = "S",
            defaultValue = "0",
            description =
                    "How much the router prefers some experts: it scores the nth most popular one n^S times lower than"
                            + " the first, about Zipf's law; default ${DEFAULT-VALUE}, no preference.")
    double skew;

    @Option(
            names = "--hidden",
            paramLabel = "TYPE",
            defaultValue = "f32",
            description = "The type of hidden states and output in the caller's memory: f32, f16 or bf16; default"
                    + " ${DEFAULT-VALUE}.")
    String hidden = "f32";

    @Option(
            names = "--allocated",
            description =
                    "Let the layer allocate the memory of hidden states and output, so that its device can copy them"
                            + " directly.")
    boolean allocated;

    @Mixin
    Measuring measuring = new Measuring();

    @Mixin
    Target target;

    @Mixin
    Output output;

    @Override
    public Integer call() {
        check();
        boolean interpreter = TornadoHome.current().kind() == TornadoHome.Kind.INTERPRETER
                && (target.backend.equals("auto") || target.backend.equals("triton"));
        boolean slow = interpreter || target.backend.equals("reference");
        List<Integer> sizes = !tokens.isEmpty() ? tokens : slow ? FEW_TOKENS : TOKENS;
        List<BenchShape> wanted = !shapes.isEmpty()
                ? shapes.stream().map(BenchShape::of).toList()
                : BenchShape.known().stream()
                        .filter(shape -> slow == shape.name().equals("tiny"))
                        .toList();
        BenchReport report = new BenchReport(this);
        // Prints notes for the user once, whatever happens with the shapes.
        BenchShape asked = target.devices.size() > 1 ? wanted.getFirst() : BenchShape.of("tiny");
        Int8Quantization quantization = measuring.quantization();
        Sharding first = target.choose(asked.config(1), quantization.weightKey(), quantization.activationKey());
        PrintWriter err = spec.commandLine().getErr();
        for (BenchShape shape : wanted) {
            try {
                if (layers == null) {
                    measure(shape, sizes, report, err);
                } else {
                    FusedMoeConfig config = target.select(shape.config(1), quantization)
                            .ranks()
                            .getFirst()
                            .config();
                    try (Int8Experts experts = RandomExperts.of(config, quantization, skew)) {
                        report.inPlans.addAll(
                                BenchLayers.measure(shape, config, experts, sizes, layers, measuring.runs, err));
                    }
                }
            } catch (InsufficientMemoryException
                    | MoeExecutionException
                    | UnsupportedOperationException
                    | OutOfMemoryError e) {
                report.skipped.put(shape.name(), String.valueOf(e.getMessage()));
                Output.say(spec, shape.name() + " is left out: " + e.getMessage());
            }
        }
        Map<String, @Nullable Object> json = report.json(first);
        if (file != null) {
            write(file, json);
        }
        output.print(json, report.text());
        if (plot != null) {
            draw(plot, json);
        }
        return report.ok() ? Moe.DONE : Moe.NO;
    }

    ScalarType hiddenType() {
        return switch (hidden.toLowerCase(Locale.ROOT)) {
            case "f32" -> ScalarType.F32;
            case "f16" -> ScalarType.F16;
            case "bf16" -> ScalarType.BF16;
            default -> throw new IllegalArgumentException("--hidden: expected f32, f16 or bf16, got '" + hidden + "'");
        };
    }

    private void check() {
        if (layers != null && (hiddenType() != ScalarType.F32 || allocated)) {
            throw new IllegalArgumentException("--layers: expected neither --hidden nor --allocated with it, as hidden"
                    + " states stay on the device");
        }
        if (layers != null && target.devices.size() > 1) {
            throw new IllegalArgumentException("--layers: expected one device with it, got " + target.devices);
        }
        measuring.check();
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
        shapes.forEach(shape -> BenchShape.of(shape).config(1));
        writable("--output", file);
        writable("--plot", plot);
        if (plot != null && layers != null) {
            throw new IllegalArgumentException("--plot: expected single calls, without --layers");
        }
    }

    /** Checks before the work. */
    private static void writable(String option, @Nullable Path file) {
        try {
            if (file != null) {
                WholeFile.requireWritable(file);
            }
        } catch (CheckpointException e) {
            throw new IllegalArgumentException(option + ": expected a file that can be written: " + e.getMessage(), e);
        }
    }

    private static void positive(String option, @Nullable Double value) {
        if (value != null && !(value > 0)) {
            throw new IllegalArgumentException(option + ": expected a positive number, got " + value);
        }
    }

    private static void draw(Path plot, Map<String, @Nullable Object> json) {
        try {
            BenchPlot.draw(json, plot);
        } catch (IOException e) {
            throw CheckpointException.of(plot, "cannot be drawn", e);
        } catch (LinkageError e) {
            throw new CheckpointException(plot, "cannot be drawn, as this JDK has no desktop libraries: " + e, e);
        }
    }

    static void write(Path file, Map<String, @Nullable Object> json) {
        JSON pretty = JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES, JSON.Feature.PRETTY_PRINT_OUTPUT);
        WholeFile.write(file, pretty.asString(json) + "\n");
    }

    private void measure(BenchShape shape, List<Integer> sizes, BenchReport report, PrintWriter err) {
        Int8Quantization quantization = measuring.quantization();
        int most = sizes.stream().mapToInt(Integer::intValue).max().orElseThrow();
        FusedMoeConfig config =
                target.select(shape.config(most, hiddenType()), quantization).config();
        try (Int8Experts experts = RandomExperts.of(config, quantization, skew)) {
            for (List<Integer> together :
                    separate ? sizes.stream().map(List::of).toList() : List.of(sizes)) {
                int largest =
                        together.stream().mapToInt(Integer::intValue).max().orElseThrow();
                Sharding sharding = target.select(shape.config(largest, hiddenType()), quantization);
                long begin = System.nanoTime();
                try (MoeKernel kernel =
                        ShardedLayer.load(sharding, Int8MoeOracle.installed(), experts, (_, _, _) -> {})) {
                    List<@Nullable DeviceMemory> takes =
                            sharding.memory(quantization.weightKey(), quantization.activationKey());
                    // With several devices, the memory of the first, which has the most.
                    report.memory.put(shape.name(), Output.json(takes.getFirst()));
                    err.printf(
                            Locale.ROOT,
                            "moe: %s loaded for %d tokens in %s%n",
                            shape.name(),
                            largest,
                            Output.seconds(Measurement.elapsed(begin)));
                    for (int rank = 0; rank < takes.size(); rank++) {
                        DeviceMemory there = takes.get(rank);
                        if (there != null) {
                            err.println("moe: " + sharding.ranks().get(rank).device() + ": " + Output.memory(there));
                        }
                    }
                    for (int m : together) {
                        Measurement row =
                                Measurement.of(shape, sharding, experts, kernel, m, measuring.runs, seconds, allocated);
                        report.rows.add(row);
                        err.printf(
                                Locale.ROOT,
                                "moe: %s, %d tokens: %scall %s%s%n",
                                shape.name(),
                                m,
                                row.kernels().isEmpty()
                                        ? ""
                                        : "GEMMs " + Output.seconds(row.gemms() / 1e6) + ", all kernels "
                                                + Output.seconds(row.allKernels() / 1e6) + ", ",
                                Output.seconds(row.call() / 1e6),
                                row.ok() ? "" : "; WRONG: relative L2 " + row.relativeL2());
                    }
                }
            }
        }
    }
}
