package org.tornadomoe.tornado;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.style.Styler;
import tools.jackson.jr.ob.JSON;

/**
 * The time of both GEMMs by token count, a chart a shape, from files of {@link KernelTimes} (and of a peer, in the same form):
 * {@code java -cp ... org.tornadomoe.tornado.KernelTimesPlot OUT.png IN.json ...}
 */
final class KernelTimesPlot {
    private KernelTimesPlot() {}

    public static void main(String[] args) throws IOException {
        // shape, then device, then tokens
        Map<String, Map<String, TreeMap<Integer, Double>>> times = new TreeMap<>();
        for (String file : List.of(args).subList(1, args.length)) {
            Map<String, Object> results = JSON.std.mapFrom(Files.readString(Path.of(file)));
            String device = String.valueOf(results.get("device"));
            for (Object row : (List<?>) results.get("rows")) {
                Map<?, ?> values = (Map<?, ?>) row;
                double gemms =
                        ((Number) values.get("gateUp")).doubleValue() + ((Number) values.get("down")).doubleValue();
                times.computeIfAbsent(String.valueOf(values.get("shape")), shape -> new TreeMap<>())
                        .computeIfAbsent(device, d -> new TreeMap<>())
                        .put(((Number) values.get("tokens")).intValue(), gemms);
            }
        }
        List<XYChart> charts = new ArrayList<>();
        times.forEach((shape, devices) -> {
            XYChart chart = new XYChartBuilder()
                    .width(640)
                    .height(420)
                    .title(shape)
                    .xAxisTitle("tokens")
                    .yAxisTitle("both GEMMs, microseconds")
                    .build();
            chart.getStyler().setXAxisLogarithmic(true);
            chart.getStyler().setYAxisLogarithmic(true);
            chart.getStyler().setLegendPosition(Styler.LegendPosition.InsideNW);
            devices.forEach((device, points) ->
                    chart.addSeries(device, List.copyOf(points.keySet()), List.copyOf(points.values())));
            charts.add(chart);
        });
        BitmapEncoder.saveBitmap(charts, (charts.size() + 1) / 2, 2, args[0], BitmapEncoder.BitmapFormat.PNG);
    }
}
