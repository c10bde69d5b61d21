package org.tornadomoe.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.NavigableMap;
import java.util.Objects;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.WholeFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;
import org.tornadomoe.tuning.LaunchSpace;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/**
 * {@code moe tune}: finds the fastest launch configuration for each token count and writes it into a file that layers
 * read.
 */
@Command(
        name = "tune",
        description = {
            "Measures a layer with every launch configuration of its kernel class, and keeps the fastest.",
            "For each token count it writes the fastest one into the file that such layers read. It compares every"
                    + " result with the float64 reference. It skips token counts that the file already has, so you can"
                    + " continue a run that was stopped or ran out of time."
        },
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe tune --shape mixtral-8x7b --minutes 10 --output ~/tuned",
            "  moe tune ~/models/Qwen3-30B-A3B --tokens 1,16,256"
        })
final class Tune implements Callable<Integer> {
    private static final List<Integer> TOKENS =
            List.of(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096);
    private static final List<Integer> FEW_TOKENS = List.of(1, 4, 16);

    /** The repository's folder of the files that go into the jar. */
    private static final Path PACKED = Path.of("tornado-config", "launch");

    /**
     * The rule's configuration stays unless another's time is below this fraction of its time, because times vary from
     * run to run.
     */
    private static final double WORTH_IT = 0.98;

    @Spec
    CommandSpec spec;

    @ArgGroup(multiplicity = "1")
    Layer of = new Layer();

    static final class Layer {
        @Parameters(
                paramLabel = "CHECKPOINT",
                arity = "0..1",
                description =
                        "A directory with config.json and safetensors, a GGUF file, or ORG/MODEL in Hugging Face's"
                                + " cache.")
        @Nullable
        CheckpointName checkpoint;

        @Option(
                names = "--shape",
                paramLabel = "NAME",
                description =
                        "Instead of a checkpoint, random weights: a model's name (a wrong one lists them), or sizes"
                                + " E:I:H:K (experts, intermediate, hidden, experts per token).")
        @Nullable
        String shape;
    }

    @Option(
            names = "--layer",
            paramLabel = "N",
            defaultValue = "0",
            description = "The decoder layer, counted from 0; default ${DEFAULT-VALUE}.")
    int layer;

    @Option(
            names = "--tokens",
            paramLabel = "M",
            split = ",",
            description = "Numbers of tokens in a call; default"
                    + " 1,2,4,8,16,24,32,48,64,96,128,256,512,1024,1536,2048,3072,4096, on the interpreter"
                    + " 1,4,16.")
    List<Integer> tokens = List.of();

    @Option(
            names = "--minutes",
            paramLabel = "X",
            defaultValue = "30",
            description = "Start no measurement after X minutes; default ${DEFAULT-VALUE}.")
    double minutes = 30;

    @Option(
            names = "--seconds",
            paramLabel = "S",
            defaultValue = "5",
            description =
                    "The time limit of one measurement: if its runs would take longer, there are fewer, but at least"
                            + " one; default ${DEFAULT-VALUE}.")
    double seconds = 5;

    @Option(
            names = "--output",
            paramLabel = "DIR",
            description =
                    "The folder of the file, created if missing; default TORNADOMOE_TUNED_CONFIG_FOLDER, otherwise"
                            + " tornado-config/launch if it exists here, otherwise the current one.")
    @Nullable
    Path folder;

    @Option(names = "--anew", description = "Also measure token counts that the file already has.")
    boolean anew;

    @Mixin
    Measuring measuring = new Measuring();

    @Mixin
    Target target;

    @Mixin
    Output output;

    /**
     * The measurements at a token count.
     *
     * @param micros microseconds by configuration: of all kernels by the device's clock, or of a whole call if the
     *     device has none
     * @param wrong what is wrong with the other configurations
     * @param rule the configuration without a file
     */
    private record Row(
            int tokens, Map<LaunchConfig, Double> micros, Map<LaunchConfig, String> wrong, LaunchConfig rule) {
        LaunchConfig best() {
            LaunchConfig best = micros.entrySet().stream()
                    .min(Map.Entry.comparingByValue())
                    .orElseThrow()
                    .getKey();
            Double byRule = micros.get(rule);
            return byRule != null && micros(best) > WORTH_IT * byRule ? rule : best;
        }

        double micros(LaunchConfig config) {
            Double took = micros.get(config);
            return took == null ? Double.NaN : took;
        }
    }

    @Override
    public Integer call() {
        check();
        boolean slow = TornadoHome.current().kind() == TornadoHome.Kind.INTERPRETER;
        List<Integer> wanted = (tokens.isEmpty() ? slow ? FEW_TOKENS : TOKENS : tokens)
                .stream().distinct().sorted().toList();
        Int8Quantization quantization = measuring.quantization();
        long deadline = System.nanoTime() + (long) (minutes * 60e9);
        if (of.shape != null) {
            FusedMoeConfig config = BenchShape.of(of.shape).config(wanted.getLast());
            Selection selection = target.chooseOne(config, quantization.weightKey(), quantization.activationKey());
            LaunchSpace space = space(selection, quantization);
            try (Int8Experts experts = RandomExperts.of(selection.config(), quantization, 0)) {
                return tune(selection, space, experts, wanted, deadline);
            }
        }
        Path path = Objects.requireNonNull(of.checkpoint).path();
        try (MoeCheckpoint opened = MoeCheckpoint.open(path)) {
            FusedMoeConfig config = opened.layer(layer).config().withMaxNumTokens(wanted.getLast());
            Selection selection = target.chooseOne(config, quantization.weightKey(), quantization.activationKey());
            LaunchSpace space = space(selection, quantization);
            try (Int8Experts experts = QuantizedWeights.int8(opened.layer(layer), quantization, Progress.NONE)) {
                return tune(selection, space, experts, wanted, deadline);
            }
        }
    }

    private void check() {
        measuring.check();
        if (!(seconds > 0)) {
            throw new IllegalArgumentException("--seconds: expected a positive number, got " + seconds);
        }
        if (!(minutes > 0)) {
            throw new IllegalArgumentException("--minutes: expected a positive number, got " + minutes);
        }
        for (int m : tokens) {
            if (m < 1) {
                throw new IllegalArgumentException("--tokens: expected positive numbers, got " + m);
            }
        }
        if (folder != null && Files.exists(folder) && !Files.isDirectory(folder)) {
            throw new IllegalArgumentException("--output: expected a folder, got " + folder + ", which is not one");
        }
    }

    private static LaunchSpace space(Selection selection, Int8Quantization quantization) {
        LaunchSpace space = selection
                .experts()
                .launches(selection.config(), quantization.weightKey(), quantization.activationKey());
        if (space == null) {
            throw new UnsupportedOperationException(selection.experts().name()
                    + " has only one launch configuration for this layer: there is nothing to tune");
        }
        return space;
    }

    private Path file(LaunchSpace space) {
        String users = LaunchConfigs.folder();
        Path where = folder != null
                ? folder
                : users != null ? Path.of(users) : Files.isDirectory(PACKED) ? PACKED : Path.of("");
        return where.resolve(space.key().fileName());
    }

    private int tune(Selection selection, LaunchSpace space, Int8Experts experts, List<Integer> wanted, long deadline) {
        PrintWriter err = spec.commandLine().getErr();
        Path file = file(space);
        requireWritable(file);
        NavigableMap<Integer, LaunchConfig> tuned = read(file);
        List<Integer> there =
                anew ? List.of() : wanted.stream().filter(tuned::containsKey).toList();
        List<Integer> left = new ArrayList<>(wanted);
        left.removeAll(there);
        List<Row> rows = new ArrayList<>();
        FusedMoeConfig config = selection.config();
        BenchShape shape = new BenchShape(
                "",
                config.numExperts(),
                config.intermediateSizePerPartition(),
                config.hiddenDim(),
                config.pairsPerToken());
        if (!left.isEmpty()) {
            // Loaded so that every configuration can run.
            try (MoeKernel kernel = LaunchConfigs.override(
                    space.runnable().getFirst(),
                    () -> Int8MoeOracle.installed().makeInt8MoeKernel(selection, experts))) {
                for (int m : List.copyOf(left)) {
                    Row row = measure(shape, Sharding.of(selection), space, experts, kernel, m, deadline);
                    if (row == null) {
                        break;
                    }
                    rows.add(row);
                    left.removeFirst();
                    if (!row.micros.isEmpty()) {
                        tuned.put(m, row.best());
                        write(file, tuned);
                    }
                    err.printf(
                            Locale.ROOT,
                            "moe: %d of %d token counts, %s left; %s%n",
                            wanted.size() - left.size(),
                            wanted.size(),
                            Output.seconds(Math.max(0, deadline - System.nanoTime()) / 1e9),
                            line(row));
                }
            }
        }
        output.print(json(selection, file, rows, there, left), text(selection, file, rows, there, left));
        return rows.stream().allMatch(row -> row.wrong.isEmpty()) ? Moe.DONE : Moe.NO;
    }

    /** Null if there was no time for every configuration. */
    private @Nullable Row measure(
            BenchShape shape,
            Sharding layer,
            LaunchSpace space,
            Int8Experts experts,
            MoeKernel kernel,
            int m,
            long deadline) {
        Row row = new Row(
                m, new LinkedHashMap<>(), new LinkedHashMap<>(), space.rule().apply(m));
        for (LaunchConfig config : space.runnable()) {
            if (System.nanoTime() > deadline) {
                return null;
            }
            try {
                Measurement measured = LaunchConfigs.override(
                        config, () -> Measurement.of(shape, layer, experts, kernel, m, measuring.runs, seconds, false));
                if (measured.ok()) {
                    row.micros.put(config, measured.kernels().isEmpty() ? measured.call() : measured.allKernels());
                } else {
                    row.wrong.put(config, "WRONG: relative L2 " + Output.number(measured.relativeL2()));
                }
            } catch (MoeExecutionException | IllegalArgumentException failure) {
                row.wrong.put(config, String.valueOf(failure.getMessage()));
            }
        }
        return row;
    }

    /** Checks before the work, and creates the file's folder. */
    private static void requireWritable(Path file) {
        try {
            Files.createDirectories(Objects.requireNonNull(file.toAbsolutePath().getParent()));
        } catch (IOException e) {
            throw CheckpointException.of(file, "its folder cannot be created", e);
        }
        WholeFile.requireWritable(file);
    }

    private static NavigableMap<Integer, LaunchConfig> read(Path file) {
        try {
            return Files.exists(file)
                    ? LaunchConfigs.parse(file.toString(), Files.readAllBytes(file))
                    : new TreeMap<>();
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be read", e);
        }
    }

    /** Writes the file whole or not at all, because layers may be reading it. */
    private static void write(Path file, NavigableMap<Integer, LaunchConfig> tuned) {
        WholeFile.write(
                file, LaunchConfigs.toJson(String.valueOf(TornadoHome.current().version()), tuned));
    }

    private static String line(Row row) {
        if (row.micros.isEmpty()) {
            return row.tokens + " tokens: no configuration gives right results";
        }
        LaunchConfig best = row.best();
        return row.tokens + " tokens: " + best + " takes " + Output.seconds(row.micros(best) / 1e6)
                + (best.equals(row.rule)
                        ? ", the same as by rule"
                        : ", the rule's " + Output.seconds(row.micros(row.rule) / 1e6));
    }

    private static Map<String, @Nullable Object> json(
            Selection selection, Path file, List<Row> rows, List<Integer> there, List<Integer> left) {
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("kernelClass", selection.experts().name());
        json.put("device", selection.device());
        json.put("file", file.toString());
        json.put("alreadyThere", there);
        json.put("left", left);
        List<Object> list = new ArrayList<>();
        for (Row row : rows) {
            Map<String, @Nullable Object> fields = new LinkedHashMap<>();
            fields.put("tokens", row.tokens);
            fields.put("best", row.micros.isEmpty() ? null : row.best().toMap());
            fields.put("byRule", row.rule.toMap());
            List<Object> measured = new ArrayList<>();
            row.micros.forEach((config, micros) -> {
                Map<String, Object> one = new LinkedHashMap<>(config.toMap());
                one.put("microseconds", micros);
                measured.add(one);
            });
            row.wrong.forEach((config, problem) -> {
                Map<String, Object> one = new LinkedHashMap<>(config.toMap());
                one.put("problem", problem);
                measured.add(one);
            });
            fields.put("measured", measured);
            list.add(fields);
        }
        json.put("rows", list);
        return json;
    }

    private static String text(
            Selection selection, Path file, List<Row> rows, List<Integer> there, List<Integer> left) {
        List<List<String>> table = new ArrayList<>();
        table.add(List.of("tokens", "configuration", "time", "by rule"));
        for (Row row : rows) {
            row.micros.forEach((config, micros) -> table.add(List.of(
                    Integer.toString(row.tokens),
                    config.toString(),
                    Output.seconds(micros / 1e6),
                    (config.equals(row.rule) ? "rule" : "") + (config.equals(row.best()) ? " TAKEN" : ""))));
            row.wrong.forEach((config, problem) ->
                    table.add(List.of(Integer.toString(row.tokens), config.toString(), problem, "")));
        }
        List<String> lines = new ArrayList<>();
        lines.add(selection.experts().name() + " on " + selection.device());
        lines.add(Output.table(table));
        if (!there.isEmpty()) {
            lines.add("Already in the file: " + there);
        }
        if (!left.isEmpty()) {
            lines.add("Out of time; not measured: " + left + ". The same command continues.");
        }
        lines.add("In " + file);
        return String.join(System.lineSeparator(), lines);
    }
}
