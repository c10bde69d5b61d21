package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.cuda.CudaLibrary;
import org.tornadomoe.tornado.cuda.CudaSource;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.cuda.RecordingDriver;
import org.tornadomoe.tornado.device.CudaDriver;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.HalfChecks;
import org.tornadomoe.tornado.graph.HopperGemm;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.MmaGemm;
import org.tornadomoe.tornado.graph.RouterChecks;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageChecks;
import org.tornadomoe.tornado.graph.StageRun;
import org.tornadomoe.tornado.graph.TensorCoreGemm;
import org.tornadomoe.tornado.graph.WgmmaGemm;
import org.tornadomoe.tuning.LaunchConfigs;
import uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.runtime.common.TornadoXPUDevice;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryContext;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryInvocation;

/**
 * Every kernel that runs on CUDA, in CUDA C and in Java, at sizes small enough for compute-sanitizer, which {@code
 * bench/sanitizer.md} runs over this class. On {@code cuda:0}; skipped where there is none.
 */
class CudaKernelsTest {
    private static final String CUDA = "cuda:0";

    private static final ValueLayout.OfShort HALF = ValueLayout.JAVA_SHORT_UNALIGNED;

    /** A layer and token counts that between them launch something that others don't. */
    record Case(String name, RandomLayer layer, int... tokens) {
        @Override
        public String toString() {
            return name;
        }
    }

    /** Kernels that several families have. */
    private static final Set<String> PACKING =
            new CudaSource("packing.cu").entries().keySet();

    /** Schemes of {@link HopperGemm}. */
    private static final List<Int8Scheme> HOPPERS = List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A8_TENSOR);

    private static final RandomLayer SMALL = RandomLayer.of(5, 2, 40, 24, 40, 1);

    /** From a few rows to a tile of 128 for each expert, and one or two rows of each. */
    private static final RandomLayer FEW_EXPERTS = RandomLayer.of(5, 2, 40, 24, 1300, 1);

    /** Tokens of which these get blocks of every size. */
    private static final int[] FEW = {1, 20, 75, 400, 1300};

    private static final RandomLayer MANY_EXPERTS = RandomLayer.of(40, 2, 40, 24, 6, 2);

    /** Many tokens, whose logits are computed in tiles, and in wide ones. */
    private static final RandomLayer TILED = RandomLayer.of(40, 2, 24, 12, 800, 2);

    private static final RandomLayer WIDELY_TILED = RandomLayer.of(640, 1, 32, 16, 768, 3);

    private static final RandomLayer ADAPTED = RandomLayer.of(33, 6, 65, 33, 50, 23);

    private static Stream<Case> hopperLayers() {
        RouterConfig router = RouterConfig.of(ScoringFunction.SIGMOID, true)
                .withCorrectionBias()
                .withZeroExperts(3)
                .withSharedExpertGate()
                .withRoutedScalingFactor(6);
        return Stream.of(
                new Case("few and many", SMALL, 1, 8, 12, 40),
                new Case("blocks of every size", FEW_EXPERTS.withBiases(), 12, 40, 75, 400),
                new Case("logits in tiles", TILED, 800),
                new Case("logits in wide tiles", WIDELY_TILED, 768),
                new Case("sizes that are no tile's", RandomLayer.of(33, 3, 27, 13, 70, 4), 3, 70),
                new Case("weighed on input", RandomLayer.of(5, 1, 40, 24, 40, 5).weighedOnInput(), 3, 40),
                new Case("biases", SMALL.withBiases(), 3, 40),
                new Case("batched", SMALL.batched(), 3, 12, 40),
                new Case(
                        "every kind of expert",
                        RandomLayer.of(6, 2, 40, 24, 40, 6).sharing(2).routedBy(router),
                        3,
                        40),
                new Case("groups of experts", groups(), 3, 40),
                new Case("long rows", RandomLayer.of(2, 1, 4100, 24, 3, 7), 3),
                new Case("many columns", RandomLayer.of(2, 1, 40, 3300, 3, 8), 3),
                new Case("whole tiles", RandomLayer.of(2, 2, 300, 260, 300, 9).withBiases(), 300));
    }

    private static RandomLayer groups() {
        return RandomLayer.of(12, 3, 40, 24, 40, 10)
                .routedBy(RouterConfig.of(ScoringFunction.SIGMOID, true)
                        .withCorrectionBias()
                        .withGroups(4, 2));
    }

    private static Device cuda() {
        TornadoHome home = TornadoHome.current();
        assumeTrue(home.kind() == TornadoHome.Kind.SDK, () -> "no TornadoVM SDK: " + home.note());
        Device device = home.find(CUDA);
        assumeTrue(device != null, "no " + CUDA);
        return Objects.requireNonNull(device);
    }

    private static TornadoExperts hopper() {
        assumeTrue(CudaKernel.hopperObstacle(cuda()) == null, () -> CudaKernel.hopperObstacle(cuda()));
        return new TornadoHopperExperts();
    }

    /** What is run below launches each of them. */
    @Test
    void everyKernelInCudaCIsAmongThem() {
        Set<String> launched = new TreeSet<>();
        for (Int8Scheme scheme : HOPPERS) {
            hopperLayers().forEach(of -> addLaunched(of.layer.config(), scheme, of.tokens, launched));
        }
        FusedMoeConfig small = SMALL.config();
        addLaunched(ADAPTED.config().toBuilder().lora(3, 5).build(), new int[] {50}, launched); // adapters()
        addLaunched(
                small.toBuilder().inDtype(ScalarType.F16).build(), new int[] {3}, launched); // hiddenStatesOf16Bits()
        addLaunched(balanced(small), new int[] {40}, launched); // expertsMove()
        // partsAddThemselves()
        launched.addAll(List.of("join.cu addFloats", "join.cu addF16", "join.cu addBf16"));
        launched.addAll(List.of("join.cu take", "join.cu tell", "join.cu sum"));
        launched.addAll(List.of("clock.cu now", "clock.cu sweep")); // layersInOnePlan(), kernelsAreTimed()
        for (Int8Scheme scheme : Int8Scheme.values()) { // others()
            Stream.of(MmaGemm.ofInt8(), MmaGemm.ofHalves(), WgmmaGemm.ofInt8(), WgmmaGemm.ofHalves())
                    .filter(gemm -> gemm.supports(scheme))
                    .forEach(gemm -> {
                        addLaunched(FEW_EXPERTS, scheme, gemm, FEW, launched);
                        addLaunched(MANY_EXPERTS, scheme, gemm, new int[] {6}, launched);
                    });
        }
        addLaunched(TILED, Int8Scheme.W8A8_CHANNEL, MmaGemm.ofInt8(), new int[] {800}, launched); // logitsInTiles()
        addLaunched(WIDELY_TILED, Int8Scheme.W8A8_CHANNEL, MmaGemm.ofInt8(), new int[] {768}, launched);
        launched.add("expert-gemm.cu expertGemm"); // others()
        Set<String> written = new TreeSet<>();
        for (String source : List.of(
                "hopper-gemm.cu",
                "mma-gemm.cu",
                "wgmma-gemm.cu",
                "layer-stages.cu",
                "join.cu",
                "clock.cu",
                "expert-gemm.cu")) {
            new CudaSource(source).entries().keySet().forEach(entry -> written.add(named(source, entry)));
        }
        assertThat(launched).isEqualTo(written).hasSize(43);
    }

    /** A kernel of a file that others include is one, whichever includes it. */
    private static String named(String source, String entryPoint) {
        String file =
                entryPoint.equals("activatePairs") ? "gemm.cu" : PACKING.contains(entryPoint) ? "packing.cu" : source;
        return file + " " + entryPoint;
    }

    private static void addLaunched(
            RandomLayer layer, Int8Scheme scheme, MmaGemm gemm, int[] tokens, Set<String> into) {
        try (Int8Experts experts = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                LayerArrays arrays =
                        new LayerArrays(layer.config(), experts, Long.MAX_VALUE, HostMemory.of(false), gemm, true)) {
            addLaunched(arrays, tokens, into);
        }
    }

    private static void addLaunched(FusedMoeConfig config, int[] tokens, Set<String> into) {
        addLaunched(config, Int8Scheme.W8A8_CHANNEL, tokens, into);
    }

    private static void addLaunched(FusedMoeConfig config, Int8Scheme scheme, int[] tokens, Set<String> into) {
        try (Int8Experts experts = Int8Quantizer.quantize(new RandomLayer(config, 1), scheme, Progress.NONE)) {
            addLaunched(RecordedPart.arrays(config, experts), tokens, into);
        }
    }

    private static void addLaunched(LayerArrays arrays, int[] tokens, Set<String> into) {
        for (Stage stage : Families.program(arrays).call()) {
            for (int m : tokens) {
                if (stage.cuda() instanceof CudaKernel kernel) {
                    Launch launch = kernel.launch().apply(m);
                    if (!launch.equals(Launch.NONE)) {
                        into.add(named(kernel.source(), launch.entryPoint()));
                    }
                }
            }
        }
    }

    private static FusedMoeConfig balanced(FusedMoeConfig config) {
        FusedMoeParallelConfig p = config.moeParallelConfig();
        return config.toBuilder()
                .moeParallelConfig(new FusedMoeParallelConfig(
                        p.tpSize(),
                        p.pcpSize(),
                        p.dpSize(),
                        p.epSize(),
                        p.tpRank(),
                        p.pcpRank(),
                        p.dpRank(),
                        p.epRank(),
                        p.spSize(),
                        p.useEp(),
                        p.all2allBackend(),
                        true))
                .build();
    }

    // ---- Hopper's

    @Tag("device")
    @ParameterizedTest
    @MethodSource("hopperLayers")
    void hopper(Case of) {
        for (Int8Scheme scheme : HOPPERS) {
            LayerChecks.forwardMatchesReference(hopper(), scheme, of.layer.on(CUDA), of.tokens);
        }
    }

    @Tag("device")
    @Test
    void scalesOfActivationsKnownBeforehand() {
        LayerChecks.staticScalesMatchReference(hopper(), SMALL.on(CUDA), 3);
        LayerChecks.staticScalesMatchReference(hopper(), SMALL.on(CUDA), 40);
    }

    @Tag("device")
    @ParameterizedTest
    @EnumSource
    void everyActivation(MoeActivation activation) {
        LayerChecks.forwardMatchesReference(
                hopper(), Int8Scheme.W8A8_CHANNEL, SMALL.activatedBy(activation).on(CUDA), 3, 40);
    }

    @Tag("device")
    @Test
    void adapters() {
        LayerChecks.adaptersMatchReference(hopper(), Int8Scheme.W8A8_CHANNEL, ADAPTED.on(CUDA), 50);
    }

    @Tag("device")
    @Test
    void routedByTheHost() {
        RandomLayer layer = RandomLayer.of(6, 2, 40, 24, 10, 10)
                .sharing(1)
                .routedBy(RouterConfig.of(ScoringFunction.CUSTOM, false).withZeroExperts(2));
        LayerChecks.handedInMatchesReference(hopper(), layer.on(CUDA), 10);
    }

    @Tag("device")
    @Test
    void expertsInSeveralArrays() {
        LayerChecks.expertsInSeveralArraysGiveTheSameBits(
                hopper(), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), SMALL.on(CUDA), 3, 40);
    }

    @Tag("device")
    @ParameterizedTest
    @EnumSource(names = {"F16", "BF16"})
    void hiddenStatesOf16Bits(ScalarType type) {
        HalfChecks.kernelsConvertAsTheHost(cuda(), type, false);
        HalfChecks.layersAgree("triton", CUDA, type);
    }

    /** One part after the other on one GPU. */
    @Tag("device")
    @ParameterizedTest
    @EnumSource(names = {"F32", "F16", "BF16"})
    void partsAddThemselves(ScalarType type) {
        hopper();
        float[] values = SMALL.hidden(33, 1);
        MemorySegment hidden = MemorySegment.ofArray(new byte[type.bytes() * values.length]);
        for (int i = 0; i < values.length; i++) {
            switch (type) {
                case F16 -> hidden.setAtIndex(HALF, i, Float.floatToFloat16(values[i]));
                case BF16 -> hidden.setAtIndex(HALF, i, (short) (Float.floatToRawIntBits(values[i]) >>> 16));
                default -> hidden.setAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, i, values[i]);
            }
        }
        byte[] once = new byte[(int) hidden.byteSize()];
        byte[] again = new byte[once.length];
        try (MoeLayer layer = MoeLayer.of(SMALL, twoParts().withHiddenType(type))) {
            layer.forward(hidden, 33, MemorySegment.ofArray(once), null);
            assertThat(layer.deviceBytes()).isPositive();
            layer.forward(hidden, 33, MemorySegment.ofArray(again), null);
            assertThat(again).isEqualTo(once);
            // A call that asks for the experts isn't recorded.
            ChosenExperts chosen = ChosenExperts.allocate(33, SMALL.config().pairsPerToken());
            layer.forward(hidden, 33, MemorySegment.ofArray(again), chosen);
            assertThat(again).isEqualTo(once);
        }
    }

    private static MoeOptions twoParts() {
        return MoeOptions.DEFAULT.withBackend("triton").withMaxTokens(40).withDevices(List.of(CUDA, CUDA));
    }

    @Tag("device")
    @Test
    void expertsMove() {
        hopper();
        RandomLayer weights = RandomLayer.of(6, 2, 40, 24, 40, 5);
        EplbConfig eplb = EplbConfig.DEFAULT
                .withWindowSize(2)
                .withStepInterval(4)
                .withUseAsync(false)
                .withNumRedundantExperts(2);
        try (MoeLayer layer = MoeLayer.of(weights, twoParts().withLoadBalancing(eplb))) {
            for (int call = 0; call < 6; call++) {
                layer.forward(weights.hidden(call % 2 == 0 ? 40 : 3, call));
            }
        }
    }

    @Tag("device")
    @Test
    void kernelsAreTimed() {
        TornadoExperts hopper = hopper();
        MemorySegment hidden = MemorySegment.ofArray(SMALL.hidden(3, 1));
        try (Int8Experts experts = Int8Quantizer.quantize(SMALL, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeKernel kernel = hopper.load(SMALL.on(CUDA).config(), experts)) {
            kernel.forward(hidden, 3, MemorySegment.ofArray(SMALL.hidden(3, 2)), null, null);
            assertThat(Profiled.profile(kernel, hidden, 3))
                    .containsOnlyKeys("prepare", "route", "gateUp", "down", "combine")
                    .allSatisfy((_, nanos) -> assertThat(nanos).isPositive());
        }
    }

    @Tag("device")
    @Test
    void layersInOnePlan() {
        hopper();
        float[] hidden = SMALL.hidden(40, 1);
        try (Int8Experts experts = Int8Quantizer.quantize(SMALL, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                LayersInOnePlan layers = new LayersInOnePlan(
                        SMALL.on(CUDA).config(), experts, 2, 1, MemorySegment.ofArray(hidden), 40)) {
            for (int run = 0; run < 3; run++) {
                layers.run();
            }
            assertThat(layers.nanosOnDevice()).isPresent();
            float[] output = new float[hidden.length];
            MemorySegment.copy(layers.output(), 0, MemorySegment.ofArray(output), 0, 4L * output.length);
            assertThat(Numerics.relativeL2(
                            Numerics.widen(output),
                            Reference.forward(experts, hidden, 40).output()))
                    .isLessThan(2e-3);
        }
    }

    // ---- the others: on any GPU of CUDA's, in Java, and what is prebuilt

    private static Stream<TornadoExperts> others() {
        return Stream.of(
                new TornadoWgmmaExperts(),
                new TornadoWgmmaHalfExperts(),
                new TornadoMmaExperts(),
                new TornadoMmaHalfExperts(),
                new TornadoTensorCoreExperts(),
                new TornadoDp4aExperts(),
                new TornadoPortableExperts(),
                new TornadoFragmentExperts(),
                new TornadoFragmentHalfExperts());
    }

    /** Every scheme that a class has, at every size of block. */
    @Tag("device")
    @ParameterizedTest
    @MethodSource
    void others(TornadoExperts experts) {
        assumeTrue(experts.gemm().obstacle(cuda()) == null, () -> "not for " + cuda());
        for (Int8Scheme scheme : Int8Scheme.values()) {
            if (experts.supportsQuantScheme(scheme.weightKey(), scheme.activationKey())) {
                LayerChecks.forwardMatchesReference(experts, scheme, FEW_EXPERTS.on(CUDA), FEW);
                LayerChecks.forwardMatchesReference(experts, scheme, MANY_EXPERTS.on(CUDA), 6);
            }
        }
        if (experts.supportsQuantScheme(Int8Scheme.W8A8_BLOCK.weightKey(), Int8Scheme.W8A8_BLOCK.activationKey())) {
            Int8Quantization nearest = Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                    .withGrid(new GroupShape(8, Math.max(12, experts.gemm().columnsOfScale())))
                    .withRoundToNearest(true);
            LayerChecks.forwardMatchesReference(experts, nearest, SMALL.on(CUDA), 3, 40);
        }
    }

    /** GPUs other than Hopper have kernels of their own for it. */
    @Tag("device")
    @Test
    void logitsInTiles() {
        TornadoExperts experts = new TornadoMmaExperts();
        assumeTrue(experts.gemm().obstacle(cuda()) == null, () -> "not for " + cuda());
        LayerChecks.forwardMatchesReference(experts, Int8Scheme.W8A8_CHANNEL, TILED.on(CUDA), 800);
        LayerChecks.forwardMatchesReference(experts, Int8Scheme.W8A8_CHANNEL, WIDELY_TILED.on(CUDA), 768);
    }

    /** Blocks of 128 columns have tiles of their own on Hopper, for scales that many rows share and for others. */
    @Tag("device")
    @ParameterizedTest
    @ValueSource(ints = {128, 64, 8})
    void blocksOf128(int rows) {
        TornadoExperts experts = new TornadoWgmmaExperts();
        assumeTrue(experts.gemm().obstacle(cuda()) == null, () -> "not for " + cuda());
        RandomLayer layer = RandomLayer.of(5, 2, 328, 160, 1300, 1).on(CUDA);
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(rows, 128));
        LayerChecks.forwardMatchesReference(experts, block, layer, 20, 75, 400, 1300);
        LayerChecks.forwardMatchesReference(
                experts,
                block.withRoundToNearest(true),
                RandomLayer.of(3, 2, 256, 384, 400, 2).withBiases().on(CUDA),
                400);
    }

    /** What else changes the kernels. */
    @Tag("device")
    @ParameterizedTest
    @MethodSource("others")
    void othersWithAllThereIs(TornadoExperts experts) {
        assumeTrue(experts.gemm().obstacle(cuda()) == null, () -> "not for " + cuda());
        Int8Scheme scheme = Stream.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A8_BLOCK, Int8Scheme.W8A16_GROUP)
                .filter(experts.gemm()::supports)
                .findFirst()
                .orElseThrow();
        RouterConfig router = RouterConfig.of(ScoringFunction.SOFTMAX, false)
                .withCorrectionBias()
                .withZeroExperts(3)
                .withSharedExpertGate()
                .withRoutedScalingFactor(6);
        RandomLayer layer = RandomLayer.of(6, 2, 27, 13, 40, 9)
                .sharing(2)
                .withBiases()
                .routedBy(router)
                .on(CUDA);
        LayerChecks.forwardMatchesReference(experts, scheme, layer, 3, 40);
        LayerChecks.forwardMatchesReference(
                experts,
                scheme,
                RandomLayer.of(5, 1, 40, 24, 40, 5).weighedOnInput().on(CUDA),
                3,
                40);
        LayerChecks.adaptersMatchReference(experts, scheme, ADAPTED.on(CUDA), 50);
        LayerChecks.batchedMatchesStandard(experts, scheme, SMALL.on(CUDA), 40);
    }

    /** The block that no rule chooses. */
    @Tag("device")
    @Test
    void tensorCoresInBlocksOf32() {
        cuda();
        LaunchConfigs.override(new TensorCoreGemm().launches().get(2), () -> {
            LayerChecks.forwardMatchesReference(
                    new TornadoTensorCoreExperts(), Int8Scheme.W8A8_CHANNEL, SMALL.on(CUDA), 40);
            return 32;
        });
    }

    @Tag("device")
    @Test
    void whatIsAroundTheProducts() {
        Device device = cuda();
        assertThat(device.lacksDp4a()).isNull();
        assertThat(device.lacksInt8Mma()).isNull();
        for (MoeActivation activation : MoeActivation.values()) {
            StageChecks.activationIsAccurate(device, activation, 1e-5);
        }
        StageChecks.quantizationIsExact(device, Int8Quantization.of(Int8Scheme.W8A8_TENSOR));
        RouterChecks.choiceIsTheReferences(device, 48, 8, 0, 0, 9, 3);
        RouterChecks.choiceIsTheReferences(device, 6, 2, 1, 2, 9, 4);
        RouterChecks.logitsAreTheReferences(device, 17, 300, 9);
        ReplicaChecks.match(device, 7, 3, 300);
    }

    // ---- whether the sanitizer would say so

    /** A kernel of planted.cu, which gets a pointer to 64 integers. */
    private static CudaKernel planted(String fault, long pointer) {
        return new CudaKernel(
                "planted",
                "planted.cu",
                List.of(HopperGemm.ARCHITECTURE),
                m -> new Launch(fault, 64, 1, 1, 0),
                List.of(IntArray.fromElements(1, 16, 0), IntArray.fromElements((int) pointer, (int) (pointer >>> 32))),
                List.of(new IntArray(64)),
                List.of(),
                List.of());
    }

    /** Or it fails on the host, and no tool sees it. */
    @Test
    void plantedKernelsAreLaunched() {
        RecordingDriver driver = new RecordingDriver();
        driver.add(10, 100, 0);
        CudaLibrary library = driver.library();
        TornadoXPUDevice device = RecordedPart.handles(0, 10, () -> 100);
        Set<String> faults = new CudaSource("planted.cu").entries().keySet();
        assertThat(faults)
                .containsExactlyInAnyOrder("outOfBounds", "race", "uninitialised", "uninitialisedGlobal", "divergent");
        for (String fault : faults) {
            RecordedPart.Tasks tasks = new RecordedPart.Tasks();
            CudaTask.addTo(tasks, "", new ArrayList<>(List.of(planted(fault, 1))), _ -> false);
            LibraryTaskDescriptor task = tasks.library.getFirst();
            LibraryContext plan = library.createContext(device, 5);
            library.prepare(task, plan);
            library.dispatch(
                    task.getFunctionName(),
                    new LibraryInvocation(
                            task.getParameters(),
                            new long[] {1 << 8, 2 << 8, 3 << 8},
                            new boolean[3],
                            device,
                            5,
                            plan,
                            task.getTuning()));
            RecordingDriver.Launched launched = driver.launched().getFirst();
            assertThat(launched.kernel()).isEqualTo(fault);
            assertThat(launched.parameters()).containsExactly(1 << 8, 2 << 8, 3 << 8);
            library.destroyContext(plan);
        }
    }

    /**
     * With {@code -Dtornadomoe.test.planted=NAME} a kernel of planted.cu, whose fault a tool is to find; the JVM is of
     * no more use then.
     */
    @Tag("device")
    @Test
    void planted() {
        String fault = System.getProperty("tornadomoe.test.planted");
        assumeTrue(fault != null, "nothing planted");
        Device device = cuda();
        CudaKernel kernel = planted(fault, CudaDriver.NVIDIA.allocate(64 * Integer.BYTES));
        try {
            StageRun.execute(device, "planted", List.of(Stage.cuda(kernel)), 1);
        } catch (MoeExecutionException failure) { // the driver's, of a kernel that the tool has stopped
            assertThat(failure).hasMessageContaining("CUDA_ERROR_");
        }
    }
}
