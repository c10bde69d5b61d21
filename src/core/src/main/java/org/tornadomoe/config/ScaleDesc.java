package org.tornadomoe.config;

/**
 * The scales of a quantised tensor.
 *
 * @param dtype of a scale
 * @param isStatic whether they are known before the values are; dynamic ones are found at run time
 * @param groupShape what shares one
 */
public record ScaleDesc(ScalarType dtype, boolean isStatic, GroupShape groupShape) {
    /** {@code f32,static,per_channel}. */
    @Override
    public String toString() {
        return dtype.abbreviation() + (isStatic ? ",static," : ",dynamic,") + groupShape;
    }
}
