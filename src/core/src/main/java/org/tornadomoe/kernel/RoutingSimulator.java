package org.tornadomoe.kernel;

import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.stream.Collectors;
import org.tornadomoe.config.FusedMoeConfig;

/**
 * Routing that ignores the logits, to measure a layer under a chosen load (vLLM: {@code RoutingSimulator}, {@code
 * VLLM_MOE_ROUTING_SIMULATION_STRATEGY}). Pass {@link #router} to a layer.
 */
public enum RoutingSimulator {
    /** K experts at random, each as likely as any other; all weights are 1. */
    UNIFORM_RANDOM,
    /**
     * Each expert's number is C times the sigmoid of a normal deviate, so that experts in the middle get more tokens
     * than those at the ends. Weights are the magnitudes of normal deviates, divided by their sum. vLLM's simulator may
     * give a token the same expert twice; here the next free expert with a higher id (wrapping around) replaces the
     * duplicate.
     */
    NORMAL_ROUTING;

    /**
     * The strategy of that name, {@code "uniform_random"}.
     *
     * @throws IllegalArgumentException if there is none; the message lists all
     */
    public static RoutingSimulator fromString(String name) {
        return Arrays.stream(values())
                .filter(strategy -> strategy.toString().equals(name))
                .findFirst()
                .orElseThrow(() -> new IllegalArgumentException("Unknown routing strategy: " + name
                        + ". Available strategies: "
                        + Arrays.stream(values())
                                .map(strategy -> "'" + strategy + "'")
                                .collect(Collectors.joining(", ", "[", "]"))));
    }

    /**
     * A router over C choices. Every call continues the random sequence; calls from several threads get their own
     * numbers.
     *
     * @param choices C: a layer's experts, and its zero experts if it has some
     * @param seed the random seed
     * @throws IllegalArgumentException if {@code choices} is not 1 to {@value FusedMoeConfig#MAX_EXPERTS}; the router
     *     throws it if a call asks for more experts per token than there are choices
     */
    public TopKRouter router(int choices, long seed) {
        if (choices < 1) {
            throw new IllegalArgumentException("choices: expected a positive number, got " + choices);
        }
        if (choices > FusedMoeConfig.MAX_EXPERTS) {
            throw new IllegalArgumentException(
                    "choices: expected at most " + FusedMoeConfig.MAX_EXPERTS + ", got " + choices);
        }
        SplittableRandom numbers = new SplittableRandom(seed);
        return (hidden, logits, tokens, topK, renormalize) -> {
            SplittableRandom random;
            synchronized (numbers) {
                random = numbers.split();
            }
            if (topK > choices) {
                throw new IllegalArgumentException("topK: expected at most the " + choices + " choices, got " + topK);
            }
            ChosenExperts chosen = ChosenExperts.allocate(tokens, topK);
            for (int m = 0; m < tokens; m++) {
                choose(choices, random, chosen, m * topK);
            }
            return chosen;
        };
    }

    private void choose(int choices, SplittableRandom random, ChosenExperts chosen, int first) {
        int k = chosen.topK();
        boolean[] taken = new boolean[choices];
        float sum = 0;
        for (int p = first; p < first + k; p++) {
            int id = this == UNIFORM_RANDOM
                    ? random.nextInt(choices)
                    : Math.min(choices - 1, (int) (choices / (1 + Math.exp(-random.nextGaussian()))));
            while (taken[id]) {
                // Uniformly among the remaining experts, or the next one.
                id = this == UNIFORM_RANDOM ? random.nextInt(choices) : (id + 1) % choices;
            }
            taken[id] = true;
            chosen.ids()[p] = id;
            chosen.weights()[p] = this == UNIFORM_RANDOM ? 1 : (float) Math.abs(random.nextGaussian());
            sum += chosen.weights()[p];
        }
        for (int p = first; p < first + k && this == NORMAL_ROUTING && sum > 0; p++) {
            chosen.weights()[p] /= sum;
        }
    }

    @Override
    public String toString() {
        return name().toLowerCase(java.util.Locale.ROOT);
    }
}
