package org.tornadomoe.tornado;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RoutingMethodType;

/** As {@link InterpreterLayerTest}, of layers in the batched format. */
@ExtendWith(LooksForRaces.class)
class InterpreterBatchedTest {
    /** Every expert has a slot for every token here: of one block, and of two. */
    private static final String BATCHED_SHAPES = """
        # E, K, H, I, M
        1, 1, 4, 4, 1
        5, 2, 37, 19, 7
        3, 2, 100, 70, 18
        33, 6, 21, 13, 9
        130, 8, 20, 12, 5
        """;

    @ParameterizedTest
    @CsvSource(textBlock = BATCHED_SHAPES)
    void batchedStages(int e, int k, int h, int i, int m) {
        RandomLayer layer = RandomLayer.of(e, k, h, i, m, 15).batched();
        LayerChecks.stagesMatchReference(InterpreterLayerTest.experts(true), Int8Scheme.W8A8_CHANNEL, layer, m);
        LayerChecks.stagesMatchReference(InterpreterLayerTest.experts(false), Int8Scheme.W8A16_CHANNEL, layer, m);
    }

    /** Of every family that runs here. */
    @ParameterizedTest
    @CsvSource(textBlock = BATCHED_SHAPES)
    void theBatchedFormatEqualsTheStandardFormat(int e, int k, int h, int i, int m) {
        RandomLayer layer = RandomLayer.of(e, k, h, i, m, 16);
        for (TornadoExperts experts : List.of(
                InterpreterLayerTest.experts(true), InterpreterLayerTest.experts(false), new TornadoPanelExperts())) {
            LayerChecks.batchedMatchesStandard(experts, Int8Scheme.W8A8_CHANNEL, layer, m);
        }
        LayerChecks.batchedMatchesStandard(InterpreterLayerTest.experts(false), Int8Scheme.W8A16_CHANNEL, layer, m);
    }

    @Test
    void batchedWithRouterWeightsOnTheInput() {
        RandomLayer layer = RandomLayer.of(5, 1, 37, 19, 11, 17)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput();
        LayerChecks.batchedMatchesStandard(InterpreterLayerTest.experts(true), Int8Scheme.W8A8_CHANNEL, layer, 11);
        LayerChecks.batchedMatchesStandard(InterpreterLayerTest.experts(false), Int8Scheme.W8A16_CHANNEL, layer, 11);
    }

    @Test
    void batchedPartsOfALayerAddUpToIt() {
        RandomLayer layer = RandomLayer.of(7, 3, 30, 20, 25, 18).batched();
        LayerChecks.partsAddUp(InterpreterLayerTest.experts(true), Int8Scheme.W8A8_CHANNEL, layer, 3, 25);
    }
}
