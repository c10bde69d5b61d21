package org.tornadomoe.spark;

import java.nio.file.Path;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.IntStream;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.ExpertMap;
import org.tornadomoe.config.ExpertPlacementStrategy;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.HostRouter;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.RouterNetwork;

/**
 * A layer's router and the owners of its experts, shared ones included: decides where a token goes. Thread-safe. There
 * are E + n experts, and a token goes to P = K + n of them; see {@link FusedMoeConfig}.
 */
final class TokenRouter {
    /** How experts are partitioned among their owners. */
    record Owners(int number, ExpertPlacementStrategy placement) {}

    private record Key(String checkpoint, int layer, Owners owners) {}

    private static final ConcurrentHashMap<Key, TokenRouter> ROUTERS = new ConcurrentHashMap<>();

    private final CheckpointFiles files;
    private final FusedMoeConfig config;
    private final HostRouter router;
    private final int[] ownerOf; // [E + n]
    private final int[] numberThere; // [E + n], index among its owner's experts

    private TokenRouter(Key key, CheckpointFiles files) {
        this.files = files;
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Path.of(key.checkpoint))) {
            ExpertWeights layer = layer(checkpoint, key.layer);
            config = layer.config();
            router = new HostRouter(config, layer.router());
        }
        int experts = config.globalNumExperts();
        ownerOf = new int[experts];
        numberThere = new int[experts];
        for (int owner = 0; owner < key.owners.number; owner++) {
            int[] map = ExpertMap.determineExpertMap(key.owners.number, owner, experts, key.owners.placement)
                    .map();
            for (int e = 0; e < experts; e++) {
                int there = map == null ? e : map[e];
                if (there >= 0) {
                    ownerOf[e] = owner;
                    numberThere[e] = there;
                }
            }
        }
    }

    /**
     * Reads a layer whose router reads only hidden states, because rows contain nothing else.
     *
     * @throws UnsupportedOperationException if its router reads more, or its experts compute in a narrower space;
     *     otherwise as {@link MoeCheckpoint#layer(int)}
     */
    static ExpertWeights layer(MoeCheckpoint checkpoint, int n) {
        ExpertWeights layer = checkpoint.layer(n);
        if (layer.latent() != null) {
            throw new UnsupportedOperationException("layer " + n + " of " + checkpoint.modelType()
                    + " can't run on rows of hidden states: its experts compute in a narrower space");
        }
        RouterNetwork network = layer.router().network();
        String reads = layer.router().expertsOfToken() != null
                ? "tokens' ids, by which it takes experts from a table"
                : network != null && network.stateFactor() != null
                        ? "the states of the router before it"
                        : layer.config().router().readsOwnInput() ? "the layer's input before attention" : null;
        if (reads != null) {
            throw new UnsupportedOperationException("layer " + n + " of " + checkpoint.modelType()
                    + " can't run on rows of hidden states: its router also reads " + reads);
        }
        return layer;
    }

    /** The router of a scorer's layer, read by the first call, and anew if the checkpoint's files have changed. */
    static TokenRouter of(MoeScorer scorer, Owners owners) {
        CheckpointFiles files = CheckpointFiles.of(Path.of(scorer.checkpoint()));
        return ROUTERS.compute(
                new Key(scorer.checkpoint(), scorer.layer(), owners),
                (key, kept) -> kept != null && kept.files.equals(files) ? kept : new TokenRouter(key, files));
    }

    int hiddenDim() {
        return config.hiddenDim();
    }

    /** Whether all experts read a token as int8 with one scale. */
    boolean quantizesTokens(Int8Scheme scheme) {
        return scheme == Int8Scheme.W8A8_CHANNEL && !config.applyRouterWeightOnInput();
    }

    /** An owner's experts, in the order of their numbers at the owner. */
    int[] expertsOf(int owner) {
        return IntStream.range(0, ownerOf.length)
                .filter(e -> ownerOf[e] == owner)
                .toArray();
    }

    /** The maximum number of an owner's experts that a token can have. */
    int pairsPerRow(int owner) {
        return Math.min(config.pairsPerToken(), expertsOf(owner).length);
    }

    /**
     * The number of tokens that a row is for its owner: one, or one per pair if the router's weight multiplies an
     * expert's input.
     */
    int tokensPerRow(int owner) {
        return config.applyRouterWeightOnInput() ? pairsPerRow(owner) : 1;
    }

    /**
     * Experts and weights of tokens, hidden [M, H], as the CPU's layer chooses them: in float64, with weights then
     * rounded to float.
     */
    ChosenExperts route(float[] hidden, int tokens) {
        return router.route(hidden, tokens);
    }

    int ownerOf(int expert) {
        return ownerOf[expert];
    }

    int numberThere(int expert) {
        return numberThere[expert];
    }
}
