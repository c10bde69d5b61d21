package org.tornadomoe.config;

import org.jspecify.annotations.Nullable;

/**
 * How one operand of the GEMMs is quantised. Arrays are row-major and not copied.
 *
 * @param dtype what it is quantised to; null if it isn't
 * @param shape what shares a scale; null if nothing does
 * @param scale known beforehand
 * @param alphaOrGscale a second, global scale
 * @param zp zero points
 * @param bias added to a weight's product; not quantised
 */
public record FusedMoeQuantDesc(
        @Nullable ScalarType dtype,
        @Nullable GroupShape shape,
        float @Nullable [] scale,
        float @Nullable [] alphaOrGscale,
        float @Nullable [] zp,
        float @Nullable [] bias) {

    /** Not quantised. */
    public static final FusedMoeQuantDesc NONE = of(null, null, null);

    static FusedMoeQuantDesc of(@Nullable ScalarType dtype, @Nullable GroupShape shape, float @Nullable [] scale) {
        return new FusedMoeQuantDesc(dtype, shape, scale, null, null, null);
    }

    FusedMoeQuantDesc withBias(float @Nullable [] bias) {
        return new FusedMoeQuantDesc(dtype, shape, scale, alphaOrGscale, zp, bias);
    }
}
