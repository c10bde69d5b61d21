package org.tornadomoe.host;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
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
    private final ExpertChoice choice;

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
        choice = new ExpertChoice(config, weights.correctionBias());
        expertsOfToken = weights.expertsOfToken();
        network = weights.network() == null ? null : new NetworkRouter(weights.network());
        packed = weights.hasWeight() ? pack(weights) : new float[0];
        boolean attends = weights.weight().length > (long) choices * config.hiddenDim();
        if (function != null && (router.normalizesShared() || attends)) {
            throw new IllegalArgumentException("router: expected none in the options, as this layer "
                    + (attends
                            ? "makes logits of what experts attend to"
                            : "normalises shared experts' scores with the chosen ones")
                    + ", got one");
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
            choice.lookUp(table, rows[token] * k, scratch.logits, chosen.ids(), weights, token * pairs);
            choice.addShared(
                    chosen.ids(), weights, token * pairs, router.hasSharedExpertGate() ? scratch.logits[choices] : 0);
        });
        return withWeights(chosen, weights);
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
            choice.addShared(chosen.ids(), weights, at, 0);
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
            choice.addShared(ids, weights, m * pairs, gates.length == 0 ? 0 : gates[m]);
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
            boolean again = id != -1 && ExpertChoice.contains(chosen.ids(), p / k * k, p % k, id);
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
            boolean ofGate = row >= choices && gate != null;
            float[] from = ofGate && gate != null ? gate : weights.weight();
            int at = (ofGate ? row - choices : row) * h;
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
        for (int r = row; bias != null && r < Math.min(row + Arithmetic.ROUTER_ROWS, bias.length); r++) {
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
        choice.choose(scratch, ids, weights, at);
    }
}
