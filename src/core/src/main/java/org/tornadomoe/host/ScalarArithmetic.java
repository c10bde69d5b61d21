package org.tornadomoe.host;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

/** Scalar loops, for a JVM without the Vector API. */
final class ScalarArithmetic extends Arithmetic {
    @Override
    public String description() {
        return "no vectors";
    }

    /** Copies the values once, because loops over an array are fast in every compiler tier. */
    private static byte[] bytes(MemorySegment from, long at, int count) {
        byte[] bytes = new byte[count];
        MemorySegment.copy(from, ValueLayout.JAVA_BYTE, at, bytes, 0, count);
        return bytes;
    }

    @Override
    public void dot(MemorySegment w, long at, int cols, float[] a, int[] from, int tokens, float[] tile) {
        Arrays.fill(tile, 0, tokens * ROWS, 0);
        byte[] block = bytes(w, at, cols * ROWS);
        for (int c = 0; c < cols; c++) {
            for (int t = 0; t < tokens; t++) {
                float x = a[from[t] + c];
                for (int r = 0; r < ROWS; r++) {
                    tile[t * ROWS + r] += x * block[c * ROWS + r];
                }
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
        Arrays.fill(tile, 0, tokens * ROWS, 0);
        byte[] block = bytes(w, at, cols * ROWS);
        float[] sums = new float[ROWS];
        for (int group = 0; group * width < cols; group++) {
            int end = Math.min((group + 1) * width, cols);
            for (int t = 0; t < tokens; t++) {
                Arrays.fill(sums, 0);
                for (int c = group * width; c < end; c++) {
                    float x = a[from[t] + c];
                    for (int r = 0; r < ROWS; r++) {
                        sums[r] += x * block[c * ROWS + r];
                    }
                }
                for (int r = 0; r < ROWS; r++) {
                    tile[t * ROWS + r] += sums[r] * scales[scale + group * ROWS + r];
                }
            }
        }
    }

    @Override
    public void addScaled(float[] tile, int from, double factor, float[] scales, int at, double[] total) {
        for (int r = 0; r < ROWS; r++) {
            total[from + r] += tile[from + r] * factor * scales[at + r];
        }
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
        for (int r = 0; r < ROWS; r++) {
            total[to + r] +=
                    (products.getAtIndex(ValueLayout.JAVA_INT, from + r) - shifts[at + r]) * factor * scales[at + r];
        }
    }

    @Override
    void products(MemorySegment w, long at, int cols, int groups, MemorySegment a, long from, Scratch s) {
        byte[] block = bytes(w, at, (int) Int8Products.index(ROWS - 1, groups * cols - 1) + 1);
        byte[] token = bytes(a, from, groups * cols);
        for (int v = 0; v < groups * ROWS; v++) {
            int sum = 0;
            for (int c = v / ROWS * cols; c < (v / ROWS + 1) * cols; c++) {
                sum += (token[c] & 0xff) * block[(int) Int8Products.index(v % ROWS, c)];
            }
            s.products.setAtIndex(ValueLayout.JAVA_INT, v, sum);
        }
    }

    @Override
    public void exp(double[] x, int count) {
        for (int c = 0; c < count; c++) {
            x[c] = Exp.of(x[c]);
        }
    }

    @Override
    public void logits(float[] w, int at, int cols, float[] x, int from, double[] out, int into) {
        Arrays.fill(out, into, into + ROUTER_ROWS, 0);
        for (int c = 0; c < cols; c++) {
            double value = x[from + c];
            for (int r = 0; r < ROUTER_ROWS; r++) {
                out[into + r] += value * w[at + c * ROUTER_ROWS + r];
            }
        }
    }
}
