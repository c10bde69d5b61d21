package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Tensor;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/**
 * Weights in the order in which a warp takes them for {@code mma.sync}: {@code [E][tiles of 16 groups][chunks of 64
 * k][groups][8 rows][64 k]}, the last tile with fewer groups, rows and k padded with zeros, so that 16 bytes are what a
 * lane multiplies in four steps of 16 k, or in two of 32. Of 64 k the one at {@code 16s + 4j + i} is where
 * {@code 16j + 4s + i} would be; rows of activations have that order, too. Of row r of a group the j-th 16 bytes are
 * where the {@code j ^ r / 2}-th would be, so that {@code wgmma} takes them from shared memory, too.
 *
 * <p>Rows are permuted as {@link CudaWeights} says.
 *
 * @param halves whether activations are halves: weights are 128 more then, which makes one of two instructions that
 *     widen them
 */
public record MmaWeights(boolean halves) implements CudaWeights {
    /** Packed rows of a tile. */
    public static final int TILE_ROWS = 128;

    /** k of a chunk. */
    public static final int CHUNK = 64;

    private static final int CHUNK_LONGS = CHUNK / 8;

    /** A long, of which the lower half is the first int. */
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    private static final long LOW = 0xffff_ffffL;

    private static final int GROUPS_OF_TILE = TILE_ROWS / 8;

    /** A row's greatest scale is less than two to this, so that 255 times it, the most of a weight, is a half. */
    private static final int MOST = 7;

    public static int chunks(int cols) {
        return Math.ceilDiv(cols, CHUNK);
    }

    /** Whether scales change along k. */
    public static boolean isGrouped(Int8Scheme scheme) {
        return scheme == Int8Scheme.W8A8_BLOCK || scheme == Int8Scheme.W8A16_GROUP;
    }

    /** With halves each value has two: itself rounded, and the remainder. */
    @Override
    public int rowInts(int cols) {
        return chunks(cols) * CHUNK / 4 * (halves ? 4 : 1);
    }

    @Override
    public int placeOf(int k) {
        return (k & ~63) + (k & 12) * 4 + (k >> 4 & 3) * 4 + (k & 3);
    }

    @Override
    public long ints(long experts, int rows, int cols, int gate) {
        return experts * CudaWeights.groups(rows, gate) * chunks(cols) * (8 * CHUNK / 4);
    }

    /** With groups, a row's scales are followed by a factor of all of them. */
    @Override
    public long scales(Int8Quantization quantization, long experts, int packedRows, int cols) {
        int groups = isGrouped(quantization.scheme()) ? Math.ceilDiv(cols, quantization.colsPerScale(cols)) + 1 : 1;
        return experts * packedRows * groups;
    }

    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        long offset = halves ? 0x8080_8080_8080_8080L : 0;
        CudaWeights.eachGroup(from, gate, CHUNK, GROUPS_OF_TILE, (rows, start, chunkBytes) -> {
            int longs = from.rowBytes() / 8;
            long[] row = new long[chunks(from.cols()) * CHUNK_LONGS];
            long[] packed = new long[8 * row.length];
            for (int r = 0; r < 8; r++) {
                if (rows[r] >= 0) {
                    MemorySegment.copy(from.values(), LONG, rows[r], row, 0, longs);
                    for (int k = 0; k < longs; k++) {
                        row[k] ^= offset;
                    }
                    for (int chunk = 0; chunk < row.length; chunk += CHUNK_LONGS) {
                        place(row, chunk, packed, 8 * chunk + r * CHUNK_LONGS, r / 2 * 2);
                    }
                }
            }
            for (int chunk = 0; chunk < chunks(from.cols()); chunk++) {
                long target = start + chunk * chunkBytes;
                MemorySegment.copy(packed, chunk * 8 * CHUNK_LONGS, into, LONG, target, 8 * CHUNK_LONGS);
            }
        });
    }

    /**
     * A row's 16 ints of a chunk as {@link #placeOf} has them, four by four, of which the fours are exchanged: the f-th
     * has the ints f, f + 4, f + 8 and f + 12, of which a long holds two.
     */
    private static void place(long[] row, int first, long[] into, int at, int exchanged) {
        for (int two = 0; two < 2; two++) {
            long a = row[first + two];
            long b = row[first + two + 2];
            long c = row[first + two + 4];
            long d = row[first + two + 6];
            int even = at + (4 * two ^ exchanged);
            into[even] = (a & LOW) | (b << 32);
            into[even + 1] = (c & LOW) | (d << 32);
            int odd = at + (4 * two + 2 ^ exchanged);
            into[odd] = (a >>> 32) | (b & ~LOW);
            into[odd + 1] = (c >>> 32) | (d & ~LOW);
        }
    }

    /**
     * Scales as they are, but for those of groups whose weights become halves: a power of two makes the greatest of a
     * row's from 2^6 to 2^7, and is what they are multiplied by in the end.
     */
    @Override
    public void packScales(Int8Tensor from, int gate, FloatArray scales, FloatArray zeroPoints) {
        int packedRows = packedRows(from.rows(), gate);
        int perRow = scales.getSize() / (from.experts() * packedRows);
        byte[] zeros = from.zeroPoints();
        CudaWeights.eachPackedRow(from, gate, (expert, packed, row) -> {
            int first = expert * perRow * packedRows + packed;
            int groups = Math.max(1, perRow - 1);
            float greatest = 0;
            for (int g = 0; g < groups; g++) {
                int source = row < 0
                        ? -1
                        : from.scaleIndex(expert, row, Math.min(g, from.scaleCols() - 1) * from.colsPerScale());
                float scale = row < 0 ? 0 : from.scales()[source];
                scales.set(first + g * packedRows, scale);
                greatest = Math.max(greatest, Math.abs(scale));
                if (zeros != null) {
                    zeroPoints.set(first + g * packedRows, row < 0 ? 0 : zeros[source]);
                }
            }
            if (perRow > 1) {
                int exponent = halves && greatest > 0 ? Math.getExponent(greatest) - MOST + 1 : 0;
                for (int g = 0; g < groups; g++) {
                    int at = first + g * packedRows;
                    scales.set(at, Math.scalb(scales.get(at), -exponent));
                }
                scales.set(first + groups * packedRows, Math.scalb(1f, exponent));
                if (zeros != null) {
                    zeroPoints.set(first + groups * packedRows, 0);
                }
            }
        });
    }
}
