package org.tornadomoe.config;

import java.util.Arrays;

/** The function between the two GEMMs of an expert, under the names of vLLM's {@code MoEActivation}. */
public enum MoeActivation {
    /** {@code silu(gate) * up} with {@code silu(x) = x / (1 + exp(-x))}. */
    SILU("silu");

    private final String value;

    MoeActivation(String value) {
        this.value = value;
    }

    /** The name in a model's configuration, {@code "silu"}. */
    public String value() {
        return value;
    }

    /** Whether GEMM 1 yields a gate half and an up half (2I columns) rather than I columns. */
    public boolean isGated() {
        return !value.endsWith("_no_mul");
    }

    /**
     * The activation of that name.
     *
     * @throws IllegalArgumentException if there is none; the message lists all
     */
    public static MoeActivation fromString(String value) {
        for (MoeActivation activation : values()) {
            if (activation.value.equals(value)) {
                return activation;
            }
        }
        throw new IllegalArgumentException("Unknown MoE activation: '" + value + "'. Valid activations: "
                + Arrays.stream(values()).map(MoeActivation::value).toList());
    }

    @Override
    public String toString() {
        return value;
    }
}
