package org.tornadomoe.host;

/** A matrix [rows, columns] of floats, by which tokens are multiplied in float64 on all cores. Thread-safe. */
public final class Projection {
    private static final int ROWS = Arithmetic.ROUTER_ROWS;

    private final int rows;
    private final int columns;

    /** [blocks, columns, 16]. */
    private final float[] packed;

    /**
     * Copies a matrix.
     *
     * @param matrix [rows, columns], row-major
     */
    public Projection(float[] matrix, int rows, int columns) {
        this.rows = rows;
        this.columns = columns;
        packed = new float[Math.multiplyExact(blocks() * ROWS, columns)];
        for (int row = 0; row < rows; row++) {
            for (int c = 0; c < columns; c++) {
                packed[(row / ROWS * columns + c) * ROWS + row % ROWS] = matrix[row * columns + c];
            }
        }
    }

    private int blocks() {
        return Math.ceilDiv(rows, ROWS);
    }

    /**
     * Multiplies tokens, on all cores unless another call has them.
     *
     * @param x [tokens, columns]
     * @return [tokens, rows]
     */
    public float[] multiply(float[] x, int tokens) {
        float[] out = new float[Math.multiplyExact(tokens, rows)];
        Arithmetic arithmetic = Arithmetic.best();
        Team team = Team.shared();
        boolean together = team.begin();
        try {
            // A block's tokens one after the other, so that its weights are read from the cache.
            team.run(
                    together,
                    Math.multiplyExact(blocks(), tokens),
                    (task, scratch) -> {
                        int block = task / tokens;
                        int token = task % tokens;
                        scratch.require(0, ROWS, 0);
                        double[] sums = scratch.logits;
                        arithmetic.logits(packed, block * ROWS * columns, columns, x, token * columns, sums, 0);
                        for (int r = 0; r < Math.min(ROWS, rows - block * ROWS); r++) {
                            out[token * rows + block * ROWS + r] = (float) sums[r];
                        }
                    },
                    new Scratch());
        } finally {
            if (together) {
                team.end();
            }
        }
        return out;
    }

    /** Bytes of memory that it holds. */
    public long bytes() {
        return 4L * packed.length;
    }
}
