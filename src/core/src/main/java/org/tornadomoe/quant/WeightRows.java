package org.tornadomoe.quant;

/**
 * A matrix [rows, cols], read row by row as floats, however it is stored: what {@link Int8Quantizer} makes int8 of.
 * Thread-safe.
 */
public interface WeightRows {
    int rows();

    int cols();

    /**
     * Reads a row.
     *
     * @param into receives {@link #cols} values from index 0
     * @throws IndexOutOfBoundsException if there is no such row
     */
    void row(int row, float[] into);

    /** Where it is read from, for messages: a file and a tensor; empty where that isn't known. */
    default String source() {
        return "";
    }
}
