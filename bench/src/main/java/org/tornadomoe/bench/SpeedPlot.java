package org.tornadomoe.bench;

import java.awt.Color;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.style.Styler;
import org.knowm.xchart.style.XYStyler;
import org.knowm.xchart.style.markers.SeriesMarkers;
import tools.jackson.jr.ob.JSON;

/**
 * Draws the README's picture from recorded results: the layer's speed relative to other libraries', by tokens per call.
 * {@code SpeedPlot OUT.png OURS.json TRITON.json CPU.jsonl}: files of {@code moe bench}, of the Triton kernels and of
 * both on a CPU, ggml's lines first. For Triton it is the ratio of the rates of both GEMMs (GB/s of weights up to 64
 * tokens, operations per second above), because each run drew its own experts.
 */
public final class SpeedPlot {
    /** Up to here memory bandwidth limits the speed, above it arithmetic. */
    private static final int MEMORY_TOKENS = 64;

    private SpeedPlot() {}

    public static void main(String[] args) throws IOException {
        XYChart gpu = chart("NVIDIA H200, beside Triton", "times Triton's speed, w8a8_channel");
        Map<String, Map<?, ?>> theirs = new LinkedHashMap<>();
        rows(args[2]).forEach(row -> theirs.put(row.get("shape") + " " + row.get("tokens"), row));
        Map<String, TreeMap<Integer, Double>> lines = new LinkedHashMap<>();
        for (Map<?, ?> row : rows(args[1])) {
            Map<?, ?> peer = theirs.get(row.get("shape") + " " + row.get("tokens"));
            if (peer != null) {
                int tokens = (int) number(row.get("tokens"));
                String rate = tokens <= MEMORY_TOKENS ? "gbs" : "tops";
                put(lines, String.valueOf(row.get("shape")), tokens, number(row.get(rate)) / number(peer.get(rate)));
            }
        }
        draw(gpu, lines);

        XYChart cpu = chart("2 cores of an AMD EPYC, beside ggml", "times ggml's speed (Q8_0), w8a8_channel");
        Map<String, Double> ggml = new LinkedHashMap<>();
        lines.clear();
        for (String line : Files.readAllLines(Path.of(args[3]))) {
            Map<String, Object> row = JSON.std.mapFrom(line);
            int tokens = (int) number(row.get("tokens"));
            String call = row.get("shape") + " " + tokens;
            Double theirTime = ggml.get(call);
            if ("q8_0".equals(row.get("scheme"))) {
                ggml.put(call, number(row.get("ms")));
            } else if (theirTime != null
                    && "w8a8_channel".equals(row.get("scheme"))
                    && number(row.get("layers")) == 1) {
                put(lines, String.valueOf(row.get("shape")), tokens, theirTime / number(row.get("ms")));
            }
        }
        draw(cpu, lines);
        BitmapEncoder.saveBitmap(List.of(gpu, cpu), 1, 2, args[0], BitmapEncoder.BitmapFormat.PNG);
    }

    /** The rows of a {@code moe bench} file. */
    static List<Map<?, ?>> rows(String file) throws IOException {
        List<?> rows =
                (List<?>) JSON.std.mapFrom(Files.readString(Path.of(file))).get("rows");
        List<Map<?, ?>> maps = new ArrayList<>();
        Objects.requireNonNull(rows, file).forEach(row -> maps.add((Map<?, ?>) row));
        return maps;
    }

    static double number(@Nullable Object value) {
        return ((Number) Objects.requireNonNull(value)).doubleValue();
    }

    private static void put(Map<String, TreeMap<Integer, Double>> lines, String name, int tokens, double ratio) {
        lines.computeIfAbsent(name, _ -> new TreeMap<>()).put(tokens, ratio);
    }

    private static XYChart chart(String title, String axis) {
        XYChart chart = new XYChartBuilder()
                .width(600)
                .height(400)
                .title(title)
                .xAxisTitle("tokens of a call")
                .yAxisTitle(axis)
                .build();
        XYStyler style = chart.getStyler();
        style.setChartBackgroundColor(Color.WHITE);
        style.setLegendPosition(Styler.LegendPosition.InsideSE);
        style.setXAxisLogarithmic(true);
        style.setYAxisMin(0.0);
        style.setYAxisMax(2.0);
        return chart;
    }

    /** Draws a chart with a line at 1, the other library's own speed. */
    private static void draw(XYChart chart, Map<String, TreeMap<Integer, Double>> lines) {
        lines.forEach((name, line) -> chart.addSeries(name, List.copyOf(line.keySet()), List.copyOf(line.values())));
        int most = lines.values().stream().mapToInt(TreeMap::lastKey).max().orElseThrow();
        chart.addSeries("as fast", new double[] {1, most}, new double[] {1, 1})
                .setMarker(SeriesMarkers.NONE)
                .setLineColor(Color.GRAY);
    }
}
