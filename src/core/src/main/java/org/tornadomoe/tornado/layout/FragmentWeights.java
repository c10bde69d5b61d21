package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.kernels.FragmentGemmKernels;
import org.tornadomoe.tornado.kernels.SplitKernels;

/**
 * Weights in the order of {@link FragmentGemmKernels}: {@code [E][strips of 64 rows][chunks of 64 k][2 steps of 32 k][8
 * panels of 8 rows][16 twos of k][4 twos of rows]} ints, an int with both k of both rows, rows and k padded with zeros.
 *
 * @param floats whether activations are in float, and two halves each for the kernels
 */
public record FragmentWeights(boolean floats) implements WeightLayout {
    private static final int STRIP = FragmentGemmKernels.STRIP;
    private static final int CHUNK_INTS = FragmentGemmKernels.CHUNK_INTS;

    /** Ints of a row in a chunk. */
    private static final int ROW_INTS = FragmentGemmKernels.CHUNK / 4;

    public static int chunks(int cols) {
        return Math.ceilDiv(cols, FragmentGemmKernels.CHUNK);
    }

    private static int strips(int rows) {
        return Math.ceilDiv(rows, STRIP);
    }

    @Override
    public int rowInts(int cols) {
        return chunks(cols) * (floats ? SplitKernels.CHUNK_INTS : ROW_INTS);
    }

    @Override
    public long ints(long experts, int rows, int cols, int gate) {
        return experts * strips(rows) * chunks(cols) * CHUNK_INTS;
    }

    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        int rows = from.rows();
        int strips = strips(rows);
        int chunks = chunks(from.cols());
        long rowBytes = from.rowBytes();
        IntStream.range(0, Math.multiplyExact(from.experts(), strips))
                .parallel()
                .forEach(s -> {
                    int first = s % strips * STRIP;
                    int here = Math.min(STRIP, rows - first);
                    long source = ((long) (s / strips) * rows + first) * rowBytes;
                    int[] strip = new int[STRIP * ROW_INTS];
                    int[] packed = new int[CHUNK_INTS];
                    for (int chunk = 0; chunk < chunks; chunk++) {
                        // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                        int ints = (int) Math.min(ROW_INTS, rowBytes / 4 - (long) chunk * ROW_INTS);
                        for (int row = 0; row < here; row++) {
                            long at = source + row * rowBytes + 4L * chunk * ROW_INTS;
                            MemorySegment.copy(from.values(), ValueLayout.JAVA_INT, at, strip, row * ROW_INTS, ints);
                            Arrays.fill(strip, row * ROW_INTS + ints, (row + 1) * ROW_INTS, 0);
                        }
                        for (int row = 0; row < STRIP; row += 2) {
                            for (int k = 0; k < ROW_INTS; k += 8) { // four k of a step are two twos
                                int at = k / 8 * 512 + row / 8 * 64 + row % 8 / 2;
                                for (int i = row * ROW_INTS + k; i < row * ROW_INTS + k + 8; i++, at += 8) {
                                    int even = strip[i];
                                    int odd = strip[i + ROW_INTS];
                                    packed[at] = (even & 0xFFFF) | (odd << 16);
                                    packed[at + 4] = (even >>> 16) | (odd & 0xFFFF0000);
                                }
                            }
                        }
                        MemorySegment.copy(
                                packed,
                                0,
                                into,
                                ValueLayout.JAVA_INT,
                                4L * ((long) s * chunks + chunk) * CHUNK_INTS,
                                CHUNK_INTS);
                    }
                });
    }
}
