package org.tornadomoe.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.reflect.Proxy;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.logging.SimpleFormatter;
import org.assertj.core.api.ThrowableAssert.ThrowingCallable;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.oracle.FakeExperts.Predicate;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.tornado.TornadoPortableExperts;
import org.tornadomoe.tornado.device.TornadoHome;

class Int8MoeOracleTest {
    static final QuantKey W = QuantKey.INT8_STATIC_CHANNEL_SYM;
    static final QuantKey A = QuantKey.INT8_DYNAMIC_TOKEN_SYM;
    static final String NOTHING = "No Int8 MoE backend supports the deployment configuration.";

    static FusedMoeConfig.Builder layer() {
        return FusedMoeConfig.builder()
                .numExperts(8)
                .expertsPerToken(2)
                .hiddenDim(128)
                .intermediateSize(64)
                .maxNumTokens(16);
    }

    /** A layer that every predicate has something to say to. */
    static FusedMoeConfig demanding() {
        return layer().activation(MoeActivation.SILU_NO_MUL)
                .batchInvariant(true)
                .isLoraEnabled(true)
                .hasBias(true)
                .moeParallelConfig(FusedMoeParallelConfig.builder().eplb(true).build())
                .build();
    }

    static FakeExperts triton(Predicate... failing) {
        return new FakeExperts("Triton", Int8MoeBackend.TRITON, 1, failing);
    }

    static FakeExperts cpu(Predicate... failing) {
        return new FakeExperts("Cpu", Int8MoeBackend.CPU, 1, failing);
    }

    static Int8MoeOracle oracle(FusedMoeExperts... classes) {
        return new Int8MoeOracle(List.of(classes));
    }

    private static Support ask(FusedMoeExperts experts, FusedMoeConfig config) {
        return experts.isSupportedConfig(config, W, A, config.activationFormat());
    }

    private static String reason(Predicate predicate) {
        return switch (predicate) {
            case DEVICE -> "kernel does not support current device abacus:0 (Abacus)";
            case NO_ACT_AND_MUL -> "kernel does not support no act_and_mul MLP layer";
            case ACTIVATION -> "kernel does not support MoEActivation.SILU_NO_MUL activation";
            case QUANT_SCHEME ->
                "kernel does not support quantization scheme QuantKey(i8,scale(f32,static,per_channel),symmetric)"
                        + "xQuantKey(i8,scale(f32,dynamic,per_token),symmetric)";
            case PARALLEL_CONFIG ->
                "kernel does not support parallel config FusedMoEParallelConfig(tp_size=1, pcp_size=1, dp_size=1,"
                        + " ep_size=1, tp_rank=0, pcp_rank=0, dp_rank=0, ep_rank=0, sp_size=1, use_ep=False,"
                        + " all2all_backend='allgather_reducescatter', enable_eplb=True)";
            case ROUTING_METHOD -> "kernel does not support routing method 4";
            case ROUTER_LOGITS_DTYPE -> "kernel does not support router logits dtype torch.float32";
            case SHAPE -> "kernel does not support 128 hidden dim is not supported";
            case ACTIVATION_FORMAT -> "kernel does not support ('standard',) activation format";
            case BATCH_INVARIANCE -> "kernel does not support batch invariance";
            case LORA -> "kernel does not support LoRA";
            case EXPERTS -> "kernel's moe_align_block_size requires fewer than 1024 padded experts";
            case BIAS -> "kernel does not support biases";
            case EPLB -> "kernel does not support EPLB";
            case OBSTACLES -> "beads are few";
        };
    }

    @ParameterizedTest
    @EnumSource
    void aPredicateThatFailsAloneIsTheReason(Predicate predicate) {
        assertThat(ask(triton(), demanding())).isEqualTo(Support.YES);
        assertThat(ask(triton(predicate), demanding()).reason()).isEqualTo(reason(predicate));
    }

    @ParameterizedTest
    @EnumSource
    void ofTwoThatFailTheFirstIsTheReason(Predicate first) {
        for (Predicate second : Predicate.values()) {
            if (second.compareTo(first) > 0) {
                FakeExperts experts = triton(second, first);
                FusedMoeConfig config = demanding();
                assertThat(ask(experts, config).reason()).isEqualTo(reason(first));
                assertThat(experts.refusals(config, W, A, config.activationFormat()))
                        .extracting(Support::reason)
                        .containsExactly(reason(first), reason(second));
            }
        }
    }

    @Test
    void whatALayerDoesNotNeedIsNotAsked() {
        FakeExperts experts = triton(
                Predicate.NO_ACT_AND_MUL, Predicate.BATCH_INVARIANCE, Predicate.LORA, Predicate.BIAS, Predicate.EPLB);
        assertThat(ask(experts, layer().build()).supported()).isTrue();
    }

    @Test
    void whatIsNotQuantisedIsNone() {
        FusedMoeConfig config = layer().build();
        assertThat(triton(Predicate.QUANT_SCHEME)
                        .isSupportedConfig(config, null, null, config.activationFormat())
                        .reason())
                .isEqualTo("kernel does not support quantization scheme NonexNone");
    }

    @Test
    void batchedActivationsComeFromTheParallelConfiguration() {
        FusedMoeParallelConfig parallel = FusedMoeParallelConfig.builder()
                .dp(2, 0)
                .expertParallel(true)
                .all2allBackend("deepep_low_latency")
                .build();
        FusedMoeConfig config = layer().moeParallelConfig(parallel).build();
        assertThat(ask(triton(), config).reason())
                .isEqualTo("kernel does not support ('batched_experts',) activation format");
        assertThat(ask(triton(Predicate.ACTIVATION_FORMAT), config).supported()).isTrue();
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 32, 960, 961, 992})
    void paddedExpertsBelow1024(int experts) {
        assertThat(ask(triton(), layer().numExperts(experts).expertsPerToken(1).build())
                        .supported())
                .isTrue();
    }

    @ParameterizedTest
    @ValueSource(ints = {993, 1000, 1024})
    void paddedExpertsFrom1024(int experts) {
        assertThat(ask(triton(), layer().numExperts(experts).build()).reason()).isEqualTo(reason(Predicate.EXPERTS));
        // The kernels here have no such limit.
        Selection selection = Int8MoeOracle.installed()
                .select(layer().numExperts(experts).moeBackend("triton").build());
        assertThat(selection.backend()).isEqualTo(Int8MoeBackend.TRITON);
    }

    @Test
    void namesAreMappedAsInVllm() {
        assertThat(Int8MoeOracle.mapInt8Backend("triton")).isEqualTo(Int8MoeBackend.TRITON);
        assertThat(Int8MoeOracle.mapInt8Backend("cpu")).isEqualTo(Int8MoeBackend.CPU);
        for (String name : List.of("marlin", "TRITON", "reference", "auto", "")) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> Int8MoeOracle.mapInt8Backend(name))
                    .withMessage("moe_backend='" + name
                            + "' is not supported for Int8 MoE. Expected one of ['triton', 'cpu'].");
        }
    }

    @Test
    void slotsHaveTheirClassesInOrder() {
        FakeExperts late = new FakeExperts("Late", Int8MoeBackend.TRITON, 2);
        FakeExperts early = triton();
        Int8MoeOracle oracle = oracle(late, early);
        assertThat(oracle.backendToKernelClasses(Int8MoeBackend.TRITON)).containsExactly(early, late);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> oracle.backendToKernelClasses(Int8MoeBackend.CPU))
                .withMessage("Unknown Int8 MoE backend: CPU");
        assertThat(Int8MoeOracle.priorityBackends()).containsExactly(Int8MoeBackend.TRITON, Int8MoeBackend.CPU);
    }

    @Test
    void autoTakesTheFirstThatSupportsTheLayer() {
        FakeExperts second = new FakeExperts("Second", Int8MoeBackend.TRITON, 2);
        assertThat(oracle(triton(), second, cpu())
                        .select(layer().build())
                        .experts()
                        .name())
                .isEqualTo("Triton");
        assertThat(oracle(triton(Predicate.SHAPE), second, cpu())
                        .select(layer().build())
                        .experts())
                .isSameAs(second);
        Selection selection = oracle(triton(Predicate.SHAPE), cpu()).select(layer().build());
        assertThat(selection.backend()).isEqualTo(Int8MoeBackend.CPU);
        assertThat(selection.refusals())
                .containsExactly("Triton: kernel does not support 128 hidden dim is not supported"
                        + " (hidden dim: padded to 200)");
    }

    @Test
    void autoThatFindsNothing() {
        for (Int8MoeOracle oracle :
                List.of(oracle(), oracle(triton(Predicate.DEVICE), cpu(Predicate.LORA, Predicate.SHAPE)))) {
            assertThatExceptionOfType(UnsupportedOperationException.class)
                    .isThrownBy(() -> oracle.select(layer().build()))
                    .withMessage(NOTHING);
        }
    }

    @Test
    void anExplicitBackendIsTakenOrRefusedForItsLastClass() {
        FusedMoeConfig config = layer().moeBackend("triton").build();
        assertThat(oracle(cpu(), triton()).select(config).backend()).isEqualTo(Int8MoeBackend.TRITON);
        FakeExperts second = new FakeExperts("Second", Int8MoeBackend.TRITON, 2, Predicate.ROUTING_METHOD);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> oracle(triton(Predicate.SHAPE), second, cpu()).select(config))
                .withMessage(
                        "Int8 MoE backend TRITON does not support the deployment configuration since kernel does not"
                                + " support routing method 4.");
        assertThatIllegalArgumentException()
                .isThrownBy(
                        () -> oracle(triton()).select(layer().moeBackend("cpu").build()))
                .withMessage("Unknown Int8 MoE backend: CPU");
        assertThatIllegalArgumentException()
                .isThrownBy(() ->
                        oracle(triton()).select(layer().moeBackend("marlin").build()))
                .withMessageStartingWith("moe_backend='marlin' is not supported for Int8 MoE.");
    }

    @ParameterizedTest
    @ValueSource(strings = {"auto", "cpu", "nonsense"})
    void adaptersGoToTritonUnseen(String backend) {
        FakeExperts hopeless = triton(Predicate.values());
        Selection selection = oracle(hopeless, cpu())
                .select(demanding().toBuilder().moeBackend(backend).build());
        assertThat(selection.backend()).isEqualTo(Int8MoeBackend.TRITON);
        assertThat(selection.experts()).isSameAs(hopeless);
    }

    @Test
    void aClassThatFailsWhenAskedIsPassedOver() {
        FakeExperts broken = new FakeExperts("Broken", Int8MoeBackend.TRITON, 0) {
            @Override
            public boolean supportsCurrentDevice(FusedMoeConfig config) {
                throw new NoClassDefFoundError("driver");
            }
        };
        Selection selection = oracle(broken, triton()).select(layer().build());
        assertThat(selection.experts().name()).isEqualTo("Triton");
        assertThat(selection.refusals())
                .containsExactly("Broken: its check failed: java.lang.NoClassDefFoundError: driver");
        Explanation explanation = oracle(broken, triton()).explain(layer().build(), W, A);
        assertThat(explanation.chosen()).isEqualTo(1);
        assertThat(explanation.changes()).isEmpty();
    }

    /** TornadoVM's own errors are neither exceptions nor failures to link. */
    @Test
    void adaptersPassOverAClassWhoseDeviceFailsWhenAsked() {
        FakeExperts broken = new FakeExperts("Broken", Int8MoeBackend.TRITON, 0) {
            @Override
            public List<Support> obstacles(
                    FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
                throw new AssertionError("driver");
            }
        };
        FakeExperts works = triton();
        assertThat(oracle(broken, works)
                        .select(layer().isLoraEnabled(true).build())
                        .experts())
                .isSameAs(works);
    }

    @Test
    void linesAreLoggedOnce() {
        assertThat(logged(() -> oracle(triton(Predicate.SHAPE), cpu()).explain(layer().build(), W, A)))
                .isEmpty();
        List<String> lines = logged(() -> {
            Int8MoeOracle oracle = oracle(triton(Predicate.SHAPE), cpu());
            oracle.select(layer().build());
            oracle.select(layer().build());
            Int8MoeOracle empty = oracle(triton(Predicate.ROUTING_METHOD));
            for (int i = 0; i < 2; i++) {
                assertThatExceptionOfType(UnsupportedOperationException.class)
                        .isThrownBy(() -> empty.select(layer().build()));
            }
            oracle(triton()).select(layer().moeBackend("triton").build());
            oracle(triton(Predicate.SHAPE)).select(layer().isLoraEnabled(true).build());
        });
        assertThat(lines)
                .containsExactly(
                        "FINE: Int8 MoE backend TRITON does not support the deployment configuration since kernel does"
                                + " not support 128 hidden dim is not supported.",
                        "FINE: Using CPU Int8 MoE backend out of potential backends: ['TRITON', 'CPU'].",
                        "FINE: Int8 MoE backend TRITON does not support the deployment configuration since kernel does"
                                + " not support routing method 4.",
                        "FINE: Int8 MoE backend 'CPU' does not support the deployment configuration.",
                        "FINE: Using TRITON Int8 MoE backend out of potential backends: ['TRITON', 'CPU'].");
    }

    @Test
    void makingAKernelTellsWhatIsAroundTheExperts() {
        FusedMoeParallelConfig.Builder ranks = FusedMoeParallelConfig.builder().dp(2, 0);
        FusedMoeConfig alone = layer().build();
        FusedMoeConfig parallel = layer().moeParallelConfig(ranks.build()).build();
        FusedMoeConfig batched = layer().isLoraEnabled(true)
                .moeParallelConfig(
                        ranks.expertParallel(true).all2allBackend("nixl_ep").build())
                .build();
        FakeExperts experts = triton();
        Int8MoeOracle oracle = oracle(experts);
        List<String> lines = logged(() -> {
            for (FusedMoeConfig config : List.of(alone, alone, parallel)) {
                try (Int8Experts weights = weights(config)) {
                    assertThatExceptionOfType(FakeExperts.Loaded.class)
                            .isThrownBy(() -> oracle.makeInt8MoeKernel(oracle.select(config), weights));
                }
            }
        });
        assertThat(lines)
                .containsExactly(
                        "FINE: Using TRITON Int8 MoE backend out of potential backends: ['TRITON', 'CPU'].",
                        "FINE: Using MoEPrepareAndFinalizeNoDPEPModular",
                        "FINE: Detected DP deployment with no --enable-expert-parallel. Falling back to"
                                + " AllGather+ReduceScatter dispatch/combine.",
                        "FINE: Using MoEPrepareAndFinalizeNaiveDPEPModular");
        try (Int8Experts weights = weights(batched)) {
            Selection unseen = oracle.select(batched);
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> oracle.makeInt8MoeKernel(unseen, weights))
                    .withMessage("Triton: does not support the ('batched_experts',) activation format of"
                            + " BatchedPrepareAndFinalize");
        }
    }

    @Test
    void theKernelIsTheClasss() {
        MoeKernel kernel = (MoeKernel) Proxy.newProxyInstance(
                MoeKernel.class.getClassLoader(), new Class<?>[] {MoeKernel.class}, (_, _, _) -> {
                    throw new UnsupportedOperationException();
                });
        FakeExperts experts = new FakeExperts("Loading", Int8MoeBackend.TRITON, 1) {
            @Override
            public MoeKernel load(FusedMoeConfig config, Int8Experts weights) {
                return kernel;
            }
        };
        FusedMoeConfig config = layer().build();
        Int8MoeOracle oracle = oracle(experts);
        try (Int8Experts weights = weights(config)) {
            assertThat(oracle.makeInt8MoeKernel(oracle.select(config), weights) == kernel)
                    .isTrue();
        }
    }

    /** Of zeros. */
    private static Int8Experts weights(FusedMoeConfig config) {
        Arena arena = Arena.ofShared();
        int local = config.numExperts();
        return Int8Experts.of(
                config,
                Int8Scheme.W8A8_CHANNEL,
                Int8Tensor.allocate(arena, local, config.gateUpRows(), config.hiddenDim()),
                Int8Tensor.allocate(arena, local, config.hiddenDim(), config.intermediateSizePerPartition()),
                RouterWeights.NONE,
                arena);
    }

    private static List<String> logged(Runnable action) {
        List<String> lines = new ArrayList<>();
        Handler handler = new Handler() {
            @Override
            public void publish(@Nullable LogRecord line) {
                if (line != null) {
                    lines.add(line.getLevel() + ": " + new SimpleFormatter().formatMessage(line));
                }
            }

            @Override
            public void flush() {}

            @Override
            public void close() {}
        };
        handler.setLevel(Level.ALL);
        Logger logger = Logger.getLogger(Int8MoeOracle.class.getName());
        Level before = logger.getLevel();
        logger.setLevel(Level.ALL);
        logger.addHandler(handler);
        try {
            action.run();
        } finally {
            logger.removeHandler(handler);
            logger.setLevel(before);
        }
        return lines;
    }

    @Test
    void aKernelClassOfTheUsersOwnIsFoundAndTaken(@TempDir Path directory) throws IOException {
        Path services = Files.createDirectories(directory.resolve("META-INF/services"));
        Files.writeString(
                services.resolve(FusedMoeExperts.class.getName()),
                "org.tornadomoe.oracle.NotThere\n" + AddedExperts.class.getName() + "\n");
        URL[] path = {directory.toUri().toURL()};
        try (URLClassLoader loader = new URLClassLoader(path, getClass().getClassLoader())) {
            List<Int8MoeOracle> made = new ArrayList<>();
            assertThat(logged(() -> made.add(Int8MoeOracle.of(loader))))
                    .singleElement()
                    .asString()
                    .startsWith("WARNING: a kernel class can't be loaded: ")
                    .endsWith("Provider org.tornadomoe.oracle.NotThere not found");
            Int8MoeOracle oracle = made.getFirst();
            assertThat(oracle.backendToKernelClasses(Int8MoeBackend.TRITON))
                    .extracting(FusedMoeExperts::name)
                    .containsExactly(
                            "AddedExperts",
                            "TornadoHopperExperts",
                            "TornadoWgmmaExperts",
                            "TornadoWgmmaHalfExperts",
                            "TornadoMmaExperts",
                            "TornadoMmaHalfExperts",
                            "TornadoTensorCoreExperts",
                            "TornadoFragmentExperts",
                            "TornadoFragmentHalfExperts",
                            "TornadoDp4aExperts",
                            "TornadoAmdExperts",
                            "TornadoAmdHalfExperts",
                            "TornadoPanelExperts",
                            "TornadoPortableExperts");
            assertThat(oracle.select(layer().build()).experts()).isInstanceOf(AddedExperts.class);
            assertThat(oracle.select(layer().build(), Int8Scheme.W8A16_CHANNEL, null)
                            .experts())
                    .isInstanceOf(AddedExperts.class);
        }
    }

    @Test
    void theInstalledClasses() {
        assertThat(Int8MoeOracle.installed().kernelClasses())
                .extracting(FusedMoeExperts::name)
                .containsExactly(
                        "TornadoHopperExperts",
                        "TornadoWgmmaExperts",
                        "TornadoWgmmaHalfExperts",
                        "TornadoMmaExperts",
                        "TornadoMmaHalfExperts",
                        "TornadoTensorCoreExperts",
                        "TornadoFragmentExperts",
                        "TornadoFragmentHalfExperts",
                        "TornadoDp4aExperts",
                        "TornadoAmdExperts",
                        "TornadoAmdHalfExperts",
                        "TornadoPanelExperts",
                        "TornadoPortableExperts",
                        "CpuExperts",
                        "ReferenceExperts");
        assertThat(Int8MoeOracle.installed()
                        .select(layer().moeBackend("triton").build())
                        .experts()
                        .name())
                .isEqualTo("TornadoDp4aExperts");
        assertThat(Int8MoeOracle.installed()
                        .select(layer().moeBackend("triton").build(), W, null)
                        .experts()
                        .name())
                .isEqualTo("TornadoPanelExperts");
        FusedMoeParallelConfig batched = FusedMoeParallelConfig.builder()
                .dp(2, 0)
                .expertParallel(true)
                .all2allBackend("nixl_ep")
                .build();
        assertThat(Int8MoeOracle.installed()
                        .select(layer().moeBackend("triton")
                                .moeParallelConfig(batched)
                                .build())
                        .experts()
                        .name())
                .isEqualTo("TornadoDp4aExperts");
        assertThat(Int8MoeOracle.installed()
                        .select(
                                layer().moeBackend("triton")
                                        .moeParallelConfig(batched)
                                        .build(),
                                W,
                                null)
                        .experts()
                        .name())
                .isEqualTo("TornadoPanelExperts");
    }

    @Test
    void aDeviceThatIsNotThereIsAReason() {
        FusedMoeConfig config = layer().device("ptx:99").moeBackend("triton").build();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8MoeOracle.installed().select(config))
                .withMessage(
                        "Int8 MoE backend TRITON does not support the deployment configuration since kernel does not"
                                + " support current device ptx:99.");
    }

    @Test
    void aLayerFallsBackOnTheReferenceButNotFromWhatWasAskedFor() {
        FakeExperts reference = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1);
        Int8MoeOracle oracle = oracle(triton(Predicate.SHAPE), reference);
        Int8Scheme scheme = Int8Scheme.W8A8_CHANNEL;
        Selection selection = oracle.select(layer().build(), scheme, null);
        assertThat(selection.experts()).isSameAs(reference);
        assertThat(selection.refusals()).hasSize(1);
        assertThat(selection.device()).isEqualTo("abacus:0 (Abacus)");
        assertThat(oracle.select(layer().moeBackend("reference").build(), scheme, null)
                        .experts())
                .isSameAs(reference);
        for (FusedMoeConfig asked : List.of(
                layer().moeBackend("triton").build(), layer().device("abacus:0").build())) {
            assertThatExceptionOfType(UnsupportedOperationException.class)
                    .isThrownBy(() -> oracle.select(asked, scheme, null))
                    .withMessage(
                            "No Int8 MoE backend supports the deployment configuration: Triton: kernel does not support"
                                    + " 128 hidden dim is not supported (hidden dim: padded to 200)");
        }
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(() -> oracle.select(layer().build(), scheme, "Triton"))
                .withMessageContaining("Triton: kernel does not support");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> oracle.select(layer().build(), scheme, "Other"))
                .withMessage("kernel class: expected one of [Triton, Reference], got 'Other'");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> oracle.select(layer().moeBackend("marlin").build(), scheme, null))
                .withMessage("moe_backend='marlin' is not supported for Int8 MoE. Expected one of"
                        + " ['triton', 'cpu', 'reference'].");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> oracle(triton(Predicate.DEVICE), reference)
                        .select(layer().device("sun:1").build(), scheme, null))
                .withMessage("device: expected one of [abacus:0], got 'sun:1'");
    }

    @Test
    void wantOfMemoryIsNoCaseForTheReference() {
        FakeExperts reference = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1);
        assertThatExceptionOfType(InsufficientMemoryException.class)
                .isThrownBy(() -> oracle(triton(Predicate.OBSTACLES), reference)
                        .select(layer().build(), Int8Scheme.W8A8_CHANNEL, null))
                .withMessage("Triton: beads are few (more beads)")
                .satisfies(e -> assertThat(e.needed()).isEqualTo(12));
        assertThat(oracle(triton(Predicate.OBSTACLES), cpu(), reference)
                        .select(layer().build(), Int8Scheme.W8A8_CHANNEL, null)
                        .backend())
                .isEqualTo(Int8MoeBackend.CPU);
    }

    @Test
    void aLayerLargerThanTheDeviceIsRefused() {
        FusedMoeConfig config =
                layer().numExperts(120).hiddenDim(8192).intermediateSize(4096).build();
        long weights = 120L * 3 * 4096 * 8192;
        long memory = TornadoHome.current().devices().getFirst().memory();
        assumeTrue(memory < weights, () -> "the device has memory for it: " + memory);
        Support support = ask(new TornadoPortableExperts(), config);
        assertThat(support.reason())
                .startsWith("the layer needs ")
                .contains(" bytes of memory and ")
                .contains("; the largest part is ");
        assertThat(support.bytesNeeded()).isGreaterThan(weights);
        assertThat(support.bytesAvailable()).isEqualTo(memory);
    }

    /** The reference runs anywhere, so its devices aren't those that a layer may ask for. */
    @Test
    void aDeviceThatNobodyHasIsToldWithThoseThatThereAre() {
        FakeExperts broken = new FakeExperts("Broken", Int8MoeBackend.TRITON, 0) {
            @Override
            public boolean supportsCurrentDevice(FusedMoeConfig config) {
                throw new NoClassDefFoundError("driver");
            }

            @Override
            public List<String> devices() {
                throw new NoClassDefFoundError("driver");
            }
        };
        FakeExperts reference = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1) {
            @Override
            public List<String> devices() {
                return List.of("anywhere");
            }
        };
        assertThatIllegalArgumentException()
                .isThrownBy(() -> oracle(broken, cpu(Predicate.DEVICE), reference)
                        .select(layer().device("sun:1").build(), Int8Scheme.W8A8_CHANNEL, null))
                .withMessage("device: expected one of [abacus:0], got 'sun:1'");
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(() -> oracle(broken, reference)
                        .select(layer().device("sun:1").build(), Int8Scheme.W8A8_CHANNEL, null))
                .withMessageContaining("Broken: its check failed: java.lang.NoClassDefFoundError: driver");
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(
                        () -> oracle(reference).select(layer().device("sun:1").build(), Int8Scheme.W8A8_CHANNEL, null))
                .withMessage("No Int8 MoE backend supports the deployment configuration: no kernel class fills [triton,"
                        + " cpu, reference]");
    }

    @Test
    void weightsThatKernelsCannotIndexAreRefusedFirst() {
        FusedMoeConfig config =
                layer().numExperts(512).hiddenDim(7168).intermediateSize(2048).build();
        Int8MoeOracle oracle = oracle(triton());
        for (ThrowingCallable call : List.<ThrowingCallable>of(
                () -> oracle.select(config),
                () -> oracle.select(config, Int8Scheme.W8A8_CHANNEL, null),
                () -> oracle.explain(config, W, A))) {
            assertThatIllegalArgumentException().isThrownBy(call).withMessageStartingWith("w13 [numExperts 512, ");
        }
    }

    @Test
    void adaptersTakeTheFirstThatNothingOfTheDevicesHinders() {
        FakeExperts works = new FakeExperts("Works", Int8MoeBackend.TRITON, 2, Predicate.LORA);
        assertThat(oracle(triton(Predicate.OBSTACLES), works)
                        .select(layer().isLoraEnabled(true).build())
                        .experts())
                .isSameAs(works);
    }

    @Test
    void aLayersChoiceIsLoggedOnceAndTheReferenceIsNoBackendOfVllms() {
        FakeExperts reference = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1);
        List<String> lines = logged(() -> {
            Int8MoeOracle oracle = oracle(triton(Predicate.SHAPE), cpu(), reference);
            for (int i = 0; i < 2; i++) {
                oracle.select(layer().build(), Int8Scheme.W8A8_CHANNEL, null);
                oracle.select(layer().build(), Int8Scheme.W8A8_CHANNEL, "Reference");
            }
        });
        assertThat(lines)
                .containsExactly(
                        "FINE: Int8 MoE backend TRITON does not support the deployment configuration since kernel does"
                                + " not support 128 hidden dim is not supported.",
                        "FINE: Using CPU Int8 MoE backend out of potential backends: ['TRITON', 'CPU'].");
    }

    @Test
    void whoNamesAClassAsksForItsBackend() {
        List<String> asked = new ArrayList<>();
        FakeExperts experts = new FakeExperts("Asked", Int8MoeBackend.CPU, 1) {
            @Override
            public boolean supportsCurrentDevice(FusedMoeConfig config) {
                asked.add(config.moeBackend());
                return true;
            }
        };
        Int8MoeOracle oracle = oracle(triton(), experts);
        Selection selection = oracle.select(layer().build(), Int8Scheme.W8A8_CHANNEL, "Asked");
        assertThat(selection.config().moeBackend()).isEqualTo("auto");
        oracle(experts).select(layer().build(), Int8Scheme.W8A8_CHANNEL, null);
        assertThat(asked).containsExactly("cpu", "auto");
    }
}
