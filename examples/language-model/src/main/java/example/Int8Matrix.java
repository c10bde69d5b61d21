package example;

import java.lang.foreign.Arena;
import java.util.stream.IntStream;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.WeightRows;

/**
 * An int8 matrix [rows, cols] with one scale per row, multiplied by float vectors. Blocks of rows are stored column by
 * column, so that a vector lane is a row: no sum goes across lanes, and a product's bits don't depend on what else is
 * multiplied.
 */
final class Int8Matrix {
    static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
    static final int LANES = F.length();
    private static final VectorSpecies<Byte> B =
            VectorSpecies.of(byte.class, VectorShape.forBitSize(Math.max(64, 8 * LANES)));

    /** Rows per block: eight vectors, so that a token's products read a block once, from front to back. */
    static final int BLOCK = 8 * LANES;

    /** The number of tokens for which a weight is widened once. */
    private static final int TOGETHER = 4;

    final int rows;
    final int cols;
    private final byte[] values; // [blocks, cols, BLOCK], and padding for the last vector
    private final float[] scales; // [blocks * BLOCK]

    Int8Matrix(WeightRows weights) {
        rows = weights.rows();
        cols = weights.cols();
        int blocks = Math.ceilDiv(rows, BLOCK);
        values = new byte[Math.addExact(Math.multiplyExact(blocks * BLOCK, cols), BLOCK)];
        scales = new float[blocks * BLOCK];
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor int8 = Int8Quantizer.quantize(weights, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), arena);
            System.arraycopy(int8.scales(), 0, scales, 0, rows);
            IntStream.range(0, blocks).parallel().forEach(block -> {
                byte[] row = new byte[cols];
                for (int r = block * BLOCK; r < Math.min(rows, (block + 1) * BLOCK); r++) {
                    int8.row(0, r, row);
                    for (int c = 0; c < cols; c++) {
                        values[(block * cols + c) * BLOCK + r % BLOCK] = row[c];
                    }
                }
            });
        }
    }

    long bytes() {
        return values.length + 4L * scales.length;
    }

    /** Reads a row as floats, for an embedding. */
    void row(int row, float[] into, int at) {
        int from = row / BLOCK * cols * BLOCK + row % BLOCK;
        for (int c = 0; c < cols; c++) {
            into[at + c] = values[from + c * BLOCK] * scales[row];
        }
    }

    /** y [tokens, rows] = x [tokens, cols] times the matrix transposed, on all cores. */
    void multiply(float[] x, int tokens, float[] y) {
        IntStream.range(0, Math.ceilDiv(rows, BLOCK)).parallel().forEach(block -> {
            float[] tile = new float[TOGETHER * BLOCK];
            for (int token = 0; token < tokens; token += TOGETHER) {
                int count = Math.min(TOGETHER, tokens - token);
                if (count == TOGETHER) {
                    for (int r = 0; r < BLOCK; r += 2 * LANES) {
                        four(block * cols * BLOCK + r, x, token * cols, tile, r);
                    }
                } else {
                    for (int t = 0; t < count; t++) {
                        one(block * cols * BLOCK, x, (token + t) * cols, tile, t * BLOCK);
                    }
                }
                int here = Math.min(BLOCK, rows - block * BLOCK);
                for (int t = 0; t < count; t++) {
                    int to = (token + t) * rows + block * BLOCK;
                    for (int r = 0; r < here; r++) {
                        y[to + r] = tile[t * BLOCK + r] * scales[block * BLOCK + r];
                    }
                }
            }
        });
    }

    private FloatVector weights(int at) {
        return (FloatVector) ByteVector.fromArray(B, values, at).convertShape(VectorOperators.B2F, F, 0);
    }

    /**
     * Multiplies eight vectors of rows by one token. C2 keeps sums in registers only if each has a name and stays in
     * its method.
     */
    private void one(int at, float[] x, int from, float[] tile, int to) {
        FloatVector s0 = FloatVector.zero(F);
        FloatVector s1 = FloatVector.zero(F);
        FloatVector s2 = FloatVector.zero(F);
        FloatVector s3 = FloatVector.zero(F);
        FloatVector s4 = FloatVector.zero(F);
        FloatVector s5 = FloatVector.zero(F);
        FloatVector s6 = FloatVector.zero(F);
        FloatVector s7 = FloatVector.zero(F);
        for (int c = 0; c < cols; c++) {
            int w = at + c * BLOCK;
            FloatVector value = FloatVector.broadcast(F, x[from + c]);
            s0 = weights(w).fma(value, s0);
            s1 = weights(w + LANES).fma(value, s1);
            s2 = weights(w + 2 * LANES).fma(value, s2);
            s3 = weights(w + 3 * LANES).fma(value, s3);
            s4 = weights(w + 4 * LANES).fma(value, s4);
            s5 = weights(w + 5 * LANES).fma(value, s5);
            s6 = weights(w + 6 * LANES).fma(value, s6);
            s7 = weights(w + 7 * LANES).fma(value, s7);
        }
        s0.intoArray(tile, to);
        s1.intoArray(tile, to + LANES);
        s2.intoArray(tile, to + 2 * LANES);
        s3.intoArray(tile, to + 3 * LANES);
        s4.intoArray(tile, to + 4 * LANES);
        s5.intoArray(tile, to + 5 * LANES);
        s6.intoArray(tile, to + 6 * LANES);
        s7.intoArray(tile, to + 7 * LANES);
    }

    /** Multiplies two vectors of rows by four tokens. */
    private void four(int at, float[] x, int from, float[] tile, int to) {
        int x1 = from + cols;
        int x2 = x1 + cols;
        int x3 = x2 + cols;
        FloatVector s00 = FloatVector.zero(F);
        FloatVector s01 = FloatVector.zero(F);
        FloatVector s10 = FloatVector.zero(F);
        FloatVector s11 = FloatVector.zero(F);
        FloatVector s20 = FloatVector.zero(F);
        FloatVector s21 = FloatVector.zero(F);
        FloatVector s30 = FloatVector.zero(F);
        FloatVector s31 = FloatVector.zero(F);
        for (int c = 0; c < cols; c++) {
            FloatVector w0 = weights(at + c * BLOCK);
            FloatVector w1 = weights(at + c * BLOCK + LANES);
            FloatVector v0 = FloatVector.broadcast(F, x[from + c]);
            s00 = w0.fma(v0, s00);
            s01 = w1.fma(v0, s01);
            FloatVector v1 = FloatVector.broadcast(F, x[x1 + c]);
            s10 = w0.fma(v1, s10);
            s11 = w1.fma(v1, s11);
            FloatVector v2 = FloatVector.broadcast(F, x[x2 + c]);
            s20 = w0.fma(v2, s20);
            s21 = w1.fma(v2, s21);
            FloatVector v3 = FloatVector.broadcast(F, x[x3 + c]);
            s30 = w0.fma(v3, s30);
            s31 = w1.fma(v3, s31);
        }
        s00.intoArray(tile, to);
        s01.intoArray(tile, to + LANES);
        s10.intoArray(tile, to + BLOCK);
        s11.intoArray(tile, to + BLOCK + LANES);
        s20.intoArray(tile, to + 2 * BLOCK);
        s21.intoArray(tile, to + 2 * BLOCK + LANES);
        s30.intoArray(tile, to + 3 * BLOCK);
        s31.intoArray(tile, to + 3 * BLOCK + LANES);
    }
}
