package org.tornadomoe.cli;

import java.io.ByteArrayOutputStream;
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
import org.knowm.xchart.style.markers.SeriesMarkers;
import org.tornadomoe.checkpoint.file.WholeFile;
import tools.jackson.jr.ob.JSON;

/**
 * Plots measurements of {@code moe bench}. With {@code --plot} it draws one run's times by token count and a roofline.
 * It also compares recorded files with another library's: {@code java -cp ... org.tornadomoe.cli.BenchPlot DIRECTORY
 * PEER.json OURS.json ...}. The other library's file needs {@code device} and, in {@code rows}, {@code shape}, {@code
 * tokens}, {@code gateUp} and {@code down}.
 *
 * <ul>
 *   <li>{@code times.png}: both GEMMs by token count, one chart per shape;
 *   <li>{@code ratio.png}: the same, divided by the other library's times: less than 1 is faster;
 *   <li>{@code roofline.png}: operations per second by operations per byte, under the files' limits.
 * </ul>
 */
public final class BenchPlot {
    private BenchPlot() {}

    /** @param gemms microseconds of both */
    private record Point(String device, String shape, int tokens, double gemms, double gbs, double tops) {}

    /**
     * Draws one run: one line per shape for calls and, if kernels have a clock, for both GEMMs; beside it the roofline
     * of the GEMMs, else of calls, under the given limits.
     *
     * @param file the JSON object of {@code moe bench}
     */
    static void draw(Map<String, ? extends @Nullable Object> file, Path png) throws IOException {
        System.setProperty("java.awt.headless", "true");
        XYChart times = chart(String.valueOf(file.get("device")), "tokens", "microseconds");
        times.getStyler().setYAxisLogarithmic(true);
        Map<String, Map<Integer, Double>> lines = new TreeMap<>();
        for (Object row : (List<?>) Objects.requireNonNull(file.get("rows"), "rows")) {
            Map<?, ?> values = (Map<?, ?>) row;
            int tokens = (int) number(values.get("tokens"));
            put(lines, values.get("shape") + ", call", tokens, number(values.get("call")));
            put(
                    lines,
                    values.get("shape") + ", GEMMs",
                    tokens,
                    number(values.get("gateUp")) + number(values.get("down")));
        }
        lines.forEach((name, line) -> times.addSeries(name, List.copyOf(line.keySet()), List.copyOf(line.values())));
        List<XYChart> charts = new ArrayList<>(List.of(times));
        charts.add(roofline(points(file, true), number(file.get("limitGbs")), number(file.get("limitTops"))));
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        BitmapEncoder.saveBitmap(charts, 1, charts.size(), bytes, BitmapEncoder.BitmapFormat.PNG);
        WholeFile.write(png, bytes.toByteArray());
    }

    private static void put(Map<String, Map<Integer, Double>> lines, String name, int tokens, double micros) {
        if (micros > 0) {
            lines.computeIfAbsent(name, _ -> new TreeMap<>()).put(tokens, micros);
        }
    }

    /**
     * Draws recorded files.
     *
     * @param args DIRECTORY PEER.json OURS.json ...
     */
    public static void main(String[] args) throws IOException {
        if (args.length < 3) {
            throw new IllegalArgumentException("expected DIRECTORY PEER.json OURS.json ..., got " + List.of(args));
        }
        Path directory = Path.of(args[0]);
        List<Point> peer = new ArrayList<>();
        List<Point> ours = new ArrayList<>();
        double limitGbs = 0;
        double limitTops = 0;
        for (int i = 1; i < args.length; i++) {
            Map<String, Object> file = JSON.std.mapFrom(Files.readString(Path.of(args[i])));
            (i == 1 ? peer : ours).addAll(points(file, false));
            limitGbs = Math.max(limitGbs, number(file.get("limitGbs")));
            limitTops = Math.max(limitTops, number(file.get("limitTops")));
        }
        List<Point> all = new ArrayList<>(peer);
        all.addAll(ours);
        save(directory.resolve("times.png"), byTokens(all, "both GEMMs, microseconds", true));
        save(
                directory.resolve("ratio.png"),
                byTokens(ratios(ours, peer), "both GEMMs' time, divided by the peer's", false));
        save(directory.resolve("roofline.png"), List.of(roofline(ours, limitGbs, limitTops)));
    }

    /** @param calls whether to include rows without kernel times, whose rates are those of whole calls */
    private static List<Point> points(Map<String, ? extends @Nullable Object> file, boolean calls) {
        List<Point> points = new ArrayList<>();
        for (Object row : (List<?>) Objects.requireNonNull(file.get("rows"), "rows")) {
            Map<?, ?> values = (Map<?, ?>) row;
            double gemms = number(values.get("gateUp")) + number(values.get("down"));
            if (gemms > 0 || calls) {
                points.add(new Point(
                        who(file, values),
                        String.valueOf(values.get("shape")),
                        (int) number(values.get("tokens")),
                        gemms,
                        number(values.get("gbs")),
                        number(values.get("tops"))));
            }
        }
        return points;
    }

    private static String who(Map<String, ? extends @Nullable Object> file, Map<?, ?> row) {
        Object kernels = file.get("kernelClass");
        Object parallel = row.get("parallel");
        return (parallel == null || parallel.equals("none") ? "" : parallel + " parallel: ")
                + file.get("device")
                + (kernels == null ? "" : ", " + kernels);
    }

    private static double number(@Nullable Object value) {
        return value instanceof Number number ? number.doubleValue() : 0;
    }

    /** The ratios for shapes and token counts that both have. */
    private static List<Point> ratios(List<Point> ours, List<Point> peer) {
        Map<String, Double> theirs = new LinkedHashMap<>();
        peer.forEach(point -> theirs.put(point.shape + " " + point.tokens, point.gemms));
        List<Point> ratios = new ArrayList<>();
        for (Point point : ours) {
            Double time = theirs.get(point.shape + " " + point.tokens);
            if (time != null) {
                ratios.add(
                        new Point(point.device, point.shape, point.tokens, point.gemms / time, point.gbs, point.tops));
            }
        }
        return ratios;
    }

    /** One chart per shape, with one line per device. */
    private static List<XYChart> byTokens(List<Point> points, String axis, boolean logarithmic) {
        Map<String, Map<String, TreeMap<Integer, Double>>> shapes = new TreeMap<>();
        for (Point point : points) {
            shapes.computeIfAbsent(point.shape, _ -> new TreeMap<>())
                    .computeIfAbsent(point.device, _ -> new TreeMap<>())
                    .put(point.tokens, point.gemms);
        }
        List<XYChart> charts = new ArrayList<>();
        shapes.forEach((shape, devices) -> {
            XYChart chart = chart(shape, "tokens", axis);
            chart.getStyler().setYAxisLogarithmic(logarithmic);
            if (!logarithmic) {
                chart.getStyler().setYAxisMin(0.0);
                chart.getStyler().setLegendPosition(Styler.LegendPosition.InsideSE);
            }
            devices.forEach(
                    (device, line) -> chart.addSeries(device, List.copyOf(line.keySet()), List.copyOf(line.values())));
            charts.add(chart);
        });
        return charts;
    }

    private static XYChart roofline(List<Point> points, double limitGbs, double limitTops) {
        XYChart chart = chart("roofline", "operations a byte of weights", "10^12 operations a second");
        chart.getStyler().setYAxisLogarithmic(true);
        Map<String, TreeMap<Double, Double>> lines = new TreeMap<>();
        double most = 1;
        for (Point point : points) {
            if (point.gbs > 0) {
                double intensity = point.tops * 1e3 / point.gbs;
                lines.computeIfAbsent(point.shape + ", " + point.device, _ -> new TreeMap<>())
                        .put(intensity, point.tops);
                most = Math.max(most, intensity);
            }
        }
        lines.forEach((name, line) -> chart.addSeries(name, List.copyOf(line.keySet()), List.copyOf(line.values())));
        if (limitGbs > 0 && limitTops > 0) {
            double knee = limitTops * 1e3 / limitGbs;
            chart.addSeries("limit", new double[] {1, knee, Math.max(most, 2 * knee)}, new double[] {
                        limitGbs / 1e3, limitTops, limitTops
                    })
                    .setMarker(SeriesMarkers.NONE);
        }
        return chart;
    }

    private static XYChart chart(String title, String x, String y) {
        XYChart chart = new XYChartBuilder()
                .width(760)
                .height(460)
                .title(title)
                .xAxisTitle(x)
                .yAxisTitle(y)
                .build();
        chart.getStyler().setXAxisLogarithmic(true);
        chart.getStyler().setLegendPosition(Styler.LegendPosition.InsideNW);
        return chart;
    }

    private static void save(Path file, List<XYChart> charts) throws IOException {
        if (charts.isEmpty()) {
            return; // nothing in common with the other library
        }
        // The library can't draw a grid with a gap.
        int columns = charts.size() % 2 == 0 ? 2 : 1;
        BitmapEncoder.saveBitmap(
                charts, charts.size() / columns, columns, file.toString(), BitmapEncoder.BitmapFormat.PNG);
    }
}
