package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import java.util.stream.IntStream;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.quant.Int8Tensor;

/** The errors that quantising makes, as they are measured, kept in files between runs, and reported. */
public final class QuantizationErrors {
    private static final int WORST_CHANNELS = 3;

    /** Of each expert's gate, up and down the squared error and the square. */
    private final Map<String, double[]> sums = new TreeMap<>();

    private final Map<String, List<Channel>> channels = new HashMap<>();

    QuantizationErrors() {}

    /** A row of a projection and its relative L2 error. */
    public record Channel(String projection, int row, double relativeL2) {}

    /**
     * What quantising made of an expert: relative L2 errors, of all its weights and of each projection's.
     *
     * @param expert its number, or the layer's routed experts' count for the shared one
     * @param worst the rows with the greatest errors, the greatest first
     */
    public record ExpertError(
            int layer,
            int expert,
            boolean shared,
            double relativeL2,
            double gate,
            double up,
            double down,
            List<Channel> worst) {}

    /** What a file of errors calls an expert. */
    static String key(int layer, int expert) {
        return layer + "/" + expert;
    }

    /** What it calls the projections: gate, up and down. */
    static String name(int projection) {
        return List.of("gate", "up", "down").get(projection);
    }

    /** Squared error and square of a matrix, and its worst rows. */
    static Map<String, Object> measure(Matrix matrix, Int8Tensor tensor, int firstRow, String name) {
        int cols = matrix.cols();
        double[] error = new double[matrix.rows()];
        double[] square = new double[matrix.rows()];
        IntStream.range(0, matrix.rows()).parallel().forEach(r -> {
            float[] exact = new float[cols];
            byte[] values = new byte[cols];
            matrix.row(r, exact);
            tensor.row(0, firstRow + r, values);
            for (int from = 0; from < cols; from += tensor.colsPerScale()) {
                double scale = tensor.scale(0, firstRow + r, from);
                for (int c = from; c < Math.min(cols, from + tensor.colsPerScale()); c++) {
                    double difference = exact[c] - values[c] * scale;
                    error[r] += difference * difference;
                    square[r] += (double) exact[c] * exact[c];
                }
            }
        });
        List<Map<String, Object>> worst = IntStream.range(0, matrix.rows())
                .mapToObj(r -> new Channel(name, r, relative(error[r], square[r])))
                .sorted(Comparator.comparingDouble(channel -> -channel.relativeL2))
                .limit(WORST_CHANNELS)
                .map(channel -> Map.<String, Object>of("row", channel.row, "relativeL2", channel.relativeL2))
                .toList();
        Map<String, Object> measured = new LinkedHashMap<>();
        measured.put(
                "error",
                IntStream.range(0, error.length).mapToDouble(r -> error[r]).sum());
        measured.put(
                "square",
                IntStream.range(0, square.length).mapToDouble(r -> square[r]).sum());
        measured.put("worst", worst);
        return measured;
    }

    private static double relative(double error, double square) {
        return square == 0 ? 0 : Math.sqrt(error / square);
    }

    /** Adds what a file's errors say: for each expert the squared error and square of gate, up and down. */
    void add(JsonFile errors) {
        for (String key : errors.fields().keySet()) {
            JsonFile expert = errors.nested(key);
            double[] sum = sums.computeIfAbsent(key, k -> new double[6]);
            for (int p = 0; p < 3; p++) {
                if (expert.has(name(p))) {
                    JsonFile projection = expert.nested(name(p));
                    sum[2 * p] = Objects.requireNonNull(projection.number("error"));
                    sum[2 * p + 1] = Objects.requireNonNull(projection.number("square"));
                    for (JsonFile row : projection.objects("worst")) {
                        channels.computeIfAbsent(key, k -> new ArrayList<>())
                                .add(new Channel(
                                        name(p), row.integer("row"), Objects.requireNonNull(row.number("relativeL2"))));
                    }
                }
            }
        }
    }

    /** That of an expert whose files were added. */
    ExpertError of(int layer, int expert, boolean shared) {
        String key = key(layer, expert);
        double[] s = Objects.requireNonNull(sums.get(key));
        List<Channel> worst = channels.getOrDefault(key, List.of()).stream()
                .sorted(Comparator.comparingDouble(channel -> -channel.relativeL2))
                .limit(WORST_CHANNELS)
                .toList();
        return new ExpertError(
                layer,
                expert,
                shared,
                relative(s[0] + s[2] + s[4], s[1] + s[3] + s[5]),
                relative(s[0], s[1]),
                relative(s[2], s[3]),
                relative(s[4], s[5]),
                worst);
    }
}
