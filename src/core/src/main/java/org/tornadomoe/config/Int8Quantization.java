package org.tornadomoe.config;

import org.jspecify.annotations.Nullable;

/**
 * A scheme and the choices that it leaves open.
 *
 * @param scheme the scheme
 * @param grid the rows and columns of a weight that share a scale. The scheme fixes it, except for {@code w8a8_block},
 *     which takes any block (128 × 128 by default), and {@code w8a16_group}, which takes one row by any number of
 *     columns (128 by default). Blocks and groups at the ends of rows and columns may be smaller.
 * @param zeroPoints whether each group of weights has a zero point too; {@code w8a16_group} only
 * @param roundToNearest whether {@code w8a8_block} rounds activations to the nearest integer, halves to even. Otherwise
 *     it truncates, as vLLM does, which adds an error of half a step on average.
 */
public record Int8Quantization(Int8Scheme scheme, GroupShape grid, boolean zeroPoints, boolean roundToNearest) {
    /** The default number of columns of a block or group, and of rows of a block. */
    public static final int DEFAULT_BLOCK = 128;

    /** @throws IllegalArgumentException if the scheme has no such grid, zero points or rounding */
    public Int8Quantization {
        boolean fits = switch (scheme) {
            case W8A8_CHANNEL, W8A16_CHANNEL, W8A8_TENSOR -> grid.equals(scheme.grid());
            case W8A8_BLOCK -> grid.row() >= 1 && grid.col() >= 1;
            case W8A16_GROUP -> grid.row() == 1;
        };
        if (!fits) {
            throw new IllegalArgumentException("grid: expected "
                    + switch (scheme) {
                        case W8A8_BLOCK -> "a positive number of rows and of columns";
                        case W8A16_GROUP -> "one row and a positive number of columns, or all";
                        default -> scheme.grid().toString();
                    }
                    + " for " + scheme + ", got " + grid.row() + " x " + grid.col());
        }
        if (zeroPoints && !scheme.mayHaveZeroPoints()) {
            throw new IllegalArgumentException(
                    "zeroPoints: expected none for " + scheme + ", only " + Int8Scheme.W8A16_GROUP + " may have them");
        }
        if (roundToNearest && scheme != Int8Scheme.W8A8_BLOCK) {
            throw new IllegalArgumentException("roundToNearest: expected false for " + scheme + ", only "
                    + Int8Scheme.W8A8_BLOCK + " has the choice");
        }
    }

    /** The scheme with its defaults. */
    public static Int8Quantization of(Int8Scheme scheme) {
        return new Int8Quantization(scheme, scheme.grid(), false, false);
    }

    /** The quantisation with these keys, truncating; null if no scheme has them. */
    public static @Nullable Int8Quantization of(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        Int8Scheme scheme = Int8Scheme.of(weightKey, activationKey);
        return scheme == null || weightKey == null
                ? null
                : new Int8Quantization(scheme, weightKey.scale().groupShape(), !weightKey.symmetric(), false);
    }

    public Int8Quantization withGrid(GroupShape grid) {
        return new Int8Quantization(scheme, grid, zeroPoints, roundToNearest);
    }

    public Int8Quantization withZeroPoints(boolean zeroPoints) {
        return new Int8Quantization(scheme, grid, zeroPoints, roundToNearest);
    }

    public Int8Quantization withRoundToNearest(boolean roundToNearest) {
        return new Int8Quantization(scheme, grid, zeroPoints, roundToNearest);
    }

    /** The number of rows that share a scale, in a weight with that many rows. */
    public int rowsPerScale(int rows) {
        return grid.isPerChannel() ? 1 : grid.row() == -1 ? rows : grid.row();
    }

    /** The number of columns that share a scale, in a weight with that many columns. */
    public int colsPerScale(int cols) {
        return grid.isPerChannel() || grid.col() == -1 ? cols : grid.col();
    }

    /** How weights are quantised. */
    public QuantKey weightKey() {
        return QuantKey.int8Weights(grid, !zeroPoints);
    }

    /** How activations are quantised, with scales found at run time; null if they aren't. */
    public @Nullable QuantKey activationKey() {
        return switch (scheme) {
            case W8A8_CHANNEL -> QuantKey.INT8_DYNAMIC_TOKEN_SYM;
            case W8A8_TENSOR -> QuantKey.INT8_DYNAMIC_TENSOR_SYM;
            case W8A8_BLOCK -> QuantKey.int8Groups(grid.col());
            case W8A16_CHANNEL, W8A16_GROUP -> null;
        };
    }

    /** {@link Int8Scheme#tolerance}, or less if activations are rounded to nearest. */
    public double tolerance() {
        return roundToNearest ? Int8Scheme.W8A8_CHANNEL.tolerance() : scheme.tolerance();
    }

    /** {@code w8a8_block 64x128}. */
    @Override
    public String toString() {
        String shape = switch (scheme) {
            case W8A8_BLOCK -> " " + grid.row() + "x" + grid.col();
            case W8A16_GROUP -> " of " + (grid.col() == -1 ? "a row" : grid.col());
            default -> "";
        };
        return scheme + shape + (zeroPoints ? " with zero points" : "") + (roundToNearest ? " to the nearest" : "");
    }
}
