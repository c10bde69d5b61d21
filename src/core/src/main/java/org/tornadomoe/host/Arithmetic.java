package org.tornadomoe.host;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** The inner loops, in three implementations. Stateless. */
public abstract sealed class Arithmetic permits VectorArithmetic, ScalarArithmetic, OneDnnArithmetic {
    /** The maximum number of tokens of {@link #dot}. */
    public static final int TOKENS = 8;

    /** A property: the vector width in bits, 128, 256 or 512, to use narrower vectors than the machine's. */
    public static final String VECTOR_BITS = "tornadomoe.vectorBits";

    /** A property: the arithmetic to use; see {@link #best}. */
    public static final String ARITHMETIC_NAME = "tornadomoe.arithmetic";

    /** A property: the path of oneDNN's library, version 3, to use instead of the class path's. */
    public static final String ONEDNN = "tornadomoe.onednn";

    /** Rows per block of weights. */
    public static final int ROWS = 64;

    /** Rows per block of the router's weight. */
    public static final int ROUTER_ROWS = 16;

    private static final class Best {
        static final @Nullable Arithmetic ARITHMETIC;
        static final @Nullable IllegalStateException FAILURE;

        static {
            Arithmetic found = null;
            IllegalStateException failure = null;
            try {
                found = find(System.getProperty(ARITHMETIC_NAME, "auto"));
            } catch (IllegalStateException thrown) {
                failure = thrown;
            }
            ARITHMETIC = found;
            FAILURE = failure;
        }
    }

    /**
     * The arithmetic that the property {@value #ARITHMETIC_NAME} names. {@code auto} is oneDNN if it is on the class
     * path and has fast and exact products for this processor, else vectors if the JVM has the module, else scalar
     * loops. The others are {@code onednn}, {@code vectors} or {@code scalar}.
     *
     * @throws IllegalStateException if the named one isn't available, with the reason
     */
    public static Arithmetic best() {
        if (Best.ARITHMETIC == null) {
            throw new IllegalStateException(
                    Best.FAILURE == null ? "no arithmetic" : Best.FAILURE.getMessage(), Best.FAILURE);
        }
        return Best.ARITHMETIC;
    }

    /**
     * An arithmetic by its name.
     *
     * @param name as in {@link #best}
     * @throws IllegalStateException if it isn't available, with the reason
     */
    static Arithmetic find(String name) {
        System.Logger log = System.getLogger(Arithmetic.class.getName());
        return switch (name) {
            case "scalar" -> new ScalarArithmetic();
            case "vectors" -> vectors();
            case "onednn" -> {
                try {
                    yield new OneDnnArithmetic(hasVectors() ? vectors() : new ScalarArithmetic(), true);
                } catch (OneDnn.RefusedException refused) {
                    throw new IllegalStateException(ARITHMETIC_NAME + "=onednn: " + refused.getMessage(), refused);
                }
            }
            case "auto" -> {
                if (!hasVectors()) {
                    log.log(
                            System.Logger.Level.WARNING,
                            "running without vectors, slower: start the JVM with --add-modules jdk.incubator.vector");
                }
                Arithmetic java = hasVectors() ? vectors() : new ScalarArithmetic();
                try {
                    yield new OneDnnArithmetic(java, false);
                } catch (OneDnn.RefusedException refused) {
                    log.log(System.Logger.Level.DEBUG, "running without oneDNN: " + refused.getMessage());
                    yield java;
                }
            }
            default ->
                throw new IllegalStateException(
                        ARITHMETIC_NAME + ": expected auto, onednn, vectors or scalar, got " + name);
        };
    }

    private static boolean hasVectors() {
        return ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent();
    }

    private static Arithmetic vectors() {
        if (!hasVectors()) {
            throw new IllegalStateException(
                    ARITHMETIC_NAME + "=vectors: start the JVM with --add-modules jdk.incubator.vector");
        }
        try {
            return new VectorArithmetic();
        } catch (ExceptionInInitializerError failure) { // an unsupported width
            Throwable cause = failure.getCause();
            throw new IllegalStateException(cause == null ? "no vectors" : cause.getMessage(), failure);
        }
    }

    /** All that run in this JVM, the one without vectors last. */
    public static List<Arithmetic> all() {
        List<Arithmetic> all = new ArrayList<>();
        for (String name : List.of("onednn", "vectors", "scalar")) {
            try {
                all.add(find(name));
            } catch (IllegalStateException refused) {
                System.getLogger(Arithmetic.class.getName()).log(System.Logger.Level.DEBUG, refused.getMessage());
            }
        }
        return all;
    }

    /**
     * Products of int8 values in native memory, for weights with these columns; null if this arithmetic has none.
     *
     * @param cols columns per group, a multiple of {@value Int8Products#COLUMNS}
     */
    public @Nullable Int8Products products(int cols, int groups) {
        return null;
    }

    /** The same without native code. */
    public Arithmetic java() {
        return this;
    }

    /** In human-readable form: {@code 512-bit vectors}. */
    public abstract String description();

    /**
     * Multiplies a block of rows by some tokens: tile[t, r] is the sum over c of a[from[t] + c] · w[at + c · 64 + r], c
     * in ascending order, whatever the number of tokens, so that a token's sums don't depend on the others. Exact if
     * the values of a are integers and no partial sum exceeds 2^24.
     *
     * @param from [tokens]; the array is longer, and the elements beyond are overwritten
     * @param tokens 1 to {@value #TOKENS}
     * @param tile [tokens, 64]; elements beyond are overwritten
     */
    public abstract void dot(MemorySegment w, long at, int cols, float[] a, int[] from, int tokens, float[] tile);

    /**
     * The same with weights in groups of columns that have their own scales: tile[t, r] is about the sum over groups g
     * of scales[scale + g · 64 + r] times the sum over the group's columns of a[from[t] + c] · w[at + c · 64 + r].
     * Groups and columns go in ascending order, whatever the number of tokens.
     *
     * @param cols columns, starting at a group's first
     * @param width columns per group; the last may have fewer
     */
    public abstract void dotScaled(
            MemorySegment w,
            long at,
            int cols,
            int width,
            float[] scales,
            int scale,
            float[] a,
            int[] from,
            int tokens,
            float[] tile);

    /**
     * Adds a token's scaled sums of a block of rows, with each product and the sum rounded to double: total[from + r]
     * += tile[from + r] · factor · scales[at + r].
     */
    public abstract void addScaled(float[] tile, int from, double factor, float[] scales, int at, double[] total);

    /**
     * Adds a token's scaled int32 sums of a block, computed with shifted activations: total[to + r] += (products[from +
     * r] - shifts[at + r]) · factor · scales[at + r].
     *
     * @param from an index in ints
     */
    public abstract void addScaled(
            MemorySegment products,
            int from,
            int[] shifts,
            double factor,
            float[] scales,
            int at,
            double[] total,
            int to);

    /** The maximum number of tokens for which {@link #products} may be faster than oneDNN. */
    abstract int productTokens();

    /**
     * The result of {@link Int8Products#multiply}, with the same arguments, computed with this arithmetic.
     *
     * @param cols columns per group, a multiple of 16
     * @param a beyond the last token there are at least {@value Int8Products#COLUMNS} more values
     * @param tokens at most {@value #TOKENS}
     */
    abstract void products(
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
            Scratch s);

    /**
     * Replaces x[c] by e to the x[c] for c from 0 to count, within one unit in the last place, with the same bits in
     * every arithmetic; infinite above 709, zero below -708. Elements beyond, up to the next multiple of 8, may be
     * overwritten.
     */
    public abstract void exp(double[] x, int count);

    /**
     * Multiplies a block of the router's weight by one token, in float64: out[into + r] is the sum over c of x[from +
     * c] · w[at + c · 16 + r], in index order. Products of two floats are exact in float64, so the result has the
     * definition's bits.
     */
    public abstract void logits(float[] w, int at, int cols, float[] x, int from, double[] out, int into);
}
