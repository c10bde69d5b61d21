package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Weights in the order in which tensor cores take them: a warp reads a tile of 16 rows and 32 of k with one load of 16 bytes a
 * lane, 512 neighbouring bytes, straight into the registers of {@code mma.m16n8k32}'s first operand.
 *
 * <p>{@code [E][tiles of 16 rows][chunks of 64 k][2 steps][32 lanes][4 ints]}, rows and k padded with zeros. Lane 4g + j
 * holds of rows g and g + 8, in step s, the four int8 of k = 16j + 8s (ints 0 and 1) and those of k = 16j + 8s + 4 (ints
 * 2 and 3). So of the second operand a lane reads 16 neighbouring bytes as well, k = 16j to 16j + 15 of row g of the
 * activations, and has both steps' registers.
 */
final class TiledWeights {
    /** Rows of a tile. */
    static final int ROWS = 16;

    /** k of a chunk. */
    static final int CHUNK = 64;

    private TiledWeights() {}

    static int tiles(int rows) {
        return Math.ceilDiv(rows, ROWS);
    }

    static int chunks(int cols) {
        return Math.ceilDiv(cols, CHUNK);
    }

    /** Ints that the weights [E, rows, cols] take. */
    static long ints(long experts, int rows, int cols) {
        return experts * tiles(rows) * chunks(cols) * (ROWS * CHUNK / 4);
    }

    /** Puts them in that order, on all cores. */
    static void pack(Int8Tensor from, IntArray into) {
        int tiles = tiles(from.rows());
        int chunks = chunks(from.cols());
        IntStream.range(0, Math.multiplyExact(from.experts(), tiles)).parallel().forEach(t -> {
            long target = (long) t * chunks * (ROWS * CHUNK / 4);
            for (int lane = 0; lane < 32; lane++) {
                packRow(from, t / tiles, t % tiles * ROWS + lane / 4, lane, 0, into.getSegment(), target);
                packRow(from, t / tiles, t % tiles * ROWS + lane / 4 + 8, lane, 1, into.getSegment(), target);
            }
        });
    }

    /** A lane's part of one row: every second of its ints. */
    private static void packRow(
            Int8Tensor from, int expert, int row, int lane, int half, MemorySegment into, long target) {
        if (row >= from.rows()) {
            return;
        }
        int rowBytes = from.rowBytes();
        long source = ((long) expert * from.rows() + row) * rowBytes;
        int chunks = chunks(from.cols());
        for (int chunk = 0; chunk < chunks; chunk++) {
            for (int quarter = 0; quarter < 4; quarter++) {
                int k = chunk * CHUNK + lane % 4 * 16 + quarter * 4;
                if (k < rowBytes) {
                    // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                    int word = lane * 4 + quarter % 2 * 2 + half;
                    long at = target + (chunk * 2L + quarter / 2) * 128 + word;
                    into.setAtIndex(ValueLayout.JAVA_INT, at, from.values().get(ValueLayout.JAVA_INT, source + k));
                }
            }
        }
    }
}
