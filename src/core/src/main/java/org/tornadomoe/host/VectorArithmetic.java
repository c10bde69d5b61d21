package org.tornadomoe.host;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import java.util.Arrays;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.DoubleVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.LongVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/**
 * Vectors as wide as the machine's, a lane a row. A vector that leaves the method it was made in may be put on the
 * heap, so none does but through {@link #weights}, which is small enough to be always inlined; hence a method for each
 * number of tokens.
 */
final class VectorArithmetic extends Arithmetic {
    private static final VectorSpecies<Float> F = VectorSpecies.of(float.class, VectorShape.forBitSize(bits()));
    private static final int LANES = F.length();

    /** As many bytes as F has lanes; at least 8, the fewest there are, of which the first count. */
    private static final VectorSpecies<Byte> B =
            VectorSpecies.of(byte.class, VectorShape.forBitSize(Math.max(64, 8 * LANES)));

    private static final VectorSpecies<Double> D = F.withLanes(double.class);
    private static final VectorSpecies<Integer> WHOLE = F.withLanes(int.class);
    private static final VectorSpecies<Short> PAIRS = WHOLE.withLanes(short.class);
    private static final VectorSpecies<Integer> INTS =
            VectorSpecies.of(int.class, VectorShape.forBitSize(F.vectorBitSize() / 2));

    private static final VectorSpecies<Float> HALF =
            VectorSpecies.of(float.class, VectorShape.forBitSize(F.vectorBitSize() / 2));

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

    /** The machine's width, or the narrower one of {@value #VECTOR_BITS}. */
    private static int bits() {
        int widest = FloatVector.SPECIES_PREFERRED.vectorBitSize();
        int bits = Integer.getInteger(VECTOR_BITS, widest);
        if ((bits != 128 && bits != 256 && bits != 512) || bits > widest) {
            throw new IllegalArgumentException(
                    VECTOR_BITS + ": expected 128, 256 or 512, at most " + widest + " on this machine, got " + bits);
        }
        return bits;
    }

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
                            dot1By8(w, at + row, cols, a, from[t], tile, to);
                        } else {
                            dot1(w, at + row, even, a, from[t], tile, to);
                        }
                    }
                    case 2 -> dot2(w, at + row, even, a, from[t], from[t + 1], tile, to);
                    default -> {
                        if (FOUR_BY_FOUR) {
                            dot4By4(w, at + row, cols, a, from, t, tile, to);
                        } else {
                            dot4(w, at + row, cols, a, from, t, tile, to);
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

    private static FloatVector weights(MemorySegment w, long at) {
        return (FloatVector)
                ByteVector.fromMemorySegment(B, w, at, ByteOrder.nativeOrder()).convertShape(VectorOperators.B2F, F, 0);
    }

    /** Two columns a turn: of one, C2 unrolls eight, and does all their loads before the first product. */
    private static void dot1(MemorySegment w, long at, int cols, float[] a, int a0, float[] tile, int row) {
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s02 = FloatVector.zero(F);
        FloatVector s03 = FloatVector.zero(F);
        for (int c = 0; c < cols; c += 2) {
            long column = at + (long) c * ROWS;
            FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
            s00 = weights(w, column).fma(x0, s00);
            s01 = weights(w, column + LANES).fma(x0, s01);
            s02 = weights(w, column + 2L * LANES).fma(x0, s02);
            s03 = weights(w, column + 3L * LANES).fma(x0, s03);
            long next = column + ROWS;
            x0 = FloatVector.broadcast(F, a[a0 + c + 1]);
            s00 = weights(w, next).fma(x0, s00);
            s01 = weights(w, next + LANES).fma(x0, s01);
            s02 = weights(w, next + 2L * LANES).fma(x0, s02);
            s03 = weights(w, next + 3L * LANES).fma(x0, s03);
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s02.intoArray(tile, row + 2 * LANES);
        s03.intoArray(tile, row + 3 * LANES);
    }

    private static void dot1By8(MemorySegment w, long at, int cols, float[] a, int a0, float[] tile, int row) {
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s02 = FloatVector.zero(F);
        FloatVector s03 = FloatVector.zero(F);
        FloatVector s04 = FloatVector.zero(F);
        FloatVector s05 = FloatVector.zero(F);
        FloatVector s06 = FloatVector.zero(F);
        FloatVector s07 = FloatVector.zero(F);
        for (int c = 0; c < cols; c++) {
            long column = at + (long) c * ROWS;
            FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
            s00 = weights(w, column).fma(x0, s00);
            s01 = weights(w, column + LANES).fma(x0, s01);
            s02 = weights(w, column + 2L * LANES).fma(x0, s02);
            s03 = weights(w, column + 3L * LANES).fma(x0, s03);
            s04 = weights(w, column + 4L * LANES).fma(x0, s04);
            s05 = weights(w, column + 5L * LANES).fma(x0, s05);
            s06 = weights(w, column + 6L * LANES).fma(x0, s06);
            s07 = weights(w, column + 7L * LANES).fma(x0, s07);
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s02.intoArray(tile, row + 2 * LANES);
        s03.intoArray(tile, row + 3 * LANES);
        s04.intoArray(tile, row + 4 * LANES);
        s05.intoArray(tile, row + 5 * LANES);
        s06.intoArray(tile, row + 6 * LANES);
        s07.intoArray(tile, row + 7 * LANES);
    }

    /** Two columns a turn, as in {@link #dot1}. */
    private static void dot2(MemorySegment w, long at, int cols, float[] a, int a0, int a1, float[] tile, int row) {
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s02 = FloatVector.zero(F);
        FloatVector s03 = FloatVector.zero(F);
        FloatVector s10 = FloatVector.zero(F);
        FloatVector s11 = FloatVector.zero(F);
        FloatVector s12 = FloatVector.zero(F);
        FloatVector s13 = FloatVector.zero(F);
        for (int c = 0; c < cols; c += 2) {
            long column = at + (long) c * ROWS;
            FloatVector w0 = weights(w, column);
            FloatVector w1 = weights(w, column + LANES);
            FloatVector w2 = weights(w, column + 2L * LANES);
            FloatVector w3 = weights(w, column + 3L * LANES);
            FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
            s00 = w0.fma(x0, s00);
            s01 = w1.fma(x0, s01);
            s02 = w2.fma(x0, s02);
            s03 = w3.fma(x0, s03);
            FloatVector x1 = FloatVector.broadcast(F, a[a1 + c]);
            s10 = w0.fma(x1, s10);
            s11 = w1.fma(x1, s11);
            s12 = w2.fma(x1, s12);
            s13 = w3.fma(x1, s13);
            long next = column + ROWS;
            w0 = weights(w, next);
            w1 = weights(w, next + LANES);
            w2 = weights(w, next + 2L * LANES);
            w3 = weights(w, next + 3L * LANES);
            x0 = FloatVector.broadcast(F, a[a0 + c + 1]);
            s00 = w0.fma(x0, s00);
            s01 = w1.fma(x0, s01);
            s02 = w2.fma(x0, s02);
            s03 = w3.fma(x0, s03);
            x1 = FloatVector.broadcast(F, a[a1 + c + 1]);
            s10 = w0.fma(x1, s10);
            s11 = w1.fma(x1, s11);
            s12 = w2.fma(x1, s12);
            s13 = w3.fma(x1, s13);
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s02.intoArray(tile, row + 2 * LANES);
        s03.intoArray(tile, row + 3 * LANES);
        s10.intoArray(tile, row + ROWS);
        s11.intoArray(tile, row + ROWS + LANES);
        s12.intoArray(tile, row + ROWS + 2 * LANES);
        s13.intoArray(tile, row + ROWS + 3 * LANES);
    }

    private static void dot4(MemorySegment w, long at, int cols, float[] a, int[] from, int t, float[] tile, int row) {
        int a0 = from[t];
        int a1 = from[t + 1];
        int a2 = from[t + 2];
        int a3 = from[t + 3];
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s10 = FloatVector.zero(F);
        FloatVector s11 = FloatVector.zero(F);
        FloatVector s20 = FloatVector.zero(F);
        FloatVector s21 = FloatVector.zero(F);
        FloatVector s30 = FloatVector.zero(F);
        FloatVector s31 = FloatVector.zero(F);
        for (int c = 0; c < cols; c++) {
            long column = at + (long) c * ROWS;
            FloatVector w0 = weights(w, column);
            FloatVector w1 = weights(w, column + LANES);
            FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
            s00 = w0.fma(x0, s00);
            s01 = w1.fma(x0, s01);
            FloatVector x1 = FloatVector.broadcast(F, a[a1 + c]);
            s10 = w0.fma(x1, s10);
            s11 = w1.fma(x1, s11);
            FloatVector x2 = FloatVector.broadcast(F, a[a2 + c]);
            s20 = w0.fma(x2, s20);
            s21 = w1.fma(x2, s21);
            FloatVector x3 = FloatVector.broadcast(F, a[a3 + c]);
            s30 = w0.fma(x3, s30);
            s31 = w1.fma(x3, s31);
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s10.intoArray(tile, row + ROWS);
        s11.intoArray(tile, row + ROWS + LANES);
        s20.intoArray(tile, row + 2 * ROWS);
        s21.intoArray(tile, row + 2 * ROWS + LANES);
        s30.intoArray(tile, row + 3 * ROWS);
        s31.intoArray(tile, row + 3 * ROWS + LANES);
    }

    private static void dot4By4(
            MemorySegment w, long at, int cols, float[] a, int[] from, int t, float[] tile, int row) {
        int a0 = from[t];
        int a1 = from[t + 1];
        int a2 = from[t + 2];
        int a3 = from[t + 3];
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s02 = FloatVector.zero(F);
        FloatVector s03 = FloatVector.zero(F);
        FloatVector s10 = FloatVector.zero(F);
        FloatVector s11 = FloatVector.zero(F);
        FloatVector s12 = FloatVector.zero(F);
        FloatVector s13 = FloatVector.zero(F);
        FloatVector s20 = FloatVector.zero(F);
        FloatVector s21 = FloatVector.zero(F);
        FloatVector s22 = FloatVector.zero(F);
        FloatVector s23 = FloatVector.zero(F);
        FloatVector s30 = FloatVector.zero(F);
        FloatVector s31 = FloatVector.zero(F);
        FloatVector s32 = FloatVector.zero(F);
        FloatVector s33 = FloatVector.zero(F);
        for (int c = 0; c < cols; c++) {
            long column = at + (long) c * ROWS;
            FloatVector w0 = weights(w, column);
            FloatVector w1 = weights(w, column + LANES);
            FloatVector w2 = weights(w, column + 2L * LANES);
            FloatVector w3 = weights(w, column + 3L * LANES);
            FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
            s00 = w0.fma(x0, s00);
            s01 = w1.fma(x0, s01);
            s02 = w2.fma(x0, s02);
            s03 = w3.fma(x0, s03);
            FloatVector x1 = FloatVector.broadcast(F, a[a1 + c]);
            s10 = w0.fma(x1, s10);
            s11 = w1.fma(x1, s11);
            s12 = w2.fma(x1, s12);
            s13 = w3.fma(x1, s13);
            FloatVector x2 = FloatVector.broadcast(F, a[a2 + c]);
            s20 = w0.fma(x2, s20);
            s21 = w1.fma(x2, s21);
            s22 = w2.fma(x2, s22);
            s23 = w3.fma(x2, s23);
            FloatVector x3 = FloatVector.broadcast(F, a[a3 + c]);
            s30 = w0.fma(x3, s30);
            s31 = w1.fma(x3, s31);
            s32 = w2.fma(x3, s32);
            s33 = w3.fma(x3, s33);
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s02.intoArray(tile, row + 2 * LANES);
        s03.intoArray(tile, row + 3 * LANES);
        s10.intoArray(tile, row + ROWS);
        s11.intoArray(tile, row + ROWS + LANES);
        s12.intoArray(tile, row + ROWS + 2 * LANES);
        s13.intoArray(tile, row + ROWS + 3 * LANES);
        s20.intoArray(tile, row + 2 * ROWS);
        s21.intoArray(tile, row + 2 * ROWS + LANES);
        s22.intoArray(tile, row + 2 * ROWS + 2 * LANES);
        s23.intoArray(tile, row + 2 * ROWS + 3 * LANES);
        s30.intoArray(tile, row + 3 * ROWS);
        s31.intoArray(tile, row + 3 * ROWS + LANES);
        s32.intoArray(tile, row + 3 * ROWS + 2 * LANES);
        s33.intoArray(tile, row + 3 * ROWS + 3 * LANES);
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
                            scaled1By8(w, i, cols, width, scales, s, a, from[t], tile, to);
                        } else {
                            scaled1(w, i, cols, width, scales, s, a, from[t], tile, to);
                        }
                    }
                    case 2 -> scaled2(w, i, cols, width, scales, s, a, from[t], from[t + 1], tile, to);
                    default -> {
                        if (FOUR_BY_FOUR) {
                            scaled4By4(w, i, cols, width, scales, s, a, from, t, tile, to);
                        } else {
                            scaled4(w, i, cols, width, scales, s, a, from, t, tile, to);
                        }
                    }
                }
            }
        }
    }

    private static void scaled1(
            MemorySegment w,
            long at,
            int cols,
            int width,
            float[] scales,
            int s,
            float[] a,
            int a0,
            float[] tile,
            int row) {
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s02 = FloatVector.zero(F);
        FloatVector s03 = FloatVector.zero(F);
        for (int c = 0, g = s; c < cols; g += ROWS) {
            FloatVector g00 = FloatVector.zero(F);
            FloatVector g01 = FloatVector.zero(F);
            FloatVector g02 = FloatVector.zero(F);
            FloatVector g03 = FloatVector.zero(F);
            for (int end = Math.min(c + width, cols); c < end; c++) {
                long column = at + (long) c * ROWS;
                FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
                g00 = weights(w, column).fma(x0, g00);
                g01 = weights(w, column + LANES).fma(x0, g01);
                g02 = weights(w, column + 2L * LANES).fma(x0, g02);
                g03 = weights(w, column + 3L * LANES).fma(x0, g03);
            }
            FloatVector f0 = FloatVector.fromArray(F, scales, g);
            FloatVector f1 = FloatVector.fromArray(F, scales, g + LANES);
            FloatVector f2 = FloatVector.fromArray(F, scales, g + 2 * LANES);
            FloatVector f3 = FloatVector.fromArray(F, scales, g + 3 * LANES);
            s00 = g00.fma(f0, s00);
            s01 = g01.fma(f1, s01);
            s02 = g02.fma(f2, s02);
            s03 = g03.fma(f3, s03);
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s02.intoArray(tile, row + 2 * LANES);
        s03.intoArray(tile, row + 3 * LANES);
    }

    /** More sums than registers: those of groups lie in the tile, as in all that follow. */
    private static void scaled1By8(
            MemorySegment w,
            long at,
            int cols,
            int width,
            float[] scales,
            int s,
            float[] a,
            int a0,
            float[] tile,
            int row) {
        for (int c = 0, g = s; c < cols; g += ROWS) {
            FloatVector g00 = FloatVector.zero(F);
            FloatVector g01 = FloatVector.zero(F);
            FloatVector g02 = FloatVector.zero(F);
            FloatVector g03 = FloatVector.zero(F);
            FloatVector g04 = FloatVector.zero(F);
            FloatVector g05 = FloatVector.zero(F);
            FloatVector g06 = FloatVector.zero(F);
            FloatVector g07 = FloatVector.zero(F);
            for (int end = Math.min(c + width, cols); c < end; c++) {
                long column = at + (long) c * ROWS;
                FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
                g00 = weights(w, column).fma(x0, g00);
                g01 = weights(w, column + LANES).fma(x0, g01);
                g02 = weights(w, column + 2L * LANES).fma(x0, g02);
                g03 = weights(w, column + 3L * LANES).fma(x0, g03);
                g04 = weights(w, column + 4L * LANES).fma(x0, g04);
                g05 = weights(w, column + 5L * LANES).fma(x0, g05);
                g06 = weights(w, column + 6L * LANES).fma(x0, g06);
                g07 = weights(w, column + 7L * LANES).fma(x0, g07);
            }
            FloatVector f0 = FloatVector.fromArray(F, scales, g);
            FloatVector f1 = FloatVector.fromArray(F, scales, g + LANES);
            FloatVector f2 = FloatVector.fromArray(F, scales, g + 2 * LANES);
            FloatVector f3 = FloatVector.fromArray(F, scales, g + 3 * LANES);
            FloatVector f4 = FloatVector.fromArray(F, scales, g + 4 * LANES);
            FloatVector f5 = FloatVector.fromArray(F, scales, g + 5 * LANES);
            FloatVector f6 = FloatVector.fromArray(F, scales, g + 6 * LANES);
            FloatVector f7 = FloatVector.fromArray(F, scales, g + 7 * LANES);
            g00.fma(f0, FloatVector.fromArray(F, tile, row)).intoArray(tile, row);
            g01.fma(f1, FloatVector.fromArray(F, tile, row + LANES)).intoArray(tile, row + LANES);
            g02.fma(f2, FloatVector.fromArray(F, tile, row + 2 * LANES)).intoArray(tile, row + 2 * LANES);
            g03.fma(f3, FloatVector.fromArray(F, tile, row + 3 * LANES)).intoArray(tile, row + 3 * LANES);
            g04.fma(f4, FloatVector.fromArray(F, tile, row + 4 * LANES)).intoArray(tile, row + 4 * LANES);
            g05.fma(f5, FloatVector.fromArray(F, tile, row + 5 * LANES)).intoArray(tile, row + 5 * LANES);
            g06.fma(f6, FloatVector.fromArray(F, tile, row + 6 * LANES)).intoArray(tile, row + 6 * LANES);
            g07.fma(f7, FloatVector.fromArray(F, tile, row + 7 * LANES)).intoArray(tile, row + 7 * LANES);
        }
    }

    private static void scaled2(
            MemorySegment w,
            long at,
            int cols,
            int width,
            float[] scales,
            int s,
            float[] a,
            int a0,
            int a1,
            float[] tile,
            int row) {
        for (int c = 0, g = s; c < cols; g += ROWS) {
            FloatVector g00 = FloatVector.zero(F);
            FloatVector g01 = FloatVector.zero(F);
            FloatVector g02 = FloatVector.zero(F);
            FloatVector g03 = FloatVector.zero(F);
            FloatVector g10 = FloatVector.zero(F);
            FloatVector g11 = FloatVector.zero(F);
            FloatVector g12 = FloatVector.zero(F);
            FloatVector g13 = FloatVector.zero(F);
            for (int end = Math.min(c + width, cols); c < end; c++) {
                long column = at + (long) c * ROWS;
                FloatVector w0 = weights(w, column);
                FloatVector w1 = weights(w, column + LANES);
                FloatVector w2 = weights(w, column + 2L * LANES);
                FloatVector w3 = weights(w, column + 3L * LANES);
                FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
                g00 = w0.fma(x0, g00);
                g01 = w1.fma(x0, g01);
                g02 = w2.fma(x0, g02);
                g03 = w3.fma(x0, g03);
                FloatVector x1 = FloatVector.broadcast(F, a[a1 + c]);
                g10 = w0.fma(x1, g10);
                g11 = w1.fma(x1, g11);
                g12 = w2.fma(x1, g12);
                g13 = w3.fma(x1, g13);
            }
            FloatVector f0 = FloatVector.fromArray(F, scales, g);
            FloatVector f1 = FloatVector.fromArray(F, scales, g + LANES);
            FloatVector f2 = FloatVector.fromArray(F, scales, g + 2 * LANES);
            FloatVector f3 = FloatVector.fromArray(F, scales, g + 3 * LANES);
            g00.fma(f0, FloatVector.fromArray(F, tile, row)).intoArray(tile, row);
            g01.fma(f1, FloatVector.fromArray(F, tile, row + LANES)).intoArray(tile, row + LANES);
            g02.fma(f2, FloatVector.fromArray(F, tile, row + 2 * LANES)).intoArray(tile, row + 2 * LANES);
            g03.fma(f3, FloatVector.fromArray(F, tile, row + 3 * LANES)).intoArray(tile, row + 3 * LANES);
            g10.fma(f0, FloatVector.fromArray(F, tile, row + ROWS)).intoArray(tile, row + ROWS);
            g11.fma(f1, FloatVector.fromArray(F, tile, row + ROWS + LANES)).intoArray(tile, row + ROWS + LANES);
            g12.fma(f2, FloatVector.fromArray(F, tile, row + ROWS + 2 * LANES)).intoArray(tile, row + ROWS + 2 * LANES);
            g13.fma(f3, FloatVector.fromArray(F, tile, row + ROWS + 3 * LANES)).intoArray(tile, row + ROWS + 3 * LANES);
        }
    }

    private static void scaled4(
            MemorySegment w,
            long at,
            int cols,
            int width,
            float[] scales,
            int s,
            float[] a,
            int[] from,
            int t,
            float[] tile,
            int row) {
        int a0 = from[t];
        int a1 = from[t + 1];
        int a2 = from[t + 2];
        int a3 = from[t + 3];
        for (int c = 0, g = s; c < cols; g += ROWS) {
            FloatVector g00 = FloatVector.zero(F);
            FloatVector g01 = FloatVector.zero(F);
            FloatVector g10 = FloatVector.zero(F);
            FloatVector g11 = FloatVector.zero(F);
            FloatVector g20 = FloatVector.zero(F);
            FloatVector g21 = FloatVector.zero(F);
            FloatVector g30 = FloatVector.zero(F);
            FloatVector g31 = FloatVector.zero(F);
            for (int end = Math.min(c + width, cols); c < end; c++) {
                long column = at + (long) c * ROWS;
                FloatVector w0 = weights(w, column);
                FloatVector w1 = weights(w, column + LANES);
                FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
                g00 = w0.fma(x0, g00);
                g01 = w1.fma(x0, g01);
                FloatVector x1 = FloatVector.broadcast(F, a[a1 + c]);
                g10 = w0.fma(x1, g10);
                g11 = w1.fma(x1, g11);
                FloatVector x2 = FloatVector.broadcast(F, a[a2 + c]);
                g20 = w0.fma(x2, g20);
                g21 = w1.fma(x2, g21);
                FloatVector x3 = FloatVector.broadcast(F, a[a3 + c]);
                g30 = w0.fma(x3, g30);
                g31 = w1.fma(x3, g31);
            }
            FloatVector f0 = FloatVector.fromArray(F, scales, g);
            FloatVector f1 = FloatVector.fromArray(F, scales, g + LANES);
            g00.fma(f0, FloatVector.fromArray(F, tile, row)).intoArray(tile, row);
            g01.fma(f1, FloatVector.fromArray(F, tile, row + LANES)).intoArray(tile, row + LANES);
            g10.fma(f0, FloatVector.fromArray(F, tile, row + ROWS)).intoArray(tile, row + ROWS);
            g11.fma(f1, FloatVector.fromArray(F, tile, row + ROWS + LANES)).intoArray(tile, row + ROWS + LANES);
            g20.fma(f0, FloatVector.fromArray(F, tile, row + 2 * ROWS)).intoArray(tile, row + 2 * ROWS);
            g21.fma(f1, FloatVector.fromArray(F, tile, row + 2 * ROWS + LANES)).intoArray(tile, row + 2 * ROWS + LANES);
            g30.fma(f0, FloatVector.fromArray(F, tile, row + 3 * ROWS)).intoArray(tile, row + 3 * ROWS);
            g31.fma(f1, FloatVector.fromArray(F, tile, row + 3 * ROWS + LANES)).intoArray(tile, row + 3 * ROWS + LANES);
        }
    }

    // Each vector of the tile is written out: with a method for that, C2 compiles loops that take 1.7 times as long.
    private static void scaled4By4(
            MemorySegment w,
            long at,
            int cols,
            int width,
            float[] scales,
            int s,
            float[] a,
            int[] from,
            int t,
            float[] tile,
            int row) {
        int a0 = from[t];
        int a1 = from[t + 1];
        int a2 = from[t + 2];
        int a3 = from[t + 3];
        for (int c = 0, g = s; c < cols; g += ROWS) {
            FloatVector g00 = FloatVector.zero(F);
            FloatVector g01 = FloatVector.zero(F);
            FloatVector g02 = FloatVector.zero(F);
            FloatVector g03 = FloatVector.zero(F);
            FloatVector g10 = FloatVector.zero(F);
            FloatVector g11 = FloatVector.zero(F);
            FloatVector g12 = FloatVector.zero(F);
            FloatVector g13 = FloatVector.zero(F);
            FloatVector g20 = FloatVector.zero(F);
            FloatVector g21 = FloatVector.zero(F);
            FloatVector g22 = FloatVector.zero(F);
            FloatVector g23 = FloatVector.zero(F);
            FloatVector g30 = FloatVector.zero(F);
            FloatVector g31 = FloatVector.zero(F);
            FloatVector g32 = FloatVector.zero(F);
            FloatVector g33 = FloatVector.zero(F);
            for (int end = Math.min(c + width, cols); c < end; c++) {
                long column = at + (long) c * ROWS;
                FloatVector w0 = weights(w, column);
                FloatVector w1 = weights(w, column + LANES);
                FloatVector w2 = weights(w, column + 2L * LANES);
                FloatVector w3 = weights(w, column + 3L * LANES);
                FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
                g00 = w0.fma(x0, g00);
                g01 = w1.fma(x0, g01);
                g02 = w2.fma(x0, g02);
                g03 = w3.fma(x0, g03);
                FloatVector x1 = FloatVector.broadcast(F, a[a1 + c]);
                g10 = w0.fma(x1, g10);
                g11 = w1.fma(x1, g11);
                g12 = w2.fma(x1, g12);
                g13 = w3.fma(x1, g13);
                FloatVector x2 = FloatVector.broadcast(F, a[a2 + c]);
                g20 = w0.fma(x2, g20);
                g21 = w1.fma(x2, g21);
                g22 = w2.fma(x2, g22);
                g23 = w3.fma(x2, g23);
                FloatVector x3 = FloatVector.broadcast(F, a[a3 + c]);
                g30 = w0.fma(x3, g30);
                g31 = w1.fma(x3, g31);
                g32 = w2.fma(x3, g32);
                g33 = w3.fma(x3, g33);
            }
            FloatVector f0 = FloatVector.fromArray(F, scales, g);
            FloatVector f1 = FloatVector.fromArray(F, scales, g + LANES);
            FloatVector f2 = FloatVector.fromArray(F, scales, g + 2 * LANES);
            FloatVector f3 = FloatVector.fromArray(F, scales, g + 3 * LANES);
            g00.fma(f0, FloatVector.fromArray(F, tile, row)).intoArray(tile, row);
            g01.fma(f1, FloatVector.fromArray(F, tile, row + LANES)).intoArray(tile, row + LANES);
            g02.fma(f2, FloatVector.fromArray(F, tile, row + 2 * LANES)).intoArray(tile, row + 2 * LANES);
            g03.fma(f3, FloatVector.fromArray(F, tile, row + 3 * LANES)).intoArray(tile, row + 3 * LANES);
            g10.fma(f0, FloatVector.fromArray(F, tile, row + ROWS)).intoArray(tile, row + ROWS);
            g11.fma(f1, FloatVector.fromArray(F, tile, row + ROWS + LANES)).intoArray(tile, row + ROWS + LANES);
            g12.fma(f2, FloatVector.fromArray(F, tile, row + ROWS + 2 * LANES)).intoArray(tile, row + ROWS + 2 * LANES);
            g13.fma(f3, FloatVector.fromArray(F, tile, row + ROWS + 3 * LANES)).intoArray(tile, row + ROWS + 3 * LANES);
            g20.fma(f0, FloatVector.fromArray(F, tile, row + 2 * ROWS)).intoArray(tile, row + 2 * ROWS);
            g21.fma(f1, FloatVector.fromArray(F, tile, row + 2 * ROWS + LANES)).intoArray(tile, row + 2 * ROWS + LANES);
            g22.fma(f2, FloatVector.fromArray(F, tile, row + 2 * ROWS + 2 * LANES))
                    .intoArray(tile, row + 2 * ROWS + 2 * LANES);
            g23.fma(f3, FloatVector.fromArray(F, tile, row + 2 * ROWS + 3 * LANES))
                    .intoArray(tile, row + 2 * ROWS + 3 * LANES);
            g30.fma(f0, FloatVector.fromArray(F, tile, row + 3 * ROWS)).intoArray(tile, row + 3 * ROWS);
            g31.fma(f1, FloatVector.fromArray(F, tile, row + 3 * ROWS + LANES)).intoArray(tile, row + 3 * ROWS + LANES);
            g32.fma(f2, FloatVector.fromArray(F, tile, row + 3 * ROWS + 2 * LANES))
                    .intoArray(tile, row + 3 * ROWS + 2 * LANES);
            g33.fma(f3, FloatVector.fromArray(F, tile, row + 3 * ROWS + 3 * LANES))
                    .intoArray(tile, row + 3 * ROWS + 3 * LANES);
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
        int fours = groups * cols / 4; // of columns, per token
        int[] x = s.requirePairs(2 * fours * tokens + LANES); // the last vectors may be longer than a token
        for (int t = 0; t < tokens; t++) {
            for (int four = 0; four < fours; four += LANES) {
                int to = 2 * fours * t + four;
                pairs(a, from + 4L * (fours * t + four), x, to, to + fours);
            }
        }
        int parts = blocks * groups;
        for (int t = 0; t < tokens; t += 2) {
            for (int part = 0; part < parts; part++) {
                int even = 2 * fours * t + part % groups * cols / 4;
                for (int row = 0; row < ROWS; row += 4 * LANES) {
                    long weights = at + (long) part * cols * ROWS + 4L * row;
                    int shift = first + part * ROWS + row;
                    long to = 4L * ((t * parts + part) * ROWS + row);
                    if (t + 1 < tokens) {
                        products2(w, weights, cols, x, even, fours, shifts, shift, s.products, to, 4L * parts * ROWS);
                    } else {
                        products1(w, weights, cols, x, even, even + fours, shifts, shift, s.products, to);
                    }
                }
            }
        }
    }

    /**
     * A token's values in int16 as the products need them: of each four columns the first and the third, and the second
     * and the fourth, less {@value Int8Products#SHIFT} and negated. So two products with int8 weights, each from -128 *
     * 128 to 127 * 128, add up in int16.
     */
    private static void pairs(MemorySegment a, long at, int[] x, int even, int odd) {
        ShortVector two = ShortVector.fromMemorySegment(PAIRS, a, at, ByteOrder.nativeOrder())
                .lanewise(VectorOperators.XOR, (short) (Int8Products.SHIFT << 8 | Int8Products.SHIFT));
        two.lanewise(VectorOperators.LSHL, 8)
                .lanewise(VectorOperators.ASHR, 8)
                .neg()
                .reinterpretAsInts()
                .intoArray(x, even);
        two.lanewise(VectorOperators.ASHR, 8).neg().reinterpretAsInts().intoArray(x, odd);
    }

    /** Where a vector of weights is: four, one after another, of every four columns. */
    private static long fours(int v) {
        return WHOLE.vectorByteSize() == ROWS ? (long) v * ROWS : (v >>> 2) * 4L * ROWS + (v & 3) * 4L * LANES;
    }

    /**
     * One vector a turn, that is four columns of some rows, and the sums change places: so memory is read in order, and
     * the loop is small enough for C2 to keep vectors in registers.
     */
    private static void products1(
            MemorySegment w,
            long at,
            int cols,
            int[] x,
            int even,
            int odd,
            int[] shifts,
            int shift,
            MemorySegment into,
            long to) {
        IntVector s0 = IntVector.zero(WHOLE);
        IntVector s1 = IntVector.zero(WHOLE);
        IntVector s2 = IntVector.zero(WHOLE);
        IntVector s3 = IntVector.zero(WHOLE);
        for (int v = 0; v < cols; v++) {
            ShortVector two = ShortVector.fromMemorySegment(PAIRS, w, at + fours(v), ByteOrder.nativeOrder());
            ShortVector low = two.lanewise(VectorOperators.LSHL, 8).lanewise(VectorOperators.ASHR, 8);
            ShortVector high = two.lanewise(VectorOperators.ASHR, 8);
            IntVector sums = low.mul(times(x, even + (v >>> 2)))
                    .add(high.mul(times(x, odd + (v >>> 2))))
                    .reinterpretAsInts();
            IntVector next = s0.add(sums.lanewise(VectorOperators.ASHR, 16))
                    .add(sums.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16));
            s0 = s1;
            s1 = s2;
            s2 = s3;
            s3 = next;
        }
        put(s0, shifts, shift, into, to);
        put(s1, shifts, shift + LANES, into, to + 4L * LANES);
        put(s2, shifts, shift + 2 * LANES, into, to + 8L * LANES);
        put(s3, shifts, shift + 3 * LANES, into, to + 12L * LANES);
    }

    /** The same for two tokens. */
    private static void products2(
            MemorySegment w,
            long at,
            int cols,
            int[] x,
            int even0,
            int fours,
            int[] shifts,
            int shift,
            MemorySegment into,
            long to,
            long next) {
        int odd0 = even0 + fours;
        int even1 = odd0 + fours;
        int odd1 = even1 + fours;
        IntVector s00 = IntVector.zero(WHOLE);
        IntVector s01 = IntVector.zero(WHOLE);
        IntVector s02 = IntVector.zero(WHOLE);
        IntVector s03 = IntVector.zero(WHOLE);
        IntVector s10 = IntVector.zero(WHOLE);
        IntVector s11 = IntVector.zero(WHOLE);
        IntVector s12 = IntVector.zero(WHOLE);
        IntVector s13 = IntVector.zero(WHOLE);
        for (int v = 0; v < cols; v++) {
            ShortVector two = ShortVector.fromMemorySegment(PAIRS, w, at + fours(v), ByteOrder.nativeOrder());
            ShortVector low = two.lanewise(VectorOperators.LSHL, 8).lanewise(VectorOperators.ASHR, 8);
            ShortVector high = two.lanewise(VectorOperators.ASHR, 8);
            IntVector sums = low.mul(times(x, even0 + (v >>> 2)))
                    .add(high.mul(times(x, odd0 + (v >>> 2))))
                    .reinterpretAsInts();
            IntVector next0 = s00.add(sums.lanewise(VectorOperators.ASHR, 16))
                    .add(sums.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16));
            s00 = s01;
            s01 = s02;
            s02 = s03;
            s03 = next0;
            sums = low.mul(times(x, even1 + (v >>> 2)))
                    .add(high.mul(times(x, odd1 + (v >>> 2))))
                    .reinterpretAsInts();
            IntVector next1 = s10.add(sums.lanewise(VectorOperators.ASHR, 16))
                    .add(sums.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16));
            s10 = s11;
            s11 = s12;
            s12 = s13;
            s13 = next1;
        }
        put(s00, shifts, shift, into, to);
        put(s01, shifts, shift + LANES, into, to + 4L * LANES);
        put(s02, shifts, shift + 2 * LANES, into, to + 8L * LANES);
        put(s03, shifts, shift + 3 * LANES, into, to + 12L * LANES);
        put(s10, shifts, shift, into, to + next);
        put(s11, shifts, shift + LANES, into, to + next + 4L * LANES);
        put(s12, shifts, shift + 2 * LANES, into, to + next + 8L * LANES);
        put(s13, shifts, shift + 3 * LANES, into, to + next + 12L * LANES);
    }

    private static ShortVector times(int[] x, int at) {
        return IntVector.broadcast(WHOLE, x[at]).reinterpretAsShorts();
    }

    private static void put(IntVector sums, int[] shifts, int shift, MemorySegment into, long to) {
        IntVector.fromArray(WHOLE, shifts, shift).sub(sums).intoMemorySegment(into, to, ByteOrder.nativeOrder());
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
