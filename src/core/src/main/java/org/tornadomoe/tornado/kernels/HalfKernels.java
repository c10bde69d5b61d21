package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Hidden states of 16 bits, two to an int, the first in its lower half. What the bits mean is in tables, since
 * TornadoVM has no way from a float's bits to an int, and BF16 is no type of its.
 */
public final class HalfKernels {
    /** Work-items of a group. */
    public static final int GROUP = 128;

    private HalfKernels() {}

    /**
     * {@code floats[i] = widened[bits of i]}.
     *
     * <p>Grid: a work-item an int, in groups of {@link #GROUP}. Costs 10 bytes a value, the table aside.
     *
     * @param header [0] = M
     * @param halves [⌈M·H / 2⌉]
     * @param widened [65536], the value of all bits
     * @param floats [M, H], written
     */
    public static void widenHalves(
            KernelContext ctx, IntArray header, IntArray halves, FloatArray widened, FloatArray floats, int hiddenDim) {
        int index = 2 * ctx.globalIdx;
        int values = header.get(0) * hiddenDim;
        if (index < values) {
            int both = halves.get(ctx.globalIdx);
            floats.set(index, widened.get(both & 0xffff));
            if (index + 1 < values) {
                floats.set(index + 1, widened.get((both >> 16) & 0xffff));
            }
        }
    }

    /**
     * The bits of each value: the greatest whose least magnitude the value reaches.
     *
     * <p>Grid: a work-item an int, in groups of {@link #GROUP}. Costs 6 bytes a value, and 15 steps through the table.
     *
     * @param header [0] = M
     * @param floats [M, H]
     * @param least [infinity + 1]: the least magnitude that is rounded to these bits or greater ones
     * @param halves [⌈M·H / 2⌉], written
     * @param infinity the bits of infinity
     * @param nan the bits of what is no number
     */
    public static void narrowToHalves(
            KernelContext ctx,
            IntArray header,
            FloatArray floats,
            FloatArray least,
            IntArray halves,
            int hiddenDim,
            int infinity,
            int nan) {
        int index = 2 * ctx.globalIdx;
        int values = header.get(0) * hiddenDim;
        if (index < values) {
            int both = narrow(floats.get(index), least, infinity, nan);
            if (index + 1 < values) {
                both = both | (narrow(floats.get(index + 1), least, infinity, nan) << 16);
            }
            halves.set(ctx.globalIdx, both);
        }
    }

    private static int narrow(float value, FloatArray least, int infinity, int nan) {
        int sign = 0;
        float magnitude = value;
        if (value < least.get(0)) {
            sign = 0x8000;
            magnitude = -value;
        }
        int bits = 0;
        for (int step = 1 << 14; step > 0; step = step >> 1) {
            int next = bits + step;
            if (next <= infinity) {
                if (magnitude >= least.get(next)) {
                    bits = next;
                }
            }
        }
        if (bits == 0) {
            // zero, but for what compares with nothing
            if (magnitude >= least.get(0)) {
                bits = 0;
            } else {
                bits = nan;
            }
        }
        return sign | bits;
    }
}
