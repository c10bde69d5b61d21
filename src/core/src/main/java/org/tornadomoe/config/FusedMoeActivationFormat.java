package org.tornadomoe.config;

/** The memory layout of activations between the stages. */
public enum FusedMoeActivationFormat {
    /** [M, H], tokens in their original order. */
    STANDARD("standard"),
    /** [E, maximum tokens per expert, H], tokens in their experts' slots. */
    BATCHED_EXPERTS("batched_experts");

    private final String value;

    FusedMoeActivationFormat(String value) {
        this.value = value;
    }

    /** {@code standard}. */
    public String value() {
        return value;
    }

    /** As in vLLM's messages, where the value is a one-element tuple: {@code ('standard',)}. */
    @Override
    public String toString() {
        return "('" + value + "',)";
    }
}
