package org.tornadomoe.config;

/** How router logits become expert ids and weights. Numbers as in vLLM's {@code RoutingMethodType}. */
public enum RoutingMethodType {
    /** Softmax over all experts, then the top k; the weights are the probabilities as they are. */
    DEFAULT(0),
    /** The top k logits, then softmax over those k. */
    RENORMALIZE(1),
    /** Softmax over all experts, then the top k, divided by their sum. */
    RENORMALIZE_NAIVE(4);

    private final int number;

    RoutingMethodType(int number) {
        this.number = number;
    }

    /** vLLM's number for it. */
    public int number() {
        return number;
    }
}
