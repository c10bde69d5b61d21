package org.tornadomoe.config;

import java.util.Arrays;
import java.util.Locale;
import org.jspecify.annotations.Nullable;

/** Which operands of the two GEMMs are int8, and what shares a scale. */
public enum Int8Scheme {
    /** int8 weights with a scale per output channel; int8 activations with a scale per token, found at run time. */
    W8A8_CHANNEL,
    /**
     * int8 weights with a scale per expert, or where a checkpoint has them per output channel; int8 activations with one scale, found
     * at run time or known beforehand.
     */
    W8A8_TENSOR,
    /**
     * int8 weights with a scale per block of rows and columns; int8 activations with a scale per token and as many columns,
     * found at run time.
     */
    W8A8_BLOCK,
    /** int8 weights with a scale per output channel; float activations. */
    W8A16_CHANNEL,
    /** int8 weights with a scale per group of columns of a row, with or without zero points; float activations. */
    W8A16_GROUP;

    /** How weights are quantised, unless something else is chosen: {@link Int8Quantization#of}. */
    public QuantKey weightKey() {
        return Int8Quantization.of(this).weightKey();
    }

    /** How activations are quantised, unless something else is chosen; null if they aren't. */
    public @Nullable QuantKey activationKey() {
        return Int8Quantization.of(this).activationKey();
    }

    /** Whether activations are turned into int8 before each GEMM. */
    public boolean quantizesActivations() {
        return this != W8A16_CHANNEL && this != W8A16_GROUP;
    }

    /** The scheme of these keys, whatever their block or group; null if there is none. */
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
