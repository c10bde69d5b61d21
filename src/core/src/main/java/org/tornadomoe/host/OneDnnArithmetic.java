package org.tornadomoe.host;

import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/** Computes int8 products with oneDNN and the rest as without it. */
final class OneDnnArithmetic extends Arithmetic {
    private static final System.Logger LOG = System.getLogger(OneDnnArithmetic.class.getName());

    private final Arithmetic java;
    private final OneDnn library;
    private final boolean anyhow;
    private final String description;

    /**
     * Opens the library.
     *
     * @param java computes the rest
     * @param anyhow whether to accept oneDNN's reference loops
     * @throws OneDnn.RefusedException if there is no library, or none that is fast and exact
     */
    OneDnnArithmetic(Arithmetic java, boolean anyhow) throws OneDnn.RefusedException {
        this.java = java;
        this.anyhow = anyhow;
        library = OneDnn.open();
        try (Int8Products trial = new Int8Products(library, java, 4 * Int8Products.COLUMNS, 1, anyhow)) {
            description = "oneDNN " + library.version + " " + trial.name() + ", " + java.description();
        } catch (IllegalStateException failure) {
            throw new OneDnn.RefusedException(String.valueOf(failure.getMessage()));
        }
    }

    @Override
    public String description() {
        return description;
    }

    @Override
    public Arithmetic java() {
        return java;
    }

    @Override
    public @Nullable Int8Products products(int cols, int groups) {
        try {
            return new Int8Products(library, java, cols, groups, anyhow);
        } catch (OneDnn.RefusedException refused) {
            LOG.log(System.Logger.Level.WARNING, "a layer runs without oneDNN: " + refused.getMessage());
            return null;
        }
    }

    @Override
    public void dot(MemorySegment w, long at, int cols, float[] a, int[] from, int tokens, float[] tile) {
        java.dot(w, at, cols, a, from, tokens, tile);
    }

    @Override
    public void dotScaled(
            MemorySegment w,
            long at,
            int cols,
            int width,
            float[] scales,
            int scale,
            float[] a,
            int[] from,
            int tokens,
            float[] tile) {
        java.dotScaled(w, at, cols, width, scales, scale, a, from, tokens, tile);
    }

    @Override
    public void addScaled(float[] tile, int from, double factor, float[] scales, int at, double[] total) {
        java.addScaled(tile, from, factor, scales, at, total);
    }

    @Override
    public void addScaled(
            MemorySegment products,
            int from,
            int[] shifts,
            double factor,
            float[] scales,
            int at,
            double[] total,
            int to) {
        java.addScaled(products, from, shifts, factor, scales, at, total, to);
    }

    @Override
    int productTokens() {
        return java.productTokens();
    }

    @Override
    void products(
            MemorySegment w,
            long at,
            int blocks,
            int cols,
            int groups,
            int[] shifts,
            int first,
            MemorySegment a,
            long from,
            int tokens,
            Scratch s) {
        java.products(w, at, blocks, cols, groups, shifts, first, a, from, tokens, s);
    }

    @Override
    public void exp(double[] x, int count) {
        java.exp(x, count);
    }

    @Override
    public void logits(float[] w, int at, int cols, float[] x, int from, double[] out, int into) {
        java.logits(w, at, cols, x, from, out, into);
    }
}
