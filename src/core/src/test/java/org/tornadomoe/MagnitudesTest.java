package org.tornadomoe;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.cpu.CpuExperts;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.tornado.TornadoPanelExperts;
import org.tornadomoe.tornado.TornadoPortableExperts;

/**
 * Hidden states of any finite magnitude, on the CPU and on the interpreter; {@code DeviceLayerTest} has the devices.
 */
@Tag("hot")
class MagnitudesTest {
    private static Stream<Arguments> kernels() {
        List<Int8Quantization> all = List.of(
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(8, 16)),
                Int8Quantization.of(Int8Scheme.W8A16_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 16)),
                Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                        .withGrid(new GroupShape(1, 16))
                        .withZeroPoints(true));
        List<Arguments> kernels = new ArrayList<>();
        for (MoeActivation activation : List.of(
                MoeActivation.SILU,
                MoeActivation.SWIGLUOAI,
                MoeActivation.GELU,
                MoeActivation.GELU_TANH,
                MoeActivation.RELU2,
                MoeActivation.RELU,
                MoeActivation.SITU)) {
            for (Int8Quantization quantization : all) {
                kernels.add(Arguments.of(new CpuExperts(), "cpu", quantization, activation));
                kernels.add(Arguments.of(new TornadoPortableExperts(), "interpreter:0", quantization, activation));
            }
            kernels.add(Arguments.of(new TornadoPanelExperts(), "interpreter:0", all.getFirst(), activation));
        }
        return kernels.stream();
    }

    @ParameterizedTest
    @MethodSource("kernels")
    void noOutputIsAnotherNumber(
            FusedMoeExperts experts, String device, Int8Quantization quantization, MoeActivation activation) {
        MagnitudeChecks.noOutputIsAnotherNumber(experts, device, quantization, activation);
    }
}
