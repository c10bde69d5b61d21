package org.tornadomoe.config;

import java.util.Arrays;
import java.util.stream.Collectors;

/**
 * The function between the two GEMMs of an expert, under the names of vLLM's {@code MoEActivation} ({@code
 * fused_moe/activation.py}). In the formulas g is the gate half of a row of GEMM 1's output and u its up half; without
 * a gate there is one half only, x. L, a, b and c are the layer's {@link ActivationConstants}: limit, alpha, beta,
 * linear beta.
 */
public enum MoeActivation {
    /** {@code silu(g) * u} with {@code silu(x) = x / (1 + exp(-x))}; with a limit, g at most L and u in [-L, L]. */
    SILU("silu"),
    /** {@code gelu(g) * u} with {@code gelu(x) = x / 2 * (1 + erf(x / sqrt(2)))}. */
    GELU("gelu"),
    /** As {@link #GELU} with the tanh approximation. */
    GELU_TANH("gelu_tanh"),
    /** {@code max(g, 0)^2 * u}. vLLM has the name and no kernel for it. */
    RELU2("relu2"),
    /** {@code max(g, 0) * u} (SmallThinker). vLLM has no name for it. */
    RELU("relu"),
    /**
     * {@code (u + b) * g * sigmoid(a g)}, g at most L, u in [-L, L], by default with a = 1.702, b = 1, L = 7; gate and
     * up columns alternate.
     */
    SWIGLUOAI("swigluoai"),
    /**
     * {@code b * tanh(g / b) * sigmoid(g) * u'}, where u' is {@code c * tanh(u / c)}, or u if there is no c; needs b.
     */
    SITU("situ"),
    /** As {@link #SWIGLUOAI} with halves, and by default a = 1 and b = 0; needs L. */
    SWIGLUOAI_UNINTERLEAVE("swigluoai_uninterleave"),
    /** {@code min(silu(g), L) * u}, u in [-L, L], by default with L = 7. */
    SWIGLUSTEP("swiglustep"),
    /** {@code silu(x)}. */
    SILU_NO_MUL("silu_no_mul"),
    /** {@code gelu(x)}. */
    GELU_NO_MUL("gelu_no_mul"),
    /** {@code gelu(x)}, tanh approximation. */
    GELU_TANH_NO_MUL("gelu_tanh_no_mul"),
    /** {@code max(x, 0)^2}. */
    RELU2_NO_MUL("relu2_no_mul"),
    /** {@code max(x, 0)} (Switch Transformers, NLLB). */
    RELU_NO_MUL("relu_no_mul");

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
     * Whether columns of gate and up alternate (as rows of w13 do), gate first; otherwise all gate columns come first.
     */
    public boolean isInterleaved() {
        return this == SWIGLUOAI;
    }

    /** The same function without a gate, if there is one; otherwise this one. */
    public MoeActivation withoutMul() {
        return switch (this) {
            case SILU -> SILU_NO_MUL;
            case GELU -> GELU_NO_MUL;
            case GELU_TANH -> GELU_TANH_NO_MUL;
            case RELU2 -> RELU2_NO_MUL;
            case RELU -> RELU_NO_MUL;
            default -> this;
        };
    }

    /**
     * The activation of that name; {@code gelu_pytorch_tanh} is another name of {@link #GELU_TANH}.
     *
     * @throws IllegalArgumentException if there is none; the message lists all
     */
    public static MoeActivation fromString(String name) {
        String value = name.equals("gelu_pytorch_tanh") ? GELU_TANH.value : name;
        for (MoeActivation activation : values()) {
            if (activation.value.equals(value)) {
                return activation;
            }
        }
        throw new IllegalArgumentException("Unknown MoE activation: '" + name + "'. Valid activations: "
                + Arrays.stream(values()).map(a -> "'" + a.value + "'").collect(Collectors.joining(", ", "[", "]")));
    }

    @Override
    public String toString() {
        return value;
    }
}
