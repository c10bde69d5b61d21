package org.tornadomoe.host;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** A thread's temporary arrays within a task of a {@link Team}; their contents belong to the task. */
public final class Scratch {
    /** [tokens, rows] of a block, the result of {@link Arithmetic#dot}. */
    public final float[] tile = new float[Arithmetic.TOKENS * Arithmetic.ROWS];

    /** [tokens, rows], the sum over the columns that share a scale. */
    public final double[] sum = new double[tile.length];

    /** [tokens, rows], the sum over all columns, scaled. */
    public double[] total = new double[tile.length];

    /** The last result of {@link Int8Products#multiply}; the garbage collector frees it. */
    public MemorySegment products = MemorySegment.NULL;

    /** The offset of each token's row, then the number of rows. */
    public final int[] from = new int[Arithmetic.TOKENS];

    /** Tokens in int16, two an int. */
    private int[] pairs = new int[0];

    /** A row in int8. */
    public byte[] bytes = new byte[0];

    /** A token's logits, scores and keys, by which choices are compared. */
    public double[] logits = new double[0];

    public double[] scores = new double[0];
    public double[] keys = new double[0];
    public double[] groupKeys = new double[0];

    /** Makes room in {@link #total} for that many tokens. */
    public void requireTokens(int tokens) {
        if (total.length < tokens * Arithmetic.ROWS) {
            total = new double[tokens * Arithmetic.ROWS];
        }
    }

    /** Makes room in {@link #products}. */
    void requireProducts(long bytes) {
        if (products.byteSize() < bytes) {
            products = Arena.ofAuto().allocate(bytes, 64);
        }
    }

    /** Makes room for pairs of int16. */
    int[] requirePairs(int count) {
        if (pairs.length < count) {
            pairs = new int[count];
        }
        return pairs;
    }

    /** Makes room; one thread's scratch serves layers of all sizes. */
    public void require(int width, int logitCount, int groups) {
        if (bytes.length < width) {
            bytes = new byte[width];
        }
        if (logits.length < logitCount) {
            logits = new double[logitCount];
            scores = new double[logitCount];
            keys = new double[logitCount];
        }
        if (groupKeys.length < groups) {
            groupKeys = new double[groups];
        }
    }
}
