package org.tornadomoe.host;

import static org.tornadomoe.host.Arithmetic.ROWS;
import static org.tornadomoe.host.VectorLanes.F;
import static org.tornadomoe.host.VectorLanes.LANES;
import static org.tornadomoe.host.VectorLanes.weights;

import java.lang.foreign.MemorySegment;
import jdk.incubator.vector.FloatVector;

/**
 * {@link VectorProducts} with a scale for every {@code width} columns ({@link Arithmetic#dotScaled}): a group's sum is
 * multiplied by its scale before it is added to the tile.
 */
final class VectorGroupProducts {
    private VectorGroupProducts() {}

    static void dot1(
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
    static void dot1By8(
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

    static void dot2(
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

    static void dot4(
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
    static void dot4By4(
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
}
