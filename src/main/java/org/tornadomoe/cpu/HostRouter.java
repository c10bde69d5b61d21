package org.tornadomoe.cpu;

import java.lang.foreign.MemorySegment;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.modular.ChosenExperts;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.RouterWeights;

/**
 * The router of a layer on this machine's cores, by itself: for kernels that are handed ids and weights. In float64, with the definition's ids and
 * weights. Thread-safe.
 */
public final class HostRouter {
    private final FusedMoeConfig config;
    private final CpuRouter router;
    private final Arithmetic arithmetic = Arithmetic.best();

    /**
     * A router.
     *
     * @param config with one that kernels have, not one that is handed in
     */
    public HostRouter(FusedMoeConfig config, RouterWeights weights) {
        if (config.router().isHandedIn()) {
            throw new IllegalArgumentException("config: expected a router that chooses by logits, got "
                    + config.router().scoring());
        }
        this.config = config;
        router = new CpuRouter(config, weights);
    }

    /**
     * Chooses the experts of some tokens.
     *
     * @param hidden [tokens, H] of the configuration's type
     */
    public ChosenExperts route(MemorySegment hidden, int tokens) {
        int h = config.hiddenDim();
        int k = config.pairsPerToken();
        float[] x = new float[tokens * h];
        HiddenStates.read(config.inDtype(), hidden, x, x.length);
        ChosenExperts chosen = ChosenExperts.allocate(tokens, k);
        double[] weights = new double[tokens * k];
        Team team = Team.shared();
        boolean together = team.begin();
        try {
            team.run(
                    together,
                    tokens,
                    (token, scratch) -> {
                        scratch.require(0, router.paddedLogits(), router.groups());
                        router.logits(arithmetic, x, token * h, scratch);
                        router.route(scratch, chosen.ids(), weights, token * k);
                    },
                    new Scratch());
        } finally {
            if (together) {
                team.end();
            }
        }
        for (int p = 0; p < weights.length; p++) {
            chosen.weights()[p] = (float) weights[p];
        }
        return chosen;
    }
}
