package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.BatchChecks;
import org.tornadomoe.MagnitudeChecks;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.HalfChecks;
import org.tornadomoe.tornado.graph.HopperGemm;
import org.tornadomoe.tornado.graph.PanelGemm;
import org.tornadomoe.tornado.graph.RouterChecks;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageChecks;
import org.tornadomoe.tornado.graph.StageRun;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.common.TornadoFunctions;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The layer on every device that TornadoVM's SDK has here ({@code -Dtornadomoe.test.device=ptx}: on those alone;
 * {@code -Dtornadomoe.test.class=TornadoMma}: by classes with such names alone); skipped, and counted as skipped, where
 * there is none.
 */
@Tag("device")
class DeviceLayerTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden/hf");

    private static List<Device> devices() {
        TornadoHome home = TornadoHome.current();
        assumeTrue(home.kind() == TornadoHome.Kind.SDK, () -> "no TornadoVM SDK: " + home.note());
        String prefix = System.getProperty("tornadomoe.test.device", "");
        return home.devices().stream().filter(d -> d.id().startsWith(prefix)).toList();
    }

    private static Stream<Arguments> kernelClasses() {
        List<Arguments> triples = new ArrayList<>();
        for (Device device : devices()) {
            FusedMoeConfig config =
                    RandomLayer.of(1, 1, 4, 4, 1, 1).on(device.id()).config();
            for (TornadoExperts experts : TornadoExperts.all()) {
                if (!experts.name().startsWith(System.getProperty("tornadomoe.test.class", ""))) {
                    continue;
                }
                for (Int8Scheme scheme : Int8Scheme.values()) {
                    if (experts.isSupportedConfig(
                                    config, scheme.weightKey(), scheme.activationKey(), config.activationFormat())
                            .supported()) {
                        triples.add(Arguments.of(device.id(), experts, scheme));
                    }
                }
            }
        }
        return triples.stream();
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void stagesMatchTheReference(String device, TornadoExperts experts, Int8Scheme scheme) {
        LayerChecks.stagesMatchReference(
                experts, scheme, RandomLayer.of(33, 6, 65, 33, 50, 1).on(device), 50);
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void routerWeightsOnTheInput(String device, TornadoExperts experts, Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(5, 1, 37, 19, 11, 14)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput()
                .on(device);
        LayerChecks.stagesMatchReference(experts, scheme, layer, 11);
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void oneKernelServesEveryTokenCount(String device, TornadoExperts experts, Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(9, 3, 50, 30, 60, 5).on(device);
        LayerChecks.forwardMatchesReference(experts, scheme, layer, 1, 60, 7, 59, 1);
        if (scheme == Int8Scheme.W8A8_BLOCK) {
            Int8Quantization nearest = Int8Quantization.of(scheme).withRoundToNearest(true);
            LayerChecks.forwardMatchesReference(experts, nearest, layer, 1, 60, 7, 59, 1);
        }
    }

    /**
     * From few pairs an expert to more than a tile of a matrix product takes, whole and half tiles, at sizes that are
     * no tile's.
     */
    @ParameterizedTest
    @MethodSource("kernelClasses")
    void everyBlockSize(String device, TornadoExperts experts, Int8Scheme scheme) {
        LayerChecks.forwardMatchesReference(
                experts, scheme, RandomLayer.of(3, 2, 330, 150, 520, 31).on(device), 520, 1, 9, 24, 90, 200, 3);
        LayerChecks.stagesMatchReference(
                experts,
                scheme,
                RandomLayer.of(2, 2, 70, 300, 300, 32).withBiases().on(device),
                300);
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void everyActivation(String device, TornadoExperts experts, Int8Scheme scheme) {
        for (MoeActivation activation : MoeActivation.values()) {
            RandomLayer layer = RandomLayer.of(5, 2, 37, 1031, 9, 20)
                    .activatedBy(activation)
                    .on(device);
            LayerChecks.stagesMatchReference(experts, scheme, layer, 9);
            LayerChecks.forwardMatchesReference(experts, scheme, layer, 9);
        }
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void biases(String device, TornadoExperts experts, Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(33, 6, 65, 33, 50, 21).withBiases().on(device);
        LayerChecks.stagesMatchReference(experts, scheme, layer, 50);
        LayerChecks.forwardMatchesReference(experts, scheme, layer, 50);
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void adapters(String device, TornadoExperts experts, Int8Scheme scheme) {
        LayerChecks.adaptersMatchReference(
                experts, scheme, RandomLayer.of(33, 6, 65, 33, 50, 23).on(device), 50);
    }

    @Test
    void activationsAreAccurateFromEndToEnd() {
        for (Device device : devices()) {
            for (MoeActivation activation : MoeActivation.values()) {
                StageChecks.activationIsAccurate(device, activation, 1e-5);
            }
        }
    }

    @Test
    void activationsAreQuantizedToTheBit() {
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(1, 12));
        for (Device device : devices()) {
            StageChecks.quantizationIsExact(device, block);
            StageChecks.quantizationIsExact(device, block.withRoundToNearest(true));
            StageChecks.quantizationIsExact(device, Int8Quantization.of(Int8Scheme.W8A8_TENSOR));
        }
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void partsOfALayerAddUpToIt(String device, TornadoExperts experts, Int8Scheme scheme) {
        LayerChecks.partsAddUp(
                experts, scheme, RandomLayer.of(7, 3, 30, 20, 25, 12).on(device), 3, 25);
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void expertsInSeveralArrays(String device, TornadoExperts experts, Int8Scheme scheme) {
        for (RandomLayer layer : List.of(
                RandomLayer.of(33, 6, 65, 33, 50, 41).on(device),
                RandomLayer.of(5, 2, 330, 150, 520, 42).withBiases().on(device))) {
            LayerChecks.expertsInSeveralArraysGiveTheSameBits(
                    experts,
                    Int8Quantization.of(scheme),
                    layer,
                    1,
                    9,
                    layer.config().maxNumTokens());
        }
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void theDeviceHoldsNoMoreThanIsTold(String device, TornadoExperts experts, Int8Scheme scheme) {
        // Sizes that are tiles', and groups' and blocks' with few scales.
        if (scheme != Int8Scheme.W8A16_GROUP) {
            LayerChecks.memoryIsWhatIsTold(
                    experts, scheme, RandomLayer.of(6, 2, 512, 256, 4, 46).on(device));
        }
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void theBatchedFormatEqualsTheStandardFormat(String device, TornadoExperts experts, Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(33, 6, 65, 33, 50, 16).on(device);
        LayerChecks.stagesMatchReference(experts, scheme, layer.batched(), 50);
        LayerChecks.batchedMatchesStandard(experts, scheme, layer, 50);
        // More than a block of the largest tile for an expert.
        LayerChecks.batchedMatchesStandard(
                experts, scheme, RandomLayer.of(3, 2, 65, 33, 300, 17).on(device), 300);
        LayerChecks.adaptersMatchReference(experts, scheme, layer.batched(), 50);
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void goldenLayersAreReproduced(String device, TornadoExperts experts, Int8Scheme scheme) {
        for (String family : List.of("mixtral", "qwen3_moe", "deepseek_v3", "llama4")) {
            Path checkpoint = GOLDEN.resolve(family);
            MoeOptions options =
                    MoeOptions.DEFAULT.withScheme(scheme).withDevice(device).withKernelClass(experts.name());
            try (Safetensors golden = Safetensors.open(checkpoint.resolve("golden.safetensors"));
                    MoeLayer layer = MoeLayer.load(checkpoint, 0, options)) {
                float[] output = layer.forward(golden.tensor("hidden_states").toFloats());
                double[] expected = Numerics.widen(golden.tensor("output").toFloats());
                assertThat(Numerics.relativeL2(Numerics.widen(output), expected))
                        .isLessThan(
                                scheme == Int8Scheme.W8A8_TENSOR || scheme == Int8Scheme.W8A8_BLOCK
                                        ? 5e-2
                                        : scheme.quantizesActivations() ? 2.5e-2 : 1.5e-2);
            }
        }
    }

    /**
     * At sizes on both sides of every switch of kernels and launches, most of which depend on the pairs of an expert;
     * fewer where the CPU is the device.
     */
    @ParameterizedTest
    @MethodSource("kernelClasses")
    void aTokensBitsDoNotDependOnItsBatch(String device, TornadoExperts experts, Int8Scheme scheme) {
        Int8Quantization quantization = Int8Quantization.of(scheme);
        RandomLayer few = RandomLayer.of(8, 2, 258, 136, 1, 51).withBiases().on(device);
        RandomLayer many = RandomLayer.of(128, 4, 260, 136, 1, 52).on(device);
        if (isTheCpu(device)) {
            BatchChecks.bitsDoNotDependOnTheBatch(experts, quantization, few, 5, 1, 2, 7, 17, 24, 25, 33, 65);
            return;
        }
        int[] sizes = {
            1, 2, 3, 7, 15, 16, 17, 20, 21, 24, 25, 31, 32, 33, 59, 60, 63, 64, 65, 127, 128, 129, 160, 161, 192, 193,
            255, 256, 257, 479, 480, 511, 512, 513, 767, 768, 769, 1023, 1024, 1025, 2049, 3168, 3169, 4096
        };
        BatchChecks.bitsDoNotDependOnTheBatch(experts, quantization, few, 64, sizes);
        BatchChecks.bitsDoNotDependOnTheBatch(experts, quantization, many, 64, sizes);
    }

    /** Routers, types, adapters, shared experts; and each activation, which Hopper's GEMMs have in their last step. */
    @ParameterizedTest
    @MethodSource("kernelClasses")
    void norInOtherLayers(String device, TornadoExperts experts, Int8Scheme scheme) {
        if (scheme != Int8Scheme.W8A8_CHANNEL || (isTheCpu(device) && !(experts.gemm() instanceof PanelGemm))) {
            return; // the same kernels but for the GEMMs
        }
        Int8Quantization quantization = Int8Quantization.of(scheme);
        RandomLayer layer = RandomLayer.of(40, 3, 132, 70, 1, 53).on(device);
        List<RandomLayer> layers = new ArrayList<>(List.of(
                layer.sharing(2)
                        .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, false)
                                .withCorrectionBias()
                                .withZeroExperts(3)
                                .withSharedExpertGate()),
                layer.routedBy(RouterConfig.of(ScoringFunction.SIGMOID, true)
                        .withCorrectionBias()
                        .withGroups(4, 2)),
                layer.routedBy(RoutingMethodType.CUSTOM),
                RandomLayer.of(40, 1, 132, 70, 1, 54)
                        .routedBy(RouterConfig.topKThenSigmoid())
                        .weighedOnInput()
                        .on(device),
                layer.withLora(2, 8),
                layer.ofType(ScalarType.BF16),
                layer.ofType(ScalarType.F16)));
        if (experts.gemm() instanceof HopperGemm) {
            for (MoeActivation activation : MoeActivation.values()) {
                layers.add(layer.activatedBy(activation).withBiases());
            }
        }
        int[] sizes = isTheCpu(device) ? new int[] {1, 17, 90} : new int[] {1, 5, 17, 33, 66, 67, 90, 769, 1100};
        for (RandomLayer one : layers) {
            BatchChecks.bitsDoNotDependOnTheBatch(experts, quantization, one, isTheCpu(device) ? 3 : 32, sizes);
        }
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void noOutputIsAnotherNumber(String device, TornadoExperts experts, Int8Scheme scheme) {
        for (MoeActivation activation : List.of(MoeActivation.SILU, MoeActivation.SWIGLUOAI, MoeActivation.GELU_TANH)) {
            MagnitudeChecks.noOutputIsAnotherNumber(experts, device, Int8Quantization.of(scheme), activation);
        }
    }

    private static boolean isTheCpu(String device) {
        Device found = TornadoHome.current().find(device);
        return found != null && !found.isBesideTheCpu();
    }

    @Test
    void scalesOfActivationsKnownBeforehand() {
        for (Device device : devices()) {
            LayerChecks.staticScalesMatchReference(
                    new TornadoPortableExperts(),
                    RandomLayer.of(5, 2, 50, 38, 13, 33).on(device.id()),
                    13);
        }
    }

    @Test
    void everyRouterIsTheReferences() {
        RouterConfig deepSeek = RouterConfig.of(ScoringFunction.SIGMOID, true).withCorrectionBias();
        for (Device device : devices()) {
            RouterChecks.choiceIsTheReferences(device, 48, 8, 0, 0, 9, 3);
            RouterChecks.choiceIsTheReferences(device, 6, 2, 1, 2, 9, 4);
            RouterChecks.choiceIsTheReferences(device, 1024, 32, 0, deepSeek.withGroups(512, 400), 9);
            RouterChecks.choiceIsTheReferences(device, 1022, 8, 2, RouterConfig.of(ScoringFunction.SOFTMAX, false), 9);
            RouterChecks.logitsAreTheReferences(device, 17, 300, 9);
        }
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void sharedAndZeroExperts(String device, TornadoExperts experts, Int8Scheme scheme) {
        RouterConfig router = RouterConfig.of(ScoringFunction.SOFTMAX, false)
                .withCorrectionBias()
                .withZeroExperts(3)
                .withSharedExpertGate()
                .withRoutedScalingFactor(6);
        RandomLayer layer =
                RandomLayer.of(5, 3, 26, 14, 9, 9).sharing(2).routedBy(router).on(device);
        LayerChecks.everyStageAndPart(experts, scheme, layer, 9);
        RandomLayer onInput = RandomLayer.of(5, 1, 37, 19, 9, 8)
                .sharing(1)
                .routedBy(RouterConfig.topKThenSigmoid())
                .weighedOnInput()
                .on(device);
        LayerChecks.everyStageAndPart(experts, scheme, onInput, 9);
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void asTasksOfAModel(String device, TornadoExperts experts, Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(9, 3, 50, 30, 60, 5).on(device);
        float[] hidden = layer.hidden(60, 1);
        boolean aTaskEach = new TornadoHopperExperts()
                .isSupportedConfig(
                        layer.config(),
                        scheme.weightKey(),
                        scheme.activationKey(),
                        layer.config().activationFormat())
                .supported();
        try (SmallModel model = SmallModel.of(layer, aTaskEach ? 32 : 4, scheme)) {
            float[] oneByOne = model.oneByOne(experts, hidden, 60);
            float[][] asOne = model.asOnePlan(hidden, false, 60, 60);
            if (experts.name().equals(model.kernels())) {
                assertThat(asOne[0]).isEqualTo(oneByOne);
            }
            assertThat(asOne[1]).isEqualTo(asOne[0]);
            if (!device.startsWith("opencl")) {
                float[][] recorded = model.asOnePlan(hidden, true, 60, 60, 60);
                for (float[] once : recorded) {
                    assertThat(once).isEqualTo(asOne[0]);
                }
            }
        }
    }

    @Test
    void aFullGraphIsToldOf() {
        for (Device device : devices()) {
            RandomLayer layer = RandomLayer.of(2, 1, 8, 4, 1, 5).on(device.id());
            FloatArray hidden = new FloatArray(8);
            FloatArray output = new FloatArray(8);
            try (Int8Experts experts = Int8Quantizer.quantize(layer, Int8Scheme.W8A16_GROUP, Progress.NONE);
                    MoeTasks moe = new MoeTasks(new TaskGraph("full"), new GridScheduler(), layer.config())) {
                assertThatThrownBy(() -> {
                            for (int i = 0; i < 100; i++) {
                                moe.append("layer" + i, experts, hidden, output);
                            }
                        })
                        .isInstanceOf(UnsupportedOperationException.class)
                        .hasMessageMatching("graph: .*, 8 KB, is full after ([6-9]|\\d\\d) layers of Tornado.*");
            }
        }
    }

    @Test
    void callsAreForgotten() throws Exception {
        for (Device device : devices()) {
            LayerChecks.callsAreForgotten(device.id());
        }
    }

    /**
     * Each class once, since its kernels take seconds to compile. Only NVIDIA's driver tells what is free, of the whole
     * GPU: what other processes take meanwhile doesn't move the median.
     */
    @ParameterizedTest
    @MethodSource("kernelClasses")
    void closedLayersLeaveNothingOnTheGpu(String device, TornadoExperts experts, Int8Scheme scheme) {
        assumeTrue(device.startsWith("cuda"), "only CUDA's driver tells");
        Int8Scheme first = Stream.of(Int8Scheme.values())
                .filter(other -> experts.supportsQuantScheme(other.weightKey(), other.activationKey()))
                .findFirst()
                .orElseThrow();
        assumeTrue(scheme == first, "the class ran with another scheme");
        LayerChecks.closedLayersLeaveNothingOnTheGpu(
                experts, scheme, RandomLayer.of(2, 1, 2048, 64, 4096, 48).on(device));
    }

    @Test
    void layersOutliveAModelsPlan() {
        devices().forEach(device -> LayerChecks.layersOutliveAModelsPlan(device.id()));
    }

    /** Tensor cores round activations to halves in w8a16. */
    @Test
    void productsAreSumsOfTheirRows() {
        for (Device device : devices()) {
            LayerChecks.productsAreSumsOfTheirRows(device.id(), Int8Scheme.W8A16_CHANNEL, 1e-3);
            LayerChecks.productsAreSumsOfTheirRows(device.id(), Int8Scheme.W8A8_CHANNEL, 1.5e-2);
        }
    }

    @Test
    void theSameLayersInTwoGraphsOfAPlan() {
        devices().forEach(device -> LayerChecks.theSameLayersInTwoGraphsOfAPlan(device.id()));
    }

    @ParameterizedTest
    @MethodSource("kernelClasses")
    void routingOnTheHost(String device, TornadoExperts experts, Int8Scheme scheme) {
        if (scheme.quantizesActivations()) {
            RandomLayer layer = RandomLayer.of(6, 2, 22, 18, 10, 10)
                    .sharing(1)
                    .routedBy(RouterConfig.of(ScoringFunction.CUSTOM, false).withZeroExperts(2))
                    .on(device);
            LayerChecks.handedInMatchesReference(experts, layer, 10);
        }
    }

    @Test
    void pairsOfReplicasAreFoundAndCounted() {
        for (Device device : devices()) {
            ReplicaChecks.match(device, 300, 8, 96);
            ReplicaChecks.match(device, 7, 3, 300);
        }
    }

    @Test
    void hiddenStatesOf16Bits() {
        for (Device device : devices()) {
            for (ScalarType type : List.of(ScalarType.F16, ScalarType.BF16)) {
                HalfChecks.kernelsConvertAsTheHost(device, type, false);
                HalfChecks.layersAgree("triton", device.id(), type);
            }
        }
    }

    @Test
    void aKernelThatCannotBeCompiledIsAnException() {
        // OpenCL C has a function of that name, and TornadoVM refuses to write a kernel called like it.
        IntArray values = new IntArray(64);
        assertFails(DeviceLayerTest::dot, 64, values, d -> d.is(Device.OPENCL));
    }

    @Test
    void whatTheCompilerLacksIsAnException() {
        // An array in a kernel has a constant length; TornadoVM throws an Error.
        assertFails(DeviceLayerTest::allocates, 64, new IntArray(64), d -> true);
    }

    @Test
    void aKernelThatCannotBeLaunchedIsAnException() {
        int group = 1 << 20;
        assertFails(DeviceLayerTest::increments, group, new IntArray(group), d -> true);
    }

    private static void assertFails(
            TornadoFunctions.Task2<KernelContext, IntArray> kernel,
            int group,
            IntArray values,
            Predicate<Device> where) {
        for (Device device : devices().stream().filter(where).toList()) {
            Stage stage = new Stage(
                    "impossible",
                    group,
                    m -> 1,
                    m -> 1,
                    (g, task) -> g.task(task, kernel, new KernelContext(), values),
                    List.of(values),
                    List.of(values));
            assertThatThrownBy(() -> StageRun.execute(device, "broken", List.of(stage), 1))
                    .isInstanceOf(MoeExecutionException.class)
                    .hasMessageContaining("broken")
                    .hasMessageContaining(device.id());
        }
    }

    static void dot(KernelContext ctx, IntArray values) {
        values.set(ctx.globalIdx, values.get(ctx.globalIdx) + 1);
    }

    static void increments(KernelContext ctx, IntArray values) {
        values.set(ctx.globalIdx, values.get(ctx.globalIdx) + 1);
    }

    static void allocates(KernelContext ctx, IntArray values) {
        int[] made = new int[values.get(0)];
        for (int i = 0; i < made.length; i++) {
            made[i] = values.get(i) + ctx.globalIdx;
        }
        values.set(ctx.globalIdx, made[values.get(1)]);
    }
}
