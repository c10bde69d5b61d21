package org.tornadomoe.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.CategoryChart;
import org.knowm.xchart.CategoryChartBuilder;
import tools.jackson.jr.ob.JSON;

/** Plots what {@link CpuMoeBenchmark} gave, medians: {@code CpuPlot JMH.json OUT.png}. */
public final class CpuPlot {
    private CpuPlot() {}

    public static void main(String[] args) throws IOException {
        Map<String, Map<String, Double>> perSecond = new LinkedHashMap<>();
        for (Object entry : JSON.std.listFrom(Files.readString(Path.of(args[0])))) {
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
        CategoryChart chart = new CategoryChartBuilder()
                .width(720)
                .height(480)
                .title("E 16, H 2048, I 768, K 2 on the CPU, median")
                .xAxisTitle("tokens of a call")
                .yAxisTitle("tokens/s")
                .build();
        perSecond.forEach((who, rates) -> {
            List<Double> values = new ArrayList<>(rates.values());
            chart.addSeries(who, new ArrayList<>(rates.keySet()), values);
        });
        BitmapEncoder.saveBitmap(chart, args[1], BitmapEncoder.BitmapFormat.PNG);
    }
}
