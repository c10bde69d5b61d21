package org.tornadomoe.cli;

import java.time.LocalDate;
import java.time.ZoneId;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.ExpertBalance;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.tornado.device.TornadoHome;

/** The results of {@code moe bench}, as JSON and as tables. */
final class BenchReport {
    private final Bench bench;
    final List<Measurement> rows = new ArrayList<>();
    final List<BenchLayers.Row> inPlans = new ArrayList<>();

    /** Skipped shapes, with the reason. */
    final Map<String, String> skipped = new LinkedHashMap<>();

    /** Each shape's device memory, as of the last time it was loaded. */
    final Map<String, @Nullable Object> memory = new LinkedHashMap<>();

    /** @param bench the command whose options are reported */
    BenchReport(Bench bench) {
        this.bench = bench;
    }

    /** Whether all shapes were measured and their results were right. */
    boolean ok() {
        return rows.stream().allMatch(Measurement::ok)
                && inPlans.stream().allMatch(BenchLayers.Row::ok)
                && skipped.isEmpty();
    }

    /** The JSON object; {@code sharding} belongs to the first shape. */
    Map<String, @Nullable Object> json(Sharding sharding) {
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("date", LocalDate.now(ZoneId.systemDefault()).toString());
        json.put("backend", sharding.backend());
        json.put("kernelClass", sharding.kernelClass());
        json.put("device", sharding.device());
        List<String> devices = sharding.ranks().stream().map(Selection::device).toList();
        json.put("tornadovm", TornadoHome.current().version());
        json.put("java", Runtime.version().toString());
        json.put("version", new Moe.Version().getVersion()[0]);
        json.put("scheme", bench.measuring.quantization().toString());
        json.put("limitGbs", bench.limitGbs);
        json.put("limitTops", bench.limitTops);
        json.put("separate", bench.separate);
        json.put("skew", bench.skew);
        json.put("hidden", bench.hiddenType().abbreviation());
        json.put("allocated", bench.allocated);
        json.put("memory", memory);
        json.put("unit", "microseconds");
        List<Object> list = new ArrayList<>();
        for (Measurement row : rows) {
            Map<String, @Nullable Object> fields = new LinkedHashMap<>();
            fields.put("shape", row.shape().name());
            fields.put("experts", row.shape().experts());
            fields.put("intermediate", row.shape().intermediate());
            fields.put("hidden", row.shape().hidden());
            fields.put("topK", row.shape().topK());
            fields.put("devices", devices);
            fields.put("parallel", sharding.parallelism());
            fields.put("bytesByDevice", row.bytes());
            fields.put("tokens", row.tokens());
            fields.put("runs", row.runs());
            fields.put("activeExperts", row.activeExperts());
            fields.put("call", row.call());
            fields.put("allKernels", row.kernels().isEmpty() ? null : row.allKernels());
            fields.put("gateUp", row.kernels().isEmpty() ? null : row.gemm("gateUp"));
            fields.put("down", row.kernels().isEmpty() ? null : row.gemm("down"));
            fields.put("kernels", row.kernels());
            fields.put("gbs", row.gbs());
            fields.put("tops", row.tops());
            fields.put("percentOfLimit", row.percentOfLimit(bench.limitGbs, bench.limitTops));
            fields.put("tokensPerSecond", row.tokens() / row.call() * 1e6);
            fields.put("relativeL2", row.relativeL2());
            fields.put("unbalanced", Output.json(row.unbalanced()));
            fields.put("balance", Output.json(row.balance()));
            fields.put("passed", row.ok());
            list.add(fields);
        }
        json.put("rows", list);
        json.put("layers", inPlans.stream().map(BenchLayers.Row::json).toList());
        json.put("skipped", skipped);
        return json;
    }

    String text() {
        List<List<String>> table = new ArrayList<>();
        if (bench.layers != null) {
            table.add(List.of("shape", "tokens", "layers", "kernels", "per layer", "on device", "error"));
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
        for (Measurement row : rows) {
            Double percent = row.percentOfLimit(bench.limitGbs, bench.limitTops);
            boolean isTimed = !row.kernels().isEmpty();
            table.add(List.of(
                    row.shape().name(),
                    Integer.toString(row.tokens()),
                    row.bytes().stream().map(Output::bytes).collect(Collectors.joining(" + ")),
                    isTimed ? Output.seconds(row.gemm("gateUp") / 1e6) : "",
                    isTimed ? Output.seconds(row.gemm("down") / 1e6) : "",
                    isTimed ? Output.seconds(row.allKernels() / 1e6) : "",
                    Output.seconds(row.call() / 1e6),
                    String.format(Locale.ROOT, "%.1f", row.gbs()),
                    String.format(Locale.ROOT, "%.2f", row.tops()),
                    percent == null ? "" : String.format(Locale.ROOT, "%.1f %%", percent),
                    String.format(Locale.ROOT, "%.0f", row.tokens() / row.call() * 1e6),
                    (row.ok() ? "" : "WRONG: ") + Output.number(row.relativeL2())));
        }
        StringBuilder text = new StringBuilder(Output.table(table));
        for (Measurement row : rows) {
            append(text, row, "before experts moved", row.unbalanced());
            append(text, row, "after the calls", row.balance());
        }
        skipped.forEach((shape, reason) -> text.append(System.lineSeparator())
                .append(shape)
                .append(" is left out: ")
                .append(reason));
        return text.toString();
    }

    private static void append(StringBuilder into, Measurement row, String when, @Nullable ExpertBalance balance) {
        if (balance != null) {
            into.append(System.lineSeparator())
                    .append(row.shape().name() + ", " + row.tokens() + " tokens, " + when + ": ")
                    .append(Output.balance(balance));
        }
    }
}
