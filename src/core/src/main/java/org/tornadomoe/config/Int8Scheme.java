package org.tornadomoe.config;

import java.util.Arrays;
import java.util.Locale;
import org.jspecify.annotations.Nullable;

/** Which operands of the two GEMMs are int8, and which values share a scale. */
public enum Int8Scheme {
    /** int8 weights with a scale per output channel; int8 activations with a scale per token, found at run time. */
    W8A8_CHANNEL("channel", "token", GroupShape.PER_CHANNEL, 2.5e-2),
    /**
     * int8 weights with a scale per expert, or per output channel if the checkpoint has those; int8 activations with
     * one scale, found at run time or given.
     */
    W8A8_TENSOR("tensor", "tensor", GroupShape.PER_TENSOR, 5e-2),
    /**
     * int8 weights with a scale per block of rows and columns; int8 activations with a scale per token and as many
     * columns, found at run time.
     */
    W8A8_BLOCK("block", "group", new GroupShape(Int8Quantization.DEFAULT_BLOCK, Int8Quantization.DEFAULT_BLOCK), 5e-2),
    /** int8 weights with a scale per output channel; float activations. */
    W8A16_CHANNEL("channel", null, GroupShape.PER_CHANNEL, 1.5e-2),
    /** int8 weights with a scale per group of columns of a row, with or without zero points; float activations. */
    W8A16_GROUP("group", null, new GroupShape(1, Int8Quantization.DEFAULT_BLOCK), 1.5e-2);

    private final String weightStrategy;
    private final @Nullable String activationStrategy;

    @SuppressWarnings("ImmutableEnumChecker") // a record of numbers
    private final GroupShape grid;

    private final double tolerance;

    Int8Scheme(String weightStrategy, @Nullable String activationStrategy, GroupShape grid, double tolerance) {
        this.weightStrategy = weightStrategy;
        this.activationStrategy = activationStrategy;
        this.grid = grid;
        this.tolerance = tolerance;
    }

    /**
     * Which weights share a scale, in compressed-tensors' terms: {@code channel}, {@code tensor}, {@code block} or
     * {@code group}.
     */
    public String weightStrategy() {
        return weightStrategy;
    }

    /**
     * Which activations share a scale, in the same terms: {@code token}, {@code tensor} or {@code group}; null if they
     * aren't quantised.
     */
    public @Nullable String activationStrategy() {
        return activationStrategy;
    }

    /** The rows and columns of a weight that share a scale by default. */
    public GroupShape grid() {
        return grid;
    }

    /** Whether weights may have zero points. */
    public boolean mayHaveZeroPoints() {
        return this == W8A16_GROUP;
    }

    /**
     * An upper bound of the relative L2 error against the unquantised layer; random weights and tokens stay well below
     * it. One scale for all values, or truncation, doubles the error.
     */
    public double tolerance() {
        return tolerance;
    }

    /** vLLM's name of it in the names of launch configurations. */
    public String configName() {
        return quantizesActivations() ? "int8_w8a8" : "int8_w8a16";
    }

    /** How weights are quantised by default: {@link Int8Quantization#of}. */
    public QuantKey weightKey() {
        return Int8Quantization.of(this).weightKey();
    }

    /** How activations are quantised by default; null if they aren't. */
    public @Nullable QuantKey activationKey() {
        return Int8Quantization.of(this).activationKey();
    }

    /** Whether activations are quantised to int8 before each GEMM. */
    public boolean quantizesActivations() {
        return activationStrategy != null;
    }

    /** The scheme with these keys, for any block or group; null if there is none. */
    public static @Nullable Int8Scheme of(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        if (weightKey == null) {
            return null;
        }
        if (weightKey.equals(QuantKey.INT8_STATIC_CHANNEL_SYM)) {
            return activationKey == null
                    ? W8A16_CHANNEL
                    : activationKey.equals(QuantKey.INT8_DYNAMIC_TOKEN_SYM) ? W8A8_CHANNEL : null;
        }
        if (weightKey.equals(QuantKey.INT8_STATIC_TENSOR_SYM)) {
            boolean tensor = QuantKey.INT8_DYNAMIC_TENSOR_SYM.equals(activationKey)
                    || QuantKey.INT8_STATIC_TENSOR_SYM.equals(activationKey)
                    || QuantKey.INT8_STATIC_TOKEN_SYM.equals(activationKey);
            return tensor ? W8A8_TENSOR : null;
        }
        GroupShape shape = weightKey.scale().groupShape();
        if (shape.row() < 1 || !weightKey.equals(QuantKey.int8Weights(shape, weightKey.symmetric()))) {
            return null;
        }
        if (activationKey == null) {
            return shape.row() == 1 ? W8A16_GROUP : null;
        }
        boolean sameColumns =
                weightKey.symmetric() && shape.col() > 0 && activationKey.equals(QuantKey.int8Groups(shape.col()));
        return sameColumns ? W8A8_BLOCK : null;
    }

    /**
     * The scheme of that name, {@code "w8a8_channel"}.
     *
     * @throws IllegalArgumentException if there is none; the message lists all
     */
    public static Int8Scheme fromString(String name) {
        for (Int8Scheme scheme : values()) {
            if (scheme.toString().equals(name)) {
                return scheme;
            }
        }
        throw new IllegalArgumentException(
                "scheme: expected one of " + Arrays.toString(values()) + ", got '" + name + "'");
    }

    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
