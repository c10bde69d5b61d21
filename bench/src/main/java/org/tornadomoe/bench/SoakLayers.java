package org.tornadomoe.bench;

import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import java.util.function.Function;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RouterWeights;

/** The layers that {@link Soak} calls, with random weights and adapters. */
final class SoakLayers {
    /** Slots for adapters, and the maximum rank of one. */
    static final int SLOTS = 2;

    private static final int RANK = 8;

    private SoakLayers() {}

    /**
     * A layer that can be loaded any number of times.
     *
     * @param load loads it with options
     * @param stays whether it stays open from the first round to the last; otherwise it is closed and loaded anew
     *     repeatedly
     */
    record Kind(String name, Function<MoeOptions, MoeLayer> load, MoeOptions options, boolean stays) {
        MoeLayer open() {
            return load.apply(options);
        }

        boolean adapts() {
            return options.maxLoras() > 0;
        }
    }

    /** Random weights, normally distributed. */
    private record Weights(FusedMoeConfig config, long seed) implements ExpertWeights {
        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            fill(into, new SplittableRandom(seed + 4_001L * expert + 2L * row), Math.sqrt(2.0 / into.length));
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            fill(into, new SplittableRandom(seed + 4_001L * expert + 2L * row + 1), Math.sqrt(2.0 / into.length));
        }

        @Override
        public RouterWeights router() {
            SplittableRandom random = new SplittableRandom(seed - 1);
            float[] bias = config.router().hasCorrectionBias() ? new float[config.numChoices()] : null;
            if (bias != null) {
                fill(bias, random, 0.3);
            }
            float[] weight = new float[config.numChoices() * config.hiddenDim()];
            fill(weight, random, 1);
            return new RouterWeights(weight, null, bias, null);
        }
    }

    /**
     * The layers of a run.
     *
     * @param options where they run, and the maximum number of tokens
     * @param seed of their weights
     * @param checkpoints whose first layers are among them
     * @param only what the name of each has in it
     */
    static List<Kind> kinds(MoeOptions options, long seed, List<Path> checkpoints, String only) {
        MoeOptions adapting = options.withLora(SLOTS, RANK);
        RouterConfig grouped = RouterConfig.of(ScoringFunction.SIGMOID, true)
                .withCorrectionBias()
                .withGroups(4, 2)
                .withRoutedScalingFactor(2.5);
        List<Kind> kinds = new ArrayList<>(List.of(
                kind(seed, Int8Scheme.W8A8_CHANNEL, layer(8, 2, 96, 64), options.withLanes(2), true),
                kind(seed, Int8Scheme.W8A8_CHANNEL, layer(6, 2, 64, 48), adapting.withLanes(2), false),
                kind(
                        seed,
                        Int8Scheme.W8A8_CHANNEL,
                        layer(6, 3, 80, 40).activation(MoeActivation.SWIGLUOAI).swigluLimit(7.0),
                        options.withHiddenType(ScalarType.F16),
                        false),
                kind(
                        seed,
                        Int8Scheme.W8A8_TENSOR,
                        layer(16, 4, 128, 32).router(grouped).numFusedSharedExperts(1),
                        options.withLaneWait(Duration.ofMillis(1)),
                        true),
                kind(
                        seed,
                        Int8Scheme.W8A8_BLOCK,
                        layer(5, 1, 264, 136),
                        options.withHiddenType(ScalarType.BF16).withLanes(3),
                        false),
                kind(seed, Int8Scheme.W8A16_CHANNEL, layer(4, 2, 70, 33), options.withLaneWait(Duration.ZERO), false),
                kind(seed, Int8Scheme.W8A16_GROUP, layer(7, 2, 132, 64), adapting, true)));
        for (Path checkpoint : checkpoints) {
            kinds.add(new Kind(
                    checkpoint.toString(), its -> MoeLayer.load(checkpoint, 0, its), options.withLanes(2), false));
        }
        kinds.removeIf(kind -> !kind.name.contains(only));
        return kinds;
    }

    private static FusedMoeConfig.Builder layer(int experts, int topK, int hidden, int intermediate) {
        return FusedMoeConfig.builder()
                .numExperts(experts)
                .expertsPerToken(topK)
                .hiddenDim(hidden)
                .intermediateSize(intermediate);
    }

    private static Kind kind(
            long seed, Int8Scheme scheme, FusedMoeConfig.Builder layer, MoeOptions options, boolean stays) {
        FusedMoeConfig config = layer.build();
        Weights weights = new Weights(config, seed * 1_000_003);
        String name = scheme + " " + config.numExperts() + ":" + config.intermediateSize() + ":" + config.hiddenDim()
                + ":" + config.expertsPerToken() + " " + options.hiddenType().abbreviation()
                + (options.maxLoras() > 0 ? " with adapters" : "");
        return new Kind(name, its -> MoeLayer.of(weights, its), options.withScheme(scheme), stays);
    }

    /** One of the two adapters of a layer. */
    static LoraAdapter adapter(FusedMoeConfig config, int number, long seed) {
        int e = config.globalNumExperts();
        int h = config.hiddenDim();
        int i = config.intermediateSizePerPartition();
        int rank = RANK / (number + 1);
        SplittableRandom random = new SplittableRandom(seed - 10 - number);
        float[] w13A = new float[e * LoraAdapter.slices(config) * rank * h];
        float[] w13B = new float[e * config.gateUpRows() * rank];
        float[] w2A = new float[e * rank * i];
        float[] w2B = new float[h * rank]; // shared by all experts
        fill(w13A, random, Math.sqrt(1.0 / h));
        fill(w13B, random, Math.sqrt(1.0 / rank));
        fill(w2A, random, Math.sqrt(1.0 / i));
        fill(w2B, random, Math.sqrt(1.0 / rank));
        return LoraAdapter.of(rank, rank, w13A, w13B, w2A, w2B);
    }

    /** Fills an array with normally distributed values. */
    static void fill(float[] into, SplittableRandom random, double deviation) {
        for (int i = 0; i < into.length; i++) {
            into[i] = (float) (random.nextGaussian() * deviation);
        }
    }
}
