package org.tornadomoe.cli;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import javax.imageio.ImageIO;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.XYSeries.XYSeriesRenderStyle;
import org.knowm.xchart.style.Styler;
import org.tornadomoe.checkpoint.QuantizationErrors.ExpertError;
import org.tornadomoe.checkpoint.file.WholeFile;

/**
 * The plot of a quantised checkpoint's errors. A separate class, so that the other commands need no desktop libraries.
 */
final class ErrorPlot {
    private ErrorPlot() {}

    /**
     * Draws each expert's error over its layer's number, experts side by side within a layer, and the layers' means.
     * For one layer it draws the errors over the expert's number.
     */
    static void draw(Map<Integer, List<ExpertError>> byLayer, String title, Path file) throws IOException {
        boolean one = byLayer.size() == 1;
        List<Double> x = new ArrayList<>();
        List<Double> y = new ArrayList<>();
        List<Double> layers = new ArrayList<>();
        List<Double> means = new ArrayList<>();
        byLayer.forEach((layer, errors) -> {
            for (int i = 0; i < errors.size(); i++) {
                x.add(one ? i : layer - 0.4 + 0.8 * (i + 0.5) / errors.size());
                y.add(errors.get(i).relativeL2());
            }
            layers.add((double) layer);
            means.add(errors.stream()
                    .mapToDouble(ExpertError::relativeL2)
                    .average()
                    .orElseThrow());
        });
        System.setProperty("java.awt.headless", "true");
        XYChart chart = new XYChartBuilder()
                .width(960)
                .height(480)
                .title(title)
                .xAxisTitle(
                        one ? "expert of layer " + byLayer.keySet().iterator().next() : "layer")
                .yAxisTitle("relative L2 error of weights")
                .build();
        chart.getStyler().setDefaultSeriesRenderStyle(XYSeriesRenderStyle.Scatter);
        chart.getStyler().setLegendPosition(Styler.LegendPosition.OutsideS);
        chart.getStyler().setYAxisMin(0.0);
        chart.getStyler().setMarkerSize(4);
        chart.addSeries("experts", x, y);
        if (!one) {
            chart.addSeries("mean of a layer", layers, means);
        }
        ByteArrayOutputStream png = new ByteArrayOutputStream();
        ImageIO.write(BitmapEncoder.getBufferedImage(chart), "png", png);
        WholeFile.write(file, png.toByteArray());
    }
}
