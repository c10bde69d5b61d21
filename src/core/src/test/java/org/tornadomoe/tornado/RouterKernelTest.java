package org.tornadomoe.tornado;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.RouterChecks;

/** The router's kernels, shared experts, zero experts and routing on the host, on the interpreter. */
@ExtendWith(LooksForRaces.class)
class RouterKernelTest {
    private static Device device() {
        return TornadoHome.current().devices().getFirst();
    }

    @ParameterizedTest
    @CsvSource(textBlock = """
        # E, K, shared, zero, rows
        1, 1, 0, 0, 9
        1, 1, 2, 0, 3
        7, 7, 0, 0, 9
        6, 2, 1, 3, 9
        48, 8, 0, 0, 9
        64, 30, 2, 0, 3
        200, 7, 0, 0, 3
        """)
    void everyRouterIsTheReferences(int experts, int topK, int shared, int zero, int rows) {
        RouterChecks.choiceIsTheReferences(device(), experts, topK, shared, zero, rows, 1);
    }

    @Test
    void theMostExpertsThereMayBe() {
        RouterConfig deepSeek = RouterConfig.of(ScoringFunction.SIGMOID, true).withCorrectionBias();
        for (RouterConfig router : new RouterConfig[] {
            RouterConfig.of(ScoringFunction.SOFTMAX, false),
            deepSeek,
            deepSeek.withGroups(512, 400),
            RouterConfig.of(ScoringFunction.SOFTMAX, true).withGroups(8, 1)
        }) {
            RouterChecks.choiceIsTheReferences(device(), 1024, 32, 0, router, 3);
            RouterChecks.choiceIsTheReferences(device(), 1022, 3, 2, router, 3);
        }
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 1", "3, 127, 5", "5, 129, 4", "17, 300, 9"})
    void logitsAreTheReferences(int experts, int hidden, int tokens) {
        RouterChecks.logitsAreTheReferences(device(), experts, hidden, tokens);
    }

    /** Every way of routing through the whole layer, in both formats. */
    @ParameterizedTest
    @CsvSource({
        "DEFAULT",
        "RENORMALIZE",
        "DEEPSEEK_V3",
        "LLAMA4",
        "TOP_K",
        "SIGMOID_RENORM",
        "MINIMAX2",
        "SIGMOID",
        "DEEPSEEK_V4"
    })
    void layers(RoutingMethodType method) {
        RandomLayer layer = RandomLayer.of(9, 3, 21, 13, 11, 5).routedBy(method);
        LayerChecks.forwardMatchesReference(new TornadoDp4aExperts(), Int8Scheme.W8A8_CHANNEL, layer, 11, 2);
    }

    @Test
    void sharedExperts() {
        for (RandomLayer layer : new RandomLayer[] {
            RandomLayer.of(7, 3, 30, 20, 10, 6).sharing(2),
            RandomLayer.of(6, 2, 22, 18, 10, 7)
                    .sharing(3)
                    .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, false).withSharedExpertGate())
        }) {
            everyKernelClass(layer, 10);
        }
    }

    @Test
    void sharedExpertsBesideRouterWeightsOnTheInput() {
        everyKernelClass(
                RandomLayer.of(5, 1, 37, 19, 9, 8)
                        .sharing(1)
                        .routedBy(RouterConfig.topKThenSigmoid())
                        .weighedOnInput(),
                9);
    }

    /** Each pair has an input row of its own there, quantised from its token's. */
    @ParameterizedTest
    @EnumSource(
            value = Int8Scheme.class,
            names = {"W8A8_CHANNEL", "W8A8_TENSOR", "W8A8_BLOCK"})
    void everyQuantiserFindsTheTokensRow(Int8Scheme scheme) {
        RandomLayer layer = RandomLayer.of(5, 1, 36, 20, 9, 8)
                .sharing(1)
                .routedBy(RouterConfig.topKThenSigmoid())
                .weighedOnInput();
        LayerChecks.stagesMatchReference(new TornadoDp4aExperts(), scheme, layer, 9);
        LayerChecks.stagesMatchReference(new TornadoDp4aExperts(), scheme, layer.batched(), 9);
    }

    @Test
    void zeroExperts() {
        RandomLayer layer = RandomLayer.of(5, 3, 26, 14, 9, 9)
                .sharing(1)
                .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, false)
                        .withCorrectionBias()
                        .withZeroExperts(3)
                        .withRoutedScalingFactor(6));
        everyKernelClass(layer, 9);
        for (Int8Scheme scheme : new Int8Scheme[] {Int8Scheme.W8A8_TENSOR, Int8Scheme.W8A8_BLOCK}) {
            LayerChecks.everyStageAndPart(new TornadoPortableExperts(), scheme, layer, 9);
        }
    }

    private static void everyKernelClass(RandomLayer layer, int tokens) {
        LayerChecks.everyStageAndPart(new TornadoDp4aExperts(), Int8Scheme.W8A8_CHANNEL, layer, tokens);
        LayerChecks.everyStageAndPart(new TornadoPortableExperts(), Int8Scheme.W8A16_CHANNEL, layer, tokens);
    }

    @Test
    void routingOnTheHost() {
        RandomLayer layer = RandomLayer.of(6, 2, 22, 18, 10, 10)
                .sharing(1)
                .routedBy(RouterConfig.of(ScoringFunction.CUSTOM, false).withZeroExperts(2));
        LayerChecks.handedInMatchesReference(new TornadoDp4aExperts(), layer, 10);
        LayerChecks.handedInMatchesReference(new TornadoDp4aExperts(), layer.batched(), 10);
    }
}
