package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
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

    private static final int CHUNK = 64;
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

    /** Of halves there are those of what the first leave, too. */
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

    /** With groups, a row's scales and then what all of them are multiplied by. */
    @Override
    public long scales(Int8Quantization quantization, long experts, int packedRows, int cols) {
        int groups = isGrouped(quantization.scheme()) ? Math.ceilDiv(cols, quantization.colsPerScale(cols)) + 1 : 1;
        return experts * packedRows * groups;
    }

    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        int offset = halves ? 0x80808080 : 0;
        CudaWeights.eachRow(from, gate, CHUNK, GROUPS_OF_TILE, (r, source, start, chunkBytes) -> {
            for (int k = 0; k < from.rowBytes(); k += 4) {
                int four = from.values().get(ValueLayout.JAVA_INT_UNALIGNED, source + k);
                long to = start + k / CHUNK * chunkBytes + (long) r * CHUNK;
                into.set(ValueLayout.JAVA_INT_UNALIGNED, to + (placeOf(k % CHUNK) ^ r / 2 * 16), four ^ offset);
            }
        });
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
        for (int i = 0; i < from.experts() * packedRows; i++) {
            int expert = i / packedRows;
            int packed = i % packedRows;
            int row = CudaWeights.row(packed, from.rows(), gate);
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
        }
    }
}
