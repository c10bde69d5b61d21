package org.tornadomoe.tornado.layout;

import org.tornadomoe.config.ActivationConstants;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.tornado.kernels.ActivationKernels;

/**
 * A layer's activation in the numbers that kernels take.
 *
 * @param function of {@link ActivationKernels}; −1 for none
 * @param layout of {@link ActivationKernels}: where gates are in the rows of the first projection
 * @param limit the greatest magnitude that goes in; float's greatest for no limit
 */
public record ActivationCode(int function, int layout, float limit, float alpha, float beta, float linearBeta) {
    /** sigmoid({@value} g) is 0 or 1 for all but the smallest g, so that g times it is max(g, 0). */
    private static final float STEP = 0x1p90f;

    /** The product as it is. */
    public static ActivationCode none(int layout) {
        return new ActivationCode(-1, layout, Float.MAX_VALUE, 0, 0, 0);
    }

    public static ActivationCode of(FusedMoeConfig config) {
        MoeActivation activation = config.activation();
        ActivationConstants constants = config.activationConstants();
        int function = switch (activation) {
            case SILU, SILU_NO_MUL -> ActivationKernels.SILU;
            case GELU, GELU_NO_MUL -> ActivationKernels.GELU;
            case GELU_TANH, GELU_TANH_NO_MUL -> ActivationKernels.GELU_TANH;
            case RELU2, RELU2_NO_MUL -> ActivationKernels.RELU2;
            case SWIGLUOAI, SWIGLUOAI_UNINTERLEAVE, RELU, RELU_NO_MUL -> ActivationKernels.SWIGLU_OAI;
            case SWIGLUSTEP -> ActivationKernels.SWIGLU_STEP;
            case SITU -> ActivationKernels.SITU;
        };
        boolean steps = activation == MoeActivation.RELU || activation == MoeActivation.RELU_NO_MUL;
        int layout = activation.isInterleaved()
                ? ActivationKernels.ALTERNATING
                : activation.isGated() ? ActivationKernels.HALVES : ActivationKernels.NO_GATE;
        return new ActivationCode(
                function,
                layout,
                (float) Math.min(constants.limit(), Float.MAX_VALUE),
                steps ? STEP : (float) constants.alpha(),
                (float) constants.beta(),
                (float) constants.linearBeta());
    }
}
