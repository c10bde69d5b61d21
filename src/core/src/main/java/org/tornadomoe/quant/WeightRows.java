package org.tornadomoe.quant;

/**
 * A matrix [rows, cols], read row by row as floats, whatever its stored format; the input of {@link Int8Quantizer}.
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

    /** Its source, for messages: file and tensor; empty if unknown. */
    default String source() {
        return "";
    }
}
