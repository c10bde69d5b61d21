package org.tornadomoe.quant;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * The unquantised weights of one MoE layer, row by row, however they are stored. E counts shared experts, which come
 * after the routed ones ({@link FusedMoeConfig#globalNumExperts}). Thread-safe.
 */
public interface ExpertWeights {
    /**
     * Weights in arrays, which are not copied: they are to stay as they are while the weights are read.
     *
     * @param config the layer's, without biases
     * @param w13 [E, 2I, H] row-major, in the order of {@link #gateUpRow}
     * @param w2 [E, H, I] row-major
     * @throws IllegalArgumentException naming the array that doesn't fit, what was expected and what came
     */
    static ExpertWeights of(FusedMoeConfig config, RouterWeights router, float[] w13, float[] w2) {
        return new ArrayWeights(config, router, w13, w2, null, null);
    }

    /**
     * The same with biases, as the configuration says.
     *
     * @param w13Bias [E, 2I]
     * @param w2Bias [E, H]
     */
    static ExpertWeights of(
            FusedMoeConfig config, RouterWeights router, float[] w13, float[] w2, float[] w13Bias, float[] w2Bias) {
        return new ArrayWeights(config, router, w13, w2, w13Bias, w2Bias);
    }

    /** The layer these are the weights of. */
    FusedMoeConfig config();

    /**
     * Reads a row of w13, the first GEMM's weight [E, 2I, H]: rows [0, I) are the gate, [I, 2I) the up projection; for
     * an activation that takes them in turns ({@code swigluoai}), row 2r is gate row r and 2r + 1 up row r; for one
     * without a gate there are I, of the one projection.
     *
     * @param into receives H values
     * @throws IndexOutOfBoundsException if expert or row is not the layer's
     */
    void gateUpRow(int expert, int row, float[] into);

    /**
     * Reads a row of w2, the second GEMM's weight [E, H, I].
     *
     * @param into receives I values
     * @throws IndexOutOfBoundsException if expert or row is not the layer's
     */
    void downRow(int expert, int row, float[] into);

    /**
     * Reads a row of w13 in 8-bit codes, if it is stored so and the columns that are to share a scale have one there: a
     * value is that of its code, times the scale.
     *
     * @param colsPerScale columns that are to share a scale
     * @param codes receives H codes
     * @param scales receives the scale of each {@code colsPerScale} columns
     * @return the value of each code, by its unsigned bits: 0 and more of the first 128, none less than the one before,
     *     and their negatives; null if the row isn't stored so, and then what the arrays hold is any
     */
    default float @Nullable [] gateUpCodes(int expert, int row, int colsPerScale, byte[] codes, float[] scales) {
        return null;
    }

    /** Reads a row of w2 likewise. */
    default float @Nullable [] downCodes(int expert, int row, int colsPerScale, byte[] codes, float[] scales) {
        return null;
    }

    /**
     * Reads a row of w13 in whole numbers, if it is stored so and the columns that are to share a scale have one there:
     * a value is its number times the scale, less a least value, as floats.
     *
     * @param colsPerScale columns that are to share a scale
     * @param numbers receives H numbers from 0 to 31
     * @param scales receives the scale of each {@code colsPerScale} columns
     * @param mins receives their least values
     * @return whether it is; if not, what the arrays hold is any
     */
    default boolean gateUpNumbers(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        return false;
    }

    /** Reads a row of w2 likewise. */
    default boolean downNumbers(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        return false;
    }

    /** Where a row of w13 is read from, for messages: a file and a tensor; empty where that isn't known. */
    default String gateUpSource(int expert, int row) {
        return "";
    }

    /** Where w2 of an expert is read from; as the other. */
    default String downSource(int expert) {
        return "";
    }

    /** What is added to the first GEMM's output, [E, 2I] in the order of w13's rows, a copy; null for none. */
    default float @Nullable [] w13Bias() {
        return null;
    }

    /** What is added to the second GEMM's output, [E, H], a copy; null for none. */
    default float @Nullable [] w2Bias() {
        return null;
    }

    /**
     * What they are run as unless a scheme is asked for: {@code w8a8_channel}, which is the fastest, unless the form
     * that they are stored in suits another.
     */
    default Int8Quantization quantization() {
        return Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
    }

    /** The router's tensors, copies. */
    RouterWeights router();

    /**
     * Makes sure that the rows read until now are those of the weights, as whoever reads them does in the end: files
     * may be changed meanwhile, and then read as zeros or end in an {@link InternalError}.
     *
     * @throws RuntimeException if not; the message names the file
     */
    default void requireUnchanged() {}
}
