package org.tornadomoe.host;

import java.lang.foreign.MemorySegment;

/** The inner loops, in one of two forms. Stateless. */
public abstract sealed class Arithmetic permits VectorArithmetic, ScalarArithmetic {
    /** The most tokens that {@link #dot} takes. */
    public static final int TOKENS = 8;

    /** A property: the bits of the vectors, 128, 256 or 512, where they are to be fewer than the machine has. */
    public static final String VECTOR_BITS = "tornadomoe.vectorBits";

    /** Rows of a block of weights. */
    public static final int ROWS = 64;

    /** Rows of a block of the router's. */
    public static final int ROUTER_ROWS = 16;

    private static final class Best {
        static final Arithmetic ARITHMETIC = find();

        private static Arithmetic find() {
            boolean vectors =
                    ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent();
            if (!vectors) {
                System.getLogger(Arithmetic.class.getName())
                        .log(
                                System.Logger.Level.WARNING,
                                "running without vectors, slower: start the JVM with --add-modules"
                                        + " jdk.incubator.vector");
            }
            return of(vectors);
        }
    }

    /** With vectors, where the JVM has the module. */
    public static Arithmetic best() {
        return Best.ARITHMETIC;
    }

    /**
     * One of the two.
     *
     * @param vectors whether with vectors, which need the module
     */
    public static Arithmetic of(boolean vectors) {
        return vectors ? new VectorArithmetic() : new ScalarArithmetic();
    }

    /** For people: {@code 512-bit vectors}. */
    public abstract String description();

    /**
     * A block of rows times some tokens: tile[t, r] is the sum over c of a[from[t] + c] · w[at + c · 64 + r], c in
     * ascending order, whatever the number of tokens, so that a token's sums don't depend on the others. Exact where
     * the values of a are integers and no partial sum is over 2^24.
     *
     * @param from [tokens]; longer, and what lies beyond is written over
     * @param tokens 1 to {@value #TOKENS}
     * @param tile [tokens, 64]; what lies beyond is written over
     */
    public abstract void dot(MemorySegment w, long at, int cols, float[] a, int[] from, int tokens, float[] tile);

    /**
     * Adds a token's sums of a block of rows, scaled, each product and the sum rounded to double: total[from + r] +=
     * tile[from + r] · factor · scales[at + r].
     */
    public abstract void addScaled(float[] tile, int from, double factor, float[] scales, int at, double[] total);

    /**
     * A block of the router times one token, in float64: out[into + r] is the sum over c of x[from + c] · w[at + c · 16
     * + r], in index order. Products of two floats are exact in it, so this is the definition's to the bit.
     */
    public abstract void logits(float[] w, int at, int cols, float[] x, int from, double[] out, int into);
}
