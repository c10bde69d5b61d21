package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.ServiceLoader;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.cpu.CpuExperts;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.reference.ReferenceExperts;
import org.tornadomoe.tornado.TornadoPortableExperts;

/**
 * Kernel classes that take a layer with batch invariance give a token the same bits, whatever tokens come with it and
 * however many: the CPU's at sizes that cross each of its loops, the interpreter's as far as it is fast enough. {@code
 * DeviceLayerTest} has the devices'.
 */
@Tag("hot")
class BatchInvarianceTest {
    /** One to eight pairs of an expert are multiplied together, and a team takes what is worth it. */
    private static final int[] SIZES = IntStream.concat(
                    IntStream.rangeClosed(1, 40),
                    IntStream.of(63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 600))
            .toArray();

    @Test
    void oneScaleOfAllTokensIsRefusedUnlessItIsKnownBeforehand() {
        RandomLayer layer = RandomLayer.of(5, 2, 70, 33, 19, 1);
        QuantKey weights = QuantKey.INT8_STATIC_TENSOR_SYM;
        for (FusedMoeExperts experts : List.of(new ReferenceExperts(), new TornadoPortableExperts())) {
            // The interpreter is a device only where it is asked for.
            RandomLayer here = experts instanceof ReferenceExperts ? layer : layer.on("interpreter:0");
            FusedMoeConfig config = here.batchInvariant().config();
            assertThat(experts.isSupportedConfig(
                                    config, weights, QuantKey.INT8_DYNAMIC_TENSOR_SYM, config.activationFormat())
                            .reason())
                    .as(experts.name())
                    .isEqualTo("one scale for all tokens, computed at run time, makes them depend on each other");
            assertThat(experts.isSupportedConfig(
                                    config, weights, QuantKey.INT8_STATIC_TENSOR_SYM, config.activationFormat())
                            .supported())
                    .as(experts.name())
                    .isTrue();
        }
    }

    @Test
    void expertsThatMoveAreRefused() {
        FusedMoeConfig config = RandomLayer.of(6, 2, 70, 33, 19, 1).batchInvariant().config().toBuilder()
                .moeParallelConfig(FusedMoeParallelConfig.builder()
                        .dp(2, 0)
                        .expertParallel(true)
                        .eplb(true)
                        .build())
                .build();
        for (FusedMoeExperts experts : List.of(new CpuExperts(), new ReferenceExperts())) {
            assertThat(experts.refusals(
                            config,
                            Int8Scheme.W8A8_CHANNEL.weightKey(),
                            Int8Scheme.W8A8_CHANNEL.activationKey(),
                            config.activationFormat()))
                    .as(experts.name())
                    .extracting(refusal -> refusal.reason())
                    .contains("load balancing moves experts and chooses copies by a token's place in the call, which"
                            + " changes the order of its sum");
        }
    }

    private static List<Int8Quantization> quantizations() {
        return List.of(
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(8, 12)),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withRoundToNearest(true),
                Int8Quantization.of(Int8Scheme.W8A16_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                        .withGrid(new GroupShape(1, 16))
                        .withZeroPoints(true));
    }

    /** Every class that there is, with every scheme for which it takes a layer. */
    private static Stream<Arguments> classes() {
        List<Arguments> taken = new ArrayList<>();
        RandomLayer layer = RandomLayer.of(5, 2, 70, 33, 19, 1);
        for (FusedMoeExperts experts : ServiceLoader.load(FusedMoeExperts.class)) {
            List<String> devices = experts.devices();
            for (String device : List.of("cpu", "interpreter:0")) {
                for (Int8Quantization quantization : quantizations()) {
                    if (devices.contains(device)
                            && BatchChecks.support(experts, layer.on(device), quantization)
                                    .supported()) {
                        taken.add(Arguments.of(experts, device, quantization));
                    }
                }
            }
        }
        return taken.stream();
    }

    @ParameterizedTest
    @MethodSource("classes")
    void aTokensBitsDoNotDependOnItsBatch(FusedMoeExperts experts, String device, Int8Quantization quantization) {
        RandomLayer layer = RandomLayer.of(5, 2, 70, 33, 19, 1).withBiases().on(device);
        if (experts instanceof CpuExperts) {
            BatchChecks.bitsDoNotDependOnTheBatch(experts, quantization, layer, 100, SIZES);
        } else {
            // Up to 15 tokens give an expert few pairs.
            BatchChecks.bitsDoNotDependOnTheBatch(experts, quantization, layer, 5, 1, 15, 19);
        }
    }

    private static Stream<RandomLayer> layers() {
        RandomLayer layer = RandomLayer.of(16, 4, 37, 21, 19, 2);
        Stream<RouterConfig> routers = Stream.concat(
                RoutingCases.routers(16, 4).stream(),
                Arrays.stream(RoutingMethodType.values()).map(RouterConfig::of));
        return Stream.concat(
                routers.map(layer::routedBy),
                Stream.of(
                        layer.sharing(2)
                                .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, false)
                                        .withCorrectionBias()
                                        .withZeroExperts(3)
                                        .withSharedExpertGate()),
                        RandomLayer.of(6, 1, 37, 21, 19, 3)
                                .routedBy(RouterConfig.topKThenSigmoid())
                                .weighedOnInput(),
                        layer.withLora(2, 8),
                        layer.ofType(ScalarType.BF16),
                        layer.ofType(ScalarType.F16).withBiases(),
                        RandomLayer.of(3, 1, 2100, 1100, 19, 4)));
    }

    @ParameterizedTest
    @MethodSource("layers")
    void everyRouterAndKindOfLayerOnTheCpu(RandomLayer layer) {
        boolean large = layer.config().hiddenDim() > 1000;
        for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_GROUP)) {
            BatchChecks.bitsDoNotDependOnTheBatch(
                    new CpuExperts(),
                    Int8Quantization.of(scheme),
                    layer,
                    large ? 33 : 100,
                    large ? new int[] {1, 7, 33} : new int[] {1, 2, 7, 33, 64, 257});
        }
    }

    @ParameterizedTest
    @EnumSource(MoeActivation.class)
    void everyActivationOnTheCpu(MoeActivation activation) {
        BatchChecks.bitsDoNotDependOnTheBatch(
                new CpuExperts(),
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL),
                RandomLayer.of(5, 2, 70, 33, 19, 1).activatedBy(activation),
                65,
                1,
                9,
                65);
    }

    /** A layer partitioned over several devices, by experts or by columns: parts are added in the order of devices. */
    @ParameterizedTest
    @EnumSource(Int8Scheme.class)
    void onSeveralDevices(Int8Scheme scheme) {
        if (scheme == Int8Scheme.W8A8_TENSOR) {
            return; // one scale of all tokens
        }
        int h = 48;
        RandomLayer weights = RandomLayer.of(6, 2, h, 24, 130, 1).batchInvariant();
        for (boolean byExperts : new boolean[] {true, false}) {
            MoeOptions options = MoeOptions.DEFAULT
                    .withQuantization(Int8Quantization.of(scheme).withGrid(grid(scheme)))
                    .withBackend("cpu")
                    .withDevices(List.of("cpu", "cpu", "cpu"))
                    .withExpertParallel(byExperts)
                    .withMaxTokens(130);
            try (MoeLayer layer = MoeLayer.of(weights, options)) {
                float[] hidden = weights.hidden(130, 1);
                float[] together = layer.forward(hidden);
                for (int size : new int[] {1, 2, 31, 64, 129}) {
                    for (int first = 0; first + size <= 130; first += size) {
                        assertThat(layer.forward(Arrays.copyOfRange(hidden, first * h, (first + size) * h)))
                                .isEqualTo(Arrays.copyOfRange(together, first * h, (first + size) * h));
                    }
                }
            }
        }
    }

    private static GroupShape grid(Int8Scheme scheme) {
        return switch (scheme) {
            case W8A8_BLOCK -> new GroupShape(8, 8);
            case W8A16_GROUP -> new GroupShape(1, 8);
            default -> Int8Quantization.of(scheme).grid();
        };
    }
}
