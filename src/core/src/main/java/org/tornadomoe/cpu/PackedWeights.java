package org.tornadomoe.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Objects;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.Int8Products;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.SystemMemory;

/**
 * One projection of all experts, in the order in which it is read: E experts of blocks of {@value #ROWS} rows, each
 * column by column. The last block is filled up with rows of zeros.
 *
 * @param blocks of an expert
 * @param groups groups of columns with scales of their own, {@code colsPerGroup} wide, the last perhaps less
 * @param groupStride columns of a group filled up, with zeros, for native products; else colsPerGroup
 * @param values [E, blocks, cols, {@value #ROWS}]; for native products [E, blocks, groups, groupStride / 4, {@value
 *     #ROWS}, 4]
 * @param scales [E, blocks, groups, {@value #ROWS}]
 * @param zeroPoints likewise; null for none
 * @param bias [E, blocks, {@value #ROWS}]; null for none
 * @param shifts for native products, [E, blocks, groups, {@value #ROWS}]: what they have too much, since activations
 *     are moved by {@value Int8Products#SHIFT}; else null
 * @param scalesInFloat whether groups' sums may be multiplied by their scales in float: there are several groups, none
 *     has more columns than are summed in float, and no scale is extreme
 * @param rowOf the tensor's row of each of an expert's rows here, −1 for one that fills up
 */
record PackedWeights(
        int experts,
        int blocks,
        int cols,
        int groups,
        int colsPerGroup,
        int groupStride,
        MemorySegment values,
        float[] scales,
        float @Nullable [] zeroPoints,
        float @Nullable [] bias,
        int @Nullable [] shifts,
        boolean scalesInFloat,
        int[] rowOf) {
    static final int ROWS = Arithmetic.ROWS;

    /**
     * What a block is packed in: its rows, and the same in the order here, all of it for native products, where columns
     * that fill up stay zero, else a tile.
     */
    private record Block(byte[] lines, byte[] packed) {}

    /** Packs a block of all; its expert is that one of the tensor. */
    @FunctionalInterface
    private interface BlockPacker {
        void pack(Int8Tensor from, int expert, int block);
    }

    private static final VarHandle LONG = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

    private static final long BYTES = 0x00ff_00ff_00ff_00ffL;
    private static final long PAIRS = 0x0000_ffff_0000_ffffL;
    private static final long FOURS = 0x0000_0000_ffff_ffffL;

    /** Bytes of a line of the cache. */
    private static final int LINE = 64;

    /** Columns that are turned at once: as many as the nearest cache holds. */
    private static final int TILE = 128;

    private static final float LEAST_SCALE = 0x1p-60f;

    /** Past the last value, for vectors that are read whole. */
    private static final int PADDING = 64;

    /**
     * Packs.
     *
     * @param rows of an expert here, those that fill up included
     * @param rowOf the tensor's row of each, −1 for none
     * @param bias [E, tensor rows]; null for none
     * @param forProducts whether for {@link Int8Products}
     */
    static PackedWeights of(
            Int8Tensor w, int rows, IntUnaryOperator rowOf, float @Nullable [] bias, boolean forProducts, Arena arena) {
        int blocks = Math.ceilDiv(rows, ROWS);
        int cols = w.cols();
        int[] sources = new int[blocks * ROWS];
        Arrays.fill(sources, -1);
        for (int r = 0; r < rows; r++) {
            sources[r] = rowOf.applyAsInt(r);
        }
        int groups = w.scaleCols();
        int all = Math.multiplyExact(w.experts(), blocks);
        float[] scales = new float[Math.multiplyExact(Math.multiplyExact(all, groups), ROWS)];
        float[] zeroPoints = w.zeroPoints() == null ? null : new float[scales.length];
        float[] biases = bias == null ? null : new float[all * ROWS];
        int colsPerGroup = Math.min(w.colsPerScale(), cols);
        int groupStride = forProducts ? groupStride(w) : colsPerGroup;
        int stride = forProducts ? groups * groupStride : cols;
        int[] shifts = forProducts ? new int[scales.length] : null;
        long bytes = (long) all * stride * ROWS;
        MemorySegment values = SystemMemory.allocate(arena, bytes + PADDING, 64);
        // An odd number of lines of the cache, so that rows don't lie at the same place in all of them.
        int lineStride = (Math.ceilDiv(cols, 2 * LINE) * 2 + 1) * LINE;
        int lineBytes = Math.multiplyExact(lineStride, ROWS);
        int packedBytes = (forProducts ? Math.ceilDiv(stride, Long.BYTES) * Long.BYTES : TILE) * ROWS;
        boolean inFloat = groups > 1 && colsPerGroup <= CpuGemm.FLOAT_COLUMNS && !forProducts;
        AtomicBoolean extreme = new AtomicBoolean();
        Queue<Block> spare = new ConcurrentLinkedQueue<>(); // one a thread, so that not each block has to be zeroed
        BlockPacker packer = (from, expert, block) -> {
            Block own = spare.poll();
            byte[] lines = own == null ? new byte[lineBytes] : own.lines;
            byte[] packed = own == null ? new byte[packedBytes] : own.packed;
            for (int r = 0; r < ROWS; r++) {
                int source = sources[block % blocks * ROWS + r];
                if (source < 0) {
                    Arrays.fill(lines, r * lineStride, (r + 1) * lineStride, (byte) 0);
                    if (shifts != null) {
                        for (int c = 0; c < stride; c++) {
                            packed[(int) Int8Products.index(r, c)] = 0;
                        }
                    }
                    continue;
                }
                from.row(expert, source, lines, r * lineStride);
                int its = from.scaleIndex(expert, source, 0);
                int at = block * groups * ROWS + r;
                for (int g = 0; g < groups; g++) {
                    scales[at + g * ROWS] = from.scales()[its + g];
                }
                for (int g = 0; zeroPoints != null && g < groups; g++) {
                    zeroPoints[at + g * ROWS] = Objects.requireNonNull(from.zeroPoints())[its + g];
                }
                for (int g = 0; shifts != null && g < groups; g++) {
                    int column = g * colsPerGroup;
                    int count = Math.min(colsPerGroup, cols - column);
                    int start = r * lineStride + column;
                    shifts[at + g * ROWS] = Int8Products.SHIFT * place(lines, start, count, packed, r, g * groupStride);
                }
                if (bias != null && biases != null) {
                    biases[block * ROWS + r] = bias[block / blocks * w.rows() + source];
                }
            }
            if (inFloat && hasExtreme(scales, block * groups * ROWS, groups * ROWS)) {
                extreme.set(true);
            }
            if (shifts != null) {
                int size = stride * ROWS;
                MemorySegment.copy(packed, 0, values, ValueLayout.JAVA_BYTE, (long) block * size, size);
            }
            for (int col = 0; shifts == null && col < cols; col += TILE) {
                int count = Math.min(TILE, cols - col);
                transpose(lines, col, lineStride, count, packed);
                long to = ((long) block * cols + col) * ROWS;
                MemorySegment.copy(packed, 0, values, ValueLayout.JAVA_BYTE, to, count * ROWS);
            }
            spare.add(new Block(lines, packed));
        };
        if (w.isUnread()) {
            w.eachExpert((one, e) ->
                    IntStream.range(0, blocks).parallel().forEach(block -> packer.pack(one, 0, e * blocks + block)));
        } else {
            IntStream.range(0, all).parallel().forEach(block -> packer.pack(w, block / blocks, block));
        }
        return new PackedWeights(
                w.experts(),
                blocks,
                cols,
                groups,
                colsPerGroup,
                groupStride,
                values,
                scales,
                zeroPoints,
                biases,
                shifts,
                inFloat && !extreme.get(),
                sources);
    }

    /** Whether an ordinary sum times one of the scales may have less bits than a float, or be too large for it. */
    private static boolean hasExtreme(float[] scales, int from, int count) {
        for (int i = from; i < from + count; i++) {
            float size = Math.abs(scales[i]);
            if (!(size <= 1 && (size >= LEAST_SCALE || size == 0))) {
                return true;
            }
        }
        return false;
    }

    /** Puts some columns of a row where native products read them. Their sum. */
    private static int place(byte[] values, int from, int count, byte[] packed, int row, int column) {
        int sum = 0;
        for (int c = 0; c < count; c++) {
            packed[(int) Int8Products.index(row, column + c)] = values[from + c];
            sum += values[from + c];
        }
        return sum;
    }

    /**
     * {@value #ROWS} rows of bytes become columns: eight by eight, first neighbours, then pairs, then fours change
     * places.
     *
     * @param first the first column
     * @param stride of a row, a multiple of 8
     */
    private static void transpose(byte[] rows, int first, int stride, int cols, byte[] columns) {
        for (int from = 0; from < cols; from += Long.BYTES) {
            for (int r = 0; r < ROWS; r += Long.BYTES) {
                int at = first + r * stride + from;
                long a = (long) LONG.get(rows, at);
                long b = (long) LONG.get(rows, at + stride);
                long c = (long) LONG.get(rows, at + 2 * stride);
                long d = (long) LONG.get(rows, at + 3 * stride);
                long e = (long) LONG.get(rows, at + 4 * stride);
                long f = (long) LONG.get(rows, at + 5 * stride);
                long g = (long) LONG.get(rows, at + 6 * stride);
                long h = (long) LONG.get(rows, at + 7 * stride);
                long ab = ((a >>> 8) ^ b) & BYTES;
                long cd = ((c >>> 8) ^ d) & BYTES;
                long ef = ((e >>> 8) ^ f) & BYTES;
                long gh = ((g >>> 8) ^ h) & BYTES;
                a ^= ab << 8;
                b ^= ab;
                c ^= cd << 8;
                d ^= cd;
                e ^= ef << 8;
                f ^= ef;
                g ^= gh << 8;
                h ^= gh;
                long ac = ((a >>> 16) ^ c) & PAIRS;
                long bd = ((b >>> 16) ^ d) & PAIRS;
                long eg = ((e >>> 16) ^ g) & PAIRS;
                long fh = ((f >>> 16) ^ h) & PAIRS;
                a ^= ac << 16;
                c ^= ac;
                b ^= bd << 16;
                d ^= bd;
                e ^= eg << 16;
                g ^= eg;
                f ^= fh << 16;
                h ^= fh;
                int to = from * ROWS + r;
                LONG.set(columns, to, (a & FOURS) | e << 32);
                LONG.set(columns, to + ROWS, (b & FOURS) | f << 32);
                LONG.set(columns, to + 2 * ROWS, (c & FOURS) | g << 32);
                LONG.set(columns, to + 3 * ROWS, (d & FOURS) | h << 32);
                LONG.set(columns, to + 4 * ROWS, a >>> 32 | (e & ~FOURS));
                LONG.set(columns, to + 5 * ROWS, b >>> 32 | (f & ~FOURS));
                LONG.set(columns, to + 6 * ROWS, c >>> 32 | (g & ~FOURS));
                LONG.set(columns, to + 7 * ROWS, d >>> 32 | (h & ~FOURS));
            }
        }
    }

    /** Columns of a group of a tensor's, filled up for native products. */
    static int groupStride(Int8Tensor w) {
        int colsPerGroup = Math.min(w.colsPerScale(), w.cols());
        return Math.ceilDiv(colsPerGroup, Int8Products.COLUMNS) * Int8Products.COLUMNS;
    }

    /** Bytes of a row of activations for native products: each group's columns, filled up. */
    int stride() {
        return groups * groupStride;
    }

    /** Where an expert's block is among all. */
    int block(int expert, int block) {
        return expert * blocks + block;
    }

    long bytes() {
        long floats = scales.length
                + (zeroPoints == null ? 0L : zeroPoints.length)
                + (bias == null ? 0L : bias.length)
                + (shifts == null ? 0L : shifts.length);
        return values.byteSize() + 4 * floats;
    }
}
