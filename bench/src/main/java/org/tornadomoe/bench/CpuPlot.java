package org.tornadomoe.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.CategoryChart;
import org.knowm.xchart.CategoryChartBuilder;
import tools.jackson.jr.ob.JSON;

/**
 * Plots medians of {@link CpuMoeBenchmark}, {@code CpuPlot OUT.png JMH.json...}, or the results of {@link CpuTimes} for
 * one shape, {@code CpuPlot OUT.png LINES.jsonl SHAPE}.
 */
public final class CpuPlot {
    private CpuPlot() {}

    public static void main(String[] args) throws IOException {
        Map<String, Map<String, Double>> perSecond = new LinkedHashMap<>();
        if (args.length == 3 && args[1].endsWith(".jsonl")) {
            for (String line : Files.readAllLines(Path.of(args[1]))) {
                Map<String, Object> times = JSON.std.mapFrom(line);
                if (args[2].equals(times.get("shape"))) {
                    int tokens = ((Number) times.get("tokens")).intValue();
                    perSecond
                            .computeIfAbsent(
                                    times.get("scheme") + ", " + times.get("device"), _ -> new LinkedHashMap<>())
                            .put(String.valueOf(tokens), tokens * 1e3 / ((Number) times.get("ms")).doubleValue());
                }
            }
            plot(perSecond, "E:I:H:K " + args[2] + ", median", args[0]);
            return;
        }
        List<Object> entries = new ArrayList<>();
        for (String file : Arrays.asList(args).subList(1, args.length)) {
            entries.addAll(JSON.std.listFrom(Files.readString(Path.of(file))));
        }
        for (Object entry : entries) {
            Map<?, ?> result = (Map<?, ?>) entry;
            Map<?, ?> params = (Map<?, ?>) result.get("params");
            Map<?, ?> metric = (Map<?, ?>) result.get("primaryMetric");
            if (params != null && params.containsKey("what")) {
                String tokens = String.valueOf(params.get("tokens"));
                Object median = ((Map<?, ?>) metric.get("scorePercentiles")).get("50.0");
                perSecond
                        .computeIfAbsent(String.valueOf(params.get("what")), _ -> new LinkedHashMap<>())
                        .put(tokens, Integer.parseInt(tokens) * 1e6 / ((Number) median).doubleValue());
            }
        }
        plot(perSecond, "E 16, H 2048, I 768, K 2 on the CPU, median", args[0]);
    }

    private static void plot(Map<String, Map<String, Double>> perSecond, String title, String file) throws IOException {
        CategoryChart chart = new CategoryChartBuilder()
                .width(720)
                .height(480)
                .title(title)
                .xAxisTitle("tokens of a call")
                .yAxisTitle("tokens/s")
                .build();
        chart.getStyler().setYAxisLogarithmic(true);
        chart.getStyler().setYAxisMin(100.0);
        perSecond.forEach((who, rates) -> {
            List<Double> values = new ArrayList<>(rates.values());
            chart.addSeries(who, new ArrayList<>(rates.keySet()), values);
        });
        BitmapEncoder.saveBitmap(chart, file, BitmapEncoder.BitmapFormat.PNG);
    }
}
