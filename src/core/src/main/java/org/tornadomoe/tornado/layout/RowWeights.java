package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;

/**
 * Weights in the order {@code [E, ⌈cols / 4⌉, rows]} ints, so that neighbouring work-items, which have neighbouring
 * rows, read neighbouring ints.
 */
public final class RowWeights implements WeightLayout {
    /** Rows and ints of a block that lies in the cache. */
    private static final int HIGH = 128;

    private static final int WIDE = 64;

    @Override
    public long ints(long experts, int rows, int cols, int gate) {
        return experts * rowInts(cols) * rows;
    }

    /**
     * In blocks: a row's length is mostly a power of two, and what is that far apart is in each other's way in the
     * cache.
     */
    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        int rows = from.rows();
        int kInts = rowInts(from.cols());
        MemorySegment values = from.values();
        long rowBytes = from.rowBytes();
        int stripsPerExpert = Math.ceilDiv(rows, HIGH);
        IntStream.range(0, Math.multiplyExact(from.experts(), stripsPerExpert))
                .parallel()
                .forEach(t -> {
                    int expert = t / stripsPerExpert;
                    int first = t % stripsPerExpert * HIGH;
                    int count = Math.min(HIGH, rows - first);
                    long source = ((long) expert * rows + first) * rowBytes;
                    long target = 4 * ((long) expert * kInts * rows + first);
                    int[] block = new int[HIGH * WIDE];
                    int[] column = new int[HIGH];
                    for (int k0 = 0; k0 < kInts; k0 += WIDE) {
                        int ks = Math.min(WIDE, kInts - k0);
                        for (int r = 0; r < count; r++) {
                            // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                            long at = source + r * rowBytes + 4L * k0;
                            MemorySegment.copy(values, ValueLayout.JAVA_INT, at, block, r * WIDE, ks);
                        }
                        for (int k = 0; k < ks; k++) {
                            for (int r = 0; r < count; r++) {
                                column[r] = block[r * WIDE + k];
                            }
                            long at = target + 4L * (k0 + k) * rows;
                            MemorySegment.copy(column, 0, into, ValueLayout.JAVA_INT, at, count);
                        }
                    }
                });
    }
}
