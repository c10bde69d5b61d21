package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.tornadomoe.quant.Int8Tensor;

/**
 * Weights in the order in which tensor cores take them: a warp reads a tile of 16 rows and 32 of k with one load of 16
 * bytes a lane, 512 neighbouring bytes, straight into the registers of {@code mma.m16n8k32}'s first operand.
 *
 * <p>{@code [E][tiles of 16 rows][chunks of 64 k][2 steps][32 lanes][4 ints]}, rows and k padded with zeros. Lane 4g +
 * j holds of rows g and g + 8, in step s, the four int8 of k = 16j + 8s (ints 0 and 1) and those of k = 16j + 8s + 4
 * (ints 2 and 3). So of the second operand a lane reads 16 neighbouring bytes as well, k = 16j to 16j + 15 of row g of
 * the activations, and has both steps' registers.
 */
public final class TiledWeights implements RowTiles {
    /** Chunks that are packed together: so many as lie in the cache. */
    private static final int TOGETHER = 8;

    /** Ints of a row in these. */
    private static final int LINE = TOGETHER * CHUNK / 4;

    /** What is where in these chunks of a tile: row times {@link #LINE} and int of the row. */
    private static final int[] WORDS = words();

    @Override
    public void pack(Int8Tensor from, int gate, MemorySegment into) {
        int tiles = RowTiles.tiles(from.rows());
        int chunks = RowTiles.chunks(from.cols());
        int rowInts = from.rowBytes() / 4;
        IntStream.range(0, Math.multiplyExact(from.experts(), tiles)).parallel().forEach(t -> {
            int first = t % tiles * ROWS;
            int rows = Math.min(ROWS, from.rows() - first);
            long source = ((long) t / tiles * from.rows() + first) * from.rowBytes();
            int[] lines = new int[ROWS * LINE];
            int[] packed = new int[WORDS.length];
            for (int chunk = 0; chunk < chunks; chunk += TOGETHER) {
                int k = chunk * CHUNK / 4;
                // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                int ints = Math.min(LINE, rowInts - k);
                if (ints < LINE) {
                    Arrays.fill(lines, 0);
                }
                for (int row = 0; row < rows; row++) {
                    long at = source + (long) row * from.rowBytes() + 4L * k;
                    MemorySegment.copy(from.values(), ValueLayout.JAVA_INT, at, lines, row * LINE, ints);
                }
                int words = Math.min(TOGETHER, chunks - chunk) * ROWS * CHUNK / 4;
                for (int i = 0; i < words; i++) {
                    packed[i] = lines[WORDS[i]];
                }
                long target = ((long) t * chunks + chunk) * ROWS * CHUNK;
                MemorySegment.copy(packed, 0, into, ValueLayout.JAVA_INT, target, words);
            }
        });
    }

    private static int[] words() {
        int[] words = new int[ROWS * LINE];
        for (int at = 0; at < words.length; at++) {
            int chunk = at / 256;
            int step = at / 128 % 2;
            int lane = at % 128 / 4;
            int word = at % 4;
            words[at] = (lane / 4 + word % 2 * 8) * LINE + chunk * (CHUNK / 4) + lane % 4 * 4 + step * 2 + word / 2;
        }
        return words;
    }
}
