package org.tornadomoe.config;

import org.jspecify.annotations.Nullable;

/**
 * How the four operands of a layer's two GEMMs are quantised (vLLM: {@code FusedMoEQuantConfig}). What vLLM keeps for other
 * number formats than int8, swizzled scales and the alignment of microscaling formats, isn't here.
 *
 * @param a1 the hidden states
 * @param a2 the activations between the GEMMs
 * @param w1 w13, [E, 2I, H]
 * @param w2 [E, H, I]
 * @param gemm1Alpha constant of the activation; null for its own
 * @param gemm1Beta likewise
 * @param gemm1ClampLimit likewise
 */
public record FusedMoeQuantConfig(
        FusedMoeQuantDesc a1,
        FusedMoeQuantDesc a2,
        FusedMoeQuantDesc w1,
        FusedMoeQuantDesc w2,
        @Nullable Double gemm1Alpha,
        @Nullable Double gemm1Beta,
        @Nullable Double gemm1ClampLimit) {

    /** Nothing is quantised. */
    public static final FusedMoeQuantConfig UNQUANTIZED = new FusedMoeQuantConfig(
            FusedMoeQuantDesc.NONE,
            FusedMoeQuantDesc.NONE,
            FusedMoeQuantDesc.NONE,
            FusedMoeQuantDesc.NONE,
            null,
            null,
            null);

    /**
     * The scales known beforehand.
     *
     * @param w1 of w13; null if it has none
     * @param w2 of w2; null if it has none
     * @param a1 of the hidden states; null if they are dynamic
     * @param a2 of the activations between the GEMMs; null if they are dynamic
     */
    public record Scales(float @Nullable [] w1, float @Nullable [] w2, float @Nullable [] a1, float @Nullable [] a2) {
        /** Those of weights; activations are dynamic, or not quantised. */
        public static Scales ofWeights(float[] w1, float[] w2) {
            return new Scales(w1, w2, null, null);
        }
    }

    /**
     * Any quantisation, from flags.
     *
     * @param quantDtype of activations; null if they aren't quantised
     * @param weightDtype of weights; null for {@code quantDtype}
     * @param perActTokenQuant a scale per token
     * @param perOutChQuant a scale per output channel
     * @param blockShape rows and columns of a block that shares a scale, of activations and weights; null for none
     * @throws IllegalArgumentException for a block shape together with one of the flags
     */
    public static FusedMoeQuantConfig make(
            @Nullable ScalarType quantDtype,
            @Nullable ScalarType weightDtype,
            boolean perActTokenQuant,
            boolean perOutChQuant,
            @Nullable GroupShape blockShape,
            Scales scales) {
        if (blockShape != null && (perActTokenQuant || perOutChQuant)) {
            throw new IllegalArgumentException("illegal quantization: blockShape " + blockShape
                    + " and a scale per token or output channel exclude one another");
        }
        ScalarType weights = weightDtype == null ? quantDtype : weightDtype;
        GroupShape aShape = blockShape;
        if (blockShape == null && quantDtype != null) {
            aShape = perActTokenQuant ? GroupShape.PER_TOKEN : GroupShape.PER_TENSOR;
        }
        GroupShape wShape = perOutChQuant ? GroupShape.PER_TOKEN : blockShape;
        return new FusedMoeQuantConfig(
                FusedMoeQuantDesc.of(quantDtype, aShape, scales.a1),
                FusedMoeQuantDesc.of(quantDtype, aShape, scales.a2),
                FusedMoeQuantDesc.of(weights, wShape, scales.w1),
                FusedMoeQuantDesc.of(weights, wShape, scales.w2),
                null,
                null,
                null);
    }

    /**
     * int8 weights and activations.
     *
     * @param perActTokenQuant a scale per token, otherwise one for all
     * @param perOutChQuant a scale per output channel, otherwise one per expert
     */
    public static FusedMoeQuantConfig int8W8a8(Scales scales, boolean perActTokenQuant, boolean perOutChQuant) {
        return make(ScalarType.I8, null, perActTokenQuant, perOutChQuant, null, scales);
    }

    /**
     * int8 weights, float activations.
     *
     * @param blockShape {@code (0, g)} for a scale per group of g columns; null for none
     * @param perOutChQuant a scale per output channel; without this and groups, one per expert
     */
    public static FusedMoeQuantConfig int8W8a16(Scales scales, @Nullable GroupShape blockShape, boolean perOutChQuant) {
        return make(null, ScalarType.I8, false, perOutChQuant, blockShape, scales);
    }

    /** The same with biases of the two weights. */
    public FusedMoeQuantConfig withBiases(float @Nullable [] w1, float @Nullable [] w2) {
        return new FusedMoeQuantConfig(
                a1, a2, this.w1.withBias(w1), this.w2.withBias(w2), gemm1Alpha, gemm1Beta, gemm1ClampLimit);
    }

    /** The same with constants of the activation; null for its own. */
    public FusedMoeQuantConfig withGemm1(@Nullable Double alpha, @Nullable Double beta, @Nullable Double clampLimit) {
        return new FusedMoeQuantConfig(a1, a2, w1, w2, alpha, beta, clampLimit);
    }

    /** What activations are quantised to; null if they aren't. */
    public @Nullable ScalarType quantDtype() {
        return a1.dtype();
    }

    /** What weights are quantised to; null if they aren't. */
    public @Nullable ScalarType weightQuantDtype() {
        return w1.dtype();
    }

    /** Whether activations are quantised. */
    public boolean isQuantized() {
        return quantDtype() != null;
    }

    /** Whether each token has a scale. */
    public boolean perActTokenQuant() {
        return GroupShape.PER_TOKEN.equals(a1.shape());
    }

    /** Whether each output channel of a weight has a scale. */
    public boolean perOutChQuant() {
        return GroupShape.PER_TOKEN.equals(w1.shape());
    }

    /** Whether all activations share a scale. */
    public boolean isPerTensor() {
        return GroupShape.PER_TENSOR.equals(a1.shape());
    }

    /** The block that shares a scale; null if it isn't blocks that do. */
    public @Nullable GroupShape blockShape() {
        return isPerTensor() || perActTokenQuant() ? null : a1.shape();
    }

    public boolean isBlockQuantized() {
        return blockShape() != null;
    }

    public boolean useInt8W8a8() {
        return quantDtype() == ScalarType.I8;
    }

    public boolean useInt8W8a16() {
        return quantDtype() == null && weightQuantDtype() == ScalarType.I8;
    }

    /**
     * The dtype part of a tuned file's name; null if the name has none. vLLM lacks {@code int8_w8a8}, and reads bf16's file
     * for it.
     *
     * @param dtype of the hidden states
     */
    public @Nullable String configName(ScalarType dtype) {
        return useInt8W8a8() ? "int8_w8a8" : useInt8W8a16() ? "int8_w8a16" : dtype == ScalarType.F32 ? "float32" : null;
    }

    /**
     * The shape of the activations' scales; null if they have none.
     *
     * @param maxTokens M
     * @param hiddenDim H
     */
    public int @Nullable [] scaleShape(int maxTokens, int hiddenDim) {
        GroupShape block = blockShape();
        if (!isQuantized()) {
            return null;
        }
        if (block != null) {
            return new int[] {maxTokens, block.col() == -1 ? 1 : Math.ceilDiv(hiddenDim, block.col())};
        }
        return perActTokenQuant() ? new int[] {maxTokens, 1} : new int[] {1, 1};
    }

    /** The same in the batched format; null if they have none. */
    public int @Nullable [] batchedScaleShape(int numExperts, int maxTokens, int hiddenDim) {
        int[] shape = scaleShape(maxTokens, hiddenDim);
        return shape == null ? null : new int[] {numExperts, shape[0], shape[1]};
    }
}
