package org.tornadomoe.bench;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.style.Styler;
import org.knowm.xchart.style.markers.SeriesMarkers;

/**
 * Plots the call times of several runs of {@code moe bench}, divided by the first run's, by tokens: {@code CallsPlot
 * OUT.png NAME=FIRST.json NAME=OTHER.json ...}. One chart per shape.
 */
public final class CallsPlot {
    private CallsPlot() {}

    public static void main(String[] args) throws IOException {
        Map<String, Map<String, TreeMap<Integer, Double>>> shapes = new LinkedHashMap<>();
        for (String file : Arrays.asList(args).subList(1, args.length)) {
            String name = file.substring(0, file.indexOf('='));
            for (Map<?, ?> row : SpeedPlot.rows(file.substring(name.length() + 1))) {
                shapes.computeIfAbsent(String.valueOf(row.get("shape")), _ -> new LinkedHashMap<>())
                        .computeIfAbsent(name, _ -> new TreeMap<>())
                        .put((int) SpeedPlot.number(row.get("tokens")), SpeedPlot.number(row.get("call")));
            }
        }
        List<XYChart> charts = new ArrayList<>();
        shapes.forEach((shape, runs) -> {
            XYChart chart = new XYChartBuilder()
                    .width(640)
                    .height(420)
                    .title(shape)
                    .xAxisTitle("tokens")
                    .yAxisTitle("a call's time, divided by the first's")
                    .build();
            chart.getStyler().setXAxisLogarithmic(true);
            chart.getStyler().setYAxisMin(0.0);
            chart.getStyler().setLegendPosition(Styler.LegendPosition.InsideSW);
            Map<Integer, Double> first = runs.values().iterator().next();
            runs.forEach((name, calls) -> {
                List<Integer> tokens =
                        calls.keySet().stream().filter(first::containsKey).toList();
                List<Double> ratios = tokens.stream()
                        .map(m -> Objects.requireNonNull(calls.get(m)) / Objects.requireNonNull(first.get(m)))
                        .toList();
                chart.addSeries(name, tokens, ratios).setMarker(SeriesMarkers.CIRCLE);
            });
            charts.add(chart);
        });
        BitmapEncoder.saveBitmap(charts, 1, charts.size(), args[0], BitmapEncoder.BitmapFormat.PNG);
    }
}
