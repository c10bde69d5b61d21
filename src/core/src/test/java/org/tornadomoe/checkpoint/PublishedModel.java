package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.function.DoubleBinaryOperator;
import java.util.function.DoubleUnaryOperator;
import java.util.stream.IntStream;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;

/**
 * A small model of a published family: random weights, its config.json and tensors exactly as its publisher lays them
 * out, and what its layer computes, in plain loops that share nothing with the library.
 */
public final class PublishedModel {
    public static final int E = 6;
    public static final int H = 12;
    static final int I = 8;
    public static final int K = 2;

    /** One expert: gate and up [I, H], down [H, I], with biases. */
    public record Expert(
            float[][] gate, float[][] up, float[][] down, float[] gateBias, float[] upBias, float[] downBias) {}

    /** How a token's logits become a weight for each expert, 0 for those not chosen. */
    @FunctionalInterface
    public interface Router {
        double[] weights(double[] logits, float[] correction);
    }

    private final Random random;
    public final float[][] router;
    final float[] routerBias;
    final float[] correction;
    public final Expert[] experts = new Expert[E];
    public final Expert shared;
    final float[][] sharedGate;
    public final Map<String, float[]> tensors = new LinkedHashMap<>();
    public final Map<String, long[]> shapes = new LinkedHashMap<>();

    public PublishedModel(long seed, int sharedWidth) {
        random = new Random(seed);
        router = matrix(E, H);
        routerBias = vector(E);
        correction = vector(E);
        for (int e = 0; e < E; e++) {
            experts[e] = expert(I);
        }
        shared = expert(Math.max(1, sharedWidth));
        sharedGate = matrix(1, H);
    }

    private Expert expert(int width) {
        return new Expert(
                matrix(width, H), matrix(width, H), matrix(H, width), vector(width), vector(width), vector(H));
    }

    private float[] vector(int length) {
        float[] values = new float[length];
        for (int i = 0; i < length; i++) {
            values[i] = (float) random.nextGaussian();
        }
        return values;
    }

    private float[][] matrix(int rows, int cols) {
        float[][] values = new float[rows][];
        for (int r = 0; r < rows; r++) {
            values[r] = vector(cols);
        }
        return values;
    }

    // What is written

    public PublishedModel add(String name, float[] values) {
        tensors.put(name, values);
        shapes.put(name, new long[] {values.length});
        return this;
    }

    public PublishedModel add(String name, float[][] matrix) {
        float[] flat = new float[matrix.length * matrix[0].length];
        for (int r = 0; r < matrix.length; r++) {
            System.arraycopy(matrix[r], 0, flat, r * matrix[0].length, matrix[0].length);
        }
        tensors.put(name, flat);
        shapes.put(name, new long[] {matrix.length, matrix[0].length});
        return this;
    }

    public PublishedModel add(String name, float[][][] parts) {
        int size = parts[0].length * parts[0][0].length;
        float[] flat = new float[parts.length * size];
        for (int e = 0; e < parts.length; e++) {
            for (int r = 0; r < parts[e].length; r++) {
                System.arraycopy(parts[e][r], 0, flat, e * size + r * parts[e][0].length, parts[e][0].length);
            }
        }
        tensors.put(name, flat);
        shapes.put(name, new long[] {parts.length, parts[0].length, parts[0][0].length});
        return this;
    }

    /** Every expert's projections, a tensor each. */
    PublishedModel perExpert(String block, String gate, String up, String down) {
        for (int e = 0; e < E; e++) {
            mlp(block + "experts." + e + ".", experts[e], gate, up, down);
        }
        return this;
    }

    PublishedModel mlp(String prefix, Expert expert, String gate, String up, String down) {
        return add(prefix + gate + ".weight", expert.gate)
                .add(prefix + up + ".weight", expert.up)
                .add(prefix + down + ".weight", expert.down);
    }

    /** Gate and up rows of each expert, one after the other or in turns. */
    float[][][] gateUp(boolean interleaved) {
        return Arrays.stream(experts)
                .map(x -> IntStream.range(0, 2 * I)
                        .mapToObj(
                                r -> interleaved ? (r % 2 == 0 ? x.gate : x.up)[r / 2] : (r < I ? x.gate : x.up)[r % I])
                        .toArray(float[][]::new))
                .toArray(float[][][]::new);
    }

    public float[][][] down() {
        return Arrays.stream(experts).map(Expert::down).toArray(float[][][]::new);
    }

    float[][] gateUpBias(boolean interleaved) {
        float[][] all = new float[E][2 * I];
        for (int e = 0; e < E; e++) {
            for (int r = 0; r < 2 * I; r++) {
                all[e][r] = interleaved
                        ? (r % 2 == 0 ? experts[e].gateBias : experts[e].upBias)[r / 2]
                        : (r < I ? experts[e].gateBias : experts[e].upBias)[r % I];
            }
        }
        return all;
    }

    float[][] downBias() {
        return Arrays.stream(experts).map(Expert::downBias).toArray(float[][]::new);
    }

    static float[][][] transposed(float[][][] parts) {
        return Arrays.stream(parts)
                .map(part -> {
                    float[][] turned = new float[part[0].length][part.length];
                    for (int r = 0; r < part.length; r++) {
                        for (int c = 0; c < part[0].length; c++) {
                            turned[c][r] = part[r][c];
                        }
                    }
                    return turned;
                })
                .toArray(float[][][]::new);
    }

    SafetensorsWriter writer() {
        SafetensorsWriter writer = new SafetensorsWriter();
        tensors.forEach((name, values) -> writer.add(name, values, requireNonNull(shapes.get(name))));
        return writer;
    }

    /** Writes the checkpoint. */
    void write(Path directory, String config) {
        try {
            Files.writeString(directory.resolve("config.json"), config);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        writer().write(directory.resolve("model.safetensors"));
    }

    // What it computes

    /** Options of the computation. */
    public record Plain(
            Router router,
            boolean routerBias,
            boolean expertBias,
            boolean weightOnInput,
            DoubleBinaryOperator activation,
            boolean hasShared,
            boolean hasSharedGate) {
        public static Plain of(Router router) {
            return new Plain(router, false, false, false, (g, u) -> g * sigmoid(g) * u, false, false);
        }

        public Plain withShared(boolean gate) {
            return new Plain(router, routerBias, expertBias, weightOnInput, activation, true, gate);
        }

        Plain onInput() {
            return new Plain(router, routerBias, expertBias, true, activation, hasShared, hasSharedGate);
        }

        Plain biased() {
            return new Plain(router, routerBias, true, weightOnInput, activation, hasShared, hasSharedGate);
        }

        Plain gptOss() {
            return new Plain(router, true, true, weightOnInput, Plain::gptOss, hasShared, hasSharedGate);
        }

        /** By the tangent. */
        Plain gelu() {
            return new Plain(router, routerBias, expertBias, weightOnInput, Plain::gelu, hasShared, hasSharedGate);
        }

        private static double gptOss(double gate, double up) {
            double g = Math.min(gate, 7);
            return (Math.clamp(up, -7, 7) + 1) * g * sigmoid(1.702 * g);
        }

        private static double gelu(double gate, double up) {
            double inner = Math.sqrt(2 / Math.PI) * (gate + 0.044715 * gate * gate * gate);
            return gate * (1 + Math.tanh(inner)) / 2 * up;
        }
    }

    /** The layer's output for tokens [M, H]. */
    public double[] forward(float[] hidden, Plain plain) {
        double[] output = new double[hidden.length];
        for (int t = 0; t < hidden.length / H; t++) {
            double[] x = new double[H];
            for (int h = 0; h < H; h++) {
                x[h] = hidden[t * H + h];
            }
            double[] logits = times(router, x);
            if (plain.routerBias) {
                for (int e = 0; e < E; e++) {
                    logits[e] += routerBias[e];
                }
            }
            double[] weights = plain.router.weights(logits, correction);
            for (int e = 0; e < E; e++) {
                if (weights[e] != 0) {
                    double weight = weights[e];
                    double[] in = plain.weightOnInput
                            ? Arrays.stream(x).map(v -> v * weight).toArray()
                            : x;
                    double[] out = expert(experts[e], in, plain);
                    for (int h = 0; h < H; h++) {
                        output[t * H + h] += plain.weightOnInput ? out[h] : weight * out[h];
                    }
                }
            }
            if (plain.hasShared) {
                double weight = plain.hasSharedGate ? sigmoid(times(sharedGate, x)[0]) : 1;
                double[] out = expert(shared, x, plain);
                for (int h = 0; h < H; h++) {
                    output[t * H + h] += weight * out[h];
                }
            }
        }
        return output;
    }

    private static double[] expert(Expert expert, double[] x, Plain plain) {
        double[] gate = times(expert.gate, x);
        double[] up = times(expert.up, x);
        for (int i = 0; i < gate.length; i++) {
            double g = gate[i] + (plain.expertBias ? expert.gateBias[i] : 0);
            double u = up[i] + (plain.expertBias ? expert.upBias[i] : 0);
            gate[i] = plain.activation.applyAsDouble(g, u);
        }
        double[] out = times(expert.down, gate);
        for (int h = 0; h < H && plain.expertBias; h++) {
            out[h] += expert.downBias[h];
        }
        return out;
    }

    private static double[] times(float[][] matrix, double[] x) {
        return Arrays.stream(matrix)
                .mapToDouble(row -> IntStream.range(0, x.length)
                        .mapToDouble(i -> row[i] * x[i])
                        .sum())
                .toArray();
    }

    static double sigmoid(double x) {
        return 1 / (1 + Math.exp(-x));
    }

    public static double[] softmax(double[] x) {
        double[] exp = Arrays.stream(x).map(Math::exp).toArray();
        double sum = Arrays.stream(exp).sum();
        return Arrays.stream(exp).map(v -> v / sum).toArray();
    }

    static double[] map(double[] x, DoubleUnaryOperator function) {
        return Arrays.stream(x).map(function).toArray();
    }

    /** The numbers of the k greatest. */
    public static List<Integer> top(double[] x, int k) {
        return IntStream.range(0, x.length)
                .boxed()
                .sorted(Comparator.comparingDouble(e -> -x[e]))
                .limit(k)
                .toList();
    }

    /** Those values of x at these places, divided by their sum if so, times a factor; 0 elsewhere. */
    public static double[] only(double[] x, List<Integer> places, boolean renormalize, double factor) {
        double sum = renormalize ? places.stream().mapToDouble(e -> x[e]).sum() : 1;
        double[] kept = new double[x.length];
        places.forEach(e -> kept[e] = x[e] / sum * factor);
        return kept;
    }
}
