package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

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
import org.tornadomoe.tornado.device.TornadoHome;

/**
 * The layer and its stages on the interpreter, at sizes that are no multiple of any tile. The interpreter looks for
 * races, and what no kernel wrote comes back as poison. {@link InterpreterBatchedTest} and {@link
 * InterpreterArraysTest} have the rest of it, so that two JVMs can share them.
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

    static TornadoExperts experts(boolean dp4a) {
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
    static Stream<Int8Quantization> quantizations() {
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
                LayerChecks.stagesMatchReference(experts(dp4a), quantization, layer.batched(), 13);
            }
        }
    }

    @ParameterizedTest
    @EnumSource(names = {"W8A8_TENSOR", "W8A8_BLOCK", "W8A16_GROUP"})
    void wholeLayersOfEveryScheme(Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(3, 2, 150, 140, 13, 32);
        LayerChecks.forwardMatchesReference(experts(false), scheme, layer, 13, 1, 6);
        if (scheme == Int8Scheme.W8A8_BLOCK) {
            Int8Quantization nearest = Int8Quantization.of(scheme).withRoundToNearest(true);
            LayerChecks.forwardMatchesReference(experts(false), nearest, layer, 13, 1, 6);
        }
        LayerChecks.batchedMatchesStandard(experts(false), scheme, layer, 13);
        LayerChecks.partsAddUp(experts(false), scheme, layer, 2, 13);
        LayerChecks.adaptersMatchReference(experts(false), scheme, RandomLayer.of(5, 2, 37, 19, 9, 23), 9);
        LayerChecks.adaptersMatchReference(
                experts(false), scheme, RandomLayer.of(5, 2, 37, 19, 9, 23).batched(), 9);
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
        LayerChecks.staticScalesMatchReference(experts(false), layer.batched(), 13);
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
        LayerChecks.batchedMatchesStandard(experts(true), Int8Scheme.W8A8_CHANNEL, layer, 9);
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void biases(boolean int8) {
        Int8Scheme scheme = int8 ? Int8Scheme.W8A8_CHANNEL : Int8Scheme.W8A16_CHANNEL;
        RandomLayer layer = RandomLayer.of(5, 2, 37, 19, 9, 21).withBiases();
        LayerChecks.stagesMatchReference(experts(false), scheme, layer, 9);
        LayerChecks.forwardMatchesReference(experts(int8), scheme, layer, 9, 2);
        LayerChecks.batchedMatchesStandard(experts(int8), scheme, layer, 9);
        LayerChecks.partsAddUp(experts(int8), scheme, layer, 2, 9);
        RandomLayer onInput = RandomLayer.of(5, 1, 37, 19, 11, 22)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput()
                .withBiases();
        LayerChecks.stagesMatchReference(experts(int8), scheme, onInput, 11);
        LayerChecks.batchedMatchesStandard(experts(int8), scheme, onInput, 11);
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void adapters(boolean int8) {
        Int8Scheme scheme = int8 ? Int8Scheme.W8A8_CHANNEL : Int8Scheme.W8A16_CHANNEL;
        RandomLayer layer = RandomLayer.of(5, 2, 37, 19, 9, 23);
        LayerChecks.adaptersMatchReference(experts(int8), scheme, layer, 9);
        LayerChecks.adaptersMatchReference(experts(int8), scheme, layer.batched(), 9);
        LayerChecks.adaptersOfAPartMatchReference(experts(int8), scheme, layer, 9);
        LayerChecks.adaptersOfAPartMatchReference(experts(int8), scheme, layer.batched(), 9);
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
        LayerChecks.adaptersMatchReference(experts(int8), scheme, onInput.batched(), 11);
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

    /**
     * By the device's own count, after a call: what is told beforehand, of which the weights are at most 1.05 times
     * their int8 values.
     */
    @Test
    void theDeviceHoldsNoMoreThanIsTold() {
        RandomLayer layer = RandomLayer.of(6, 2, 256, 192, 4, 46);
        LayerChecks.memoryIsWhatIsTold(experts(true), Int8Scheme.W8A8_CHANNEL, layer);
        LayerChecks.memoryIsWhatIsTold(experts(false), Int8Scheme.W8A16_CHANNEL, layer);
        LayerChecks.memoryIsWhatIsTold(experts(true), Int8Scheme.W8A8_CHANNEL, layer.batched());
        LayerChecks.inSeveralArrays(
                () -> LayerChecks.memoryIsWhatIsTold(experts(true), Int8Scheme.W8A8_CHANNEL, layer.withBiases()));
    }

    @Test
    void callsAreForgotten() throws Exception {
        LayerChecks.callsAreForgotten("interpreter:0");
    }

    @Test
    void aClosedLayerLeavesNothingOnTheDevice() {
        RandomLayer layer = RandomLayer.of(6, 2, 65, 33, 4, 46);
        LayerChecks.aClosedLayerLeavesNothing(experts(true), Int8Scheme.W8A8_CHANNEL, layer);
        LayerChecks.aClosedLayerLeavesNothing(experts(false), Int8Scheme.W8A16_CHANNEL, layer.withBiases());
        LayerChecks.aClosedLayerLeavesNothing(experts(true), Int8Scheme.W8A8_BLOCK, layer.batched());
    }
}
