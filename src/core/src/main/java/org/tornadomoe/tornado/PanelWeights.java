package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Weights in the order of {@link PanelGemmKernels}: after {@link #lead} ints {@code [E, panels of 64 rows, ⌈cols / 4⌉, 64 rows]} ints, so that neighbouring
 * work-items, which have neighbouring rows, read neighbouring ints, and a work-group reads on where it read before.
 */
final class PanelWeights {
    private static final int PANEL = PanelGemmKernels.PANEL;

    /** The device's transfers are of so many bytes, or of halves of them. */
    private static final int ALIGNMENT = 128;

    private PanelWeights() {}

    /** Ints in front, so that panels begin at a multiple of {@link #ALIGNMENT} on the device, where TornadoVM's header begins at one. */
    static int lead() {
        return Math.floorMod(-(int) TornadoNativeArray.ARRAY_HEADER, ALIGNMENT) / 4;
    }

    /** Ints that the weights [E, rows, cols] take, with those in front. */
    static long ints(long experts, int rows, int cols) {
        return lead() + experts * Math.ceilDiv(rows, PANEL) * PANEL * Math.ceilDiv(cols, 4);
    }

    /** Puts them in that order, on all cores; rows that pad the last panel are written zeros. */
    static void pack(Int8Tensor from, IntArray into) {
        int rows = from.rows();
        int panels = Math.ceilDiv(rows, PANEL);
        int kInts = Math.ceilDiv(from.cols(), 4);
        long rowBytes = from.rowBytes();
        MemorySegment packed = into.getSegment();
        IntStream.range(0, Math.multiplyExact(from.experts(), panels))
                .parallel()
                .forEach(p -> {
                    long first = (long) (p / panels) * rows + (long) (p % panels) * PANEL;
                    int here = Math.min(PANEL, rows - p % panels * PANEL);
                    for (int k = 0; k < kInts; k++) {
                        long target = lead() + ((long) p * kInts + k) * PANEL;
                        for (int row = 0; row < PANEL; row++) {
                            // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                            long source = (first + row) * rowBytes + 4L * k;
                            int word = row < here ? from.values().get(ValueLayout.JAVA_INT, source) : 0;
                            packed.setAtIndex(ValueLayout.JAVA_INT, target + row, word);
                        }
                    }
                });
    }
}
