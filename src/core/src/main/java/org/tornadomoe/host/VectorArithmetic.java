package org.tornadomoe.host;

import static org.tornadomoe.host.VectorLanes.D;
import static org.tornadomoe.host.VectorLanes.F;
import static org.tornadomoe.host.VectorLanes.HALF;
import static org.tornadomoe.host.VectorLanes.INTS;
import static org.tornadomoe.host.VectorLanes.LANES;
import static org.tornadomoe.host.VectorLanes.weights;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import java.util.Arrays;
import jdk.incubator.vector.DoubleVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.LongVector;
import jdk.incubator.vector.VectorOperators;

/** Vectors as wide as the machine's, a lane a row: which of the loops serves how many tokens on which machine. */
final class VectorArithmetic extends Arithmetic {
    /**
     * Vectors of rows of a loop for one token. Where four don't span a block's rows, each pass reads a part of every
     * cache line, and only the first from memory, while the others leave that idle.
     */
    private static final int VECTORS = Math.min(8, ROWS / LANES);

    /**
     * Whether four tokens' sums, four vectors each, fit in the registers beside the weights: AVX2 has 16, others 32.
     * The more rows a loop has, the more of a cache line it reads at once.
     */
    private static final boolean FOUR_BY_FOUR = F.vectorBitSize() != 256;

    /** Whether a block of the router's has rows for four sums at once: each waits for the product before it. */
    private static final boolean FOUR_LOGITS = 4 * D.length() <= ROUTER_ROWS;

    @Override
    public String description() {
        return F.vectorBitSize() + "-bit vectors";
    }

    @Override
    public void dot(MemorySegment w, long at, int cols, float[] a, int[] from, int tokens, float[] tile) {
        Arrays.fill(from, tokens, TOKENS, from[0]);
        int together = together(tokens);
        int rows = rows(together);
        int even = cols / 2 * 2;
        for (int t = 0; t < tokens; t += together) {
            for (int row = 0; row < ROWS; row += rows) {
                int to = t * ROWS + row;
                switch (together) {
                    case 1 -> {
                        if (VECTORS == 8) {
                            VectorProducts.dot1By8(w, at + row, cols, a, from[t], tile, to);
                        } else {
                            VectorProducts.dot1(w, at + row, even, a, from[t], tile, to);
                        }
                    }
                    case 2 -> VectorProducts.dot2(w, at + row, even, a, from[t], from[t + 1], tile, to);
                    default -> {
                        if (FOUR_BY_FOUR) {
                            VectorProducts.dot4By4(w, at + row, cols, a, from, t, tile, to);
                        } else {
                            VectorProducts.dot4(w, at + row, cols, a, from, t, tile, to);
                        }
                    }
                }
            }
            if (even < cols && (together == 2 || (together == 1 && VECTORS != 8))) {
                addColumn(w, at + (long) even * ROWS, even, a, from, t, t + together, tile);
            }
        }
    }

    /** Tokens of a loop, for so many in all. */
    private static int together(int tokens) {
        return tokens > 2 ? 4 : tokens;
    }

    /** Rows of a loop for so many tokens. */
    private static int rows(int together) {
        int vectors = together == 1 ? VECTORS : together == 2 || FOUR_BY_FOUR ? 4 : 2;
        return vectors * LANES;
    }

    /** Adds the last column of an odd number, where a loop's turn has two. */
    private static void addColumn(
            MemorySegment w, long at, int column, float[] a, int[] from, int first, int end, float[] tile) {
        for (int t = first; t < end; t++) {
            for (int r = 0; r < ROWS; r += LANES) {
                int to = t * ROWS + r;
                weights(w, at + r)
                        .fma(FloatVector.broadcast(F, a[from[t] + column]), FloatVector.fromArray(F, tile, to))
                        .intoArray(tile, to);
            }
        }
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
        Arrays.fill(from, tokens, TOKENS, from[0]);
        int together = together(tokens);
        int rows = rows(together);
        Arrays.fill(tile, 0, Math.ceilDiv(tokens, together) * together * ROWS, 0);
        for (int t = 0; t < tokens; t += together) {
            for (int row = 0; row < ROWS; row += rows) {
                int to = t * ROWS + row;
                long i = at + row;
                int s = scale + row;
                switch (together) {
                    case 1 -> {
                        if (VECTORS == 8) {
                            VectorGroupProducts.dot1By8(w, i, cols, width, scales, s, a, from[t], tile, to);
                        } else {
                            VectorGroupProducts.dot1(w, i, cols, width, scales, s, a, from[t], tile, to);
                        }
                    }
                    case 2 -> VectorGroupProducts.dot2(w, i, cols, width, scales, s, a, from[t], from[t + 1], tile, to);
                    default -> {
                        if (FOUR_BY_FOUR) {
                            VectorGroupProducts.dot4By4(w, i, cols, width, scales, s, a, from, t, tile, to);
                        } else {
                            VectorGroupProducts.dot4(w, i, cols, width, scales, s, a, from, t, tile, to);
                        }
                    }
                }
            }
        }
    }

    @Override
    public void addScaled(float[] tile, int from, double factor, float[] scales, int at, double[] total) {
        for (int r = 0; r < ROWS; r += D.length()) {
            DoubleVector sum = widen(tile, from + r).mul(factor).mul(widen(scales, at + r));
            DoubleVector.fromArray(D, total, from + r).add(sum).intoArray(total, from + r);
        }
    }

    private static DoubleVector widen(float[] x, int at) {
        return (DoubleVector) FloatVector.fromArray(HALF, x, at).convertShape(VectorOperators.F2D, D, 0);
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
        for (int r = 0; r < ROWS; r += D.length()) {
            IntVector exact = IntVector.fromMemorySegment(INTS, products, 4L * (from + r), ByteOrder.nativeOrder())
                    .sub(IntVector.fromArray(INTS, shifts, at + r));
            DoubleVector sum = ((DoubleVector) exact.convertShape(VectorOperators.I2D, D, 0))
                    .mul(factor)
                    .mul(widen(scales, at + r));
            DoubleVector.fromArray(D, total, to + r).add(sum).intoArray(total, to + r);
        }
    }

    @Override
    int productTokens() {
        return 2;
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
        VectorInt16Products.products(w, at, blocks, cols, groups, shifts, first, a, from, tokens, s);
    }

    @Override
    public void exp(double[] x, int count) {
        for (int c = 0; c < count; c += D.length()) {
            DoubleVector of = DoubleVector.fromArray(D, x, c);
            DoubleVector whole = of.fma(DoubleVector.broadcast(D, Exp.LOG2_E), DoubleVector.broadcast(D, Exp.WHOLE));
            DoubleVector n = whole.sub(Exp.WHOLE);
            DoubleVector r =
                    n.fma(DoubleVector.broadcast(D, -Exp.LN2_REST), n.fma(DoubleVector.broadcast(D, -Exp.LN2), of));
            DoubleVector sum = DoubleVector.broadcast(D, Exp.SERIES[0]);
            for (int k = 1; k < Exp.SERIES.length; k++) {
                sum = sum.fma(r, DoubleVector.broadcast(D, Exp.SERIES[k]));
            }
            LongVector power = whole.reinterpretAsLongs()
                    .lanewise(VectorOperators.LSHL, Exp.EXPONENT)
                    .add(Exp.ONE);
            sum.mul(power.reinterpretAsDoubles())
                    .blend(Double.POSITIVE_INFINITY, of.compare(VectorOperators.GT, Exp.MOST))
                    .blend(0.0, of.compare(VectorOperators.LT, Exp.LEAST))
                    .intoArray(x, c);
        }
    }

    @Override
    public void logits(float[] w, int at, int cols, float[] x, int from, double[] out, int into) {
        for (int row = 0; row < ROUTER_ROWS; row += (FOUR_LOGITS ? 4 : 2) * D.length()) {
            if (FOUR_LOGITS) {
                logits4(w, at + row, cols, x, from, out, into + row);
            } else {
                logits2(w, at + row, cols, x, from, out, into + row);
            }
        }
    }

    private static void logits2(float[] w, int at, int cols, float[] x, int from, double[] out, int into) {
        int lanes = D.length();
        DoubleVector s0 = DoubleVector.zero(D);
        DoubleVector s1 = DoubleVector.zero(D);
        for (int c = 0; c < cols; c++) {
            int i = at + c * ROUTER_ROWS;
            DoubleVector value = DoubleVector.broadcast(D, x[from + c]);
            s0 = widen(w, i).fma(value, s0);
            s1 = widen(w, i + lanes).fma(value, s1);
        }
        s0.intoArray(out, into);
        s1.intoArray(out, into + lanes);
    }

    private static void logits4(float[] w, int at, int cols, float[] x, int from, double[] out, int into) {
        int lanes = D.length();
        DoubleVector s0 = DoubleVector.zero(D);
        DoubleVector s1 = DoubleVector.zero(D);
        DoubleVector s2 = DoubleVector.zero(D);
        DoubleVector s3 = DoubleVector.zero(D);
        for (int c = 0; c < cols; c++) {
            int i = at + c * ROUTER_ROWS;
            DoubleVector value = DoubleVector.broadcast(D, x[from + c]);
            s0 = widen(w, i).fma(value, s0);
            s1 = widen(w, i + lanes).fma(value, s1);
            s2 = widen(w, i + 2 * lanes).fma(value, s2);
            s3 = widen(w, i + 3 * lanes).fma(value, s3);
        }
        s0.intoArray(out, into);
        s1.intoArray(out, into + lanes);
        s2.intoArray(out, into + 2 * lanes);
        s3.intoArray(out, into + 3 * lanes);
    }
}
