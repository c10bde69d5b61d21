package example;

import java.util.Arrays;
import java.util.Comparator;
import java.util.random.RandomGenerator;
import java.util.stream.IntStream;

/**
 * Chooses the next token.
 *
 * @param temperature 0 for the largest logit
 * @param topP samples only from the likeliest tokens that together have this probability
 */
record Sampler(double temperature, double topP, RandomGenerator random) {
    static int greatest(float[] logits) {
        int best = 0;
        for (int i = 1; i < logits.length; i++) {
            best = logits[i] > logits[best] ? i : best;
        }
        return best;
    }

    boolean isGreedy() {
        return temperature == 0;
    }

    int choose(float[] logits) {
        int greatest = greatest(logits);
        if (isGreedy()) {
            return greatest;
        }
        double[] p = new double[logits.length];
        for (int i = 0; i < p.length; i++) {
            p[i] = Math.exp((logits[i] - logits[greatest]) / temperature);
        }
        double all = Arrays.stream(p).sum();
        // A token less likely than this can't be in the nucleus: the tokens before it have more than topP together.
        double least = all * (1 - topP) / p.length;
        int[] likely = IntStream.range(0, p.length)
                .filter(i -> p[i] >= least)
                .boxed()
                .sorted(Comparator.comparingDouble(i -> -p[i]))
                .mapToInt(Integer::intValue)
                .toArray();
        int count = 0;
        double kept = 0;
        while (count < likely.length && (count == 0 || kept < topP * all)) {
            kept += p[likely[count++]];
        }
        double at = random.nextDouble() * kept;
        for (int i = 0; i < count; i++) {
            at -= p[likely[i]];
            if (at < 0) {
                return likely[i];
            }
        }
        return likely[count - 1];
    }
}
