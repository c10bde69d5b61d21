package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;

class RankWeightsTest {
    private static final int TOKENS = 9;

    private static FusedMoeConfig rank(FusedMoeConfig config, int size, int rank, boolean experts) {
        return config.toBuilder()
                .moeParallelConfig(FusedMoeParallelConfig.builder()
                        .tp(size, rank)
                        .expertParallel(experts)
                        .build())
                .build();
    }

    private static double[] output(Int8Experts experts, float[] hidden) {
        return Reference.forward(experts, hidden, TOKENS).output();
    }

    private static void add(double[] sum, double[] part) {
        for (int i = 0; i < sum.length; i++) {
            sum[i] += part[i];
        }
    }

    private static Int8Quantization quantization(Int8Scheme scheme) {
        return switch (scheme) {
            case W8A8_BLOCK -> Int8Quantization.of(scheme).withGrid(new GroupShape(4, 4));
            case W8A16_GROUP ->
                Int8Quantization.of(scheme).withGrid(new GroupShape(1, 4)).withZeroPoints(true);
            default -> Int8Quantization.of(scheme);
        };
    }

    /** Neighbours, which are not copied, and experts out of order. */
    @ParameterizedTest
    @CsvSource({
        "W8A8_CHANNEL, '0,1,2;3,4'",
        "W8A16_GROUP, '0,1,2;3,4'",
        "W8A8_CHANNEL, '4,0;2,1,3'",
        "W8A8_BLOCK, '3;4,1;2,0'",
        "W8A16_GROUP, '4,0;2,1,3'"
    })
    void expertsAddUp(Int8Scheme scheme, String placement) {
        RandomLayer layer = RandomLayer.of(5, 2, 20, 16, TOKENS, 3).withBiases();
        float[] hidden = layer.hidden(TOKENS, 1);
        double[] sum = new double[hidden.length];
        try (Int8Experts whole = Int8Quantizer.quantize(layer, quantization(scheme), Progress.NONE)) {
            List<String> ranks = List.of(placement.split(";", -1));
            for (String rank : ranks) {
                int[] here = Arrays.stream(rank.split(",", -1))
                        .mapToInt(Integer::parseInt)
                        .toArray();
                int[] map = new int[5];
                Arrays.fill(map, -1);
                IntStream.range(0, here.length).forEach(i -> map[here[i]] = i);
                FusedMoeConfig config =
                        layer.config().toBuilder().numLocalExperts(here.length).build();
                try (Int8Experts part = RankWeights.experts(whole, config, here, map)) {
                    assertThat(part.w13().experts()).isEqualTo(here.length);
                    add(sum, output(part, hidden));
                }
            }
            assertThat(Numerics.relativeL2(sum, output(whole, hidden))).isLessThan(1e-14);
        }
    }

    /** The same expert more than once: what a layer with copies of experts has. */
    @Test
    void anExpertMayBeThereTwice() {
        RandomLayer layer = RandomLayer.of(3, 1, 20, 16, TOKENS, 4);
        FusedMoeConfig copies = RandomLayer.of(4, 1, 20, 16, TOKENS, 4).config();
        try (Int8Experts whole = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                Int8Experts routed = whole.with(whole.config(), whole.w13(), whole.w2(), Arena.ofShared())
                        .router(RouterWeights.NONE)
                        .build();
                Int8Experts part =
                        RankWeights.experts(routed, copies, new int[] {0, 2, 1, 2}, new int[] {0, 1, 2, 3})) {
            for (int column = 0; column < 20; column++) {
                assertThat(part.w13().get(3, 5, column)).isEqualTo(whole.w13().get(2, 5, column));
                assertThat(part.w13().get(2, 5, column)).isEqualTo(whole.w13().get(1, 5, column));
            }
            assertThat(part.w2().scale(3, 7)).isEqualTo(whole.w2().scale(2, 7));
        }
    }

    /**
     * Where activations stay float or have a scale a block, parts are exact. Where a scale is of all columns each part
     * finds that of its own, so that the sum is near.
     */
    @ParameterizedTest
    @CsvSource({
        "W8A16_CHANNEL, SILU, 2, 1e-14",
        "W8A16_CHANNEL, SWIGLUOAI, 4, 1e-14",
        "W8A16_CHANNEL, RELU2_NO_MUL, 8, 1e-14",
        "W8A16_GROUP, SILU, 2, 1e-14",
        "W8A16_GROUP, SWIGLUOAI, 4, 1e-14",
        "W8A8_BLOCK, SILU, 4, 1e-14",
        "W8A8_BLOCK, SWIGLUOAI, 2, 1e-14",
        "W8A8_BLOCK, RELU2_NO_MUL, 2, 1e-14",
        "W8A8_CHANNEL, SILU, 2, 2e-2",
        "W8A8_CHANNEL, SWIGLUOAI, 8, 2e-2",
        "W8A8_TENSOR, SILU, 4, 2e-2"
    })
    void columnsAddUp(Int8Scheme scheme, MoeActivation activation, int ranks, double tolerance) {
        RandomLayer layer = RandomLayer.of(5, 2, 20, 16, TOKENS, 5)
                .activatedBy(activation)
                .withBiases()
                .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, true).withZeroExperts(2))
                .sharing(1);
        float[] hidden = layer.hidden(TOKENS, 1);
        double[] sum = new double[hidden.length];
        try (Int8Experts whole = Int8Quantizer.quantize(layer, quantization(scheme), Progress.NONE)) {
            for (int rank = 0; rank < ranks; rank++) {
                try (Int8Experts part = RankWeights.columns(whole, rank(layer.config(), ranks, rank, false))) {
                    add(sum, output(part, hidden));
                }
            }
            assertThat(Numerics.relativeL2(sum, output(whole, hidden))).isLessThan(tolerance);
        }
    }

    @ParameterizedTest
    @CsvSource({"SILU, false", "SWIGLUOAI, true", "RELU2_NO_MUL, false"})
    void columnsOfAnAdapterAddUp(MoeActivation activation, boolean shared) {
        RandomLayer plain = RandomLayer.of(4, 2, 12, 8, TOKENS, 6).activatedBy(activation);
        RandomLayer layer =
                new RandomLayer(plain.config().toBuilder().lora(1, 3).build(), plain.seed());
        LoraAdapter adapter = layer.adapter(3, shared);
        float[] hidden = layer.hidden(TOKENS, 1);
        double[] sum = new double[hidden.length];
        try (Int8Experts whole = Int8Quantizer.quantize(layer, Int8Scheme.W8A16_CHANNEL, Progress.NONE)) {
            for (int rank = 0; rank < 2; rank++) {
                FusedMoeConfig config = rank(layer.config(), 2, rank, false);
                LoraAdapter own = RankWeights.columns(adapter, config);
                own.requireFits(config);
                try (Int8Experts part = RankWeights.columns(whole, config)) {
                    add(sum, adapted(part, hidden, own));
                }
            }
            assertThat(Numerics.relativeL2(sum, adapted(whole, hidden, adapter)))
                    .isLessThan(1e-14);
        }
    }

    private static double[] adapted(Int8Experts experts, float[] hidden, LoraAdapter adapter) {
        double[] logits = Router.logits(experts.config(), experts.router(), Numerics.widen(hidden), TOKENS);
        Routing routing = Router.route(experts.config(), experts.router(), logits, TOKENS);
        return Reference.forward(experts, hidden, logits, routing, Collections.nCopies(TOKENS, adapter))
                .output();
    }

    @Test
    void aScaleThatWouldBeSplitIsRefusedWithTheNumbers() {
        FusedMoeConfig config = RandomLayer.of(2, 1, 64, 96, 1, 1).config();
        assertThatThrownBy(() -> RankWeights.requireColumns(
                        rank(config, 2, 1, false),
                        Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 32))))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage(
                        "tensor parallelism over 2: expected parts of whole 32 columns of w2 that share a scale, got 48"
                                + " of the intermediate size 96 (expert parallelism splits no expert)");
        assertThatThrownBy(() -> RankWeights.requireColumns(
                        rank(config, 3, 0, false),
                        Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(64, 16))))
                .hasMessageContaining("64 rows of w13 that share a scale, got 32 of the intermediate size 96");
        RankWeights.requireColumns(
                rank(config, 3, 0, false),
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(32, 16)));
        RankWeights.requireColumns(rank(config, 2, 0, false), Int8Quantization.of(Int8Scheme.W8A16_GROUP));
    }

    /** Of I = 96 in two parts of 48, gate and up: 192 rows of w13, of which the interleaved ones lie side by side. */
    @ParameterizedTest
    @CsvSource({
        "SILU, 1, 128, 128, true",
        "SILU, 2, 48, 48, true",
        "SILU, 2, 96, 48, false",
        "SILU, 2, 192, 96, true",
        "SILU, 2, 191, 96, false",
        "SILU, 2, 48, 95, false",
        "SWIGLUOAI, 2, 96, 48, true",
        "SWIGLUOAI, 2, 64, 48, false",
        "RELU2_NO_MUL, 2, 96, 96, true",
        "RELU2_NO_MUL, 2, 95, 96, false",
    })
    void partsAreWholeBlocksOrAllShareOne(
            MoeActivation activation, int ranks, int rowsPerScale, int colsPerScale, boolean fits) {
        FusedMoeConfig config =
                rank(RandomLayer.of(2, 1, 64, 96, 1, 1).activatedBy(activation).config(), ranks, 0, false);
        Int8Quantization blocks =
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(rowsPerScale, colsPerScale));
        if (fits) {
            RankWeights.requireColumns(config, blocks);
        } else {
            assertThatThrownBy(() -> RankWeights.requireColumns(config, blocks))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageStartingWith("tensor parallelism over 2: expected parts of whole ");
        }
    }

    @Test
    void neighboursAreNotCopied() {
        RandomLayer layer = RandomLayer.of(3, 1, 16, 12, 1, 1);
        FusedMoeConfig two = layer.config().toBuilder().numLocalExperts(2).build();
        try (Int8Experts whole = Int8Quantizer.quantize(layer, Int8Scheme.W8A16_CHANNEL, Progress.NONE);
                Int8Experts side = RankWeights.experts(whole, two, new int[] {1, 2}, new int[] {-1, 0, 1});
                Int8Experts apart = RankWeights.experts(whole, two, new int[] {2, 0}, new int[] {1, -1, 0})) {
            long second = whole.w13().values().address() + 24L * whole.w13().rowBytes();
            assertThat(side.w13().values().address()).isEqualTo(second);
            assertThat(apart.w13().get(0, 5, 7)).isEqualTo(whole.w13().get(2, 5, 7));
        }
    }

    @Test
    void aRankThatDoesNotFitLeavesNothingAllocated() {
        assumeTrue(SystemMemory.limit() > 0, "native access");
        FusedMoeConfig config = RandomLayer.of(3, 1, 1024, 512, 1, 1).config();
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = Int8Tensor.allocate(arena, 3, 1024, 1024);
        Int8Tensor w2 = Int8Tensor.allocate(arena, 3, 1024, 512);
        try (Int8Experts whole = Int8Experts.of(config, Int8Scheme.W8A8_CHANNEL, w13, w2, RouterWeights.NONE, arena)) {
            long before = SystemMemory.taken();
            FusedMoeConfig two = config.toBuilder().numLocalExperts(2).build();
            assertThatThrownBy(() -> RankWeights.experts(whole, two, new int[] {2, 0}, new int[] {0, 1, 2}))
                    .hasMessageStartingWith("w13: expected [3, 1024, 1024], got ");
            FusedMoeConfig other = rank(RandomLayer.of(2, 1, 1024, 512, 1, 1).config(), 2, 0, false);
            assertThatThrownBy(() -> RankWeights.columns(whole, other))
                    .hasMessageStartingWith("w13: expected [2, 512,");
            assertThat(SystemMemory.taken()).isEqualTo(before);
        }
    }

    @Test
    void whatTheLayerDoesNotHaveIsRefused() {
        RandomLayer layer = RandomLayer.of(3, 1, 16, 12, 1, 1);
        try (Int8Experts whole = Int8Quantizer.quantize(layer, Int8Scheme.W8A16_GROUP, Progress.NONE)) {
            for (int[] experts : new int[][] {{}, {3}, {0, -1}}) {
                assertThatThrownBy(() -> RankWeights.experts(whole, layer.config(), experts, new int[] {0, 1, 2}))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessage(
                                "experts: expected numbers from 0 to 2, at least one, got " + Arrays.toString(experts));
            }
            assertThatThrownBy(() -> RankWeights.columns(
                            whole, rank(RandomLayer.of(3, 1, 16, 24, 1, 1).config(), 2, 0, false)))
                    .hasMessage("config: expected the whole layer's intermediate size 12 and hidden size 16, got 24 and"
                            + " 16");
            assertThatThrownBy(() -> RankWeights.columns(
                            whole, rank(RandomLayer.of(3, 1, 8, 12, 1, 1).config(), 2, 0, false)))
                    .hasMessage("config: expected the whole layer's intermediate size 12 and hidden size 16, got 12 and"
                            + " 8");
        }
        try (Int8Experts groups = Int8Quantizer.quantize(
                layer, Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 4)), Progress.NONE)) {
            assertThatThrownBy(() -> RankWeights.columns(groups, rank(layer.config(), 2, 0, false)))
                    .hasMessageContaining(
                            "whole 4 columns of w2 that share a scale, got 6 of the intermediate size 12");
        }
    }
}
