package org.tornadomoe.config;

import java.util.LinkedHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * How a tensor is quantised: the oracle's lookup key (vLLM: {@code QuantKey} of {@code
 * quantization/utils/quant_utils.py}).
 *
 * @param dtype of a value
 * @param scale of values
 * @param scale2 of scales, if the scales are scaled
 * @param symmetric whether there are no zero points
 */
public record QuantKey(
        ScalarType dtype, ScaleDesc scale, @Nullable ScaleDesc scale2, boolean symmetric) {
    /** Weights with a scale per output channel. */
    public static final QuantKey INT8_STATIC_CHANNEL_SYM = int8(true, GroupShape.PER_CHANNEL);

    /** Activations with a scale per token, found at run time. */
    public static final QuantKey INT8_DYNAMIC_TOKEN_SYM = int8(false, GroupShape.PER_TOKEN);

    /** Weights with a scale per expert, or activations with one given scale. */
    public static final QuantKey INT8_STATIC_TENSOR_SYM = int8(true, GroupShape.PER_TENSOR);

    /** Activations with a given scale for each expert that gets them. Ours: vLLM uses the maximum for all. */
    public static final QuantKey INT8_STATIC_TOKEN_SYM = int8(true, GroupShape.PER_TOKEN);

    /** Activations with one scale, found at run time. */
    public static final QuantKey INT8_DYNAMIC_TENSOR_SYM = int8(false, GroupShape.PER_TENSOR);

    /** Weights with a scale per 128 × 128 block. Ours: vLLM has no key for blocks of int8. */
    public static final QuantKey INT8_STATIC_BLOCK_SYM = int8Weights(new GroupShape(128, 128), true);

    /** Activations with a scale per token and 128 columns, found at run time. Ours too. */
    public static final QuantKey INT8_DYNAMIC_GROUP_SYM = int8Groups(128);

    /** Weights with a scale per 128 columns of a row. Ours too, as is the next one with zero points. */
    public static final QuantKey INT8_STATIC_GROUP_SYM = int8Weights(new GroupShape(1, 128), true);

    /** Weights with a scale and a zero point per 128 columns of a row. */
    public static final QuantKey INT8_STATIC_GROUP_ASYM = int8Weights(new GroupShape(1, 128), false);

    private static final Map<String, QuantKey> NAMED = new LinkedHashMap<>();

    static {
        NAMED.put("int8_static_channel_sym", INT8_STATIC_CHANNEL_SYM);
        NAMED.put("int8_dynamic_token_sym", INT8_DYNAMIC_TOKEN_SYM);
        NAMED.put("int8_static_tensor_sym", INT8_STATIC_TENSOR_SYM);
        NAMED.put("int8_dynamic_tensor_sym", INT8_DYNAMIC_TENSOR_SYM);
        NAMED.put("int8_static_block_sym", INT8_STATIC_BLOCK_SYM);
        NAMED.put("int8_dynamic_group_sym", INT8_DYNAMIC_GROUP_SYM);
        NAMED.put("int8_static_group_sym", INT8_STATIC_GROUP_SYM);
        NAMED.put("int8_static_group_asym", INT8_STATIC_GROUP_ASYM);
    }

    /** Weights with a float scale per {@code grid}, and with zero points unless {@code symmetric}. */
    public static QuantKey int8Weights(GroupShape grid, boolean symmetric) {
        return new QuantKey(ScalarType.I8, new ScaleDesc(ScalarType.F32, true, grid), null, symmetric);
    }

    /** Activations with a float scale per token and {@code cols} columns, found at run time. */
    public static QuantKey int8Groups(int cols) {
        return int8(false, new GroupShape(1, cols));
    }

    private static QuantKey int8(boolean isStatic, GroupShape shape) {
        return new QuantKey(ScalarType.I8, new ScaleDesc(ScalarType.F32, isStatic, shape), null, true);
    }

    /**
     * The key of that name, {@code "int8_static_channel_sym"}.
     *
     * @throws IllegalArgumentException if there is none; the message lists all
     */
    public static QuantKey fromString(String name) {
        QuantKey key = NAMED.get(name);
        if (key == null) {
            throw new IllegalArgumentException(
                    "quantization key: expected one of " + NAMED.keySet() + ", got '" + name + "'");
        }
        return key;
    }

    /** Its name for {@link #fromString}; null if it has none. */
    public @Nullable String keyName() {
        return NAMED.entrySet().stream()
                .filter(named -> named.getValue().equals(this))
                .map(Map.Entry::getKey)
                .findFirst()
                .orElse(null);
    }

    /** {@code QuantKey(i8,scale(f32,static,per_channel),symmetric)}. */
    @Override
    public String toString() {
        return "QuantKey(" + dtype.abbreviation() + ",scale(" + scale + "),"
                + (scale2 == null ? "" : "scale2(" + scale2 + "),") + (symmetric ? "symmetric)" : "asymmetric)");
    }
}
