package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.enums.MMAShape;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

/** One instruction each, to find out whether a device's compiler has it. Each runs as one group of {@link #GROUP}. */
public final class ProbeKernels {
    /** Work-items of the group: a warp. */
    public static final int GROUP = 32;

    private ProbeKernels() {}

    /**
     * {@code out[i] = i + a[i] · b[i]}, the product that of four int8 pairs.
     *
     * @param a [32], four int8 to an int
     * @param b [32] likewise
     * @param out [32]
     */
    public static void probeDp4a(KernelContext ctx, IntArray a, IntArray b, IntArray out) {
        int i = ctx.globalIdx;
        out.set(i, QuantizationUtils.dp4a_packed(a.get(i), b.get(i), i));
    }

    /**
     * One tensor-core product in int8, {@code out = a · b}.
     *
     * @param a [16, 8], rows of 32 k, four to an int
     * @param b [16, 4], an int holding (k, n), (k + 1, n), (k, n + 1) and (k + 1, n + 1), with k twice its row and n
     *     twice its column
     * @param out [16, 8]
     */
    public static void probeInt8Mma(KernelContext ctx, IntArray a, IntArray b, IntArray out) {
        int[] aTile = ctx.allocateIntLocalArray(128);
        int[] bTile = ctx.allocateIntLocalArray(64);
        int lane = ctx.localIdx;
        for (int i = lane; i < 128; i += GROUP) {
            aTile[i] = a.get(i);
        }
        for (int i = lane; i < 64; i += GROUP) {
            bTile[i] = b.get(i);
        }
        ctx.localBarrier();
        int[] sum = ctx.mmaFragmentInt(0);
        sum = ctx.mmaInt8(ctx.mmaLoadAInt8(aTile, 32), ctx.mmaLoadBInt8(bTile, 32), sum, MMAShape.M16N8K32);
        ctx.mmaStoreInt(sum, out, 0, 0, 8);
    }

    /**
     * One tensor-core product of halves as {@link FragmentHalfKernels} has them, {@code out = a · b}: a lane names a
     * row of a's tile, and b's halves are whole numbers as bits, 2^-24 of them.
     *
     * @param a [16, 8], rows of 16 k, two to an int
     * @param b [16, 4], a k's 8 columns, two to an int
     * @param out [16, 8]
     */
    public static void probeHalfMma(KernelContext ctx, IntArray a, IntArray b, FloatArray out) {
        int[] aTile = ctx.allocateIntLocalArray(128);
        int[] bTile = ctx.allocateIntLocalArray(64);
        int lane = ctx.localIdx;
        for (int i = lane; i < 128; i += GROUP) {
            aTile[i ^ (i >> 5 & 1) * 4] = a.get(i);
        }
        for (int i = lane; i < 64; i += GROUP) {
            bTile[i] = b.get(i);
        }
        ctx.localBarrier();
        float[] sum = ctx.mmaFragment(0.0f);
        sum = ctx.mma(
                ctx.mmaLoadA(aTile, 16, FragmentGemmKernels.swapped(lane)),
                ctx.mmaLoadB(bTile, 16, 0),
                sum,
                MMAShape.M16N8K16);
        ctx.mmaStore(sum, out, 0, 0, 8);
    }
}
