package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.ExpertMap;
import org.tornadomoe.config.ExpertPlacementStrategy;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;

/** What the ranks of a layer give adds up to the layer's output. */
class PartsTest {
    private static final int TOKENS = 11;

    /** Experts of one rank, placed by a strategy. */
    private static Int8Experts expertsOf(Int8Experts whole, int[] map) {
        int local = (int) Arrays.stream(map).filter(e -> e >= 0).count();
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = part(arena, whole.w13(), map, local);
        Int8Tensor w2 = part(arena, whole.w2(), map, local);
        return whole.with(whole.config(), w13, w2, arena)
                .expertMap(map)
                .biases(part(whole.w13Bias(), map, local), part(whole.w2Bias(), map, local))
                .build();
    }

    private static Int8Tensor part(Arena arena, Int8Tensor from, int[] map, int local) {
        Int8Tensor into = Int8Tensor.allocate(arena, local, from.rows(), from.cols());
        byte[] row = new byte[from.cols()];
        for (int e = 0; e < map.length; e++) {
            for (int r = 0; r < from.rows() && map[e] >= 0; r++) {
                from.row(e, r, row);
                into.setRow(map[e], r, row, 0, from.scale(e, r));
            }
        }
        return into;
    }

    private static float @Nullable [] part(float @Nullable [] bias, int[] map, int local) {
        if (bias == null) {
            return null;
        }
        int rows = bias.length / map.length;
        float[] part = new float[local * rows];
        for (int e = 0; e < map.length; e++) {
            if (map[e] >= 0) {
                System.arraycopy(bias, e * rows, part, map[e] * rows, rows);
            }
        }
        return part;
    }

    private static void add(double[] sum, Int8Experts part, float[] hidden) {
        double[] output = Reference.forward(part, hidden, TOKENS).output();
        for (int i = 0; i < sum.length; i++) {
            sum[i] += output[i];
        }
    }

    @ParameterizedTest
    @CsvSource({"LINEAR, 2", "LINEAR, 5", "LINEAR, 8", "ROUND_ROBIN, 2", "ROUND_ROBIN, 5", "ROUND_ROBIN, 8"})
    void expertsOverRanks(ExpertPlacementStrategy strategy, int ranks) {
        RouterConfig grouped = RouterConfig.of(ScoringFunction.SIGMOID, true)
                .withCorrectionBias()
                .withGroups(4, 2)
                .withRoutedScalingFactor(2.5);
        for (RandomLayer layer : List.of(
                RandomLayer.of(8, 3, 20, 14, TOKENS, 1).withBiases(),
                RandomLayer.of(8, 3, 20, 14, TOKENS, 2).routedBy(grouped),
                RandomLayer.of(8, 2, 20, 14, TOKENS, 3)
                        .sharing(2)
                        .routedBy(
                                RouterConfig.of(ScoringFunction.SOFTMAX, false).withZeroExperts(3)))) {
            float[] hidden = layer.hidden(TOKENS, 1);
            for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)) {
                try (Int8Experts whole = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
                    double[] sum = new double[hidden.length];
                    int experts = layer.config().globalNumExperts();
                    for (int rank = 0; rank < ranks; rank++) {
                        ExpertMap placed = ExpertMap.determineExpertMap(ranks, rank, experts, strategy);
                        try (Int8Experts part = expertsOf(whole, Objects.requireNonNull(placed.map()))) {
                            add(sum, part, hidden);
                        }
                    }
                    double[] expected = Reference.forward(whole, hidden, TOKENS).output();
                    assertThat(Numerics.relativeL2(sum, expected)).isLessThan(1e-14);
                }
            }
        }
    }

    /**
     * With activations in int8 each rank's second scale is of its own columns, so that the sum is near, but not the
     * same.
     */
    @ParameterizedTest
    @CsvSource({"W8A16_CHANNEL, 2, 1e-14", "W8A16_CHANNEL, 7, 1e-14", "W8A8_CHANNEL, 2, 2e-2"})
    void intermediateSizeOverRanks(Int8Scheme scheme, int ranks, double tolerance) {
        RandomLayer layer = RandomLayer.of(5, 2, 20, 14, TOKENS, 4)
                .withBiases()
                .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, true).withZeroExperts(2));
        int i = layer.config().intermediateSize();
        int width = i / ranks;
        float[] hidden = layer.hidden(TOKENS, 1);
        double[] sum = new double[hidden.length];
        try (Int8Experts whole = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
            for (int rank = 0; rank < ranks; rank++) {
                FusedMoeConfig config = layer.config().toBuilder()
                        .moeParallelConfig(
                                FusedMoeParallelConfig.builder().tp(ranks, rank).build())
                        .build();
                Arena arena = Arena.ofShared();
                Int8Tensor w13 = Int8Tensor.allocate(arena, 5, 2 * width, 20);
                Int8Tensor w2 = Int8Tensor.allocate(arena, 5, 20, width);
                float[] bias = new float[5 * 2 * width];
                byte[] in = new byte[20];
                byte[] down = new byte[i];
                for (int e = 0; e < 5; e++) {
                    for (int r = 0; r < 2 * width; r++) {
                        int from = r < width ? rank * width + r : i + rank * width + r - width;
                        whole.w13().row(e, from, in);
                        w13.setRow(e, r, in, 0, whole.w13().scale(e, from));
                        bias[e * 2 * width + r] = Objects.requireNonNull(whole.w13Bias())[e * 2 * i + from];
                    }
                    for (int r = 0; r < 20; r++) {
                        whole.w2().row(e, r, down);
                        w2.setRow(e, r, down, rank * width, whole.w2().scale(e, r));
                    }
                }
                try (Int8Experts part = Int8Experts.builder(config, scheme, w13, w2, arena)
                        .router(whole.router())
                        .biases(bias, rank == 0 ? whole.w2Bias() : null)
                        .build()) {
                    add(sum, part, hidden);
                }
            }
            assertThat(Numerics.relativeL2(
                            sum, Reference.forward(whole, hidden, TOKENS).output()))
                    .isLessThan(tolerance);
        }
    }
}
