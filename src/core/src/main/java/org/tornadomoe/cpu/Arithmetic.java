package org.tornadomoe.cpu;

import java.lang.foreign.MemorySegment;

/** The inner loops, in one of two forms. Stateless. */
abstract sealed class Arithmetic permits VectorArithmetic, ScalarArithmetic {
    /** The most tokens that {@link #dot} takes. */
    static final int TOKENS = 8;

    /** Rows of a block of the router's. */
    static final int ROUTER_ROWS = 16;

    private static final class Best {
        static final Arithmetic ARITHMETIC =
                choose(ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent());
    }

    /** With vectors, where the JVM has the module. */
    static Arithmetic best() {
        return Best.ARITHMETIC;
    }

    /** @param vectors whether the module is there */
    static Arithmetic choose(boolean vectors) {
        if (vectors) {
            return new VectorArithmetic();
        }
        System.getLogger(CpuExperts.class.getName())
                .log(
                        System.Logger.Level.WARNING,
                        "running without vectors, slower: start the JVM with --add-modules jdk.incubator.vector");
        return new ScalarArithmetic();
    }

    /** For people: {@code 512-bit vectors}. */
    abstract String description();

    /**
     * A block of rows times some tokens: tile[t, r] is the sum over c of a[from[t] + c] · w[at + c · 64 + r], c in ascending order,
     * whatever the number of tokens, so that a token's sums don't depend on the others. Exact where the values of a are integers
     * and no partial sum is over 2^24.
     *
     * @param from [tokens]; longer, and what lies beyond is written over
     * @param tokens 1 to {@value #TOKENS}
     * @param tile [tokens, 64]; what lies beyond is written over
     */
    abstract void dot(MemorySegment w, long at, int cols, float[] a, int[] from, int tokens, float[] tile);

    /**
     * A block of the router times one token, in float64: out[into + r] is the sum over c of x[from + c] · w[at + c · 16 + r], in index order.
     * Products of two floats are exact in it, so this is the definition's to the bit.
     */
    abstract void logits(float[] w, int at, int cols, float[] x, int from, double[] out, int into);
}
