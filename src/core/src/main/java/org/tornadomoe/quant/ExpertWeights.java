package org.tornadomoe.quant;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * The weights of one MoE layer as floats, read row by row, whatever their stored format. E includes shared experts,
 * which come after the routed ones ({@link FusedMoeConfig#globalNumExperts}). Thread-safe.
 */
public interface ExpertWeights {
    /**
     * Weights in arrays. The arrays are not copied and must not change while the weights are read.
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

    /** The layer's configuration. */
    FusedMoeConfig config();

    /**
     * Reads a row of w13, the first GEMM's weight [E, 2I, H]: rows [0, I) are the gate, [I, 2I) the up projection; for
     * an interleaved activation ({@code swigluoai}), row 2r is gate row r and 2r + 1 up row r; without a gate there are
     * only the I rows of the up projection.
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
     * Reads a row of w13 as 8-bit codes, if it is stored as codes and every {@code colsPerScale} columns share a stored
     * scale. A value is its code's value times the scale.
     *
     * @param colsPerScale columns that are to share a scale
     * @param codes receives H codes
     * @param scales receives the scale of each {@code colsPerScale} columns
     * @return the value of each code, indexed by its unsigned bits: the first 128 are non-negative and ascending, the
     *     others are their negatives; null if the row isn't stored as codes, and then the arrays' contents are
     *     undefined
     */
    default float @Nullable [] gateUpCodes(int expert, int row, int colsPerScale, byte[] codes, float[] scales) {
        return null;
    }

    /** The same for a row of w2. */
    default float @Nullable [] downCodes(int expert, int row, int colsPerScale, byte[] codes, float[] scales) {
        return null;
    }

    /**
     * Reads a row of w13 as small integers, if it is stored as such and every {@code colsPerScale} columns share a
     * stored scale. A value is its integer times the scale, minus an offset, in float arithmetic.
     *
     * @param colsPerScale columns that are to share a scale
     * @param numbers receives H integers from 0 to 31
     * @param scales receives the scale of each {@code colsPerScale} columns
     * @param mins receives the offset of each {@code colsPerScale} columns
     * @return whether it is; if not, the arrays' contents are undefined
     */
    default boolean gateUpNumbers(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        return false;
    }

    /** The same for a row of w2. */
    default boolean downNumbers(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        return false;
    }

    /** The source of a row of w13, for messages: file and tensor; empty if unknown. */
    default String gateUpSource(int expert, int row) {
        return "";
    }

    /** The source of an expert's w2, in the same form. */
    default String downSource(int expert) {
        return "";
    }

    /** The bias of the first GEMM, [E, 2I] in the order of w13's rows, a copy; null for none. */
    default float @Nullable [] w13Bias() {
        return null;
    }

    /** The bias of the second GEMM, [E, H], a copy; null for none. */
    default float @Nullable [] w2Bias() {
        return null;
    }

    /**
     * The quantisation with which they run by default: {@code w8a8_channel}, which is the fastest, unless their stored
     * format suits another scheme.
     */
    default Int8Quantization quantization() {
        return Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
    }

    /** Copies of the router's tensors. */
    RouterWeights router();

    /**
     * What is around the experts if they compute in a narrower space. Then {@link #config} is the experts', whose
     * hidden dimension is the width of that space and whose routing is handed in, and {@link #router} has nothing; the
     * layer's are the {@link LatentSpace}'s.
     *
     * @return null if experts read hidden states
     */
    default @Nullable LatentSpace latent() {
        return null;
    }

    /** The configuration that callers of the layer see, whether or not its experts compute in a narrower space. */
    default FusedMoeConfig layerConfig() {
        LatentSpace latent = latent();
        return latent == null ? config() : latent.config();
    }

    /** The router of {@link #layerConfig}. */
    default RouterWeights layerRouter() {
        LatentSpace latent = latent();
        return latent == null ? router() : latent.router();
    }

    /**
     * Checks that the rows read so far are the weights' rows. Readers call it at the end, because files may change
     * meanwhile; they then read as zeros or cause an {@link InternalError}.
     *
     * @throws RuntimeException if not; the message names the file
     */
    default void requireUnchanged() {}
}
