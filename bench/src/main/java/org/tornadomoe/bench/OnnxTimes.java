package org.tornadomoe.bench;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.function.DoubleSupplier;
import org.tornadomoe.config.FusedMoeConfig;

/**
 * Times calls of ONNX Runtime's {@code QMoE} as {@link CpuTimes} times those of a layer, on as many threads as there
 * are cores: {@code OnnxTimes E:I:H:K SECONDS TOKENS,...}. {@code QMoE} gets its router's logits as an input and keeps
 * activations in float. {@link CpuMoeBenchmark} checks its results against the definition.
 */
public final class OnnxTimes {
    private static final int DRAWS = 4;
    private static final int FEWEST_CALLS = 3;

    /** The attribute k of the model's one node, an int; its value follows. */
    private static final byte[] K = {0x0a, 1, 'k', 0x18};

    private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    private final SplittableRandom random = new SplittableRandom(1);
    private final int[] shape;
    private final double seconds;

    private OnnxTimes(int[] shape, double seconds) {
        this.shape = shape;
        this.seconds = seconds;
    }

    public static void main(String[] args) throws IOException, OrtException {
        int[] shape =
                Arrays.stream(args[0].split(":")).mapToInt(Integer::parseInt).toArray();
        OnnxTimes times = new OnnxTimes(shape, Double.parseDouble(args[1]));
        int threads = Runtime.getRuntime().availableProcessors();
        int e = shape[0];
        int i = shape[1];
        int h = shape[2];
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setIntraOpNumThreads(threads);
            options.setInterOpNumThreads(1);
            try (OrtSession session = times.environment.createSession(model(shape[3]), options);
                    OnnxTensor w1 = times.weights(e, 2 * i, h);
                    OnnxTensor s1 = times.scales(e, 2 * i, h);
                    OnnxTensor w2 = times.weights(e, h, i);
                    OnnxTensor s2 = times.scales(e, h, i)) {
                Map<String, OnnxTensor> weights = Map.of("w1", w1, "s1", s1, "w2", w2, "s2", s2);
                for (String tokens : args[2].split(",")) {
                    int m = Integer.parseInt(tokens);
                    System.out.printf(
                            Locale.ROOT,
                            "{\"shape\":\"%s\",\"scheme\":\"qmoe int8\",\"device\":\"ONNX Runtime %s (%d threads)\","
                                    + "\"layers\":1,\"tokens\":%d,\"ms\":%.4f}%n",
                            args[0],
                            times.environment.getVersion(),
                            threads,
                            m,
                            times.median(session, weights, m));
                }
            }
        }
    }

    /** The model with another k, below 128. */
    private static byte[] model(int k) throws IOException {
        try (InputStream in =
                FusedMoeConfig.class.getClassLoader().getResourceAsStream("onnx/qmoe_swiglu_interleaved.onnx")) {
            if (in == null) {
                throw new IOException("onnx/qmoe_swiglu_interleaved.onnx is not on the class path");
            }
            byte[] model = in.readAllBytes();
            int at = 0;
            while (!Arrays.equals(model, at, at + K.length, K, 0, K.length)) {
                at++;
            }
            model[at + K.length] = (byte) k;
            return model;
        }
    }

    private double median(OrtSession session, Map<String, OnnxTensor> weights, int m) throws OrtException {
        List<Map<String, OnnxTensor>> inputs = new ArrayList<>();
        for (int draw = 0; draw < DRAWS; draw++) {
            Map<String, OnnxTensor> of = new HashMap<>(weights);
            of.put("x", gaussian(m, shape[2]));
            of.put("r", gaussian(m, shape[0]));
            inputs.add(of);
        }
        List<Double> times = new ArrayList<>();
        long begin = System.nanoTime();
        while (true) {
            long before = System.nanoTime();
            session.run(inputs.get(random.nextInt(DRAWS))).close();
            long after = System.nanoTime();
            if (after - begin > seconds * 1e9) { // the first half warms up
                times.add((after - before) / 1e6);
            }
            if (after - begin > 2 * seconds * 1e9 && times.size() >= FEWEST_CALLS) {
                break;
            }
        }
        for (Map<String, OnnxTensor> of : inputs) {
            of.get("x").close();
            of.get("r").close();
        }
        times.sort(null);
        return times.get(times.size() / 2);
    }

    private OnnxTensor weights(int experts, int rows, int cols) throws OrtException {
        ByteBuffer values = direct((long) experts * rows * cols);
        while (values.remaining() >= Long.BYTES) {
            values.putLong(random.nextLong());
        }
        return OnnxTensor.createTensor(
                environment, values.flip(), new long[] {experts, rows, cols}, OnnxJavaType.UINT8);
    }

    private OnnxTensor scales(int experts, int rows, int cols) throws OrtException {
        return floats(() -> random.nextDouble(0.5, 1.5) / 73 / Math.sqrt(cols), experts, rows);
    }

    private OnnxTensor gaussian(int rows, int cols) throws OrtException {
        return floats(random::nextGaussian, rows, cols);
    }

    private OnnxTensor floats(DoubleSupplier value, int rows, int cols) throws OrtException {
        FloatBuffer values = direct(4L * rows * cols).asFloatBuffer();
        while (values.hasRemaining()) {
            values.put((float) value.getAsDouble());
        }
        return OnnxTensor.createTensor(environment, values.flip(), new long[] {rows, cols});
    }

    private static ByteBuffer direct(long bytes) {
        return ByteBuffer.allocateDirect(Math.toIntExact(bytes)).order(ByteOrder.nativeOrder());
    }
}
