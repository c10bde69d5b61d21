package org.tornadomoe.cli;

import java.lang.management.CompilationMXBean;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.WholeFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.parallel.ExpertBalance;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** {@code moe run}: runs a layer of a checkpoint on some tokens. */
@Command(
        name = "run",
        description = "Loads a layer of a checkpoint, quantises it, runs it, and prints timings and the error.",
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe run ~/models/Mixtral-8x7B --layer 3",
            "  moe run model.gguf --scheme w8a8_channel --tokens 256",
            "  moe run DIR --input hidden.safetensors --output out.safetensors"
        })
final class Run implements Callable<Integer> {
    private static final int DEFAULT_TOKENS = 16;

    /** The reference is slow. */
    private static final int MOST_CHECKED_TOKENS = 16;

    /** Runs are grouped into rounds; a round takes this fraction of the available time. */
    private static final double ROUND = 0.125;

    /** Warm-up rounds go on until the JVM hardly compiles any more, for at most this fraction of the time. */
    private static final double WARM_UP = 0.5;

    private static final long LITTLE_COMPILATION_MILLIS = 10;

    @Parameters(
            paramLabel = "CHECKPOINT",
            description = "A directory with config.json and safetensors, a GGUF file, or ORG/MODEL in Hugging Face's"
                    + " cache.")
    CheckpointName checkpoint;

    @Option(
            names = "--layer",
            paramLabel = "N",
            defaultValue = "0",
            description = "The decoder layer, counted from 0; default ${DEFAULT-VALUE}.")
    int layer;

    @ArgGroup
    @Nullable
    Source source;

    /** The source of the hidden states. */
    static final class Source {
        @Option(
                names = "--tokens",
                paramLabel = "M",
                description = "Run on M random tokens, always the same ones; default " + DEFAULT_TOKENS + ".")
        @Nullable
        Integer tokens;

        @Option(
                names = "--input",
                paramLabel = "F",
                description =
                        "Run on the tensor 'hidden_states' [tokens, hidden] of safetensors file F; some routers also"
                                + " need 'input_ids', 'router_states' or 'router_input' there.")
        @Nullable
        Path input;
    }

    @Option(
            names = "--output",
            paramLabel = "F",
            description = "Write the result into safetensors file F, as the tensor 'output' [tokens, hidden], with"
                    + " 'router_states' if the next layer's router reads them.")
    @Nullable
    Path result;

    @Option(
            names = "--seconds",
            paramLabel = "S",
            defaultValue = "2",
            description = "Measure for S seconds, at most half of which warm up the JVM; with 0 there is one run only;"
                    + " default ${DEFAULT-VALUE}.")
    double seconds = 2;

    @Mixin
    Scheme scheme;

    @Option(names = "--no-check", description = "Skip the comparisons with the unquantised weights and layer.")
    boolean unchecked;

    @Mixin
    Target target;

    @Mixin
    Output output;

    /** Seconds per call: of the very first call, and the median of the timed ones, which come after {@code warmUps}. */
    private record Times(double first, int warmUps, double median, int runs) {}

    /**
     * The output of a call.
     *
     * @param states [M, R] for the next layer's router; null if it reads none
     */
    private record Result(float[] output, float @Nullable [] states) {
        void write(Path file, int tokens) {
            SafetensorsWriter writer = new SafetensorsWriter().add("output", output, tokens, output.length / tokens);
            if (states != null) {
                writer.add("router_states", states, tokens, states.length / tokens);
            }
            writer.write(file);
        }
    }

    @Override
    public Integer call() {
        scheme.quantization(); // its complaints come first
        if (!(seconds >= 0 && seconds < Double.POSITIVE_INFINITY)) {
            throw new IllegalArgumentException("--seconds: expected a number, 0 or more, got " + seconds);
        }
        if (result != null) {
            WholeFile.requireWritable(result); // before the work
        }
        try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint.path())) {
            ExpertWeights weights = opened.layer(layer);
            Int8Quantization quantization = scheme.quantization(weights);
            FusedMoeConfig config = weights.layerConfig();
            Tokens hidden = hidden(config.hiddenDim());
            RouterInputs inputs = inputs(weights, hidden.count());
            Result out = new Result(new float[hidden.values().length], copy(inputs.states()));
            long start = System.nanoTime();
            try (ProgressLine progress = new ProgressLine("rows", !unchecked);
                    MoeLayer loaded = target.load(weights, quantization, hidden.count(), progress)) {
                double load = secondsSince(start + progress.measured());
                progress.done();
                printLoaded(opened.modelType(), loaded, load, progress.error());
                Times times = time(loaded, hidden, inputs, out);
                if (result != null) {
                    out.write(result, hidden.count());
                }
                int checked = unchecked ? 0 : Math.min(hidden.count(), MOST_CHECKED_TOKENS);
                double error = checked == 0 ? Double.NaN : error(weights, hidden.values(), out.output, checked, inputs);
                print(opened.modelType(), loaded, hidden.count(), load, progress.error(), times, checked, error);
            }
        }
        return Moe.DONE;
    }

    private Tokens hidden(int hiddenDim) {
        if (source != null && source.input != null) {
            try (Safetensors file = Safetensors.open(source.input)) {
                return Tokens.read(file, "hidden_states", hiddenDim);
            }
        }
        Integer tokens = source == null ? null : source.tokens;
        return Tokens.random(tokens == null ? DEFAULT_TOKENS : tokens, hiddenDim);
    }

    private RouterInputs inputs(ExpertWeights weights, int tokens) {
        if (source != null && source.input != null) {
            try (Safetensors file = Safetensors.open(source.input)) {
                return Tokens.inputs(file, weights, tokens);
            }
        }
        return Tokens.randomInputs(weights, tokens);
    }

    private Times time(MoeLayer layer, Tokens hidden, RouterInputs inputs, Result out) {
        double first = call(layer, hidden, inputs, out);
        output.fact("first run", Output.seconds(first));
        if (seconds == 0) {
            return new Times(first, 0, first, 1);
        }
        long start = System.nanoTime();
        int warmUps = 1;
        long compiled;
        do {
            compiled = compilationMillis();
            warmUps += round(layer, hidden, inputs, out, ROUND * seconds).size();
        } while (compilationMillis() - compiled > LITTLE_COMPILATION_MILLIS && secondsSince(start) < WARM_UP * seconds);
        List<Double> took = round(layer, hidden, inputs, out, seconds - secondsSince(start));
        took.sort(null);
        return new Times(first, warmUps, took.get(took.size() / 2), took.size());
    }

    /** The seconds of each call of a round; at least one call. */
    private static List<Double> round(MoeLayer layer, Tokens hidden, RouterInputs inputs, Result out, double seconds) {
        List<Double> took = new ArrayList<>();
        long start = System.nanoTime();
        do {
            took.add(call(layer, hidden, inputs, out));
        } while (secondsSince(start) < seconds);
        return took;
    }

    private static long compilationMillis() {
        CompilationMXBean compiler = ManagementFactory.getCompilationMXBean(); // null if the JVM only interprets
        return compiler == null ? 0 : compiler.getTotalCompilationTime();
    }

    private static double call(MoeLayer layer, Tokens hidden, RouterInputs inputs, Result out) {
        float[] states = inputs.states(); // a call overwrites them
        if (states != null && out.states != null) {
            System.arraycopy(states, 0, out.states, 0, states.length);
        }
        RouterInputs own = new RouterInputs(inputs.tokenIds(), out.states, inputs.hidden());
        long start = System.nanoTime();
        layer.forward(hidden.values(), hidden.count(), out.output, null, own);
        return secondsSince(start);
    }

    private static float @Nullable [] copy(float @Nullable [] values) {
        return values == null ? null : values.clone();
    }

    private static double secondsSince(long start) {
        return (System.nanoTime() - start) / 1e9;
    }

    /** The relative L2 error against the unquantised layer, over the first tokens. */
    private static double error(ExpertWeights weights, float[] hidden, float[] out, int tokens, RouterInputs inputs) {
        int values = tokens * weights.layerConfig().hiddenDim();
        double[] exact = Reference.forward(weights, Arrays.copyOf(hidden, values), tokens, inputs)
                .output();
        return Numerics.relativeL2(Numerics.widen(Arrays.copyOf(out, values)), exact);
    }

    private void print(
            String modelType,
            MoeLayer loaded,
            int tokens,
            double load,
            double weightError,
            Times times,
            int checked,
            double error) {
        double perSecond = tokens / times.median();

        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("checkpoint", checkpoint.toString());
        json.put("modelType", modelType);
        json.put("layer", layer);
        json.putAll(Output.json(loaded.config()));
        json.put("scheme", loaded.scheme().toString());
        json.put("backend", loaded.backend());
        json.put("kernelClass", loaded.kernelClass());
        json.put("device", loaded.device());
        json.put("deviceBytes", loaded.deviceBytes());
        json.put("balance", Output.json(loaded.balance()));
        json.put("tokens", tokens);
        json.put("loadSeconds", load);
        json.put("weightsRelativeL2", weightError);
        json.put("firstSeconds", times.first());
        json.put("warmUpRuns", times.warmUps());
        json.put("medianSeconds", times.median());
        json.put("runs", times.runs());
        json.put("tokensPerSecond", perSecond);
        json.put("relativeL2", error);
        json.put("checkedTokens", checked);
        json.put("output", result == null ? null : result.toString());

        output.fact(
                "run",
                Output.seconds(times.median()) + " for " + tokens + (tokens == 1 ? " token" : " tokens")
                        + (times.warmUps() == 0
                                ? ", the first run"
                                : ", median of " + times.runs() + " after " + times.warmUps() + " for warm-up"));
        output.fact("rate", String.format(Locale.ROOT, "%.0f tokens/s", perSecond));
        ExpertBalance balance = loaded.balance();
        if (balance != null) {
            output.fact("balance", Output.balance(balance));
        }
        if (checked > 0) {
            output.fact(
                    "error",
                    Output.number(error) + " relative L2 against the unquantised layer in float64, "
                            + (checked == tokens ? "all" : "first " + checked) + " tokens");
        }
        if (result != null) {
            output.fact("output", result.toString());
        }
        output.print(json, "");
    }

    /** Prints the facts that are known before measuring. */
    private void printLoaded(String modelType, MoeLayer loaded, double load, double weightError) {
        output.fact("layer", modelType + ", layer " + layer + " of " + checkpoint);
        output.fact("", loaded.config().summary());
        output.fact("scheme", loaded.scheme().toString());
        output.fact("backend", loaded.backend() + ", " + loaded.kernelClass());
        output.fact("device", loaded.device());
        output.fact(
                "memory",
                loaded.parts().stream().map(part -> Output.bytes(part.bytes())).collect(Collectors.joining(" + ")));
        output.fact("load", Output.seconds(load));
        if (weightError > 0) {
            output.fact("weights", Output.number(weightError) + " relative L2 against the stored weights");
        }
    }
}
