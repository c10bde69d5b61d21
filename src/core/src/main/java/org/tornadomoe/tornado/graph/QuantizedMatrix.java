package org.tornadomoe.tornado.graph;

import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The source and the target of a layer's quantisation.
 *
 * @param rowsPerToken rows of {@code from} per token
 * @param scales of the rows of {@code into}, or of their groups of columns
 * @param scale the one for all rows, if the scheme has one
 * @param rowInts ints of a row of {@code into}
 * @param isPairs whether rows are (token, expert) pairs, of which those of key −1 are skipped; otherwise tokens' rows
 * @param isWeighted whether to multiply rows by the router's weights first
 */
record QuantizedMatrix(
        String name,
        int rowsPerToken,
        FloatArray from,
        IntArray into,
        FloatArray scales,
        FloatArray scale,
        int cols,
        int rowInts,
        boolean isPairs,
        boolean isWeighted) {

    /** hidden → hiddenQ and scales. */
    static QuantizedMatrix tokens(LayerArrays a) {
        return new QuantizedMatrix(
                "quantizeTokens",
                a.shape.config.inputRowsPerToken(),
                a.work.hidden,
                a.work.hiddenQ,
                a.work.hiddenScales,
                a.work.hiddenScale,
                a.shape.hidden,
                a.shape.hiddenInts,
                false,
                a.shape.weightsOnInput);
    }

    /** activated → activatedQ and scales. */
    static QuantizedMatrix pairs(LayerArrays a) {
        return new QuantizedMatrix(
                "quantizePairs",
                a.shape.topK,
                a.work.activated,
                a.work.activatedQ,
                a.work.activatedScales,
                a.work.activatedScale,
                a.shape.intermediate,
                a.shape.intermediateInts,
                true,
                false);
    }

    int rows(int tokens) {
        return tokens * rowsPerToken;
    }

    /** {@link #isPairs} as kernels take it. */
    int keyed() {
        return isPairs ? 1 : 0;
    }

    /** {@link #isWeighted} as kernels take it. */
    int weighted() {
        return isWeighted ? 1 : 0;
    }
}
