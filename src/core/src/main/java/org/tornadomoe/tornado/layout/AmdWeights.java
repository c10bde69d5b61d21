package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Weights in the order in which AMD's matrix cores take them: after {@link #weightPad} ints {@code [E][tiles of 16
 * rows][chunks of 64 k][4 pieces of 16 k][16 rows][16 k]}, rows and k padded with zeros. A wave reads a tile's chunk, 1
 * KB, with loads of 16 bytes a lane that are next to each other.
 */
public final class AmdWeights implements RowTiles {
    /** Bytes of a piece, what a lane loads at once. */
    private static final int PIECE = 16;

    @Override
    public int weightPad() {
        return WeightLayout.padToCacheLine();
    }

    @Override
    public void pack(Int8Tensor from, int gate, IntArray into) {
        int rows = from.rows();
        int tiles = RowTiles.tiles(rows);
        int chunks = RowTiles.chunks(from.cols());
        long rowBytes = from.rowBytes();
        MemorySegment packed = into.getSegment().asSlice(4L * weightPad());
        IntStream.range(0, Math.multiplyExact(from.experts(), tiles)).parallel().forEach(t -> {
            int first = t % tiles * ROWS;
            long source = ((long) (t / tiles) * rows + first) * rowBytes;
            long target = (long) t * chunks * ROWS * CHUNK;
            packed.asSlice(target, (long) chunks * ROWS * CHUNK).fill((byte) 0);
            for (int row = 0; row < Math.min(ROWS, rows - first); row++) {
                // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                for (long piece = 0; piece < rowBytes / PIECE; piece++) {
                    long at = source + row * rowBytes + piece * PIECE;
                    MemorySegment.copy(
                            from.values(),
                            ValueLayout.JAVA_BYTE,
                            at,
                            packed,
                            ValueLayout.JAVA_BYTE,
                            target + (piece * ROWS + row) * PIECE,
                            PIECE);
                }
            }
        });
    }
}
