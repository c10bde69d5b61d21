package org.tornadomoe.kernel;

/**
 * The caller's own routing function, for layers whose router is {@code CUSTOM} (vLLM: {@code custom_routing_function}).
 * It runs on the host, once per call, for all tokens; a device starts after it. It must be thread-safe if the layer is
 * called from several threads.
 */
@FunctionalInterface
public interface TopKRouter {
    /**
     * Chooses the experts. M tokens, C choices: the routed experts, then the zero experts; K top-k.
     *
     * @param hidden [M, H], read only
     * @param logits [M, C], the layer's router's logits; empty if the router has no weight
     * @param tokens M
     * @param renormalize whether the layer's configuration renormalises the weights
     * @return for M tokens and K experts per token: ids from 0 to C - 1, each at most once per token, or -1 for none;
     *     and finite weights. The layer adds its scaling factor and its shared experts
     */
    ChosenExperts route(float[] hidden, float[] logits, int tokens, int topK, boolean renormalize);
}
