package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;

/**
 * Weights in the order of {@link PanelGemmKernels}: after {@link #weightPad} ints
 * {@code [E, panels of 64 rows, ⌈cols / 4⌉, 64 rows]} ints, so that neighbouring work-items, which have neighbouring
 * rows, read neighbouring ints, and a work-group reads on where it read before.
 */
public final class PanelWeights implements WeightLayout {
    private static final int PANEL = PanelGemmKernels.PANEL;

    @Override
    public long ints(long experts, int rows, int cols, int gate) {
        return experts * Math.ceilDiv(rows, PANEL) * PANEL * rowInts(cols);
    }

    /** A device's transfers are of cache lines, or of halves of them. */
    @Override
    public int weightPad() {
        return WeightLayout.padToCacheLine();
    }

    /** Rows that pad the last panel are written zeros. */
    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        int rows = from.rows();
        int panels = Math.ceilDiv(rows, PANEL);
        int kInts = Math.ceilDiv(from.cols(), 4);
        long rowBytes = from.rowBytes();
        IntStream.range(0, Math.multiplyExact(from.experts(), panels))
                .parallel()
                .forEach(p -> {
                    long first = (long) (p / panels) * rows + (long) (p % panels) * PANEL;
                    int here = Math.min(PANEL, rows - p % panels * PANEL);
                    for (int k = 0; k < kInts; k++) {
                        long target = ((long) p * kInts + k) * PANEL;
                        for (int row = 0; row < PANEL; row++) {
                            // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                            long source = (first + row) * rowBytes + 4L * k;
                            int word = row < here ? from.values().get(ValueLayout.JAVA_INT, source) : 0;
                            into.setAtIndex(ValueLayout.JAVA_INT, target + row, word);
                        }
                    }
                });
    }
}
