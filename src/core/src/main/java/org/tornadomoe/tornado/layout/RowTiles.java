package org.tornadomoe.tornado.layout;

/**
 * What the orders of weights for int8 matrix instructions have in common: tiles of {@value #ROWS} rows, in chunks of
 * {@value #CHUNK} k, rows and k padded with zeros. Rows of activations are as many chunks.
 */
public interface RowTiles extends WeightLayout {
    /** Rows of a tile. */
    int ROWS = 16;

    /** k of a chunk. */
    int CHUNK = 64;

    static int tiles(int rows) {
        return Math.ceilDiv(rows, ROWS);
    }

    static int chunks(int cols) {
        return Math.ceilDiv(cols, CHUNK);
    }

    @Override
    default int rowInts(int cols) {
        return chunks(cols) * (CHUNK / 4);
    }

    @Override
    default long ints(long experts, int rows, int cols, int gate) {
        return experts * tiles(rows) * chunks(cols) * (ROWS * CHUNK / 4);
    }
}
