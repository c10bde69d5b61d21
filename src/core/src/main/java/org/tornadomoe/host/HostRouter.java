package org.tornadomoe.host;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.kernel.TopKRouter;
import org.tornadomoe.quant.RouterWeights;

/**
 * The router on the host, in float64 and in the definition's order of operations, so that ids and weights are the
 * definition's. It serves score functions, a model's own routing that no kernel implements, and the caller's function.
 * Calls of a CPU layer allocate nothing in it. C choices, L logits, K top-k, n shared experts; see {@link
 * FusedMoeConfig}. Thread-safe as far as the function is.
 */
public final class HostRouter {
    private final FusedMoeConfig config;
    private final RouterConfig router;
    private final int choices;
    private final int width;
    private final @Nullable TopKRouter function;
    private final float @Nullable [] bias;
    private final float @Nullable [] correctionBias;

    /** [V, K]; null unless experts are chosen by token ids. */
    private final int @Nullable [] expertsOfToken;

    private final @Nullable NetworkRouter network;

    /** The weight's rows and the shared expert gate, [blocks, H, 16]; empty without a weight. */
    private final float[] packed;

    /** @param weights are copied */
    public HostRouter(FusedMoeConfig config, RouterWeights weights) {
        this(config, weights, null);
    }

    /**
     * A layer's router.
     *
     * @param weights are copied; may lack a weight if there is a function
     * @param function chooses in place of the configuration's score function; null to use the score function
     */
    public HostRouter(FusedMoeConfig config, RouterWeights weights, @Nullable TopKRouter function) {
        this.config = config;
        this.function = function;
        router = config.router();
        choices = config.numChoices();
        width = config.numRouterLogits();
        bias = weights.bias() == null ? null : weights.bias().clone();
        correctionBias = weights.correctionBias() == null
                ? null
                : weights.correctionBias().clone();
        expertsOfToken = weights.expertsOfToken();
        network = weights.network() == null ? null : new NetworkRouter(weights.network());
        packed = weights.hasWeight() ? pack(weights) : new float[0];
        if (function != null && router.normalizesShared()) {
            throw new IllegalArgumentException(
                    "router: expected none in the options, as this layer normalises shared experts' scores with the"
                            + " chosen ones, got one");
        }
    }

    /**
     * Computes the experts and weights of tokens on the calling thread, without the layer.
     *
     * @param hidden [M, H]; may be longer, but not for a function
     * @throws IllegalArgumentException if the router gets its logits or its choice from the caller, or the function
     *     returns an invalid result
     */
    public ChosenExperts route(float[] hidden, int tokens) {
        return route(hidden, tokens, RouterInputs.NONE, false);
    }

    /** The same on all cores, unless a layer's call uses them; the function runs on the calling thread. */
    public ChosenExperts routeOnAllCores(float[] hidden, int tokens) {
        return route(hidden, tokens, RouterInputs.NONE, true);
    }

    /**
     * The same for a router that may read more inputs.
     *
     * @throws IllegalArgumentException if an input is missing or invalid
     */
    public ChosenExperts routeOnAllCores(float[] hidden, int tokens, RouterInputs inputs) {
        return route(hidden, tokens, inputs, true);
    }

    private ChosenExperts route(float[] experts, int tokens, RouterInputs inputs, boolean onAllCores) {
        if (function != null) {
            return route(function, experts, tokens, onAllCores);
        }
        float[] hidden = inputs.hidden(router, experts, tokens, config.hiddenDim());
        if (network != null) {
            return route(network, hidden, tokens, inputs, onAllCores);
        }
        if (packed.length == 0) {
            throw new IllegalArgumentException(
                    "router: expected one with a weight, got one without (the caller passes router logits)");
        }
        int pairs = config.pairsPerToken();
        ChosenExperts chosen = ChosenExperts.allocate(tokens, pairs);
        double[] weights = new double[tokens * pairs];
        int[] table = expertsOfToken;
        if (table == null) {
            eachToken(
                    hidden,
                    tokens,
                    onAllCores,
                    (token, scratch) -> route(scratch, chosen.ids(), weights, token * pairs));
            return withWeights(chosen, weights);
        }
        int k = config.expertsPerToken();
        int[] rows = new int[tokens];
        for (int m = 0; m < tokens; m++) {
            rows[m] = inputs.row(m, table.length / k);
        }
        eachToken(hidden, tokens, onAllCores, (token, scratch) -> {
            look(table, rows[token] * k, scratch.logits, chosen.ids(), weights, token * pairs);
            addShared(chosen.ids(), weights, token * pairs, router.hasSharedExpertGate() ? scratch.logits[choices] : 0);
        });
        return withWeights(chosen, weights);
    }

    /** A token's experts from a table, from {@code from} on, and their weights; a duplicate counts once. */
    private void look(int[] table, int from, double[] logits, int[] ids, double[] weights, int at) {
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

    private ChosenExperts route(
            NetworkRouter network, float[] hidden, int tokens, RouterInputs inputs, boolean onAllCores) {
        int pairs = config.pairsPerToken();
        float[] states = inputs.states(tokens, network.width());
        ChosenExperts chosen = ChosenExperts.allocate(tokens, pairs);
        double[] weights = new double[tokens * pairs];
        onAllCores(tokens, onAllCores, (token, _) -> {
            int at = token * pairs;
            network.choose(
                    hidden,
                    token * config.hiddenDim(),
                    states,
                    token,
                    config.expertsPerToken(),
                    chosen.ids(),
                    weights,
                    at);
            for (int p = at; p < at + config.expertsPerToken(); p++) {
                weights[p] *= router.routedScalingFactor();
            }
            addShared(chosen.ids(), weights, at, 0);
        });
        return withWeights(chosen, weights);
    }

    /** Runs a stage for each token's logits, which it puts into the scratch. */
    private void eachToken(float[] hidden, int tokens, boolean onAllCores, Team.Stage stage) {
        Arithmetic arithmetic = Arithmetic.best();
        int h = config.hiddenDim();
        onAllCores(tokens, onAllCores, (token, scratch) -> {
            scratch.require(0, paddedLogits(), groups());
            logits(arithmetic, hidden, token * h, scratch);
            stage.run(token, scratch);
        });
    }

    private static void onAllCores(int tokens, boolean onAllCores, Team.Stage stage) {
        Team team = Team.shared();
        boolean together = onAllCores && team.begin();
        try {
            team.run(together, tokens, stage, new Scratch());
        } finally {
            if (together) {
                team.end();
            }
        }
    }

    private ChosenExperts route(TopKRouter function, float[] hidden, int tokens, boolean onAllCores) {
        int k = config.expertsPerToken();
        int pairs = config.pairsPerToken();
        float[] logits = new float[packed.length == 0 ? 0 : tokens * choices];
        double[] gates = new double[router.hasSharedExpertGate() ? tokens : 0];
        if (packed.length != 0) {
            eachToken(hidden, tokens, onAllCores, (token, scratch) -> {
                for (int c = 0; c < choices; c++) {
                    logits[token * choices + c] = (float) scratch.logits[c];
                }
                if (gates.length != 0) {
                    gates[token] = scratch.logits[choices];
                }
            });
        }
        ChosenExperts given = function.route(hidden, logits, tokens, k, router.renormalize());
        requireChoice(given, tokens);
        ChosenExperts chosen = ChosenExperts.allocate(tokens, pairs);
        int[] ids = chosen.ids();
        double[] weights = new double[ids.length];
        for (int m = 0; m < tokens; m++) {
            for (int slot = 0; slot < k; slot++) {
                ids[m * pairs + slot] = given.ids()[m * k + slot];
                weights[m * pairs + slot] = given.weights()[m * k + slot] * router.routedScalingFactor();
            }
            addShared(ids, weights, m * pairs, gates.length == 0 ? 0 : gates[m]);
        }
        return withWeights(chosen, weights);
    }

    private static ChosenExperts withWeights(ChosenExperts chosen, double[] weights) {
        for (int p = 0; p < weights.length; p++) {
            chosen.weights()[p] = (float) weights[p];
        }
        return chosen;
    }

    private void requireChoice(ChosenExperts chosen, int tokens) {
        int k = config.expertsPerToken();
        if (chosen.ids().length != tokens * k || chosen.weights().length != tokens * k) {
            throw new IllegalArgumentException("router: expected [" + tokens + ", " + k + "] ids and weights, got "
                    + chosen.ids().length + " and " + chosen.weights().length);
        }
        for (int p = 0; p < chosen.ids().length; p++) {
            int id = chosen.ids()[p];
            boolean again = id != -1 && contains(chosen.ids(), p / k * k, p % k, id);
            if (id < -1 || id >= choices || again) {
                throw new IllegalArgumentException(
                        "router: expected ids from 0 to " + (choices - 1) + ", each at most once per token, or -1, got "
                                + id + (again ? " again" : "") + " for token " + p / k);
            }
            if (!Float.isFinite(chosen.weights()[p])) {
                throw new IllegalArgumentException("router: expected finite weights, got " + chosen.weights()[p]
                        + " for token " + p / k + ", expert " + id);
            }
        }
    }

    private float[] pack(RouterWeights weights) {
        int h = config.hiddenDim();
        float[] gate = weights.sharedExpertGate();
        float[] all = new float[Math.multiplyExact(paddedLogits(), h)];
        for (int row = 0; row < width; row++) {
            float[] from = row >= choices && gate != null ? gate : weights.weight();
            int at = (row >= choices ? row - choices : row) * h;
            for (int c = 0; c < h; c++) {
                all[
                                row / Arithmetic.ROUTER_ROWS * Arithmetic.ROUTER_ROWS * h
                                        + c * Arithmetic.ROUTER_ROWS
                                        + row % Arithmetic.ROUTER_ROWS] =
                        from[at + c];
            }
        }
        return all;
    }

    /** L, padded to whole blocks: an argument of {@link Scratch#require}. */
    public int paddedLogits() {
        return logitBlocks() * Arithmetic.ROUTER_ROWS;
    }

    /** The number of groups of choices, 0 for none: an argument of {@link Scratch#require}. */
    public int groups() {
        return router.numExpertGroup();
    }

    /** Bytes of memory that it holds. */
    public long bytes() {
        return 4L * packed.length;
    }

    /** Computes the logits of the token x[from, from + H) into the scratch. */
    public void logits(Arithmetic arithmetic, float[] x, int from, Scratch scratch) {
        for (int block = 0; block < logitBlocks(); block++) {
            logits(arithmetic, block, x, from, scratch.logits, 0);
        }
    }

    /** The number of blocks of a token's logits that can be computed separately. */
    public int logitBlocks() {
        return Math.ceilDiv(width, Arithmetic.ROUTER_ROWS);
    }

    /** Computes one block; the token's logits begin at {@code at}, with room for {@link #paddedLogits}. */
    public void logits(Arithmetic arithmetic, int block, float[] x, int from, double[] logits, int at) {
        int h = config.hiddenDim();
        int row = block * Arithmetic.ROUTER_ROWS;
        arithmetic.logits(packed, row * h, h, x, from, logits, at + row);
        for (int r = row; bias != null && r < Math.min(row + Arithmetic.ROUTER_ROWS, choices); r++) {
            logits[at + r] += bias[r];
        }
        double cap = router.logitCap();
        for (int r = row; cap != 0 && r < Math.min(row + Arithmetic.ROUTER_ROWS, choices); r++) {
            logits[at + r] = cap * Math.tanh(logits[at + r] / cap);
        }
    }

    /**
     * Computes the K + n experts of the token whose logits are in the scratch, and their weights, from {@code at} on.
     */
    public void route(Scratch scratch, int[] ids, double[] weights, int at) {
        if (router.scoring() == ScoringFunction.SPARSE_MIXER) {
            chooseSparsely(scratch, ids, weights, at, config.expertsPerToken());
        } else {
            choose(scratch, ids, weights, at, config.expertsPerToken());
        }
        addShared(ids, weights, at, router.hasSharedExpertGate() ? scratch.logits[choices] : 0);
        if (router.normalizesShared()) {
            divideWithShared(scratch, weights, at);
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
    private void addShared(int[] ids, double[] weights, int at, double gate) {
        int k = config.expertsPerToken();
        int e = config.numExperts();
        for (int slot = 0; slot < config.pairsPerToken(); slot++) {
            int p = at + slot;
            if (slot >= k) {
                ids[p] = e + slot - k;
                weights[p] = router.hasSharedExpertGate() ? finiteOrZero(sigmoid(gate)) : 1;
            } else if (ids[p] >= e) {
                ids[p] += config.globalNumExperts() - e;
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

    private void choose(Scratch s, int[] ids, double[] weights, int at, int k) {
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
            case SOFTMAX, SOFTMAX_EACH_GROUP -> {
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

    private static boolean contains(int[] chosen, int at, int count, int id) {
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
