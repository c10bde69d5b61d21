package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Objects;
import java.util.Random;
import java.util.Set;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import javax.management.ObjectName;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.DeviceThread;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Alignment;
import org.tornadomoe.reference.Alignments;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.QuantizedTokens;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;
import org.tornadomoe.reference.Stages;
import org.tornadomoe.tornado.graph.PortableGemm;
import org.tornadomoe.tornado.layout.ExpertParts;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/** What must hold of a layer on any device, the interpreter included. */
public final class LayerChecks {
    private static final int BLOCK = 16;

    private LayerChecks() {}

    /** Every stage, fed with the reference's input to it, gives the reference's output. */
    static void stagesMatchReference(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int tokens) {
        stagesMatchReference(experts, Int8Quantization.of(scheme), layer, tokens);
    }

    /** The same for a block, group or rounding of choice. */
    static void stagesMatchReference(
            TornadoExperts experts, Int8Quantization quantization, RandomLayer layer, int tokens) {
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, quantization, Progress.NONE)) {
            stagesMatchReference(experts, int8, layer, tokens);
        }
    }

    /** The same for given weights. */
    static void stagesMatchReference(TornadoExperts experts, Int8Experts int8, RandomLayer layer, int tokens) {
        FusedMoeConfig config = layer.config();
        float[] hidden = layer.hidden(tokens, 1);
        Stages expected = Reference.forward(int8, hidden, tokens);
        StageValues given = values(expected, config.globalNumExperts());
        StageValues actual = experts.stages(config, int8, hidden, tokens, given);

        assertThat(actual.topkIds()).as("ids").isEqualTo(given.topkIds());
        close("weights", actual.topkWeights(), given.topkWeights(), 1e-5);
        assertThat(actual.sortedIds()).as("sorted ids").isEqualTo(given.sortedIds());
        assertThat(actual.expertIds()).as("experts of blocks").isEqualTo(given.expertIds());
        sameIntegers("a1", int8.scheme(), actual.a1(), given.a1());
        close("a1 scales", actual.a1Scales(), given.a1Scales(), 1e-6);
        close("gemm1", actual.gemm1(), given.gemm1(), products(experts));
        close("act", actual.act(), given.act(), 1e-5);
        sameIntegers("a2", int8.scheme(), actual.a2(), given.a2());
        close("a2 scales", actual.a2Scales(), scalesOfRows(given, config.globalNumExperts()), 1e-6);
        close("gemm2", actual.gemm2(), given.gemm2(), products(experts));
        close("output", actual.output(), given.output(), 1e-5);
    }

    /**
     * The same weights with scales of activations known beforehand, such that some are clamped, and w13's rows' own.
     */
    static void staticScalesMatchReference(TornadoExperts experts, RandomLayer layer, int tokens) {
        Arena arena = Arena.ofShared();
        try (Int8Experts dynamic = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_TENSOR, Progress.NONE)) {
            Int8Tensor from = dynamic.w13();
            Int8Tensor w13 = Int8Tensor.allocate(arena, from.experts(), from.rows(), from.cols());
            Int8Tensor w2 = like(arena, dynamic.w2().experts(), dynamic.w2());
            byte[] values = new byte[from.cols()];
            for (int e = 0; e < w13.experts(); e++) {
                for (int row = 0; row < from.rows(); row++) {
                    from.row(e, row, values);
                    w13.setRow(e, row, values, 0, from.scale(e, row, 0) * (row % 3 == 0 ? 1 : 0.7f));
                }
                copy(dynamic.w2(), e, w2, e);
            }
            QuantizedTokens a2 = Objects.requireNonNull(
                    Reference.forward(dynamic, layer.hidden(tokens, 1), tokens).a2());
            try (Int8Experts fixed = dynamic.with(layer.config(), w13, w2, arena)
                    .activationScales(0.02f, a2.scales()[0] * 0.7f)
                    .build()) {
                stagesMatchReference(experts, fixed, layer, tokens);
            }
        }
    }

    /**
     * The whole layer gives the reference's output for several token counts, one after the other, and the same bits
     * again.
     */
    static void forwardMatchesReference(
            TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int... tokenCounts) {
        forwardMatchesReference(experts, Int8Quantization.of(scheme), layer, tokenCounts);
    }

    /** The same for a block, group or rounding of choice. */
    static void forwardMatchesReference(
            TornadoExperts experts, Int8Quantization quantization, RandomLayer layer, int... tokenCounts) {
        int topK = layer.config().pairsPerToken();
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, quantization, Progress.NONE);
                MoeKernel kernel = experts.load(layer.config(), int8)) {
            StageAccesses.forget();
            for (int tokens : tokenCounts) {
                float[] hidden = layer.hidden(tokens, tokens);
                Stages expected = Reference.forward(int8, hidden, tokens);
                ChosenExperts chosen = ChosenExperts.allocate(tokens, topK);
                float[] output = forward(kernel, hidden, tokens, chosen);
                assertThat(chosen.ids())
                        .as("ids of %d tokens", tokens)
                        .isEqualTo(expected.routing().ids());
                assertThat(Numerics.relativeL2(Numerics.widen(output), expected.output()))
                        .as("relative L2 of %d tokens", tokens)
                        .isLessThan(tolerance(experts, int8));
                assertThat(forward(kernel, hidden, tokens, chosen)).isEqualTo(output);
            }
            StageAccesses.match(((TornadoMoeKernel) kernel).graph().stages());
        }
    }

    /**
     * The batched format gives the bits that the standard one gives: with tokens at random, and with all of them going
     * to the same experts, which leaves the others without any.
     */
    static void batchedMatchesStandard(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int tokens) {
        FusedMoeConfig config = layer.config();
        ChosenExperts chosen = ChosenExperts.allocate(tokens, config.pairsPerToken());
        float[] anything = layer.hidden(tokens, 3);
        float[] oneToken = layer.hidden(1, 4);
        float[] alike = new float[anything.length];
        for (int i = 0; i < alike.length; i++) {
            alike[i] = oneToken[i % oneToken.length] * (1 + i / oneToken.length % 3);
        }
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                MoeKernel batched = experts.load(layer.batched().config(), int8);
                MoeKernel standard = experts.load(config, int8)) {
            float[] fewer = Arrays.copyOf(anything, (tokens + 1) / 2 * config.hiddenDim());
            for (float[] hidden : List.of(fewer, anything, alike)) {
                int m = hidden.length / config.hiddenDim();
                assertThat(forward(batched, hidden, m, chosen))
                        .as("%d tokens", m)
                        .isEqualTo(forward(standard, hidden, m, chosen));
            }
            assertThat(Arrays.stream(chosen.ids()).distinct())
                    .as("experts that all tokens went to")
                    .hasSize(config.pairsPerToken());
        }
    }

    /**
     * Experts in as many arrays as there may be give the bits that they give in one, and the reference's stages.
     */
    static void expertsInSeveralArraysGiveTheSameBits(
            TornadoExperts experts, Int8Quantization quantization, RandomLayer layer, int... tokenCounts) {
        FusedMoeConfig config = layer.config();
        int most = Arrays.stream(tokenCounts).max().orElseThrow();
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, quantization, Progress.NONE);
                MoeKernel whole = experts.load(config, int8)) {
            inSeveralArrays(() -> {
                assertThat(ExpertParts.of(config, config.numLocalExperts(), new PortableGemm().layout())
                                .count())
                        .isGreaterThan(Math.min(4, config.numLocalExperts() - 1));
                try (MoeKernel parts = experts.load(config, int8)) {
                    for (int tokens : tokenCounts) {
                        ChosenExperts chosen = ChosenExperts.allocate(tokens, config.pairsPerToken());
                        float[] hidden = layer.hidden(tokens, 40 + tokens);
                        assertThat(forward(parts, hidden, tokens, chosen))
                                .as("%d tokens", tokens)
                                .isEqualTo(forward(whole, hidden, tokens, chosen));
                    }
                }
                stagesMatchReference(experts, int8, layer, most);
            });
        }
    }

    /**
     * TornadoVM counts no more memory than is told beforehand, and the weights in it; on CUDA and PTX it doesn't count
     * what it takes from a layer that was closed before.
     */
    static void memoryIsWhatIsTold(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer) {
        FusedMoeConfig config = layer.config();
        int tokens = config.maxNumTokens();
        DeviceMemory told = Objects.requireNonNull(experts.memory(config, scheme.weightKey(), scheme.activationKey()));
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                MoeKernel kernel = experts.load(config, int8)) {
            forward(kernel, layer.hidden(tokens, 1), tokens, ChosenExperts.allocate(tokens, config.pairsPerToken()));
            boolean countsAll =
                    Set.of("opencl", "interpreter").contains(kernel.device().replaceFirst("[ :].*", ""));
            assertThat(((TornadoMoeKernel) kernel).bytesInUse())
                    .isBetween(countsAll ? told.weights() : 0, told.bytes());
            assertThat(kernel.deviceBytes()).isEqualTo(told.bytes());
            assertThat(told.overhead()).isBetween(1.0, 1.05);
        }
    }

    /** By TornadoVM's own account: only the interpreter tells. */
    static void aClosedLayerLeavesNothing(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer) {
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
            TornadoMoeKernel kernel = (TornadoMoeKernel) experts.load(layer.config(), int8);
            try (kernel) {
                forward(
                        kernel,
                        layer.hidden(3, 1),
                        3,
                        ChosenExperts.allocate(3, layer.config().pairsPerToken()));
                assertThat(kernel.bytesInUse()).isPositive();
            }
            assertThat(kernel.bytesInUse()).isZero();
        }
    }

    /**
     * The same on a GPU through CUDA, of which the driver tells, with and without adapters. The plans take 64 MiB and
     * more each, and each change of an adapter makes another plan.
     *
     * @param layer whose output takes 32 MiB
     */
    static void closedLayersLeaveNothingOnTheGpu(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer) {
        leavesNothingOnTheGpu(experts, scheme, layer, kernel -> {
            forward(kernel, layer.hidden(1, 1), 1, ChosenExperts.allocate(1, 1));
            forward(kernel, layer.hidden(1, 1), 1, null); // recorded, where that is possible
        });
        RandomLayer adapted = layer.withLora(1, 4);
        if (experts.isSupportedConfig(
                        adapted.config(),
                        scheme.weightKey(),
                        scheme.activationKey(),
                        adapted.config().activationFormat())
                .supported()) {
            leavesNothingOnTheGpu(experts, scheme, adapted, kernel -> {
                forward(kernel, layer.hidden(1, 1), 1, ChosenExperts.allocate(1, 1));
                kernel.setAdapter(0, adapted.adapter(4, false));
                forward(kernel, layer.hidden(1, 1), 1, ChosenExperts.allocate(1, 1));
            });
        }
    }

    private static void leavesNothingOnTheGpu(
            TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, Consumer<TornadoMoeKernel> calls) {
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                DeviceThread thread = new DeviceThread("closed layers", 1)) {
            long[] free = thread.call(() -> {
                long[] after = new long[6];
                for (int i = 0; i < after.length; i++) {
                    try (TornadoMoeKernel kernel = (TornadoMoeKernel) experts.load(layer.config(), int8)) {
                        calls.accept(kernel);
                    }
                    after[i] = freeBytes();
                }
                return after;
            });
            long[] left = IntStream.range(1, free.length)
                    .mapToLong(i -> free[i - 1] - free[i])
                    .sorted()
                    .toArray();
            assertThat(left[left.length / 2]).isLessThan(8 << 20);
        }
    }

    /** Of the GPU whose context is the calling thread's. */
    @SuppressWarnings("restricted") // calls the driver
    private static long freeBytes() throws Exception {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment free = arena.allocate(ValueLayout.JAVA_LONG);
            MemorySegment total = arena.allocate(ValueLayout.JAVA_LONG);
            MemorySegment function = SymbolLookup.libraryLookup("libcuda.so.1", arena)
                    .find("cuMemGetInfo_v2")
                    .orElseThrow();
            Object result = Linker.nativeLinker()
                    .downcallHandle(
                            function,
                            FunctionDescriptor.of(ValueLayout.JAVA_INT, ValueLayout.ADDRESS, ValueLayout.ADDRESS))
                    .invokeWithArguments(free, total);
            assertThat(result).isEqualTo(0);
            return free.get(ValueLayout.JAVA_LONG, 0);
        } catch (Exception | Error failure) {
            throw failure;
        } catch (Throwable failure) {
            throw new IllegalStateException(failure);
        }
    }

    /** TornadoVM keeps what every execution of a plan gave. */
    static void callsAreForgotten(String device) throws Exception {
        RandomLayer layer = RandomLayer.of(2, 1, 4, 3, 1, 47).on(device);
        MoeOptions options = MoeOptions.DEFAULT.withBackend("triton").withDevice(device);
        try (MoeLayer moe = MoeLayer.of(layer, options)) {
            float[] hidden = layer.hidden(1, 1);
            float[] once = moe.forward(hidden);
            for (int i = 0; i < 300; i++) {
                assertThat(moe.forward(hidden)).isEqualTo(once);
            }
            assertThat(instances(TornadoExecutionResult.class)).isBetween(1, 140);
        }
    }

    /** Those that something holds. */
    private static int instances(Class<?> type) throws Exception {
        String all = (String) ManagementFactory.getPlatformMBeanServer()
                .invoke(
                        new ObjectName("com.sun.management:type=DiagnosticCommand"),
                        "gcClassHistogram",
                        new Object[] {new String[0]},
                        new String[] {String[].class.getName()});
        Matcher line = Pattern.compile("(\\d+) +\\d+ +" + Pattern.quote(type.getName()) + "\\b")
                .matcher(all);
        return line.find() ? Integer.parseInt(line.group(1)) : 0;
    }

    /**
     * A layer that has run goes on after a model on the same device is through and closed, and so does a model after a
     * layer.
     */
    static void layersOutliveAModelsPlan(String device) {
        RandomLayer layer = RandomLayer.of(5, 2, 26, 14, 9, 3).on(device);
        float[] hidden = layer.hidden(9, 1);
        MoeOptions options =
                MoeOptions.DEFAULT.withBackend("triton").withDevice(device).withMaxTokens(9);
        try (SmallModel model = SmallModel.of(layer, 2, Int8Scheme.W8A8_CHANNEL);
                MoeLayer stays = MoeLayer.of(layer, options)) {
            float[] before = stays.forward(hidden);
            float[][] once = model.asOnePlan(hidden, false, 9);
            assertThat(stays.forward(hidden)).isEqualTo(before);
            MoeLayer goes = MoeLayer.of(layer, options);
            assertThat(goes.forward(hidden)).isEqualTo(before);
            Iterator<Runnable> between =
                    List.<Runnable>of(() -> {}, goes::close).iterator();
            assertThat(model.asOnePlan(hidden, false, () -> between.next().run(), 9, 9))
                    .isDeepEqualTo(new float[][] {once[0], once[0]});
            assertThat(stays.forward(hidden)).isEqualTo(before);
        }
    }

    /**
     * Two layers in a graph of nine tokens and in another of the same plan for single tokens, which has their weights
     * from the first: a token's bits are the same in both, however often they take turns.
     */
    static void theSameLayersInTwoGraphsOfAPlan(String device) {
        RandomLayer layer = RandomLayer.of(5, 2, 26, 14, 9, 3).on(device);
        int h = layer.config().hiddenDim();
        FloatArray hidden = FloatArray.fromArray(layer.hidden(9, 1));
        FloatArray between = new FloatArray(9 * h);
        FloatArray output = new FloatArray(9 * h);
        TaskGraph many = new TaskGraph("many").transferToDevice(DataTransferMode.EVERY_EXECUTION, hidden);
        TaskGraph single = new TaskGraph("single").transferToDevice(DataTransferMode.EVERY_EXECUTION, hidden);
        try (Int8Experts experts = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                Int8Experts others = Int8Quantizer.quantize(
                        RandomLayer.of(5, 2, 26, 14, 9, 4), Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeTasks moe = new MoeTasks(many, new GridScheduler(), layer.config())) {
            moe.append("a", experts, hidden, between);
            moe.append("b", others, between, output);
            many.transferToHost(DataTransferMode.UNDER_DEMAND, between)
                    .transferToHost(DataTransferMode.EVERY_EXECUTION, output);
            single.consumeFromDevice("many", between, output);
            try (MoeTasks again = new MoeTasks(moe, single)) {
                again.appendAgain("a", 0, experts, hidden, between);
                again.appendAgain("b", 1, others, between, output);
                single.transferToHost(DataTransferMode.EVERY_EXECUTION, output);
                assertThat(again.deviceBytes()).isZero();
                TornadoExecutionPlan plan = new TornadoExecutionPlan(many.snapshot(), single.snapshot());
                moe.launchOn(plan);
                float[] before = new float[0];
                for (int turn = 0; turn < 3; turn++) {
                    moe.setTokens(9);
                    moe.execute(plan.withGraph(0));
                    float[] all = output.toHeapArray();
                    assertThat(all).isNotEqualTo(new float[9 * h]);
                    assertThat(turn == 0 ? all : before).isEqualTo(all);
                    before = all;
                    output.init(7);
                    again.setTokens(1);
                    moe.execute(plan.withGraph(1));
                    assertThat(Arrays.copyOf(output.toHeapArray(), h)).isEqualTo(Arrays.copyOf(all, h));
                }
            }
        }
    }

    /** Products of dense matrices, one after the other and beside a layer; two of one shape share their workspace. */
    static void productsAreSumsOfTheirRows(String device, Int8Scheme scheme, double most) {
        int m = 9;
        int h = 64;
        int n = 80;
        RandomLayer layer = RandomLayer.of(5, 2, h, 32, m, 3).on(device);
        FloatArray x = FloatArray.fromArray(layer.hidden(m, 1));
        FloatArray wide = new FloatArray(m * n);
        FloatArray other = new FloatArray(m * n);
        FloatArray back = new FloatArray(m * h);
        FloatArray moeOutput = new FloatArray(m * h);
        TaskGraph graph = new TaskGraph("products").transferToDevice(DataTransferMode.EVERY_EXECUTION, x);
        try (Arena arena = Arena.ofShared();
                Int8Experts experts = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeTasks moe = new MoeTasks(graph, new GridScheduler(), layer.config())) {
            Int8Tensor up = randomMatrix(arena, n, h, 5);
            Int8Tensor another = randomMatrix(arena, n, h, 6);
            Int8Tensor down = randomMatrix(arena, h, n, 7);
            moe.appendProduct("up", up, scheme, x, wide);
            moe.append("moe", experts, x, moeOutput);
            moe.appendProduct("another", another, scheme, x, other);
            moe.appendProduct("down", down, scheme, wide, back);
            graph.transferToHost(DataTransferMode.EVERY_EXECUTION, wide, other, back, moeOutput);
            TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot());
            moe.launchOn(plan);
            for (int tokens : new int[] {m, 1, m - 1}) {
                List.of(wide, other, back).forEach(array -> array.init(0));
                moe.setTokens(tokens);
                moe.execute(plan);
                assertIsProduct("up", up, x, wide, tokens, most);
                assertIsProduct("another", another, x, other, tokens, most);
                assertIsProduct("down", down, wide, back, tokens, most);
            }
        }
    }

    private static Int8Tensor randomMatrix(Arena arena, int rows, int cols, int seed) {
        Random random = new Random(seed);
        Int8Tensor matrix = Int8Tensor.allocate(arena, 1, rows, cols);
        byte[] row = new byte[cols];
        for (int r = 0; r < rows; r++) {
            random.nextBytes(row);
            matrix.setRow(0, r, row, 0, (random.nextFloat() + 0.5f) / 1000);
        }
        return matrix;
    }

    private static void assertIsProduct(
            String name, Int8Tensor w, FloatArray x, FloatArray y, int tokens, double most) {
        double difference = 0;
        double squares = 0;
        for (int t = 0; t < tokens; t++) {
            for (int r = 0; r < w.rows(); r++) {
                double sum = 0;
                for (int k = 0; k < w.cols(); k++) {
                    sum += (double) x.get(t * w.cols() + k) * w.get(0, r, k) * w.scale(0, r);
                }
                double d = y.get(t * w.rows() + r) - sum;
                difference += d * d;
                squares += sum * sum;
            }
        }
        assertThat(Math.sqrt(difference / squares)).as(name + " of " + tokens).isLessThan(most);
    }

    /**
     * Does something while arrays hold one expert each, or as many as it takes for {@link ExpertParts#MAX_PARTS} to
     * hold all.
     */
    static void inSeveralArrays(Runnable what) {
        System.setProperty(ExpertParts.BYTES_PROPERTY, "1");
        try {
            what.run();
        } finally {
            System.clearProperty(ExpertParts.BYTES_PROPERTY);
        }
    }

    /** Stages, whole layer and parts, in the standard format and in the batched one. */
    static void everyStageAndPart(TornadoExperts experts, Int8Scheme scheme, RandomLayer standard, int tokens) {
        for (RandomLayer layer : List.of(standard, standard.batched())) {
            stagesMatchReference(experts, scheme, layer, tokens);
            forwardMatchesReference(experts, scheme, layer, tokens, 1);
            partsAddUp(experts, scheme, layer, 2, tokens);
        }
    }

    /** Ids and weights of the caller's: some of nobody, some of zero experts, other ones in every call. */
    static void handedInMatchesReference(TornadoExperts experts, RandomLayer layer, int tokens) {
        FusedMoeConfig config = layer.config();
        int pairs = config.pairsPerToken();
        int most = config.globalNumExperts() + config.router().numZeroExperts();
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeKernel kernel = experts.load(config, int8)) {
            for (int m : new int[] {tokens, 1, tokens - 1}) {
                float[] hidden = layer.hidden(m, m);
                ChosenExperts given = ChosenExperts.allocate(m, pairs);
                double[] weights = new double[m * pairs];
                for (int p = 0; p < weights.length; p++) {
                    given.ids()[p] = (p / pairs + 3 * (p % pairs) + m) % (most + 1) - 1;
                    weights[p] = given.weights()[p] = 0.25f + p % 5;
                }
                Routing routing = new Routing(m, pairs, given.ids().clone(), weights);
                float[] output = forward(kernel, hidden, m, given);
                assertThat(given.ids()).isEqualTo(routing.ids());
                assertThat(Numerics.relativeL2(
                                Numerics.widen(output),
                                Reference.forward(int8, hidden, new double[0], routing)
                                        .output()))
                        .isLessThan(2e-3);
            }
        }
    }

    /**
     * The outputs of the parts of a layer, one a rank, add up to the layer's, unless each part finds one scale of its
     * own activations; and a part alone is what the reference says.
     */
    static void partsAddUp(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int ranks, int tokens) {
        FusedMoeConfig config = layer.config();
        float[] hidden = layer.hidden(tokens, 2);
        ChosenExperts chosen = ChosenExperts.allocate(tokens, config.pairsPerToken());
        try (Int8Experts whole = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                MoeKernel kernel = experts.load(config, whole)) {
            float[] expected = forward(kernel, hidden, tokens, chosen);
            double[] sum = new double[expected.length];
            for (int rank = 0; rank < ranks; rank++) {
                int[] map = new int[config.globalNumExperts()];
                int local = 0;
                for (int e = 0; e < map.length; e++) {
                    map[e] = e % ranks == rank ? local++ : -1;
                }
                try (Int8Experts part = part(layer, scheme, map);
                        MoeKernel partKernel = experts.load(config, part)) {
                    float[] output = forward(partKernel, hidden, tokens, chosen);
                    assertThat(Numerics.relativeL2(
                                    Numerics.widen(output),
                                    Reference.forward(part, hidden, tokens).output()))
                            .as("rank %d", rank)
                            .isLessThan(tolerance(experts, part));
                    for (int i = 0; i < sum.length; i++) {
                        sum[i] += output[i];
                    }
                }
            }
            if (scheme != Int8Scheme.W8A8_TENSOR) {
                assertThat(Numerics.relativeL2(sum, Numerics.widen(expected))).isLessThan(1e-6);
            }
        }
    }

    /**
     * Adapters of several ranks in one batch give what the definition gives; tokens without one, and those with an
     * adapter of zeros, the bits of a layer without adapters.
     */
    static void adaptersMatchReference(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int tokens) {
        FusedMoeConfig config = layer.config().toBuilder().lora(3, 5).build();
        float[] hidden = layer.hidden(tokens, 5);
        LoraAdapter zeros = LoraAdapter.of(
                4,
                4,
                new float[LoraAdapter.slices(config) * 4 * config.hiddenDim()],
                new float[config.gateUpRows() * 4],
                new float[4 * config.intermediateSize()],
                new float[config.hiddenDim() * 4]);
        List<LoraAdapter> adapters = List.of(layer.adapter(5, false), layer.adapter(2, true), zeros);
        int[] slots = IntStream.range(0, tokens).map(m -> m % 4 - 1).toArray();
        ChosenExperts chosen = ChosenExperts.allocate(tokens, config.pairsPerToken());
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                MoeKernel plain = experts.load(layer.config(), int8);
                MoeKernel kernel = experts.load(config, int8)) {
            float[] without = forward(plain, hidden, tokens, chosen);
            assertThat(forward(kernel, hidden, tokens, chosen)).isEqualTo(without);
            for (int slot = 0; slot < 3; slot++) {
                Adapters.of(kernel).setAdapter(slot, adapters.get(slot));
            }
            List<@Nullable LoraAdapter> adapterOfToken = new ArrayList<>();
            for (int slot : slots) {
                adapterOfToken.add(slot < 0 ? null : adapters.get(slot));
            }
            double[] logits = Router.logits(config, int8.router(), Numerics.widen(hidden), tokens);
            double[] expected = Reference.forward(
                            int8, hidden, logits, Router.route(config, int8.router(), logits, tokens), adapterOfToken)
                    .output();
            float[] output = forward(kernel, hidden, tokens, chosen, slots);
            assertThat(Numerics.relativeL2(Numerics.widen(output), expected)).isLessThan(tolerance(experts, int8));
            int h = config.hiddenDim();
            // With one scale for all, what an adapter does to its tokens moves the others', too.
            for (int m = 0; m < tokens && scheme != Int8Scheme.W8A8_TENSOR; m++) {
                float[] row = Arrays.copyOfRange(output, m * h, (m + 1) * h);
                float[] plainRow = Arrays.copyOfRange(without, m * h, (m + 1) * h);
                if (slots[m] == 0 || slots[m] == 1) {
                    assertThat(Numerics.relativeL2(Numerics.widen(row), Numerics.widen(plainRow)))
                            .as("token %d", m)
                            .isGreaterThan(0.05);
                } else {
                    assertThat(row).as("token %d", m).isEqualTo(plainRow);
                }
            }
            assertThat(forward(kernel, hidden, tokens, chosen, slots)).isEqualTo(output);
            Adapters.of(kernel).setAdapter(0, null);
            Adapters.of(kernel).setAdapter(1, null);
            assertThat(forward(kernel, hidden, tokens, chosen, slots)).isEqualTo(without);
        }
    }

    /** A rank that has every second expert adds its own experts' part of an adapter, and no other. */
    static void adaptersOfAPartMatchReference(
            TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int tokens) {
        FusedMoeConfig config = layer.config().toBuilder().lora(1, 3).build();
        float[] hidden = layer.hidden(tokens, 6);
        int[] map = IntStream.range(0, config.numExperts())
                .map(e -> e % 2 == 1 ? e / 2 : -1)
                .toArray();
        LoraAdapter adapter = layer.adapter(3, false);
        ChosenExperts chosen = ChosenExperts.allocate(tokens, config.pairsPerToken());
        try (Int8Experts part = part(layer, scheme, map);
                MoeKernel kernel = experts.load(config, part)) {
            Adapters.of(kernel).setAdapter(0, adapter);
            double[] logits = Router.logits(config, part.router(), Numerics.widen(hidden), tokens);
            double[] expected = Reference.forward(
                            part,
                            hidden,
                            logits,
                            Router.route(config, part.router(), logits, tokens),
                            Collections.nCopies(tokens, adapter))
                    .output();
            float[] output = forward(kernel, hidden, tokens, chosen, new int[tokens]);
            assertThat(Numerics.relativeL2(Numerics.widen(output), expected)).isLessThan(tolerance(experts, part));
        }
    }

    private static float[] forward(
            MoeKernel kernel, float[] hidden, int tokens, ChosenExperts chosen, int[] slotOfToken) {
        float[] output = new float[hidden.length];
        Arrays.fill(output, Float.NaN);
        kernel.forward(MemorySegment.ofArray(hidden), tokens, MemorySegment.ofArray(output), chosen, slotOfToken);
        return output;
    }

    /** Those experts of a layer that a map gives a local number. */
    public static Int8Experts part(RandomLayer layer, Int8Scheme scheme, int[] map) {
        FusedMoeConfig config = layer.config();
        int local = (int) Arrays.stream(map).filter(e -> e >= 0).count();
        Arena arena = Arena.ofShared();
        try (Int8Experts whole = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
            Int8Tensor w13 = like(arena, local, whole.w13());
            Int8Tensor w2 = like(arena, local, whole.w2());
            for (int e = 0; e < map.length; e++) {
                if (map[e] >= 0) {
                    copy(whole.w13(), e, w13, map[e]);
                    copy(whole.w2(), e, w2, map[e]);
                }
            }
            return whole.with(config, w13, w2, arena)
                    .expertMap(map)
                    .biases(part(whole.w13Bias(), map, local), part(whole.w2Bias(), map, local))
                    .build();
        }
    }

    private static float @Nullable [] part(float @Nullable [] bias, int[] map, int local) {
        if (bias == null) {
            return null;
        }
        int rows = bias.length / map.length;
        float[] part = new float[local * rows];
        for (int e = 0; e < map.length; e++) {
            if (map[e] >= 0) {
                System.arraycopy(bias, e * rows, part, map[e] * rows, rows);
            }
        }
        return part;
    }

    private static Int8Tensor like(Arena arena, int experts, Int8Tensor tensor) {
        return Int8Tensor.allocate(
                arena,
                experts,
                tensor.rows(),
                tensor.cols(),
                tensor.rowsPerScale(),
                tensor.colsPerScale(),
                tensor.zeroPoints() != null);
    }

    private static void copy(Int8Tensor from, int expert, Int8Tensor into, int at) {
        byte[] row = new byte[from.cols()];
        for (int r = 0; r < from.rows(); r++) {
            from.row(expert, r, row);
            into.setRow(at, r, row, 0);
        }
        int scales = from.scaleRows() * from.scaleCols();
        System.arraycopy(from.scales(), expert * scales, into.scales(), at * scales, scales);
        byte[] zeroPoints = from.zeroPoints();
        byte[] partZeroPoints = into.zeroPoints();
        if (zeroPoints != null && partZeroPoints != null) {
            System.arraycopy(zeroPoints, expert * scales, partZeroPoints, at * scales, scales);
        }
    }

    static float[] forward(MoeKernel kernel, float[] hidden, int tokens, @Nullable ChosenExperts chosen) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment output = arena.allocate(4L * hidden.length, 16);
            output.fill((byte) 0xFF);
            kernel.forward(arena.allocateFrom(ValueLayout.JAVA_FLOAT, hidden), tokens, output, chosen, null);
            return output.toArray(ValueLayout.JAVA_FLOAT);
        }
    }

    /** The reference's stages as what the kernels exchange. */
    public static StageValues values(Stages stages, int experts) {
        Alignment alignment = Alignments.align(stages.routing().ids(), experts, BLOCK);
        QuantizedTokens none = new QuantizedTokens(new byte[0], new float[0]);
        QuantizedTokens a1 = stages.a1() == null ? none : stages.a1();
        QuantizedTokens a2 = stages.a2() == null ? none : stages.a2();
        return new StageValues(
                narrow(stages.logits()),
                stages.routing().ids(),
                narrow(stages.routing().weights()),
                BLOCK,
                alignment.sortedTokenIds(),
                alignment.expertIds(),
                a1.values(),
                a1.scales(),
                narrow(stages.gemm1()),
                narrow(stages.act()),
                a2.values(),
                a2.scales(),
                narrow(stages.gemm2()),
                narrow(stages.output()));
    }

    static float[] narrow(double[] values) {
        float[] floats = new float[values.length];
        for (int i = 0; i < values.length; i++) {
            floats[i] = (float) values[i];
        }
        return floats;
    }

    /** A pair of a zero expert has no row, so no scale either. */
    private static float[] scalesOfRows(StageValues given, int experts) {
        float[] scales = given.a2Scales().clone();
        int groups = scales.length / given.topkIds().length;
        for (int i = 0; i < scales.length; i++) {
            int id = given.topkIds()[i / groups];
            scales[i] = id >= 0 && id < experts ? scales[i] : 0;
        }
        return scales;
    }

    /** What halves with 11 bits, of both factors, leave of a product's values. */
    private static double products(TornadoExperts experts) {
        return experts.gemm().rounding(Int8Scheme.W8A16_CHANNEL) != null ? 2e-3 : 1e-5;
    }

    /**
     * Of a whole layer against the definition. The second quantisation amplifies last-bit differences of what it is
     * given.
     */
    private static double tolerance(TornadoExperts kernels, Int8Experts experts) {
        if (!experts.scheme().quantizesActivations()) {
            return kernels.gemm().rounding(Int8Scheme.W8A16_CHANNEL) != null ? 1.5e-3 : 1e-5;
        }
        // An activation next to a boundary moves by one step, of 127 for a row's greatest. Where quotients are
        // truncated, every
        // group's greatest is next to one.
        boolean truncated = experts.scheme() == Int8Scheme.W8A8_BLOCK
                && !experts.quantization().roundToNearest();
        return truncated ? 1 / 127.0 : 2e-3;
    }

    /**
     * With a scale a row, where devices multiply by an approximate reciprocal, a value on a boundary may go the other
     * way.
     */
    private static void sameIntegers(String what, Int8Scheme scheme, byte[] actual, byte[] expected) {
        if (scheme != Int8Scheme.W8A8_CHANNEL) {
            assertThat(actual).as(what).isEqualTo(expected);
            return;
        }
        assertThat(actual).as(what).hasSameSizeAs(expected);
        int different = 0;
        for (int i = 0; i < actual.length; i++) {
            assertThat((int) actual[i]).as("%s[%d]", what, i).isCloseTo(expected[i], within(1));
            different += actual[i] == expected[i] ? 0 : 1;
        }
        assertThat(different).as("differing values of %s", what).isLessThanOrEqualTo(1 + actual.length / 10_000);
    }

    /** Relative to the greatest magnitude, since sums of terms of either sign cancel; and every element was written. */
    private static void close(String what, float[] actual, float[] expected, double tolerance) {
        assertThat(actual).as(what).hasSameSizeAs(expected);
        double greatest = 0;
        for (float value : expected) {
            greatest = Math.max(greatest, Math.abs(value));
        }
        for (int i = 0; i < actual.length; i++) {
            assertThat((double) actual[i]).as("%s[%d]", what, i).isCloseTo(expected[i], within(tolerance * greatest));
        }
    }
}
