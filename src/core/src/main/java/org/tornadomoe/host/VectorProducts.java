package org.tornadomoe.host;

import static org.tornadomoe.host.Arithmetic.ROWS;
import static org.tornadomoe.host.VectorLanes.F;
import static org.tornadomoe.host.VectorLanes.LANES;
import static org.tornadomoe.host.VectorLanes.weights;

import java.lang.foreign.MemorySegment;
import jdk.incubator.vector.FloatVector;

/**
 * Products of rows of weights with one, two or four tokens, sums in float ({@link Arithmetic#dot}). {@code At} is the
 * first row's place in w, {@code row} the first sum's in the tile.
 */
final class VectorProducts {
    private VectorProducts() {}

    /** Two columns a turn: of one, C2 unrolls eight, and does all their loads before the first product. */
    static void dot1(MemorySegment w, long at, int cols, float[] a, int a0, float[] tile, int row) {
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

    static void dot1By8(MemorySegment w, long at, int cols, float[] a, int a0, float[] tile, int row) {
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
    static void dot2(MemorySegment w, long at, int cols, float[] a, int a0, int a1, float[] tile, int row) {
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

    static void dot4(MemorySegment w, long at, int cols, float[] a, int[] from, int t, float[] tile, int row) {
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

    static void dot4By4(MemorySegment w, long at, int cols, float[] a, int[] from, int t, float[] tile, int row) {
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
}
