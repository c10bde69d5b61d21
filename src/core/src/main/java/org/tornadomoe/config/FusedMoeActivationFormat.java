package org.tornadomoe.config;

/** How activations lie in memory between the stages. */
public enum FusedMoeActivationFormat {
    /** [M, H], tokens as they came. */
    STANDARD("standard"),
    /** [E, most tokens of an expert, H], tokens sorted into their experts' slots. */
    BATCHED_EXPERTS("batched_experts");

    private final String value;

    FusedMoeActivationFormat(String value) {
        this.value = value;
    }

    /** {@code standard}. */
    public String value() {
        return value;
    }

    /** As vLLM's messages show it, where the value is a tuple of one: {@code ('standard',)}. */
    @Override
    public String toString() {
        return "('" + value + "',)";
    }
}
