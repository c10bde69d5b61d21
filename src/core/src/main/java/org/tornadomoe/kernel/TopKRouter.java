package org.tornadomoe.kernel;

/**
 * A way of routing of the caller's own, for layers whose router is {@code CUSTOM} (vLLM: {@code
 * custom_routing_function}). It runs on the host, once a call, for all tokens; a device then starts behind it. Has to
 * be thread-safe if the layer is called from several threads.
 */
@FunctionalInterface
public interface TopKRouter {
    /**
     * Chooses. M tokens, C choices: the routed experts, then the zero experts; K top-k.
     *
     * @param hidden [M, H], not to be written to
     * @param logits [M, C] as the layer's router gives them; empty if it has no weight
     * @param tokens M
     * @param renormalize as the layer's configuration has it
     * @return for M tokens and K experts a token: ids from 0 to C - 1, each once a token, or -1 for none; and finite
     *     weights. The layer's scaling factor and shared experts come on top
     */
    ChosenExperts route(float[] hidden, float[] logits, int tokens, int topK, boolean renormalize);
}
