package org.tornadomoe.config;

/**
 * The scales of a quantised tensor.
 *
 * @param dtype of a scale
 * @param isStatic whether the scales are known in advance; dynamic ones are found at run time
 * @param groupShape the values that share a scale
 */
public record ScaleDesc(ScalarType dtype, boolean isStatic, GroupShape groupShape) {
    /** {@code f32,static,per_channel}. */
    @Override
    public String toString() {
        return dtype.abbreviation() + (isStatic ? ",static," : ",dynamic,") + groupShape;
    }
}
