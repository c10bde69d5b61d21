package org.tornadomoe.host;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/**
 * What {@link HostRouter} does with a token's logits: scores, the top-k and their weights, then the shared experts. C
 * choices, K top-k, n shared experts. Immutable.
 */
final class ExpertChoice {
    private final FusedMoeConfig config;
    private final RouterConfig router;
    private final int choices;
    private final float @Nullable [] correctionBias;

    /** @param correctionBias [C], copied; null for none */
    ExpertChoice(FusedMoeConfig config, float @Nullable [] correctionBias) {
        this.config = config;
        router = config.router();
        choices = config.numChoices();
        this.correctionBias = correctionBias == null ? null : correctionBias.clone();
    }

    /**
     * Computes the K + n experts of the token whose logits are in the scratch, and their weights, from {@code at} on.
     */
    void choose(Scratch scratch, int[] ids, double[] weights, int at) {
        if (router.scoring() == ScoringFunction.SPARSE_MIXER) {
            chooseSparsely(scratch, ids, weights, at, config.expertsPerToken());
        } else {
            if (router.scoring() == ScoringFunction.ATTENTION) {
                attend(scratch.logits);
            }
            chooseByScores(scratch, ids, weights, at, config.expertsPerToken());
        }
        addShared(ids, weights, at, router.hasSharedExpertGate() ? scratch.logits[choices] : 0);
        if (router.normalizesShared()) {
            divideWithShared(scratch, weights, at);
        }
    }

    /** Puts the logits that a token's queries, keys and values [3C] make in place of its queries. */
    private void attend(double[] logits) {
        for (int c = 0; c < choices; c++) {
            double query = logits[c];
            double max = Double.NEGATIVE_INFINITY;
            for (int k = choices; k < 2 * choices; k++) {
                max = Math.max(max, query * logits[k]);
            }
            double total = 0;
            double sum = 0;
            for (int k = choices; k < 2 * choices; k++) {
                double weight = Math.exp(query * logits[k] - max);
                total += weight;
                sum += weight * logits[k + choices];
            }
            logits[c] = sum / total;
        }
    }

    /** A token's experts from a table, from {@code from} on, and their weights; a duplicate counts once. */
    void lookUp(int[] table, int from, double[] logits, int[] ids, double[] weights, int at) {
        int k = config.expertsPerToken();
        double sum = 0;
        for (int slot = 0; slot < k; slot++) {
            double logit = logits[table[from + slot]];
            ids[at + slot] = table[from + slot];
            weights[at + slot] = finiteOrZero(score(logit));
            sum += weights[at + slot];
        }
        double factor = router.routedScalingFactor() / (router.renormalize() && sum > 0 ? sum : 1);
        for (int slot = 0; slot < k; slot++) {
            weights[at + slot] *= factor;
            for (int before = 0; before < slot; before++) {
                if (ids[at + before] == ids[at + slot]) {
                    weights[at + before] += weights[at + slot];
                    weights[at + slot] = 0;
                    ids[at + slot] = -1;
                    break;
                }
            }
        }
    }

    /**
     * Turns the scores of a token's K and shared experts into weights: divides them by their sum and multiplies them by
     * the factor.
     */
    private void divideWithShared(Scratch s, double[] weights, int at) {
        int k = config.expertsPerToken();
        double sum = 0;
        for (int slot = 0; slot < config.pairsPerToken(); slot++) {
            if (slot >= k) {
                weights[at + slot] = finiteOrZero(score(s.logits[choices + slot - k]));
            }
            sum += weights[at + slot];
        }
        for (int slot = 0; slot < config.pairsPerToken(); slot++) {
            weights[at + slot] = weights[at + slot] / (sum > 0 ? sum : 1) * router.routedScalingFactor();
        }
    }

    /** Adds a token's shared experts after its K choices; zero experts among the choices get ids after all experts'. */
    void addShared(int[] ids, double[] weights, int at, double gate) {
        int k = config.expertsPerToken();
        int e = config.numExperts();
        double rest = router.mixesShared() ? finiteOrZero(sigmoid(-gate)) : 1;
        for (int slot = 0; slot < config.pairsPerToken(); slot++) {
            int p = at + slot;
            if (slot >= k) {
                ids[p] = e + slot - k;
                weights[p] = router.hasSharedExpertGate() ? finiteOrZero(sigmoid(gate)) : 1;
            } else {
                ids[p] += ids[p] >= e ? config.globalNumExperts() - e : 0;
                weights[p] *= rest;
            }
        }
    }

    /** PhiMoE's routing (Liu et al., GRIN, arXiv 2409.12136): see {@link ScoringFunction#SPARSE_MIXER}. */
    private void chooseSparsely(Scratch s, int[] ids, double[] weights, int at, int k) {
        double[] left = s.keys;
        for (int c = 0; c < choices; c++) {
            left[c] = Double.isFinite(s.logits[c]) ? s.logits[c] : -Double.MAX_VALUE;
        }
        for (int slot = 0; slot < k; slot++) {
            int best = best(left, 0, choices, -1);
            double most = left[best];
            double sum = 0;
            for (int c = 0; c < choices; c++) {
                double x = left[c];
                boolean near = !((most - x) / Math.max(Math.abs(x), most) > ScoringFunction.SPARSE_MIXER_MARGIN);
                if (near && x != Double.NEGATIVE_INFINITY) {
                    sum += Math.exp(x - most);
                }
            }
            ids[at + slot] = best;
            weights[at + slot] = router.routedScalingFactor() / sum;
            left[best] = Double.NEGATIVE_INFINITY;
        }
    }

    private void chooseByScores(Scratch s, int[] ids, double[] weights, int at, int k) {
        double[] scores = s.scores;
        double[] keys = s.keys;
        score(s.logits, scores);
        setKeys(s.logits, scores, keys);
        int groups = router.numExpertGroup();
        boolean eachGroup = router.scoring() == ScoringFunction.SOFTMAX_EACH_GROUP;
        boolean hopeless = groups == 1 && correctionBias != null;
        for (int c = 0; c < choices && hopeless; c++) {
            hopeless = keys[c] == Double.NEGATIVE_INFINITY;
        }
        if (!eachGroup && groups > 1 && choices % groups == 0 && choices > groups) {
            leaveBestGroups(keys, s.groupKeys, groups);
        }
        int size = eachGroup ? choices / groups : choices;
        int ofEach = eachGroup ? k / groups : k;
        double sum = 0;
        for (int slot = 0; slot < k; slot++) {
            int from = slot / ofEach * size;
            int best = best(keys, from, from + size, ids, at, slot);
            ids[at + slot] = best;
            weights[at + slot] = keys[best] == Double.NEGATIVE_INFINITY ? 0 : scores[best];
            sum += weights[at + slot];
        }
        double factor = router.normalizesShared() ? 1 : router.routedScalingFactor();
        boolean softmaxOfChosen = router.scoresChosenOnly() && router.scoring() == ScoringFunction.SOFTMAX;
        if (softmaxOfChosen || (router.renormalize() && !router.normalizesShared())) {
            for (int slot = 0; slot < k; slot++) {
                weights[at + slot] = hopeless ? 1.0 / k : weights[at + slot] / (sum > 0 ? sum : 1);
            }
            factor = hopeless ? 1 : factor;
        }
        for (int slot = 0; slot < k; slot++) {
            weights[at + slot] *= factor;
        }
    }

    private void score(double[] logits, double[] scores) {
        switch (router.scoring()) {
            case SOFTMAX, SOFTMAX_EACH_GROUP, ATTENTION -> {
                double max = logits[0];
                for (int c = 1; c < choices; c++) {
                    max = Math.max(max, logits[c]);
                }
                double total = 0;
                for (int c = 0; c < choices; c++) {
                    scores[c] = Math.exp(logits[c] - max);
                    total += scores[c];
                }
                for (int c = 0; c < choices; c++) {
                    scores[c] /= total;
                }
            }
            case SIGMOID, SQRTSOFTPLUS, IDENTITY -> {
                for (int c = 0; c < choices; c++) {
                    scores[c] = score(logits[c]);
                }
            }
            case SPARSE_MIXER, TOKEN_TABLE, NETWORK, CUSTOM, SIMULATED ->
                throw new IllegalArgumentException(
                        "router: expected one that chooses by logits, got " + router.scoring());
        }
        for (int c = 0; c < choices; c++) {
            scores[c] = finiteOrZero(scores[c]);
        }
    }

    /** The score of a single logit. */
    private double score(double x) {
        return switch (router.scoring()) {
            case SIGMOID -> sigmoid(x);
            case SQRTSOFTPLUS, TOKEN_TABLE -> Math.sqrt(Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))));
            default -> x;
        };
    }

    /** Sets the keys by which choices are compared; −∞ for choices that can't have weight. */
    private void setKeys(double[] logits, double[] scores, double[] keys) {
        boolean hopeless = router.scoring().isSoftmax();
        for (int c = 0; c < choices && hopeless; c++) {
            hopeless = scores[c] == 0;
        }
        for (int c = 0; c < choices; c++) {
            double logit = logits[c];
            if (correctionBias != null) {
                boolean finite = Double.isFinite(logit) || router.numExpertGroup() == 0;
                keys[c] = finite ? scores[c] + correctionBias[c] : Double.NEGATIVE_INFINITY;
            } else if (hopeless) {
                keys[c] = 0;
            } else {
                boolean usable = !Double.isNaN(logit)
                        && (logit != Double.POSITIVE_INFINITY || router.scoring() == ScoringFunction.SIGMOID);
                keys[c] = usable ? logit : Double.NEGATIVE_INFINITY;
            }
        }
    }

    /**
     * Sets the keys of the other groups to −∞. A group's score is its best key, or with a correction bias the sum of
     * its best two.
     */
    private void leaveBestGroups(double[] keys, double[] groupKeys, int groups) {
        int size = choices / groups;
        for (int g = 0; g < groups; g++) {
            int first = best(keys, g * size, (g + 1) * size, -1);
            groupKeys[g] = correctionBias == null
                    ? keys[first]
                    : keys[first] + keys[best(keys, g * size, (g + 1) * size, first)];
        }
        // Marks the best groups one by one with NaN, which no comparison selects again.
        for (int kept = 0; kept < router.topkGroup(); kept++) {
            int best = -1;
            for (int g = 0; g < groups; g++) {
                if (!Double.isNaN(groupKeys[g]) && (best < 0 || groupKeys[g] > groupKeys[best])) {
                    best = g;
                }
            }
            groupKeys[best] = Double.NaN;
        }
        for (int g = 0; g < groups; g++) {
            if (!Double.isNaN(groupKeys[g])) {
                Arrays.fill(keys, g * size, (g + 1) * size, Double.NEGATIVE_INFINITY);
            }
        }
    }

    /** The index of the highest key, on ties the lowest; ignores {@code but}. */
    private static int best(double[] keys, int from, int to, int but) {
        int best = -1;
        for (int c = from; c < to; c++) {
            if (c != but && (best < 0 || keys[c] > keys[best])) {
                best = c;
            }
        }
        return best;
    }

    /** The same, ignoring the {@code count} already chosen. */
    private static int best(double[] keys, int from, int to, int[] chosen, int at, int count) {
        int best = -1;
        for (int c = from; c < to; c++) {
            if ((best < 0 || keys[c] > keys[best]) && !contains(chosen, at, count, c)) {
                best = c;
            }
        }
        return best;
    }

    /** Whether an id is among {@code count} of them. */
    static boolean contains(int[] chosen, int at, int count, int id) {
        for (int i = at; i < at + count; i++) {
            if (chosen[i] == id) {
                return true;
            }
        }
        return false;
    }

    private static double sigmoid(double x) {
        return 1 / (1 + Math.exp(-x));
    }

    private static double finiteOrZero(double x) {
        return Double.isFinite(x) ? x : 0;
    }
}
