package org.tornadomoe.bench;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;

/**
 * Measures one call of the CPU's layer, and of ONNX Runtime's {@code QMoE} with the same weights and number of threads:
 * E 16, H 2048, I 768, K 2. Hidden states change from call to call. ONNX Runtime gets router logits as an input and
 * keeps activations in float; this library's layer computes the logits and quantises activations to int8. Before
 * timing, both are checked against the definition.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.SampleTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 3, time = 4)
@Measurement(iterations = 5, time = 3)
@Fork(
        value = 3,
        jvmArgsAppend = {
            // ONNX Runtime searches the command line recursively; a long class path overflows the default stack.
            "-Xss64m",
            "--add-modules=jdk.incubator.vector",
            "--enable-native-access=ALL-UNNAMED",
            "-XX:MaxDirectMemorySize=2g"
        })
public class CpuMoeBenchmark {
    private static final int E = 16;
    private static final int H = 2048;
    private static final int I = 768;
    private static final int K = 2;
    private static final int DRAWS = 16;
    private static final String DEVICE = "opencl:0";

    /** int8 activations, which ONNX Runtime doesn't use, cause an error of 1e-2; a wrong result differs more. */
    private static final double TOLERANCE = 3e-2;

    @Param({"1", "16", "128"})
    int tokens;

    /**
     * The implementation; {@code tornadovm} is this library's task graphs on {@value #DEVICE}, in a JVM started with
     * TornadoVM's SDK.
     */
    @Param({"tornadomoe", "onnxruntime"})
    String what;

    private final SplittableRandom random = new SplittableRandom(1);
    private final List<float[]> hidden = new ArrayList<>();
    private float[] output;
    private MoeLayer layer;
    private OrtSession session;
    private OrtSession.RunOptions runOptions;
    private final List<Map<String, OnnxTensor>> inputs = new ArrayList<>();
    private int call;

    @Setup
    public void load() throws IOException, OrtException {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(E)
                .expertsPerToken(K)
                .hiddenDim(H)
                .intermediateSize(I)
                .maxNumTokens(tokens)
                .activation(MoeActivation.SWIGLUOAI)
                .swigluAlpha(1.0)
                .swigluBeta(0.0)
                .swigluLimit(1e30)
                .build();
        output = new float[tokens * H];
        for (int draw = 0; draw < DRAWS; draw++) {
            hidden.add(gaussian(tokens * H, 1));
        }
        float[] router = gaussian(E * H, 0.05);
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = tensor(arena, 2 * I, H);
        Int8Tensor w2 = tensor(arena, H, I);
        try (Int8Experts experts =
                Int8Experts.of(config, Int8Scheme.W8A8_CHANNEL, w13, w2, RouterWeights.of(router), arena)) {
            MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(tokens);
            layer = MoeLayer.of(
                    experts,
                    what.equals("tornadovm")
                            ? options.withBackend("triton").withDevice(DEVICE)
                            : options.withBackend("cpu"));
            System.out.println(layer.kernelClass() + " on " + layer.device());
            OrtEnvironment environment = OrtEnvironment.getEnvironment();
            OrtSession.SessionOptions session = new OrtSession.SessionOptions();
            session.setIntraOpNumThreads(Runtime.getRuntime().availableProcessors());
            session.setInterOpNumThreads(1);
            this.session = environment.createSession(
                    Files.readAllBytes(Path.of("bench/src/main/resources/onnx/qmoe_swiglu_interleaved.onnx")), session);
            runOptions = new OrtSession.RunOptions();
            OnnxTensor w1 = unsigned(environment, w13);
            OnnxTensor s1 = floats(environment, w13.scales(), E, 2 * I);
            OnnxTensor w2s = unsigned(environment, w2);
            OnnxTensor s2 = floats(environment, w2.scales(), E, H);
            for (float[] x : hidden) {
                double[] logits = Router.logits(config, experts.router(), Numerics.widen(x), tokens);
                Map<String, OnnxTensor> of = new HashMap<>();
                of.put("x", floats(environment, x, tokens, H));
                of.put("r", floats(environment, narrow(logits), tokens, E));
                of.put("w1", w1);
                of.put("s1", s1);
                of.put("w2", w2s);
                of.put("s2", s2);
                inputs.add(of);
            }
            double[] exact = Reference.forward(experts, hidden.get(0), tokens).output();
            layer.forward(hidden.get(0), tokens, output, null);
            // A device's exponential function may round an activation to the next integer; the CPU's class gets the
            // definition's integers.
            require(
                    "tornado-moe",
                    Numerics.relativeL2(Numerics.widen(output), exact),
                    what.equals("tornadovm") ? 1e-3 : 1e-5);
            require("ONNX Runtime", Numerics.relativeL2(Numerics.widen(onnx(0)), exact), TOLERANCE);
        }
    }

    private static void require(String who, double error, double tolerance) {
        System.out.printf("%s: relative L2 error %.2e%n", who, error);
        if (!(error < tolerance)) {
            throw new IllegalStateException(who + ": expected an error below " + tolerance + ", got " + error);
        }
    }

    @Benchmark
    public Object call() throws OrtException {
        int draw = call++ % DRAWS;
        if (what.equals("onnxruntime")) {
            try (OrtSession.Result result = session.run(inputs.get(draw), runOptions)) {
                return result.size();
            }
        }
        layer.forward(hidden.get(draw), tokens, output, null);
        return output;
    }

    @TearDown
    public void close() throws OrtException {
        layer.close();
        session.close();
    }

    private float[] onnx(int draw) throws OrtException {
        try (OrtSession.Result result = session.run(inputs.get(draw), runOptions)) {
            FloatBuffer y = ((OnnxTensor) result.get(0)).getFloatBuffer();
            float[] values = new float[y.remaining()];
            y.get(values);
            return values;
        }
    }

    private float[] gaussian(int count, double deviation) {
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) (random.nextGaussian() * deviation);
        }
        return values;
    }

    private Int8Tensor tensor(Arena arena, int rows, int cols) {
        Int8Tensor tensor = Int8Tensor.allocate(arena, E, rows, cols);
        byte[] row = new byte[cols];
        for (int e = 0; e < E; e++) {
            for (int r = 0; r < rows; r++) {
                for (int c = 0; c < cols; c++) {
                    row[c] = (byte) random.nextInt(-127, 128);
                }
                tensor.setRow(e, r, row, 0, (float) (random.nextDouble(0.5, 1.5) / 73 / Math.sqrt(cols)));
            }
        }
        return tensor;
    }

    /** The values q as q + 128, in the same order: both widths are multiples of 16. */
    private static OnnxTensor unsigned(OrtEnvironment environment, Int8Tensor w) throws OrtException {
        long bytes = w.values().byteSize();
        ByteBuffer buffer = ByteBuffer.allocateDirect((int) bytes).order(ByteOrder.nativeOrder());
        MemorySegment to = MemorySegment.ofBuffer(buffer);
        for (long i = 0; i < bytes; i++) {
            to.set(ValueLayout.JAVA_BYTE, i, (byte) (w.values().get(ValueLayout.JAVA_BYTE, i) + 128));
        }
        return OnnxTensor.createTensor(
                environment, buffer, new long[] {w.experts(), w.rows(), w.cols()}, OnnxJavaType.UINT8);
    }

    private static OnnxTensor floats(OrtEnvironment environment, float[] values, long... shape) throws OrtException {
        FloatBuffer buffer = ByteBuffer.allocateDirect(4 * values.length)
                .order(ByteOrder.nativeOrder())
                .asFloatBuffer();
        buffer.put(values).flip();
        return OnnxTensor.createTensor(environment, buffer, shape);
    }

    private static float[] narrow(double[] values) {
        float[] narrow = new float[values.length];
        for (int i = 0; i < values.length; i++) {
            narrow[i] = (float) values[i];
        }
        return narrow;
    }
}
