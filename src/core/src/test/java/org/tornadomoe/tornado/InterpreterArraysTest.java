package org.tornadomoe.tornado;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/** As {@link InterpreterLayerTest}, of layers whose experts' weights are in several arrays. */
@ExtendWith(LooksForRaces.class)
class InterpreterArraysTest {
    @ParameterizedTest
    @MethodSource("org.tornadomoe.tornado.InterpreterLayerTest#quantizations")
    void expertsInSeveralArrays(Int8Quantization quantization) {
        boolean int8 = quantization.scheme().quantizesActivations();
        RandomLayer layer = RandomLayer.of(5, 2, 38, 34, 13, 41);
        RandomLayer biased = RandomLayer.of(9, 3, 37, 19, 7, 42).withBiases();
        for (TornadoExperts experts : int8
                ? List.of(InterpreterLayerTest.experts(true), InterpreterLayerTest.experts(false))
                : List.of(InterpreterLayerTest.experts(false))) {
            LayerChecks.expertsInSeveralArraysGiveTheSameBits(experts, quantization, layer, 13, 1);
            LayerChecks.expertsInSeveralArraysGiveTheSameBits(experts, quantization, layer.batched(), 13, 1);
            LayerChecks.expertsInSeveralArraysGiveTheSameBits(experts, quantization, biased, 7);
        }
    }

    @Test
    void expertsInSeveralArraysAndOnSeveralRanksWithAdapters() {
        RandomLayer layer = RandomLayer.of(7, 3, 30, 20, 25, 43);
        LayerChecks.inSeveralArrays(() -> {
            RandomLayer adapted = RandomLayer.of(5, 2, 37, 19, 9, 23);
            LayerChecks.partsAddUp(InterpreterLayerTest.experts(true), Int8Scheme.W8A8_CHANNEL, layer, 3, 25);
            LayerChecks.partsAddUp(InterpreterLayerTest.experts(true), Int8Scheme.W8A8_CHANNEL, layer.batched(), 3, 25);
            LayerChecks.adaptersMatchReference(InterpreterLayerTest.experts(true), Int8Scheme.W8A8_CHANNEL, adapted, 9);
            LayerChecks.adaptersMatchReference(
                    InterpreterLayerTest.experts(true), Int8Scheme.W8A8_CHANNEL, adapted.batched(), 9);
            // So few pairs that they are not sorted.
            LayerChecks.forwardMatchesReference(
                    InterpreterLayerTest.experts(true),
                    Int8Scheme.W8A8_CHANNEL,
                    RandomLayer.of(33, 2, 37, 19, 4, 20),
                    1,
                    4);
        });
    }
}
