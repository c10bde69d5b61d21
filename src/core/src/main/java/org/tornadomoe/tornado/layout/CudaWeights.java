package org.tornadomoe.tornado.layout;

import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/**
 * What the orders of weights for kernels in CUDA C have in common: {@code [E][tiles of groups][chunks of
 * k][groups][8 rows][k]}, and all of it begins at a cache line.
 *
 * <p>Rows are permuted within 32 ({@link #row}), so that a work-item has neighbouring values of the result, and of a
 * gated activation both factors. Scales and biases are in the same order.
 */
public interface CudaWeights extends WeightLayout {
    /**
     * Groups of 8 packed rows.
     *
     * @param layout of {@link ActivationKernels}: what the rows of the product are
     */
    static int groups(int rows, int layout) {
        return layout == ActivationKernels.NO_GATE ? Math.ceilDiv(rows, 32) * 4 : Math.ceilDiv(rows / 2, 16) * 4;
    }

    /** Without it, the GEMMs took up to 1.7 times as long. */
    @Override
    default int weightPad() {
        return padTo(Quirks.HERE);
    }

    /** The same with another version of TornadoVM's, on which it depends where an array's values begin. */
    static int padTo(Quirks quirks) {
        return Math.floorMod(-quirks.payload(), CACHE_LINE) / 4;
    }

    @Override
    default int activationPad() {
        return weightPad();
    }

    @Override
    default int packedRows(int rows, int gate) {
        return groups(rows, gate) * 8;
    }

    @Override
    default boolean numbersAllExperts() {
        return true;
    }

    @Override
    default void packBias(float[] from, int first, int experts, int rows, int gate, FloatArray into) {
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

    /** Puts 8 packed rows where they belong; a row's bytes past its columns are zero, up to the 16 that they fill. */
    @FunctionalInterface
    interface GroupPacker {
        /**
         * Puts them there.
         *
         * @param rows where each row begins in the tensor's values; −1 if there is none
         * @param start where the group of the first chunk begins
         * @param chunkBytes from there to the group of the next chunk
         */
        void pack(long[] rows, long start, long chunkBytes);
    }

    /**
     * Takes every group, on all cores.
     *
     * @param chunk k of a chunk
     */
    static void eachGroup(Int8Tensor from, int gate, int chunk, int groupsOfTile, GroupPacker packer) {
        int groups = groups(from.rows(), gate);
        int chunks = Math.ceilDiv(from.cols(), chunk);
        long groupBytes = 8L * chunk;
        IntStream.range(0, Math.multiplyExact(from.experts(), groups))
                .parallel()
                .forEach(g -> {
                    int expert = g / groups;
                    int group = g % groups;
                    int firstOfTile = group - group % groupsOfTile;
                    long chunkBytes = Math.min(groupsOfTile, groups - firstOfTile) * groupBytes;
                    long start = (((long) expert * groups + firstOfTile) * chunks + group - firstOfTile) * groupBytes;
                    long[] rows = new long[8];
                    for (int r = 0; r < 8; r++) {
                        int row = row(group * 8 + r, from.rows(), gate);
                        rows[r] = row < 0 ? -1 : ((long) expert * from.rows() + row) * from.rowBytes();
                    }
                    packer.pack(rows, start, chunkBytes);
                });
    }

    /** Takes a row that has a scale. */
    @FunctionalInterface
    interface PackedRow {
        /**
         * Takes one.
         *
         * @param row the one that is packed as the {@code packed}-th; −1 if none is
         */
        void take(int expert, int packed, int row);
    }

    /** Takes every packed row, on all cores. */
    static void eachPackedRow(Int8Tensor from, int gate, PackedRow each) {
        int packedRows = groups(from.rows(), gate) * 8;
        IntStream.range(0, from.experts()).parallel().forEach(expert -> {
            for (int packed = 0; packed < packedRows; packed++) {
                each.take(expert, packed, row(packed, from.rows(), gate));
            }
        });
    }

    /** A value for every packed row, in that order; zeros where there is none. */
    static void pack(float[] from, int experts, int rows, int gate, FloatArray into) {
        int packedRows = groups(rows, gate) * 8;
        for (int i = 0; i < experts * packedRows; i++) {
            int row = row(i % packedRows, rows, gate);
            into.set(i, row < 0 ? 0 : from[i / packedRows * rows + row]);
        }
    }
}
