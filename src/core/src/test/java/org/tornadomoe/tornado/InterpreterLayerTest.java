package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.tornado.device.TornadoHome;

/**
 * The layer and its stages on the interpreter, at sizes that are no multiple of any tile. The interpreter looks for
 * races, and what no kernel wrote comes back as poison.
 */
@ExtendWith(LooksForRaces.class)
class InterpreterLayerTest {
    private static final String SHAPES = """
        # E, K, H, I, M
        1, 1, 4, 4, 1
        5, 2, 37, 19, 7
        8, 2, 100, 70, 13
        33, 6, 65, 33, 50
        130, 8, 40, 36, 41
        """;

    /** Every slot is a row here, whether it is in use or not. */
    private static final String BATCHED_SHAPES = """
        # E, K, H, I, M
        1, 1, 4, 4, 1
        5, 2, 37, 19, 7
        8, 2, 100, 70, 10
        40, 6, 33, 17, 9
        """;

    private static TornadoExperts experts(boolean dp4a) {
        assertThat(TornadoHome.current().kind()).isEqualTo(TornadoHome.Kind.INTERPRETER);
        return dp4a ? new TornadoDp4aExperts() : new TornadoPortableExperts();
    }

    @ParameterizedTest
    @CsvSource(textBlock = SHAPES)
    void stagesWithDp4a(int e, int k, int h, int i, int m) {
        LayerChecks.stagesMatchReference(experts(true), Int8Scheme.W8A8_CHANNEL, RandomLayer.of(e, k, h, i, m, 1), m);
    }

    @ParameterizedTest
    @CsvSource(textBlock = SHAPES)
    void portableStages(int e, int k, int h, int i, int m) {
        LayerChecks.stagesMatchReference(experts(false), Int8Scheme.W8A8_CHANNEL, RandomLayer.of(e, k, h, i, m, 2), m);
    }

    @ParameterizedTest
    @CsvSource(textBlock = SHAPES)
    void stagesWithFloatActivations(int e, int k, int h, int i, int m) {
        LayerChecks.stagesMatchReference(experts(false), Int8Scheme.W8A16_CHANNEL, RandomLayer.of(e, k, h, i, m, 3), m);
    }

    /**
     * One scale an expert; blocks that end with rows and columns, that don't, and one larger than all; groups likewise.
     */
    private static Stream<Int8Quantization> quantizations() {
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK);
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP);
        return Stream.of(
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                block,
                block.withGrid(new GroupShape(16, 8)),
                block.withGrid(new GroupShape(1, 20)).withRoundToNearest(true),
                group,
                group.withGrid(new GroupShape(1, 12)),
                group.withGrid(new GroupShape(1, 16)).withZeroPoints(true),
                group.withGrid(GroupShape.PER_TOKEN).withZeroPoints(true));
    }

    @ParameterizedTest
    @MethodSource("quantizations")
    void everyScheme(Int8Quantization quantization) {
        RandomLayer layer = RandomLayer.of(5, 2, 50, 38, 13, 31);
        for (boolean dp4a : new boolean[] {true, false}) {
            if (!dp4a || quantization.scheme().quantizesActivations()) {
                LayerChecks.stagesMatchReference(experts(dp4a), quantization, layer, 13);
                LayerChecks.stagesMatchReference(batched(dp4a), quantization, layer, 13);
            }
        }
    }

    @ParameterizedTest
    @EnumSource(names = {"W8A8_TENSOR", "W8A8_BLOCK", "W8A16_GROUP"})
    void wholeLayersOfEveryScheme(Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(5, 2, 150, 140, 13, 32);
        LayerChecks.forwardMatchesReference(experts(false), scheme, layer, 13, 1, 6);
        if (scheme == Int8Scheme.W8A8_BLOCK) {
            Int8Quantization nearest = Int8Quantization.of(scheme).withRoundToNearest(true);
            LayerChecks.forwardMatchesReference(experts(false), nearest, layer, 13, 1, 6);
        }
        double tolerance = scheme == Int8Scheme.W8A16_GROUP ? 1e-6 : 0;
        LayerChecks.batchedMatchesStandard(batched(false), experts(false), scheme, layer, 13, tolerance);
        LayerChecks.partsAddUp(experts(false), scheme, layer, 2, 13);
        LayerChecks.adaptersMatchReference(experts(false), scheme, RandomLayer.of(5, 2, 37, 19, 9, 23), 9);
        LayerChecks.adaptersMatchReference(batched(false), scheme, RandomLayer.of(5, 2, 37, 19, 9, 23), 9);
        for (MoeActivation activation : MoeActivation.values()) {
            LayerChecks.stagesMatchReference(
                    experts(false),
                    scheme,
                    RandomLayer.of(5, 2, 37, 19, 9, 20).activatedBy(activation).withBiases(),
                    9);
        }
    }

    @Test
    void scalesOfActivationsKnownBeforehand() {
        RandomLayer layer = RandomLayer.of(5, 2, 50, 38, 13, 33);
        LayerChecks.staticScalesMatchReference(experts(true), layer, 13);
        LayerChecks.staticScalesMatchReference(batched(false), layer, 13);
    }

    @Test
    void weightsThatAreNotRenormalised() {
        RandomLayer layer = RandomLayer.of(12, 3, 20, 12, 9, 4).routedBy(RoutingMethodType.DEFAULT);
        LayerChecks.stagesMatchReference(experts(true), Int8Scheme.W8A8_CHANNEL, layer, 9);
    }

    @Test
    void routerWeightsOnTheInput() {
        RandomLayer onOutput = RandomLayer.of(5, 1, 37, 19, 11, 14).routedBy(RoutingMethodType.DEFAULT);
        RandomLayer layer = onOutput.weighedOnInput();
        for (boolean dp4a : new boolean[] {true, false}) {
            LayerChecks.stagesMatchReference(experts(dp4a), Int8Scheme.W8A8_CHANNEL, layer, 11);
            LayerChecks.forwardMatchesReference(experts(dp4a), Int8Scheme.W8A8_CHANNEL, layer, 11, 2);
        }
        LayerChecks.stagesMatchReference(experts(false), Int8Scheme.W8A16_CHANNEL, layer, 11);
        LayerChecks.forwardMatchesReference(experts(false), Int8Scheme.W8A16_CHANNEL, layer, 2, 11);
    }

    @ParameterizedTest
    @EnumSource
    void everyActivation(MoeActivation activation) {
        RandomLayer layer = RandomLayer.of(5, 2, 37, 19, 9, 20).activatedBy(activation);
        LayerChecks.stagesMatchReference(experts(true), Int8Scheme.W8A8_CHANNEL, layer, 9);
        LayerChecks.stagesMatchReference(experts(false), Int8Scheme.W8A16_CHANNEL, layer, 9);
        LayerChecks.forwardMatchesReference(experts(true), Int8Scheme.W8A8_CHANNEL, layer, 9, 2);
        LayerChecks.batchedMatchesStandard(batched(true), experts(true), Int8Scheme.W8A8_CHANNEL, layer, 9, 0);
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void biases(boolean int8) {
        Int8Scheme scheme = int8 ? Int8Scheme.W8A8_CHANNEL : Int8Scheme.W8A16_CHANNEL;
        RandomLayer layer = RandomLayer.of(5, 2, 37, 19, 9, 21).withBiases();
        LayerChecks.stagesMatchReference(experts(false), scheme, layer, 9);
        LayerChecks.forwardMatchesReference(experts(int8), scheme, layer, 9, 2);
        LayerChecks.batchedMatchesStandard(batched(int8), experts(int8), scheme, layer, 9, 0);
        LayerChecks.partsAddUp(experts(int8), scheme, layer, 2, 9);
        RandomLayer onInput = RandomLayer.of(5, 1, 37, 19, 11, 22)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput()
                .withBiases();
        LayerChecks.stagesMatchReference(experts(int8), scheme, onInput, 11);
        LayerChecks.batchedMatchesStandard(batched(int8), experts(int8), scheme, onInput, 11, int8 ? 0 : 1e-6);
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void adapters(boolean int8) {
        Int8Scheme scheme = int8 ? Int8Scheme.W8A8_CHANNEL : Int8Scheme.W8A16_CHANNEL;
        RandomLayer layer = RandomLayer.of(5, 2, 37, 19, 9, 23);
        LayerChecks.adaptersMatchReference(experts(int8), scheme, layer, 9);
        LayerChecks.adaptersMatchReference(batched(int8), scheme, layer, 9);
        LayerChecks.adaptersOfAPartMatchReference(experts(int8), scheme, layer, 9);
        LayerChecks.adaptersOfAPartMatchReference(batched(int8), scheme, layer, 9);
        LayerChecks.adaptersMatchReference(
                experts(int8),
                scheme,
                layer.activatedBy(MoeActivation.SWIGLUOAI).withBiases(),
                9);
        LayerChecks.adaptersMatchReference(experts(int8), scheme, layer.activatedBy(MoeActivation.RELU2_NO_MUL), 9);
        RandomLayer onInput = RandomLayer.of(5, 1, 37, 19, 11, 24)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput();
        LayerChecks.adaptersMatchReference(experts(int8), scheme, onInput, 11);
        LayerChecks.adaptersMatchReference(batched(int8), scheme, onInput, 11);
    }

    @Test
    void oneKernelServesEveryTokenCount() {
        LayerChecks.forwardMatchesReference(
                experts(true), Int8Scheme.W8A8_CHANNEL, RandomLayer.of(9, 3, 50, 30, 60, 5), 1, 60, 7, 59, 1);
        LayerChecks.forwardMatchesReference(
                experts(false), Int8Scheme.W8A16_CHANNEL, RandomLayer.of(9, 3, 50, 30, 60, 6), 60, 1, 33);
    }

    @Test
    void fewPairsAreNotSorted() {
        RandomLayer layer = RandomLayer.of(33, 2, 37, 19, 4, 20);
        LayerChecks.forwardMatchesReference(experts(true), Int8Scheme.W8A8_CHANNEL, layer, 1, 4, 3, 1);
        LayerChecks.forwardMatchesReference(experts(false), Int8Scheme.W8A16_CHANNEL, layer, 4, 2);
    }

    @Test
    void partsOfALayerAddUpToIt() {
        LayerChecks.partsAddUp(experts(true), Int8Scheme.W8A8_CHANNEL, RandomLayer.of(7, 3, 30, 20, 25, 12), 3, 25);
        LayerChecks.partsAddUp(experts(false), Int8Scheme.W8A16_CHANNEL, RandomLayer.of(7, 3, 30, 20, 25, 13), 3, 25);
    }

    private static TornadoExperts batched(boolean dp4a) {
        return dp4a ? new TornadoDp4aBatchedExperts() : new TornadoPortableBatchedExperts();
    }

    @ParameterizedTest
    @CsvSource(textBlock = BATCHED_SHAPES)
    void batchedStages(int e, int k, int h, int i, int m) {
        RandomLayer layer = RandomLayer.of(e, k, h, i, m, 15);
        LayerChecks.stagesMatchReference(batched(true), Int8Scheme.W8A8_CHANNEL, layer, m);
        LayerChecks.stagesMatchReference(batched(false), Int8Scheme.W8A16_CHANNEL, layer, m);
    }

    @ParameterizedTest
    @CsvSource(textBlock = BATCHED_SHAPES)
    void theBatchedFormatEqualsTheStandardFormat(int e, int k, int h, int i, int m) {
        RandomLayer layer = RandomLayer.of(e, k, h, i, m, 16);
        for (boolean dp4a : new boolean[] {true, false}) {
            LayerChecks.batchedMatchesStandard(batched(dp4a), experts(dp4a), Int8Scheme.W8A8_CHANNEL, layer, m, 0);
        }
        LayerChecks.batchedMatchesStandard(batched(false), experts(false), Int8Scheme.W8A16_CHANNEL, layer, m, 0);
    }

    @Test
    void batchedWithRouterWeightsOnTheInput() {
        RandomLayer layer = RandomLayer.of(5, 1, 37, 19, 11, 17)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput();
        LayerChecks.batchedMatchesStandard(batched(true), experts(true), Int8Scheme.W8A8_CHANNEL, layer, 11, 0);
        LayerChecks.batchedMatchesStandard(batched(false), experts(false), Int8Scheme.W8A16_CHANNEL, layer, 11, 1e-6);
    }

    @Test
    void batchedPartsOfALayerAddUpToIt() {
        LayerChecks.partsAddUp(batched(true), Int8Scheme.W8A8_CHANNEL, RandomLayer.of(7, 3, 30, 20, 25, 18), 3, 25);
    }

    @ParameterizedTest
    @MethodSource("quantizations")
    void expertsInSeveralArrays(Int8Quantization quantization) {
        boolean int8 = quantization.scheme().quantizesActivations();
        RandomLayer layer = RandomLayer.of(5, 2, 50, 38, 13, 41);
        RandomLayer biased = RandomLayer.of(9, 3, 37, 19, 7, 42).withBiases();
        List<TornadoExperts> classes =
                int8 ? List.of(experts(true), experts(false), batched(true)) : List.of(experts(false), batched(false));
        for (TornadoExperts experts : classes) {
            LayerChecks.dealtOutExpertsGiveTheSameBits(experts, quantization, layer, 13, 1);
            LayerChecks.dealtOutExpertsGiveTheSameBits(experts, quantization, biased, 7);
        }
    }

    @Test
    void expertsInSeveralArraysAndOnSeveralRanksWithAdapters() {
        RandomLayer layer = RandomLayer.of(7, 3, 30, 20, 25, 43);
        LayerChecks.dealOut(() -> {
            for (TornadoExperts experts : List.of(experts(true), batched(true))) {
                LayerChecks.partsAddUp(experts, Int8Scheme.W8A8_CHANNEL, layer, 3, 25);
                LayerChecks.adaptersMatchReference(
                        experts, Int8Scheme.W8A8_CHANNEL, RandomLayer.of(5, 2, 37, 19, 9, 23), 9);
            }
            // So few pairs that they are not sorted.
            LayerChecks.forwardMatchesReference(
                    experts(true), Int8Scheme.W8A8_CHANNEL, RandomLayer.of(33, 2, 37, 19, 4, 20), 1, 4);
        });
    }

    @Test
    void moreTokensThanSlotsAreRefused() {
        RandomLayer layer = RandomLayer.of(4, 2, 8, 8, 3, 19);
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            StageValues given = LayerChecks.values(Reference.forward(int8, layer.hidden(3, 1), 3), 4);
            Arrays.fill(given.topkIds(), 2);
            assertThatThrownBy(() -> batched(true).stages(layer.config(), int8, layer.hidden(3, 1), 3, given))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("topkIds: expected at most 3 pairs an expert (its slots), got more for expert 2");
        }
    }

    /**
     * By the device's own count, after a call: what is told beforehand, of which the weights are at most 1.05 times
     * their int8 values.
     */
    @Test
    void theDeviceHoldsNoMoreThanIsTold() {
        RandomLayer layer = RandomLayer.of(6, 2, 256, 192, 4, 46);
        LayerChecks.memoryIsWhatIsTold(experts(true), Int8Scheme.W8A8_CHANNEL, layer);
        LayerChecks.memoryIsWhatIsTold(experts(false), Int8Scheme.W8A16_CHANNEL, layer);
        LayerChecks.memoryIsWhatIsTold(batched(true), Int8Scheme.W8A8_CHANNEL, layer);
        LayerChecks.dealOut(
                () -> LayerChecks.memoryIsWhatIsTold(experts(true), Int8Scheme.W8A8_CHANNEL, layer.withBiases()));
    }

    @Test
    void aClosedLayerLeavesNothingOnTheDevice() {
        RandomLayer layer = RandomLayer.of(6, 2, 65, 33, 4, 46);
        LayerChecks.aClosedLayerLeavesNothing(experts(true), Int8Scheme.W8A8_CHANNEL, layer);
        LayerChecks.aClosedLayerLeavesNothing(experts(false), Int8Scheme.W8A16_CHANNEL, layer.withBiases());
        LayerChecks.aClosedLayerLeavesNothing(batched(true), Int8Scheme.W8A8_BLOCK, layer);
    }
}
