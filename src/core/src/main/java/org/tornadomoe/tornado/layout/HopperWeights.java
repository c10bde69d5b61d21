package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import org.tornadomoe.quant.Int8Tensor;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/**
 * Weights in the order in which Hopper's {@code wgmma} takes them from shared memory, so that a stage of a tile is one
 * copy of neighbouring bytes: {@code [E][tiles of 32 groups][chunks of 128 k][groups][8 rows][128 k]}, the last tile
 * with fewer groups, rows and k padded with zeros. Of row r of a group the i-th 16 bytes of k are where the
 * {@code i ^ r}-th would be.
 *
 * <p>Rows are permuted as {@link CudaWeights} says.
 */
public final class HopperWeights implements CudaWeights {
    /** k of a chunk. */
    public static final int CHUNK = 128;

    private static final int GROUPS_OF_TILE = 32;

    public static int chunks(int cols) {
        return Math.ceilDiv(cols, CHUNK);
    }

    @Override
    public int rowInts(int cols) {
        return chunks(cols) * (CHUNK / 4);
    }

    @Override
    public long ints(long experts, int rows, int cols, int gate) {
        return experts * CudaWeights.groups(rows, gate) * chunks(cols) * (8 * CHUNK / 4);
    }

    @Override
    public void packScales(Int8Tensor from, int gate, FloatArray scales, FloatArray zeroPoints) {
        CudaWeights.eachPackedRow(
                from,
                gate,
                (expert, packed, row) -> scales.set(
                        expert * packedRows(from.rows(), gate) + packed,
                        row < 0 ? 0 : from.scales()[from.scaleIndex(expert, row, 0)]));
    }

    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        CudaWeights.eachGroup(from, gate, CHUNK, GROUPS_OF_TILE, (rows, start, chunkBytes) -> {
            for (int r = 0; r < 8; r++) {
                for (int k = 0; rows[r] >= 0 && k < from.rowBytes(); k += 16) {
                    int within = r * CHUNK + ((k % CHUNK / 16) ^ r) * 16;
                    MemorySegment.copy(from.values(), rows[r] + k, into, start + k / CHUNK * chunkBytes + within, 16);
                }
            }
        });
    }
}
