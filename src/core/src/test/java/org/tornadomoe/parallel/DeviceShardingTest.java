package org.tornadomoe.parallel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;

/**
 * Layers over the SDK's devices ({@code -Dtornadomoe.test.device=ptx}: over those alone): all of a backend where it has
 * several, in either order, and every one twice.
 */
@Tag("device")
class DeviceShardingTest {
    private static final int TOKENS = 33;
    private static final Map<String, Boolean> IS_RIGHT = new ConcurrentHashMap<>();

    private static Stream<Arguments> spreads() {
        TornadoHome home = TornadoHome.current();
        assumeTrue(home.kind() == TornadoHome.Kind.SDK, () -> "no TornadoVM SDK: " + home.note());
        List<List<String>> spreads = new ArrayList<>();
        devices()
                .collect(Collectors.groupingBy(id -> id.substring(0, id.indexOf(':'))))
                .values()
                .forEach(ids -> {
                    spreads.add(List.of(ids.getFirst(), ids.getFirst()));
                    spreads.add(List.of(ids.getLast(), ids.getFirst(), ids.getLast()));
                    if (ids.size() > 1) {
                        spreads.add(List.of(ids.getFirst(), ids.getLast()));
                    }
                });
        return spreads.stream()
                .flatMap(devices -> Stream.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)
                        .flatMap(scheme ->
                                Stream.of(true, false).map(experts -> Arguments.of(devices, scheme, experts))));
    }

    @ParameterizedTest
    @MethodSource("spreads")
    void theOutputIsTheLayers(List<String> devices, Int8Scheme scheme, boolean experts) {
        RandomLayer weights = RandomLayer.of(12, 3, 128, 192, TOKENS, 5);
        float[] hidden = weights.hidden(TOKENS, 1);
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend("triton")
                .withMaxTokens(TOKENS)
                .withDevices(devices)
                .withExpertParallel(experts);
        try (Int8Experts whole = Int8Quantizer.quantize(weights, scheme, Progress.NONE);
                MoeLayer layer = MoeLayer.of(whole, options)) {
            long alone = layer.deviceBytes();
            float[] output = layer.forward(hidden);
            double[] expected = Reference.forward(whole, hidden, TOKENS).output();
            boolean halves = layer.kernelClass().contains("Half"); // round to 11 bits
            double tolerance = !scheme.quantizesActivations() ? halves ? 1e-3 : 1e-5 : experts ? 2e-3 : 3e-2;
            assertThat(Numerics.relativeL2(Numerics.widen(output), expected)).isLessThan(tolerance);
            for (int run = 0; run < 5; run++) {
                assertThat(layer.forward(hidden)).isEqualTo(output);
            }
            assertThat(layer.deviceBytes())
                    .as("devices that add the output themselves take nothing for it")
                    .isEqualTo(alone);
        }
    }

    private static Stream<Arguments> balanced() {
        return spreads()
                .map(arguments -> arguments.get()[0])
                .distinct()
                .flatMap(devices -> Stream.of(false, true).map(copies -> Arguments.of(devices, copies)));
    }

    /** Calls, of many tokens and of few, go on while weights are loaded beside those in use. */
    @ParameterizedTest
    @MethodSource("balanced")
    void expertsMoveWhileCallsGoOn(List<String> devices, boolean copies) {
        RandomLayer weights = RandomLayer.of(12, 3, 128, 192, TOKENS, 5);
        EplbConfig eplb = EplbConfig.DEFAULT
                .withWindowSize(4)
                .withStepInterval(8)
                .withNumRedundantExperts(copies ? devices.size() * 2 : 0);
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend("triton")
                .withMaxTokens(TOKENS)
                .withDevices(devices)
                .withLoadBalancing(eplb);
        int calls = 0;
        try (Int8Experts whole = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeLayer layer = MoeLayer.of(whole, options)) {
            for (int moves = 1; moves <= 2; moves++) {
                float[] many = weights.hidden(TOKENS, moves);
                float[] few = weights.hidden(5, moves);
                double[] ofMany = Reference.forward(whole, many, TOKENS).output();
                double[] ofFew = Reference.forward(whole, few, 5).output();
                int least = calls + 16;
                while (calls < least
                        || (calls < 2000
                                && Objects.requireNonNull(layer.balance()).rearrangements() < moves)) {
                    boolean isFew = calls % 3 == 1;
                    float[] output = layer.forward(isFew ? few : many);
                    assertThat(Numerics.relativeL2(Numerics.widen(output), isFew ? ofFew : ofMany))
                            .isLessThan(2e-3);
                    calls++;
                }
            }
            ExpertBalance balance = Objects.requireNonNull(layer.balance());
            System.getLogger("test")
                    .log(System.Logger.Level.INFO, devices + ": " + balance + " after " + calls + " calls");
            assertThat(balance.refusal()).isNull();
            assertThat(balance.rearrangements()).isGreaterThanOrEqualTo(1);
        }
    }

    private static Stream<String> devices() {
        String prefix = System.getProperty("tornadomoe.test.device", "");
        return TornadoHome.current().devices().stream()
                .map(Device::id)
                .filter(id -> id.startsWith(prefix))
                .filter(id -> IS_RIGHT.computeIfAbsent(id, DeviceShardingTest::isRight));
    }

    /** Whether a layer on the device alone passes its check when it is loaded: PoCL 5's compute wrong numbers. */
    private static boolean isRight(String device) {
        RandomLayer weights = RandomLayer.of(4, 2, 128, 64, 1, 5);
        MoeOptions options =
                MoeOptions.DEFAULT.withBackend("triton").withMaxTokens(1).withDevice(device);
        try (Int8Experts whole = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeLayer layer = MoeLayer.of(whole, options)) {
            return layer.lanes() > 0;
        } catch (MoeExecutionException wrong) {
            if (!String.valueOf(wrong.getMessage()).contains("wrong numbers")) {
                throw wrong;
            }
            System.getLogger("test").log(System.Logger.Level.WARNING, device + " is left out: " + wrong.getMessage());
            return false;
        }
    }

    /** TornadoVM 5.2.0 would refuse: "reset() was called after warmup()". */
    @ParameterizedTest
    @MethodSource("devices")
    void aLayerGoesOnWhenAnotherIsClosed(String device) {
        RandomLayer weights = RandomLayer.of(4, 2, 128, 64, TOKENS, 5);
        float[] hidden = weights.hidden(TOKENS, 1);
        MoeOptions options =
                MoeOptions.DEFAULT.withBackend("triton").withMaxTokens(TOKENS).withDevice(device);
        try (MoeLayer layer = MoeLayer.of(weights, options)) {
            float[] output = layer.forward(hidden);
            MoeLayer.of(weights, options).close();
            assertThat(layer.forward(hidden)).isEqualTo(output);
        }
    }
}
