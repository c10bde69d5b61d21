package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.Int8Tensor;

/**
 * Weights in the order in which AMD's matrix cores take them: after {@link #weightPad} ints {@code [E][tiles of 16
 * rows][chunks of 64 k][4 pieces of 16 k][16 rows][16 k]}, rows and k padded with zeros. A wave reads a tile's chunk, 1
 * KB, with loads of 16 bytes a lane that are next to each other. Of 64 k the one at {@code 16p + 4n + i} is where
 * {@code 16p + 4n + i} or, with halves, {@code 16n + 4p + i} would be.
 *
 * @param halves whether activations are halves: one of four instructions of 16 k takes what is 4 bytes of each piece
 *     then, and weights are 128 more, which makes one of two instructions that widen them
 */
public record AmdWeights(boolean halves) implements RowTiles {
    /** Bytes of a piece, what a lane loads at once. */
    private static final int PIECE = 16;

    @Override
    public int weightPad() {
        return WeightLayout.padToCacheLine();
    }

    /** With halves each value has two, itself rounded and the remainder; behind them is the row's scale. */
    @Override
    public int rowInts(int cols) {
        int ints = RowTiles.super.rowInts(cols);
        return halves ? 4 * ints + PIECE / 4 : ints;
    }

    /** With halves there are scales for a tile's rows beyond the last one, too, because the kernel reads them. */
    @Override
    public long scales(Int8Quantization quantization, long experts, int packedRows, int cols) {
        return RowTiles.super.scales(quantization, experts, packedRows, cols) + (halves ? ROWS : 0);
    }

    /** Where the bytes of a row from the k-th on, four of them, are in its pieces. */
    private long placeOf(long k) {
        return halves ? (k & ~63) + (k & 12) * 4 + (k >> 4 & 3) * 4 : k;
    }

    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        int rows = from.rows();
        int tiles = RowTiles.tiles(rows);
        int chunks = RowTiles.chunks(from.cols());
        long rowBytes = from.rowBytes();
        IntStream.range(0, Math.multiplyExact(from.experts(), tiles)).parallel().forEach(t -> {
            int first = t % tiles * ROWS;
            long source = ((long) (t / tiles) * rows + first) * rowBytes;
            long target = (long) t * chunks * ROWS * CHUNK;
            into.asSlice(target, (long) chunks * ROWS * CHUNK).fill((byte) (halves ? 0x80 : 0));
            for (int row = 0; row < Math.min(ROWS, rows - first); row++) {
                // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                for (long k = 0; k < rowBytes; k += 4) {
                    int four = from.values().get(ValueLayout.JAVA_INT_UNALIGNED, source + row * rowBytes + k);
                    long place = placeOf(k);
                    into.set(
                            ValueLayout.JAVA_INT_UNALIGNED,
                            target + (place / PIECE * ROWS + row) * PIECE + place % PIECE,
                            halves ? four ^ 0x80808080 : four);
                }
            }
        });
    }
}
