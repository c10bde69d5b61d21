package org.tornadomoe.config;

import java.util.Arrays;
import java.util.Locale;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** Which operands of the two GEMMs are int8, and what shares a scale. */
public enum Int8Scheme {
    /** int8 weights with a scale per output channel; int8 activations with a scale per token, found at run time. */
    W8A8_CHANNEL,
    /** int8 weights with a scale per output channel; float activations. */
    W8A16_CHANNEL;

    /** How weights are quantised. */
    public QuantKey weightKey() {
        return QuantKey.INT8_STATIC_CHANNEL_SYM;
    }

    /** How activations are quantised; null if they aren't. */
    public @Nullable QuantKey activationKey() {
        return switch (this) {
            case W8A8_CHANNEL -> QuantKey.INT8_DYNAMIC_TOKEN_SYM;
            case W8A16_CHANNEL -> null;
        };
    }

    /** Whether activations are turned into int8 before each GEMM. */
    public boolean quantizesActivations() {
        return activationKey() != null;
    }

    /** The scheme of these keys; null if there is none. */
    public static @Nullable Int8Scheme of(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        for (Int8Scheme scheme : values()) {
            if (scheme.weightKey().equals(weightKey) && Objects.equals(scheme.activationKey(), activationKey)) {
                return scheme;
            }
        }
        return null;
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
