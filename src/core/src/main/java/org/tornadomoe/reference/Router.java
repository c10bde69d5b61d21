package org.tornadomoe.reference;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.kernel.TopKRouter;
import org.tornadomoe.quant.RouterNetwork;
import org.tornadomoe.quant.RouterWeights;

/**
 * The router in float64: computes each token's experts and their weights from hidden states (vLLM: {@code router/}). M
 * tokens, E routed experts, C choices (those and the zero experts), K top-k, n shared experts, L logits per token; see
 * {@link FusedMoeConfig}.
 *
 * <p>How experts are compared: a score that isn't finite counts as 0. If nothing is added to the scores, experts are
 * chosen by their logits, with NaN lowest. All score functions increase with the logit, so this equals a choice by
 * scores, except where different logits round to the same score. A softmax whose row contains NaN or +infinity, or only
 * -infinity, is 0 everywhere. Ties go to the lower id. The chosen experts are in descending order of the value by which
 * they were chosen.
 */
public final class Router {
    private Router() {}

    /**
     * Logits [M, L]: hidden [M, H] times the transpose of the router's weight [C, H], plus its bias; then the product
     * with the shared expert gate, if there is one.
     *
     * @return empty for a router that is a network
     * @throws IllegalArgumentException if the router has no weight
     */
    public static double[] logits(FusedMoeConfig config, RouterWeights router, double[] hidden, int tokens) {
        if (router.network() != null) {
            return new double[0];
        }
        if (!router.hasWeight()) {
            throw new IllegalArgumentException(
                    "router: expected one with a weight, got one without (the caller passes router logits)");
        }
        int h = config.hiddenDim();
        int choices = config.numChoices();
        int width = config.numRouterLogits();
        Numerics.requireLength("hidden", hidden.length, tokens, h);
        double[] logits = new double[tokens * width];
        IntStream.range(0, logits.length).parallel().forEach(i -> {
            int m = i / width;
            int row = i % width;
            float[] gateWeight = router.sharedExpertGate();
            boolean gate = row >= choices && gateWeight != null;
            float[] weights = gate && gateWeight != null ? gateWeight : router.weight();
            int from = (gate ? row - choices : row) * h;
            double sum = 0;
            for (int c = 0; c < h; c++) {
                sum += hidden[m * h + c] * weights[from + c];
            }
            double logit = router.bias() == null || row >= router.bias().length ? sum : sum + router.bias()[row];
            logits[i] = gate ? logit : capped(config.router(), logit);
        });
        return logits;
    }

    /** A logit, soft-capped if the router does that. */
    private static double capped(RouterConfig router, double logit) {
        double cap = router.logitCap();
        return cap == 0 ? logit : cap * Math.tanh(logit / cap);
    }

    /**
     * The K + n experts of each token from its hidden states, with any of the routers.
     *
     * @param logits [M, L]; empty for a network
     * @param inputs the states in it are only read
     */
    public static Routing route(
            FusedMoeConfig config,
            RouterWeights router,
            float[] hidden,
            double[] logits,
            int tokens,
            RouterInputs inputs) {
        int k = config.expertsPerToken();
        Routing routed = new Routing(tokens, k, new int[tokens * k], new double[tokens * k]);
        int[] table = router.expertsOfToken();
        RouterNetwork network = router.network();
        boolean ofModel = !config.router().isOfCaller();
        if (ofModel && network != null) {
            float[] states = inputs.states(tokens, network.width());
            for (int m = 0; m < tokens; m++) {
                double[] scores = scores(network, state(network, hidden, states, m));
                double[] keys = new double[scores.length];
                Arrays.setAll(keys, c -> scores[c] + network.choiceBias()[c]);
                int[] chosen = topK(keys, k);
                for (int slot = 0; slot < k; slot++) {
                    boolean none = chosen[slot] == config.numExperts();
                    routed.ids()[m * k + slot] = none ? -1 : chosen[slot];
                    routed.weights()[m * k + slot] =
                            none ? 0 : scores[chosen[slot]] * config.router().routedScalingFactor();
                }
            }
        } else if (ofModel && table != null) {
            for (int m = 0; m < tokens; m++) {
                int row = inputs.row(m, table.length / k) * k;
                int first = m * config.numRouterLogits();
                double[] scores = scores(
                        Arrays.stream(table, row, row + k)
                                .mapToDouble(e -> logits[first + e])
                                .toArray(),
                        ScoringFunction.SQRTSOFTPLUS);
                double[] weights = config.router().renormalize() ? normalized(scores) : scores;
                for (int slot = 0; slot < k; slot++) {
                    int id = table[row + slot];
                    int before = Arrays.stream(table, row, row + slot)
                            .boxed()
                            .toList()
                            .indexOf(id);
                    int p = m * k + (before < 0 ? slot : before); // a duplicate counts once
                    routed.ids()[m * k + slot] = before < 0 ? id : -1;
                    routed.weights()[p] += weights[slot] * config.router().routedScalingFactor();
                }
            }
        } else {
            return route(config, router, logits, tokens);
        }
        return withShared(config, logits, routed);
    }

    private static double[] state(RouterNetwork network, float[] hidden, float @Nullable [] states, int token) {
        int r = network.width();
        int h = network.down().length / r;
        double[] x = Numerics.widen(Arrays.copyOfRange(hidden, token * h, (token + 1) * h));
        double[] state = linear(network.down(), x, network.downBias());
        float[] factor = network.stateFactor();
        for (int i = 0; states != null && factor != null && i < r; i++) {
            state[i] += (double) states[token * r + i] * factor[i];
        }
        return state;
    }

    private static double[] scores(RouterNetwork network, double[] state) {
        double square = Arrays.stream(state).map(x -> x * x).average().orElseThrow();
        double[] x = new double[state.length];
        Arrays.setAll(x, i -> state[i] / Math.sqrt(square + network.epsilon()) * network.norm()[i]);
        x = gelu(linear(network.first(), x, network.firstBias()));
        x = gelu(linear(network.second(), x, network.secondBias()));
        double[] logits = linear(network.out(), x, new float[network.choices()]);
        return Arrays.stream(softmax(logits)).map(Router::finiteOrZero).toArray();
    }

    private static double[] linear(float[] matrix, double[] x, float[] bias) {
        double[] y = Numerics.widen(bias);
        for (int i = 0; i < matrix.length; i++) {
            y[i / x.length] += matrix[i] * x[i % x.length];
        }
        return y;
    }

    private static double[] gelu(double[] x) {
        return Arrays.stream(x)
                .map(v -> v * Activations.erfc(-v / Math.sqrt(2)) / 2)
                .toArray();
    }

    /**
     * The K + n experts of each token: the chosen ones, then the shared ones, whose weight is 1 or the sigmoid of the
     * gate's logit. Ids 0 to E - 1 are routed experts, then come the shared experts and after them the zero experts.
     *
     * @param logits [M, L]
     * @throws IllegalArgumentException if the configuration's router is the caller's function
     */
    public static Routing route(FusedMoeConfig config, RouterWeights router, double[] logits, int tokens) {
        int width = config.numRouterLogits();
        int choices = config.numChoices();
        Numerics.requireLength("logits", logits.length, tokens, width);
        double[] chosenFrom = new double[tokens * choices];
        for (int m = 0; m < tokens; m++) {
            double[] row = Arrays.copyOfRange(logits, m * width, (m + 1) * width);
            double[] own = config.router().scoring() == ScoringFunction.ATTENTION ? attended(row) : row;
            System.arraycopy(own, 0, chosenFrom, m * choices, choices);
        }
        Routing routed =
                route(chosenFrom, tokens, choices, config.expertsPerToken(), config.router(), router.correctionBias());
        return withShared(config, logits, routed);
    }

    /**
     * The same with the caller's function.
     *
     * @param hidden [M, H]
     * @param logits [M, L]; empty if the router has no weight
     * @throws IllegalArgumentException if the function returns an invalid result
     */
    public static Routing route(
            FusedMoeConfig config, TopKRouter function, float[] hidden, double[] logits, int tokens) {
        int width = config.numRouterLogits();
        int choices = config.numChoices();
        int k = config.expertsPerToken();
        float[] seen = new float[logits.length == 0 ? 0 : tokens * choices];
        for (int i = 0; i < seen.length; i++) {
            seen[i] = (float) logits[i / choices * width + i % choices];
        }
        ChosenExperts chosen =
                function.route(hidden, seen, tokens, k, config.router().renormalize());
        if (chosen.ids().length != tokens * k || chosen.weights().length != tokens * k) {
            throw new IllegalArgumentException("router: expected [" + tokens + ", " + k + "] ids and weights, got "
                    + chosen.ids().length + " and " + chosen.weights().length);
        }
        double[] weights = new double[tokens * k];
        for (int p = 0; p < weights.length; p++) {
            int id = chosen.ids()[p];
            boolean again = Arrays.stream(chosen.ids(), p / k * k, p).anyMatch(before -> before == id && id != -1);
            if (id < -1 || id >= choices || again) {
                throw new IllegalArgumentException(
                        "router: expected ids from 0 to " + (choices - 1) + ", each at most once per token, or -1, got "
                                + id + (again ? " again" : "") + " for token " + p / k);
            }
            if (!Float.isFinite(chosen.weights()[p])) {
                throw new IllegalArgumentException("router: expected finite weights, got " + chosen.weights()[p]
                        + " for token " + p / k + ", expert " + id);
            }
            weights[p] = chosen.weights()[p] * config.router().routedScalingFactor();
        }
        return withShared(config, logits, new Routing(tokens, k, chosen.ids().clone(), weights));
    }

    /** Yuan's routing (arXiv 2405.17976): see {@link ScoringFunction#ATTENTION}. */
    private static double[] attended(double[] queriesKeysValues) {
        int n = queriesKeysValues.length / 3;
        double[] keys = Arrays.copyOfRange(queriesKeysValues, n, 2 * n);
        double[] values = Arrays.copyOfRange(queriesKeysValues, 2 * n, 3 * n);
        return Arrays.stream(queriesKeysValues, 0, n)
                .map(query -> {
                    double[] weights =
                            softmax(Arrays.stream(keys).map(key -> query * key).toArray());
                    return IntStream.range(0, n)
                            .mapToDouble(i -> weights[i] * values[i])
                            .sum();
                })
                .toArray();
    }

    private static Routing withShared(FusedMoeConfig config, double[] logits, Routing routed) {
        int k = config.expertsPerToken();
        int pairs = config.pairsPerToken();
        int e = config.numExperts();
        int[] ids = new int[routed.tokens() * pairs];
        double[] weights = new double[ids.length];
        for (int p = 0; p < ids.length; p++) {
            int m = p / pairs;
            int slot = p % pairs;
            if (slot < k) {
                int choice = routed.ids()[m * k + slot];
                ids[p] = choice < e ? choice : choice - e + config.globalNumExperts();
                weights[p] = routed.weights()[m * k + slot];
                if (config.router().mixesShared()) {
                    weights[p] *= finiteOrZero(sigmoid(-logits[m * config.numRouterLogits() + config.numChoices()]));
                }
            } else {
                ids[p] = e + slot - k;
                int first = m * config.numRouterLogits() + config.numChoices();
                weights[p] = config.router().normalizesShared()
                        ? scores(
                                new double[] {logits[first + slot - k]},
                                config.router().scoring())[0]
                        : config.router().hasSharedExpertGate() ? finiteOrZero(sigmoid(logits[first])) : 1;
            }
        }
        if (config.router().normalizesShared()) {
            divide(weights, pairs, config.router().routedScalingFactor());
        }
        return new Routing(routed.tokens(), pairs, ids, weights);
    }

    /**
     * Turns the scores of a token's K + n experts into weights: divides them by their sum and multiplies them by the
     * factor.
     */
    private static void divide(double[] scores, int pairs, double factor) {
        for (int from = 0; from < scores.length; from += pairs) {
            double[] weights = normalized(Arrays.copyOfRange(scores, from, from + pairs));
            for (int p = 0; p < pairs; p++) {
                scores[from + p] = weights[p] * factor;
            }
        }
    }

    /**
     * Each token's K of C choices and their weights; only their scores, if shared experts are normalised together with
     * them.
     *
     * <p>With a correction bias and groups (1 counts as a group too), as in vLLM's kernel for DeepSeek-V3, a choice
     * whose logit isn't finite comes last and has weight 0. With one group without a finite logit, all weights are 1 /
     * K, if they are renormalised. (vLLM: {@code router/grouped_topk_router.py}.)
     *
     * @param logits [M, C]
     * @param correctionBias [C], null for none
     */
    static Routing route(
            double[] logits,
            int tokens,
            int choices,
            int topK,
            RouterConfig router,
            float @Nullable [] correctionBias) {
        Numerics.requireLength("logits", logits.length, tokens, choices);
        if (topK < 1 || topK > choices) {
            throw new IllegalArgumentException("topK: expected 1 to the " + choices + " experts, got " + topK);
        }
        if (router.scoring() == ScoringFunction.SPARSE_MIXER) {
            return sparseMixer(logits, tokens, choices, topK, router.routedScalingFactor());
        }
        if (!router.choosesByLogits()) {
            throw new IllegalArgumentException("router: expected one that chooses by logits, got " + router.scoring());
        }
        int[] ids = new int[tokens * topK];
        double[] weights = new double[tokens * topK];
        for (int m = 0; m < tokens; m++) {
            double[] row = Arrays.copyOfRange(logits, m * choices, (m + 1) * choices);
            double[] scores = scores(row, router.scoring());
            double[] keys = keys(row, scores, router, correctionBias);
            int groups = router.numExpertGroup();
            boolean one = groups == 1 && correctionBias != null;
            boolean hopeless = one && Arrays.stream(keys).allMatch(key -> key == Double.NEGATIVE_INFINITY);
            boolean eachGroup = router.scoring() == ScoringFunction.SOFTMAX_EACH_GROUP;
            if (!eachGroup && groups > 1 && choices % groups == 0 && choices > groups) {
                leaveBestGroups(keys, groups, router.topkGroup(), correctionBias != null ? 2 : 1);
            }
            int[] chosen = eachGroup ? topKOfEach(keys, topK / groups, groups) : topK(keys, topK);
            double[] chosenWeights = Arrays.stream(chosen)
                    .mapToDouble(e -> keys[e] == Double.NEGATIVE_INFINITY ? 0 : scores[e])
                    .toArray();
            boolean softmaxOfChosen = router.scoresChosenOnly() && router.scoring() == ScoringFunction.SOFTMAX;
            double factor = router.normalizesShared() ? 1 : router.routedScalingFactor();
            if (softmaxOfChosen || (router.renormalize() && !router.normalizesShared())) {
                chosenWeights = normalized(chosenWeights);
                if (hopeless) {
                    Arrays.fill(chosenWeights, 1.0 / topK);
                    factor = 1;
                }
            }
            for (int slot = 0; slot < topK; slot++) {
                ids[m * topK + slot] = chosen[slot];
                weights[m * topK + slot] = chosenWeights[slot] * factor;
            }
        }
        return new Routing(tokens, topK, ids, weights);
    }

    /** The {@code count} best of each group. */
    private static int[] topKOfEach(double[] keys, int count, int groups) {
        int size = keys.length / groups;
        return IntStream.range(0, groups)
                .flatMap(g -> Arrays.stream(topK(Arrays.copyOfRange(keys, g * size, (g + 1) * size), count))
                        .map(e -> g * size + e))
                .toArray();
    }

    /** PhiMoE's routing (Liu et al., GRIN, arXiv 2409.12136): see {@link ScoringFunction#SPARSE_MIXER}. */
    private static Routing sparseMixer(double[] logits, int tokens, int choices, int topK, double factor) {
        int[] ids = new int[tokens * topK];
        double[] weights = new double[tokens * topK];
        for (int m = 0; m < tokens; m++) {
            double[] left = finiteOrLeast(Arrays.copyOfRange(logits, m * choices, (m + 1) * choices));
            for (int slot = 0; slot < topK; slot++) {
                int best = topK(left, 1)[0];
                double most = left[best];
                double sum = 0;
                for (double x : left) {
                    boolean near = !((most - x) / Math.max(Math.abs(x), most) > ScoringFunction.SPARSE_MIXER_MARGIN);
                    if (near && x != Double.NEGATIVE_INFINITY) {
                        sum += Math.exp(x - most);
                    }
                }
                ids[m * topK + slot] = best;
                weights[m * topK + slot] = factor / sum;
                left[best] = Double.NEGATIVE_INFINITY;
            }
        }
        return new Routing(tokens, topK, ids, weights);
    }

    /** Makes logits that aren't finite the lowest value, so that they come last. */
    private static double[] finiteOrLeast(double[] logits) {
        return Arrays.stream(logits)
                .map(x -> Double.isFinite(x) ? x : -Double.MAX_VALUE)
                .toArray();
    }

    /** The keys by which choices are compared; -infinity for choices that can't have weight. */
    private static double[] keys(
            double[] logits, double[] scores, RouterConfig router, float @Nullable [] correctionBias) {
        double[] keys = new double[logits.length];
        boolean hopeless = router.scoring().isSoftmax() && Arrays.stream(scores).allMatch(s -> s == 0);
        for (int e = 0; e < keys.length; e++) {
            double logit = logits[e];
            if (correctionBias != null) {
                boolean finite = Double.isFinite(logit) || router.numExpertGroup() == 0;
                keys[e] = finite ? scores[e] + correctionBias[e] : Double.NEGATIVE_INFINITY;
            } else if (hopeless) {
                keys[e] = 0;
            } else {
                boolean usable = !Double.isNaN(logit)
                        && (logit != Double.POSITIVE_INFINITY || router.scoring() == ScoringFunction.SIGMOID);
                keys[e] = usable ? logit : Double.NEGATIVE_INFINITY;
            }
        }
        return keys;
    }

    /** Sets the keys of the other groups to -infinity. A group's score is the sum of its best keys. */
    private static void leaveBestGroups(double[] keys, int groups, int topkGroup, int best) {
        int size = keys.length / groups;
        double[] groupKeys = new double[groups];
        for (int g = 0; g < groups; g++) {
            double[] members = Arrays.copyOfRange(keys, g * size, (g + 1) * size);
            for (int e : topK(members, best)) {
                groupKeys[g] += members[e];
            }
        }
        boolean[] kept = new boolean[groups];
        for (int g : topK(groupKeys, topkGroup)) {
            kept[g] = true;
        }
        for (int e = 0; e < keys.length; e++) {
            if (!kept[e / size]) {
                keys[e] = Double.NEGATIVE_INFINITY;
            }
        }
    }

    /** The scores of a token's logits; a score that isn't finite is 0. */
    private static double[] scores(double[] logits, ScoringFunction function) {
        double[] scores = switch (function) {
            case SOFTMAX, SOFTMAX_EACH_GROUP, ATTENTION -> softmax(logits);
            case SIGMOID -> Arrays.stream(logits).map(Router::sigmoid).toArray();
            case SQRTSOFTPLUS ->
                Arrays.stream(logits)
                        .map(x -> Math.sqrt(Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))))
                        .toArray();
            case IDENTITY, SPARSE_MIXER, TOKEN_TABLE, NETWORK, CUSTOM, SIMULATED -> logits;
        };
        return Arrays.stream(scores).map(Router::finiteOrZero).toArray();
    }

    private static double sigmoid(double x) {
        return 1 / (1 + Math.exp(-x));
    }

    private static double finiteOrZero(double x) {
        return Double.isFinite(x) ? x : 0;
    }

    private static double[] softmax(double[] x) {
        double max = Arrays.stream(x).max().orElseThrow();
        double[] exp = Arrays.stream(x).map(v -> Math.exp(v - max)).toArray();
        double total = Numerics.sum(exp);
        return Arrays.stream(exp).map(v -> v / total).toArray();
    }

    private static double[] normalized(double[] x) {
        double sum = Numerics.sum(x);
        double total = sum > 0 ? sum : 1;
        return Arrays.stream(x).map(v -> v / total).toArray();
    }

    /** Indices of the k highest scores, highest first; on ties the lower index first. */
    private static int[] topK(double[] scores, int k) {
        boolean[] taken = new boolean[scores.length];
        int[] chosen = new int[k];
        for (int slot = 0; slot < k; slot++) {
            int best = -1;
            for (int e = 0; e < scores.length; e++) {
                if (!taken[e] && (best < 0 || scores[e] > scores[best])) {
                    best = e;
                }
            }
            taken[best] = true;
            chosen[slot] = best;
        }
        return chosen;
    }
}
