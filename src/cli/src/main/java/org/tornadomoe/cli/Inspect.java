package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Tensor;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** {@code moe inspect}: shows a checkpoint's MoE layers and how they would run. */
@Command(
        name = "inspect",
        description = {
            "Shows how every MoE layer of a checkpoint is stored, how it would run, and the memory it needs.",
            "Prints sizes, stored bytes by type, scheme, kernel class and memory. Doesn't read the experts."
        },
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe inspect ~/models/Mixtral-8x7B",
            "  moe inspect mistralai/Mixtral-8x7B-v0.1 --tokens 4096 --json"
        })
final class Inspect implements Callable<Integer> {
    @Parameters(
            paramLabel = "CHECKPOINT",
            description = "A directory with config.json and safetensors, a GGUF file, or ORG/MODEL in Hugging Face's"
                    + " cache.")
    CheckpointName checkpoint;

    @Option(
            names = "--tokens",
            paramLabel = "M",
            defaultValue = "256",
            description = "The largest number of tokens in a call; default ${DEFAULT-VALUE}.")
    int tokens;

    @Mixin
    Scheme scheme;

    @Mixin
    Target target;

    @Mixin
    Output output;

    /**
     * A layer that can be read.
     *
     * @param stored bytes in the files, by type
     */
    private record Layer(FusedMoeConfig config, Int8Quantization quantization, Map<String, Long> stored) {
        long storedBytes() {
            return stored.values().stream().mapToLong(Long::longValue).sum();
        }

        /** The bytes of its int8 weights on the host, with scales and zero points. */
        long int8Bytes() {
            return int8Bytes(config.gateUpRows(), config.hiddenDim())
                    + int8Bytes(config.hiddenDim(), config.intermediateSize());
        }

        private long int8Bytes(int rows, int cols) {
            int experts = config.globalNumExperts();
            long scales = (long) experts
                    * Math.ceilDiv(rows, quantization.rowsPerScale(rows))
                    * Math.ceilDiv(cols, quantization.colsPerScale(cols));
            return Int8Tensor.bytes(experts, rows, cols)
                    + scales * (quantization.zeroPoints() ? Float.BYTES + 1 : Float.BYTES);
        }
    }

    /**
     * How such a layer would run.
     *
     * @param memory each device's memory; null if not known in advance
     * @param refusal why no kernel class runs it; null if one does
     */
    private record Runs(
            String backend,
            String kernelClass,
            List<String> devices,
            List<@Nullable DeviceMemory> memory,
            @Nullable String refusal) {
        @Nullable
        Long bytes() {
            return memory.isEmpty() || memory.contains(null)
                    ? null
                    : (Long) memory.stream()
                            .mapToLong(there -> Objects.requireNonNull(there).bytes())
                            .sum();
        }
    }

    @Override
    public Integer call() {
        scheme.quantization(); // its errors come first
        Map<Integer, Layer> layers = new TreeMap<>();
        Map<Integer, String> unread = new TreeMap<>();
        String modelType;
        String format;
        int all;
        try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint.path())) {
            modelType = opened.modelType();
            format = opened.format();
            all = opened.layers();
            for (int n : opened.moeLayers()) {
                try {
                    ExpertWeights weights = opened.layer(n, tokens);
                    layers.put(n, new Layer(weights.config(), scheme.quantization(weights), opened.bytes(n)));
                } catch (CheckpointException problem) {
                    unread.put(n, String.valueOf(problem.getMessage()));
                }
            }
        }
        String note = target.machineNote();
        Map<List<Object>, Runs> known = new HashMap<>();
        Map<Integer, Runs> runs = new TreeMap<>();
        layers.forEach((n, layer) ->
                runs.put(n, known.computeIfAbsent(List.of(layer.config, layer.quantization), _ -> runs(layer))));
        print(modelType, format, all, note, layers, runs, unread);
        return unread.isEmpty() && runs.values().stream().allMatch(it -> it.refusal == null) ? Moe.DONE : Moe.NO;
    }

    private Runs runs(Layer layer) {
        Int8Quantization as = layer.quantization;
        try {
            Sharding sharding = target.select(layer.config, as.weightKey(), as.activationKey());
            return new Runs(
                    sharding.backend(),
                    sharding.kernelClass(),
                    sharding.ranks().stream().map(Selection::device).toList(),
                    sharding.memory(as.weightKey(), as.activationKey()),
                    null);
        } catch (UnsupportedOperationException nothing) {
            return new Runs("", "", List.of(), List.of(), String.valueOf(nothing.getMessage()));
        }
    }

    private void print(
            String modelType,
            String format,
            int all,
            @Nullable String note,
            Map<Integer, Layer> layers,
            Map<Integer, Runs> runs,
            Map<Integer, String> unread) {
        long stored = layers.values().stream().mapToLong(Layer::storedBytes).sum();
        long int8 = layers.values().stream().mapToLong(Layer::int8Bytes).sum();
        Long device = sum(runs);
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("checkpoint", checkpoint.toString());
        json.put("path", checkpoint.path().toString());
        json.put("modelType", modelType);
        json.put("format", format);
        json.put("note", note);
        json.put("layers", all);
        json.put("storedBytes", stored);
        json.put("int8Bytes", int8);
        json.put("deviceBytes", device);
        List<Map<String, @Nullable Object>> each = new ArrayList<>();
        layers.forEach((n, layer) -> each.add(json(n, layer, Objects.requireNonNull(runs.get(n)))));
        json.put("moeLayers", each);
        json.put("unread", unread.entrySet().stream().map(Inspect::json).toList());

        List<List<String>> head = new ArrayList<>();
        head.add(List.of("checkpoint", checkpoint.path().toString()));
        head.add(List.of("model", modelType + ", " + format));
        int moe = layers.size() + unread.size();
        head.add(List.of("layers", all + ", " + moe + " with experts"));
        head.add(List.of("stored", Output.bytes(stored)));
        head.add(List.of("as int8", Output.bytes(int8)));
        if (device != null) {
            head.add(List.of("on devices", Output.bytes(device)));
        }
        List<List<String>> rows = new ArrayList<>();
        rows.add(List.of(
                "layers", "experts", "hidden", "intermediate", "stored", "scheme", "int8", "runs on", "memory"));
        addRows(rows, layers, runs);
        List<String> lines = new ArrayList<>();
        if (note != null) {
            lines.add(note);
            lines.add("");
        }
        lines.add(Output.table(head, output.width()));
        lines.add("");
        lines.add(Output.table(rows, output.width()));
        unread.forEach((n, problem) -> lines.add("layer " + n + " is refused: " + problem));
        output.print(json, String.join(System.lineSeparator(), lines));
    }

    /** One row for each run of equal consecutive layers. */
    private static void addRows(List<List<String>> rows, Map<Integer, Layer> layers, Map<Integer, Runs> runs) {
        List<String> last = List.of();
        int first = -1;
        int before = -1;
        for (Map.Entry<Integer, Layer> entry : layers.entrySet()) {
            int n = entry.getKey();
            List<String> cells = cells(entry.getValue(), Objects.requireNonNull(runs.get(n)));
            if (cells.equals(last) && n == before + 1) {
                rows.removeLast();
            } else {
                first = n;
            }
            List<String> row = new ArrayList<>();
            row.add(first == n ? Integer.toString(n) : first + "-" + n);
            row.addAll(cells);
            rows.add(row);
            last = cells;
            before = n;
        }
    }

    private static List<String> cells(Layer layer, Runs runs) {
        FusedMoeConfig config = layer.config;
        int shared = config.numFusedSharedExperts();
        Long bytes = runs.bytes();
        return List.of(
                config.numExperts() + ", top " + config.expertsPerToken()
                        + (shared == 0 ? "" : ", " + shared + " shared"),
                Integer.toString(config.hiddenDim()),
                Integer.toString(config.intermediateSize()),
                layer.stored.entrySet().stream()
                        .sorted(Map.Entry.<String, Long>comparingByValue().reversed())
                        .map(entry -> entry.getKey() + " " + Output.bytes(entry.getValue()))
                        .collect(Collectors.joining(", ")),
                layer.quantization.toString(),
                Output.bytes(layer.int8Bytes()),
                runs.refusal == null
                        ? runs.kernelClass + ", "
                                + runs.devices.stream().map(Output::deviceId).collect(Collectors.joining(", "))
                        : "nothing: " + runs.refusal,
                bytes == null ? "" : Output.bytes(bytes));
    }

    private static @Nullable Long sum(Map<Integer, Runs> runs) {
        long sum = 0;
        for (Runs of : runs.values()) {
            Long bytes = of.bytes();
            if (bytes == null) {
                return null;
            }
            sum += bytes;
        }
        return sum;
    }

    private static Map<String, @Nullable Object> json(int n, Layer layer, Runs runs) {
        FusedMoeConfig config = layer.config;
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("layer", n);
        json.putAll(Output.json(config));
        json.put("routing", config.routingMethod().name());
        json.put("bias", config.hasBias());
        json.put("stored", layer.stored);
        json.put("storedBytes", layer.storedBytes());
        json.put("scheme", layer.quantization.scheme().toString());
        json.put("quantization", layer.quantization.toString());
        json.put("int8Bytes", layer.int8Bytes());
        json.put("backend", runs.refusal == null ? runs.backend : null);
        json.put("kernelClass", runs.refusal == null ? runs.kernelClass : null);
        json.put("device", runs.refusal == null ? String.join(", ", runs.devices) : null);
        json.put("deviceMemory", runs.memory.stream().map(Output::json).toList());
        json.put("deviceBytes", runs.bytes());
        json.put("refusal", runs.refusal);
        return json;
    }

    private static Map<String, Object> json(Map.Entry<Integer, String> unread) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("layer", unread.getKey());
        json.put("reason", unread.getValue());
        return json;
    }
}
