package org.tornadomoe.tornado.graph;

import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.tornado.kernels.Pairs;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * One of a layer's two matrix products: of the experts' rows with a projection.
 *
 * @param name of its tasks
 * @param isFirst whether it is the first one
 * @param quantized the factor in int8, where activations are quantised
 * @param scales of that
 * @param floats the factor in float
 * @param out [R, rows], written
 * @param pairsPerRow rows of the experts that have the same row of the factor
 * @param rows of the projection
 * @param cols of the projection
 * @param weighted 1 to multiply the result by the router's weights, 2 to multiply the factor, 0 for neither
 */
record Product(
        String name,
        boolean isFirst,
        IntArray quantized,
        FloatArray scales,
        FloatArray floats,
        Projection projection,
        FloatArray out,
        int pairsPerRow,
        int rows,
        int cols,
        int weighted) {

    /** Rows of the projection that share a scale, as their scales lie on the device. */
    int rowsPerScale(LayerShape shape) {
        return shape.scheme == Int8Scheme.W8A8_BLOCK ? shape.quantization.rowsPerScale(rows) : 1;
    }

    /** What else a kernel does, of {@link Pairs}. */
    int form(LayerShape shape) {
        return (pairsPerRow == 1 ? Pairs.PER_PAIR : 0)
                | (shape.biased ? Pairs.BIASED : 0)
                | (weighted == 1 ? Pairs.WEIGHTED : 0)
                | (shape.quantization.zeroPoints() ? Pairs.ZERO_POINTS : 0)
                | (weighted == 2 ? Pairs.ON_INPUT : 0);
    }
}
