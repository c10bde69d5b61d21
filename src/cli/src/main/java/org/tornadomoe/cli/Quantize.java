package org.tornadomoe.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.DoubleSummaryStatistics;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.CheckpointQuantizer;
import org.tornadomoe.checkpoint.GgufQuantizer;
import org.tornadomoe.checkpoint.QuantizationErrors.Channel;
import org.tornadomoe.checkpoint.QuantizationErrors.ExpertError;
import org.tornadomoe.checkpoint.file.Printable;
import org.tornadomoe.checkpoint.file.WholeFile;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;
import tools.jackson.jr.ob.JSON;

/** {@code moe quantize}: writes a checkpoint with its experts in int8. */
@Command(
        name = "quantize",
        description = {
            "Writes a copy of a checkpoint with int8 experts, for this and other engines.",
            "The experts are stored in compressed-tensors' format; everything else is copied. A report lists each"
                    + " expert's error: quantization_report.txt, .json and .png. If the command is interrupted, run it"
                    + " again: it continues after the last complete file.",
            "If OUT ends in .gguf, it becomes one GGUF file with Q8_0 experts, without a report: the whole model if"
                    + " CHECKPOINT is a GGUF file, otherwise its MoE layers only."
        },
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe quantize ~/models/Mixtral-8x7B ~/models/Mixtral-8x7B-int8",
            "  moe quantize DIR OUT --scheme w8a16_group --group 128 --layers 0,1",
            "  moe quantize model-Q4_K_M.gguf model-Q8_0.gguf"
        })
final class Quantize implements Callable<Integer> {
    private static final String REPORT = "quantization_report";
    private static final int WORST_IN_TEXT = 10;

    /** GGUF's Q8_0 in this library's terms. */
    private static final Int8Quantization Q8_0 =
            Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 32));

    @Spec
    CommandSpec spec;

    @Parameters(
            index = "0",
            paramLabel = "CHECKPOINT",
            description = "A directory with config.json and safetensors; also a GGUF file if OUT ends in .gguf.")
    CheckpointName checkpoint;

    @Parameters(
            index = "1",
            paramLabel = "OUT",
            description = "The directory to write (new, empty, or left by an interrupted run), or a file *.gguf.")
    Path out;

    @Mixin
    Scheme scheme;

    @Option(
            names = "--layers",
            paramLabel = "N",
            split = ",",
            description = "Only these decoder layers, counted from 0; default all that have experts.")
    @Nullable
    List<Integer> layers;

    @Mixin
    Output output;

    @Override
    public Integer call() {
        boolean gguf = out.toString().endsWith(".gguf") && !Files.isDirectory(out);
        Int8Quantization quantization = gguf && !scheme.isGiven() ? Q8_0 : scheme.quantization();
        if (gguf && !quantization.equals(Q8_0)) {
            throw new ParameterException(
                    spec.commandLine(), "--scheme: expected " + Q8_0 + " or none for " + out + ", got " + quantization);
        }
        CheckpointQuantizer.Result result;
        try (ProgressLine progress = new ProgressLine("experts", false)) {
            result = gguf
                    ? GgufQuantizer.quantize(checkpoint.path(), out, layers, progress)
                    : CheckpointQuantizer.quantize(
                            checkpoint.path(),
                            out,
                            quantization,
                            layers,
                            progress,
                            found -> report(quantization, found));
        }
        output.print(json(quantization, result), text(quantization, result));
        return Moe.DONE;
    }

    private void report(Int8Quantization quantization, CheckpointQuantizer.Result result) {
        JSON pretty = JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT);
        write(REPORT + ".json", pretty.asString(json(quantization, result)));
        write(REPORT + ".txt", text(quantization, result));
        plot(quantization, result.experts());
    }

    private void write(String name, String text) {
        WholeFile.write(out.resolve(name), Printable.visible(text) + System.lineSeparator());
    }

    private Map<String, Object> json(Int8Quantization quantization, CheckpointQuantizer.Result result) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("checkpoint", checkpoint.toString());
        json.put("output", out.toString());
        json.put("scheme", quantization.scheme().toString());
        json.put("files", result.files());
        json.put("resumedFiles", result.resumed());
        json.put("bytes", result.bytes());
        json.put(
                "experts",
                result.experts().stream()
                        .map(expert -> {
                            Map<String, Object> fields = new LinkedHashMap<>();
                            fields.put("layer", expert.layer());
                            fields.put("expert", expert.shared() ? "shared" : expert.expert());
                            fields.put("relativeL2", expert.relativeL2());
                            fields.put("gate", expert.gate());
                            fields.put("up", expert.up());
                            fields.put("down", expert.down());
                            fields.put(
                                    "worstChannels",
                                    expert.worst().stream().map(Quantize::json).toList());
                            return fields;
                        })
                        .toList());
        return json;
    }

    private static Map<String, Object> json(Channel channel) {
        Map<String, Object> fields = new LinkedHashMap<>();
        fields.put("projection", channel.projection());
        fields.put("row", channel.row());
        fields.put("relativeL2", channel.relativeL2());
        return fields;
    }

    private String text(Int8Quantization quantization, CheckpointQuantizer.Result result) {
        List<List<String>> head = new ArrayList<>();
        head.add(List.of("checkpoint", checkpoint.toString()));
        head.add(List.of("output", out.toString()));
        head.add(List.of("scheme", quantization.toString()));
        head.add(List.of(
                "files",
                result.files() + ", " + Output.bytes(result.bytes())
                        + (result.resumed() == 0 ? "" : "; " + result.resumed() + " from an earlier run")));
        List<List<String>> rows = new ArrayList<>();
        rows.add(List.of("layer", "experts", "mean error", "largest", "in expert"));
        byLayer(result.experts()).forEach((layer, experts) -> {
            DoubleSummaryStatistics errors =
                    experts.stream().mapToDouble(ExpertError::relativeL2).summaryStatistics();
            ExpertError worst = experts.stream()
                    .max(Comparator.comparingDouble(ExpertError::relativeL2))
                    .orElseThrow();
            rows.add(List.of(
                    Integer.toString(layer),
                    Integer.toString(experts.size()),
                    Output.number(errors.getAverage()),
                    Output.number(errors.getMax()),
                    name(worst)));
        });
        List<List<String>> channels = new ArrayList<>();
        channels.add(List.of("worst channels", "", "", "error"));
        result.experts().stream()
                .flatMap(expert -> expert.worst().stream().map(channel -> Map.entry(expert, channel)))
                .sorted(Comparator.comparingDouble(entry -> -entry.getValue().relativeL2()))
                .limit(WORST_IN_TEXT)
                .forEach(entry -> channels.add(List.of(
                        "layer " + entry.getKey().layer(),
                        "expert " + name(entry.getKey()),
                        entry.getValue().projection() + " row "
                                + entry.getValue().row(),
                        Output.number(entry.getValue().relativeL2()))));
        String line = System.lineSeparator();
        return Output.table(head) + line + line + "relative L2 error of weights" + line + Output.table(rows) + line
                + line + Output.table(channels);
    }

    private static String name(ExpertError expert) {
        return expert.shared() ? "shared" : Integer.toString(expert.expert());
    }

    private static Map<Integer, List<ExpertError>> byLayer(List<ExpertError> experts) {
        return experts.stream().collect(Collectors.groupingBy(ExpertError::layer, TreeMap::new, Collectors.toList()));
    }

    private void plot(Int8Quantization quantization, List<ExpertError> experts) {
        String title = checkpoint.name().toAbsolutePath().normalize().getFileName() + ", " + quantization;
        try {
            ErrorPlot.draw(byLayer(experts), title, out.resolve(REPORT + ".png"));
        } catch (IOException | RuntimeException | LinkageError e) {
            // A JDK without desktop libraries, or a machine without fonts, can't draw; the numbers are written anyway.
            Output.say(spec, REPORT + ".png was not drawn: " + e.getMessage());
        }
    }
}
