package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Weights in the order in which Hopper's {@code wgmma} takes them from shared memory, so that a stage of a tile is one
 * copy of neighbouring bytes: {@code [E][tiles of 32 groups][chunks of 128 k][groups][8 rows][128 k]}, the last tile
 * with fewer groups, rows and k padded with zeros. Of row r of a group the i-th 16 bytes of k are where the
 * {@code i ^ r}-th would be.
 *
 * <p>Rows are permuted within 32 ({@link #row}), so that a work-item has neighbouring values of the result, and of a
 * gated activation both factors. Scales and biases are in the same order.
 */
public final class HopperWeights implements WeightLayout {
    /** k of a chunk. */
    public static final int CHUNK = 128;

    private static final long GROUP_BYTES = 8 * CHUNK;

    private static final int GROUPS_OF_TILE = 32;

    public static int chunks(int cols) {
        return Math.ceilDiv(cols, CHUNK);
    }

    /**
     * Groups of 8 packed rows.
     *
     * @param layout of {@link ActivationKernels}: what the rows of the product are
     */
    public static int groups(int rows, int layout) {
        return layout == ActivationKernels.NO_GATE ? Math.ceilDiv(rows, 32) * 4 : Math.ceilDiv(rows / 2, 16) * 4;
    }

    @Override
    public int rowInts(int cols) {
        return chunks(cols) * (CHUNK / 4);
    }

    @Override
    public long ints(long experts, int rows, int cols, int gate) {
        return experts * groups(rows, gate) * chunks(cols) * (8 * CHUNK / 4);
    }

    /** Without it, the GEMMs took up to 1.7 times as long. */
    @Override
    public int weightPad() {
        return padTo(Quirks.HERE);
    }

    /** The same with another version of TornadoVM's, on which it depends where an array's values begin. */
    static int padTo(Quirks quirks) {
        return Math.floorMod(-quirks.payload(), CACHE_LINE) / 4;
    }

    @Override
    public int activationPad() {
        return weightPad();
    }

    @Override
    public int packedRows(int rows, int gate) {
        return groups(rows, gate) * 8;
    }

    @Override
    public boolean numbersAllExperts() {
        return true;
    }

    @Override
    public void pack(Int8Tensor from, int gate, IntArray into) {
        pack(from, gate, into.getSegment().asSlice(4L * weightPad()));
    }

    @Override
    public void packScales(Int8Tensor from, int gate, FloatArray scales, FloatArray zeroPoints) {
        pack(from.scales(), from.experts(), from.rows(), gate, scales);
    }

    @Override
    public void packBias(float[] from, int first, int experts, int rows, int gate, FloatArray into) {
        pack(from, experts, rows, gate, into);
    }

    /**
     * The row that is packed as the {@code packed}-th, −1 if none is. The 16 twos of neighbouring rows of 32 are
     * distributed: a two is the packed rows {@code 8i + 2q} and the next, with i and q from 0 to 3. Two {@code 4q + i}
     * is a row of the gate and the one of the up projection, so that a work-item has four neighbouring values of the
     * activation; without a gate two {@code 8(i / 2) + 2q + i % 2} is row and next row, so that it has four
     * neighbouring values twice.
     */
    static int row(int packed, int rows, int layout) {
        int within = packed % 32;
        int q = within % 8 / 2;
        int i = within / 8;
        int two = packed / 32 * 16 + (layout == ActivationKernels.NO_GATE ? i / 2 * 8 + 2 * q + i % 2 : 4 * q + i);
        int second = packed % 2;
        int row = layout == ActivationKernels.HALVES ? two + second * (rows / 2) : 2 * two + second;
        boolean none = layout == ActivationKernels.HALVES ? two >= rows / 2 : row >= rows;
        return none ? -1 : row;
    }

    /** Puts weights in that order, on all cores. */
    public static void pack(Int8Tensor from, int layout, MemorySegment into) {
        int groups = groups(from.rows(), layout);
        int chunks = chunks(from.cols());
        IntStream.range(0, Math.multiplyExact(from.experts(), groups))
                .parallel()
                .forEach(g -> {
                    int expert = g / groups;
                    int group = g % groups;
                    int firstOfTile = group - group % GROUPS_OF_TILE;
                    long groupsHere = Math.min(GROUPS_OF_TILE, groups - firstOfTile);
                    long start = (((long) expert * groups + firstOfTile) * chunks + group - firstOfTile) * GROUP_BYTES;
                    for (int r = 0; r < 8; r++) {
                        int row = row(group * 8 + r, from.rows(), layout);
                        if (row >= 0) {
                            long source = ((long) expert * from.rows() + row) * from.rowBytes();
                            // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                            for (int k = 0; k < from.rowBytes(); k += 16) {
                                int within = r * CHUNK + ((k % CHUNK / 16) ^ r) * 16;
                                long at = start + k / CHUNK * groupsHere * GROUP_BYTES + within;
                                MemorySegment.copy(from.values(), source + k, into, at, 16);
                            }
                        }
                    }
                });
    }

    /** A value for every packed row, in that order; zeros where there is none. */
    public static void pack(float[] from, int experts, int rows, int layout, FloatArray into) {
        int packedRows = groups(rows, layout) * 8;
        for (int i = 0; i < experts * packedRows; i++) {
            int row = row(i % packedRows, rows, layout);
            into.set(i, row < 0 ? 0 : from[i / packedRows * rows + row]);
        }
    }
}
