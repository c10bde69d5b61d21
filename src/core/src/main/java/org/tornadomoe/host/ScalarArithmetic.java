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
    int productTokens() {
        return 0;
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
        int sums = blocks * groups * ROWS; // per token
        byte[] weights = bytes(w, at, sums * cols);
        byte[] rows = bytes(a, from, tokens * groups * cols);
        for (int v = 0; v < tokens * sums; v++) {
            int group = v % sums / ROWS; // of all blocks'
            int row = (v / sums * groups + group % groups) * cols;
            int sum = 0;
            for (int c = 0; c < cols; c++) {
                sum += (rows[row + c] & 0xff) * weights[group * cols * ROWS + (int) Int8Products.index(v % ROWS, c)];
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
