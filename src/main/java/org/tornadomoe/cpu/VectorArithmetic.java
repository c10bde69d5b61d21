package org.tornadomoe.cpu;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import java.util.Arrays;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.DoubleVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/**
 * Vectors as wide as the machine's, a lane a row. A vector that leaves the method it was made in may be put on the heap, so none
 * does but through {@link #weights}, which is small enough to be always inlined; hence a method for each number of tokens.
 */
final class VectorArithmetic extends Arithmetic {
    private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
    private static final int LANES = F.length();
    private static final int STEP = 4 * LANES;

    /** As many bytes as F has lanes; at least 8, the fewest there are, of which the first count. */
    private static final VectorSpecies<Byte> B =
            VectorSpecies.of(byte.class, VectorShape.forBitSize(Math.max(64, 8 * LANES)));

    private static final VectorSpecies<Double> D = DoubleVector.SPECIES_PREFERRED;
    private static final VectorSpecies<Float> HALF =
            VectorSpecies.of(float.class, VectorShape.forBitSize(F.vectorBitSize() / 2));

    /**
     * Tokens of a loop: four vectors of sums each, four of weights and one more have to fit in the registers, which AVX2 has 16 of and
     * others 32. With six tokens they would still fit in 32, but C2 then put one sum on the heap in every turn of the loop.
     */
    private static final int MOST = F.vectorBitSize() == 256 ? 2 : TOKENS;

    @Override
    String description() {
        return F.vectorBitSize() + "-bit vectors";
    }

    @Override
    void dot(MemorySegment w, long at, int cols, float[] a, int[] from, int tokens, float[] tile) {
        Arrays.fill(from, tokens, TOKENS, from[0]);
        for (int row = 0; row < PackedWeights.ROWS; row += STEP) {
            long block = at + row;
            int t = 0;
            for (; MOST > 2 && tokens - t > 2; t += 4) {
                dot4(
                        w,
                        block,
                        cols,
                        a,
                        from[t],
                        from[t + 1],
                        from[t + 2],
                        from[t + 3],
                        tile,
                        row + t * PackedWeights.ROWS);
            }
            for (; tokens - t > 1; t += 2) {
                dot2(w, block, cols, a, from[t], from[t + 1], tile, row + t * PackedWeights.ROWS);
            }
            if (t < tokens) {
                dot1(w, block, cols, a, from[t], tile, row + t * PackedWeights.ROWS);
            }
        }
    }

    private static FloatVector weights(MemorySegment w, long at) {
        return (FloatVector)
                ByteVector.fromMemorySegment(B, w, at, ByteOrder.nativeOrder()).convertShape(VectorOperators.B2F, F, 0);
    }

    private static void dot1(MemorySegment w, long at, int cols, float[] a, int a0, float[] tile, int row) {
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s02 = FloatVector.zero(F);
        FloatVector s03 = FloatVector.zero(F);
        for (int c = 0; c < cols; c++) {
            long column = at + (long) c * PackedWeights.ROWS;
            FloatVector w0 = weights(w, column);
            FloatVector w1 = weights(w, column + LANES);
            FloatVector w2 = weights(w, column + 2L * LANES);
            FloatVector w3 = weights(w, column + 3L * LANES);
            FloatVector x0 = FloatVector.broadcast(F, a[a0 + c]);
            s00 = w0.fma(x0, s00);
            s01 = w1.fma(x0, s01);
            s02 = w2.fma(x0, s02);
            s03 = w3.fma(x0, s03);
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s02.intoArray(tile, row + 2 * LANES);
        s03.intoArray(tile, row + 3 * LANES);
    }

    private static void dot2(MemorySegment w, long at, int cols, float[] a, int a0, int a1, float[] tile, int row) {
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s02 = FloatVector.zero(F);
        FloatVector s03 = FloatVector.zero(F);
        FloatVector s10 = FloatVector.zero(F);
        FloatVector s11 = FloatVector.zero(F);
        FloatVector s12 = FloatVector.zero(F);
        FloatVector s13 = FloatVector.zero(F);
        for (int c = 0; c < cols; c++) {
            long column = at + (long) c * PackedWeights.ROWS;
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
        }
        s00.intoArray(tile, row);
        s01.intoArray(tile, row + LANES);
        s02.intoArray(tile, row + 2 * LANES);
        s03.intoArray(tile, row + 3 * LANES);
        s10.intoArray(tile, row + PackedWeights.ROWS);
        s11.intoArray(tile, row + PackedWeights.ROWS + LANES);
        s12.intoArray(tile, row + PackedWeights.ROWS + 2 * LANES);
        s13.intoArray(tile, row + PackedWeights.ROWS + 3 * LANES);
    }

    private static void dot4(
            MemorySegment w, long at, int cols, float[] a, int a0, int a1, int a2, int a3, float[] tile, int row) {
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
            long column = at + (long) c * PackedWeights.ROWS;
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
        s10.intoArray(tile, row + PackedWeights.ROWS);
        s11.intoArray(tile, row + PackedWeights.ROWS + LANES);
        s12.intoArray(tile, row + PackedWeights.ROWS + 2 * LANES);
        s13.intoArray(tile, row + PackedWeights.ROWS + 3 * LANES);
        s20.intoArray(tile, row + 2 * PackedWeights.ROWS);
        s21.intoArray(tile, row + 2 * PackedWeights.ROWS + LANES);
        s22.intoArray(tile, row + 2 * PackedWeights.ROWS + 2 * LANES);
        s23.intoArray(tile, row + 2 * PackedWeights.ROWS + 3 * LANES);
        s30.intoArray(tile, row + 3 * PackedWeights.ROWS);
        s31.intoArray(tile, row + 3 * PackedWeights.ROWS + LANES);
        s32.intoArray(tile, row + 3 * PackedWeights.ROWS + 2 * LANES);
        s33.intoArray(tile, row + 3 * PackedWeights.ROWS + 3 * LANES);
    }

    @Override
    void logits(float[] w, int at, int cols, float[] x, int from, double[] out, int into) {
        int lanes = D.length();
        for (int row = 0; row < ROUTER_ROWS; row += 2 * lanes) {
            DoubleVector s0 = DoubleVector.zero(D);
            DoubleVector s1 = DoubleVector.zero(D);
            for (int c = 0; c < cols; c++) {
                int i = at + row + c * ROUTER_ROWS;
                DoubleVector value = DoubleVector.broadcast(D, x[from + c]);
                s0 = ((DoubleVector) FloatVector.fromArray(HALF, w, i).convertShape(VectorOperators.F2D, D, 0))
                        .fma(value, s0);
                s1 = ((DoubleVector) FloatVector.fromArray(HALF, w, i + lanes).convertShape(VectorOperators.F2D, D, 0))
                        .fma(value, s1);
            }
            s0.intoArray(out, into + row);
            s1.intoArray(out, into + row + lanes);
        }
    }
}
