package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.enums.MMAShape;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The expert GEMM on NVIDIA's tensor cores in Java, with the matrix instructions of TornadoVM's API
 * ({@code mma.m16n8k32} on int8), for {@code w8a8_*}: {@code out[p][n] = Σ_g aScales · bScales[e][g][n] · Σ_k
 * a[row(p)][k] · b[expert(p)][n][k]}, k being the columns of group g, exact in int32 for at most 131,071 of them.
 *
 * <p>Two kernels, by the pairs of a block: {@link #few} and {@link #many}. A layer has both in its graph, and in a call
 * one of them has nothing to do. They give the same bits.
 *
 * <p>Layout of the weights: {@code [E][strips of 64 rows][chunks of 64 k][2 steps of 32 k][8 panels of 8 rows][64
 * ints]}, so that a chunk of a strip lies in local memory as it comes from the device's. Int {@code 4(k / 2) + n / 2}
 * of a panel has k and the next of rows n and n + 1: what the transposing load of TornadoVM's API makes the
 * instruction's second operand of. What pads rows and columns is 0.
 *
 * <p>TornadoVM's 5.2 loads int8 operands at the beginning of a local array only. Its loads of halves, which move the
 * same bits, take an offset, hence the casts. And it lets sums out of a fragment into the device's memory only. As
 * every group has a place for one tile and goes on to another tile, that memory stays in the cache. In {@link #few} a
 * lane reads there what it wrote itself, so that no warp waits for another: of a fragment at 2 · lane the sums of a row
 * and the next column, and 64 on those of the row eight below; the totals have a name each, since through PTX an array
 * of them stays in memory. In {@link #many} lanes read what lies together, after a barrier. Its totals are in local
 * memory, since with 32 more registers a multiprocessor would have one group instead of two.
 *
 * <p>Masks stand for remainders in {@link #few}: PTX's assembler makes a division of each, also by a power of two.
 */
public final class FragmentGemmKernels {
    /** Sorted pairs of a block of {@link #few}. */
    public static final int FEW = 16;

    /** Sorted pairs of a block of {@link #many}. */
    public static final int MANY = 64;

    /** Weight rows that lie together. */
    public static final int STRIP = 64;

    /** Columns that lie together. */
    public static final int CHUNK = 64;

    /** Ints of a strip's chunk. */
    public static final int CHUNK_INTS = STRIP * CHUNK / 4;

    /** Weight rows of a tile of {@link #many}. */
    public static final int MANY_ROWS = 2 * STRIP;

    /** Work-items of a group of {@link #few}. */
    public static final int FEW_GROUP = 128;

    /** Work-items of a group of {@link #many}. */
    public static final int MANY_GROUP = 256;

    /** The most groups of a launch of {@link #few}; each takes every tile that is so many after its last. */
    public static final int FEW_GROUPS = 1024;

    /** The most groups of a launch of {@link #many}. */
    public static final int MANY_GROUPS = 512;

    /** Sums of a tile of {@link #few}. */
    public static final int FEW_SUMS = FEW * STRIP;

    /** Sums of a tile of {@link #many}. */
    public static final int MANY_SUMS = MANY * MANY_ROWS;

    /** Ints of a group's place for sums in {@link #many}: of each warp two places, a fragment apart. */
    public static final int MANY_SCRATCH = MANY_SUMS + 8 * 128;

    private FragmentGemmKernels() {}

    /**
     * For few pairs: tiles of {@link #FEW} pairs and a strip of weight rows, of which a warp has 16. Otherwise as
     * {@link #many}, at most {@link #FEW_GROUPS} groups of {@link #FEW_GROUP} work-items.
     */
    public static void few(
            KernelContext ctx,
            IntArray header,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            IntArray a,
            FloatArray aScales,
            IntArray b,
            FloatArray bScales,
            FloatArray bias,
            FloatArray topkWeights,
            IntArray sums,
            FloatArray out,
            int topK,
            int rows,
            int chunks,
            int groupChunks,
            int rowsPerScale,
            int form) {
        int[] aTile = ctx.allocateIntLocalArray(FEW * 2 * CHUNK / 4);
        int[] bTile = ctx.allocateIntLocalArray(STRIP * 2 * CHUNK / 4);
        float[] scaleOf = ctx.allocateFloatLocalArray(2 * FEW);
        float[] scales = ctx.allocateFloatLocalArray(2 * STRIP);
        float[] totals = ctx.allocateFloatLocalArray(FEW_SUMS);
        int lid = ctx.localIdx;
        int warp = lid / 32;
        // Where a warp's weights are in the tile, in bytes; a step's are 2048 after the last one's.
        int bAt = warp * 512;
        int aAt = swapped(lid & 31);
        int rowInts = chunks * 16;
        int groups = (chunks + groupChunks - 1) / groupChunks;
        int scaleRows = (rows + rowsPerScale - 1) / rowsPerScale;
        int pairs = header.get(0) * topK;
        int strips = (rows + STRIP - 1) / STRIP;
        int tiles = header.get(1) == FEW ? padded.get(0) / FEW * strips : 0;
        int sumsFrom = ctx.groupIdx * FEW_SUMS;
        // Where a lane's sums are; which pair and row the first has.
        int lane = lid & 31;
        int to = warp * 256 + 2 * lane;
        int sumsAt = sumsFrom + to;
        int placeFrom = lane / 4;
        int columnFrom = warp * 16 + (lane & 3) * 2;
        for (int tile = ctx.groupIdx; tile < tiles; tile += FEW_GROUPS) {
            int block = tile / strips;
            int strip = tile % strips;
            int expert = expertIds.get(block);
            int own = sortedIds.get(block * FEW + lid / 8);
            int aFrom = Pairs.row(own, pairs, topK, form) * rowInts + (lid & 7) * 2;
            int aTo = (lid & 7) / 4 * 128 + lid / 8 * 8 + ((lid & 3) * 2 ^ (lid >> 5 & 1) * 4);
            int bFrom = expert >= 0 ? (expert * strips + strip) * chunks * CHUNK_INTS + lid : lid;
            int placed = lid < FEW ? sortedIds.get(block * FEW + lid) : pairs;
            int placedRow = Pairs.row(placed, pairs, topK, form);
            float t0 = 0.0f;
            float t1 = 0.0f;
            float t2 = 0.0f;
            float t3 = 0.0f;
            float t4 = 0.0f;
            float t5 = 0.0f;
            float t6 = 0.0f;
            float t7 = 0.0f;
            int n = strip * STRIP + (lid & (STRIP - 1));
            int scaleFrom = expert * groups * scaleRows + (n < rows ? n : rows - 1) / rowsPerScale;

            // The second of the first two chunks.
            int aAfter = aFrom + (chunks > 1 ? 16 : 0);
            int bAfter = bFrom + (chunks > 1 ? CHUNK_INTS : 0);
            int a0 = a.get(aFrom);
            int a1 = a.get(aFrom + 1);
            int c0 = a.get(aAfter);
            int c1 = a.get(aAfter + 1);
            int b0 = b.get(bFrom);
            int b1 = b.get(bFrom + 128);
            int b2 = b.get(bFrom + 256);
            int b3 = b.get(bFrom + 384);
            int b4 = b.get(bFrom + 512);
            int b5 = b.get(bFrom + 640);
            int b6 = b.get(bFrom + 768);
            int b7 = b.get(bFrom + 896);
            int d0 = b.get(bAfter);
            int d1 = b.get(bAfter + 128);
            int d2 = b.get(bAfter + 256);
            int d3 = b.get(bAfter + 384);
            int d4 = b.get(bAfter + 512);
            int d5 = b.get(bAfter + 640);
            int d6 = b.get(bAfter + 768);
            int d7 = b.get(bAfter + 896);
            int end = expert >= 0 ? groups : 0;
            for (int group = 0; group < end; group++) {
                int first = group * groupChunks;
                int last = group + 1 < groups ? first + groupChunks : chunks;
                // Groups take turns with two halves: a warp may still read the last one's.
                int half = group & 1;
                if (lid < FEW) {
                    scaleOf[half * FEW + lid] = aScales.get(placedRow * groups + group);
                }
                if (lid < STRIP) {
                    scales[half * STRIP + lid] = bScales.get(scaleFrom + group * scaleRows);
                }
                int[] s00 = ctx.mmaFragmentInt(0);
                int[] s01 = ctx.mmaFragmentInt(0);
                for (int c = first; c < last; c += 2) {
                    aTile[aTo] = a0;
                    aTile[aTo + 1] = a1;
                    bTile[lid] = b0;
                    bTile[lid + 128] = b1;
                    bTile[lid + 256] = b2;
                    bTile[lid + 384] = b3;
                    bTile[lid + 512] = b4;
                    bTile[lid + 640] = b5;
                    bTile[lid + 768] = b6;
                    bTile[lid + 896] = b7;
                    // A group may end with the first.
                    int both = c + 1 < last ? -1 : 0;
                    aTile[aTo + 256] = c0 & both;
                    aTile[aTo + 257] = c1 & both;
                    bTile[lid + 1024] = d0;
                    bTile[lid + 1152] = d1;
                    bTile[lid + 1280] = d2;
                    bTile[lid + 1408] = d3;
                    bTile[lid + 1536] = d4;
                    bTile[lid + 1664] = d5;
                    bTile[lid + 1792] = d6;
                    bTile[lid + 1920] = d7;
                    ctx.localBarrier();
                    int next = c + 2 < last ? c + 2 : last;
                    next = next < chunks ? next : c;
                    int second = next + 1 < chunks ? next + 1 : next;
                    int aNext = aFrom + next * 16;
                    int aSecond = aFrom + second * 16;
                    int bNext = bFrom + next * CHUNK_INTS;
                    int bSecond = bFrom + second * CHUNK_INTS;
                    a0 = a.get(aNext);
                    a1 = a.get(aNext + 1);
                    c0 = a.get(aSecond);
                    c1 = a.get(aSecond + 1);
                    b0 = b.get(bNext);
                    b1 = b.get(bNext + 128);
                    b2 = b.get(bNext + 256);
                    b3 = b.get(bNext + 384);
                    b4 = b.get(bNext + 512);
                    b5 = b.get(bNext + 640);
                    b6 = b.get(bNext + 768);
                    b7 = b.get(bNext + 896);
                    d0 = b.get(bSecond);
                    d1 = b.get(bSecond + 128);
                    d2 = b.get(bSecond + 256);
                    d3 = b.get(bSecond + 384);
                    d4 = b.get(bSecond + 512);
                    d5 = b.get(bSecond + 640);
                    d6 = b.get(bSecond + 768);
                    d7 = b.get(bSecond + 896);
                    for (int step = 0; step < 4; step++) {
                        byte[] x = (byte[]) (Object) ctx.mmaLoadA(aTile, 16, aAt + 512 * step);
                        byte[] w0 = (byte[]) (Object) ctx.mmaLoadB(bTile, 16, bAt + 2048 * step);
                        byte[] w1 = (byte[]) (Object) ctx.mmaLoadB(bTile, 16, bAt + 2048 * step + 256);
                        s00 = ctx.mmaInt8(x, w0, s00, MMAShape.M16N8K32);
                        s01 = ctx.mmaInt8(x, w1, s01, MMAShape.M16N8K32);
                    }
                    ctx.localBarrier();
                }
                // A fragment's 16 x 8 sums lie together, so that a warp writes few lines of the cache.
                int row = sumsFrom / 8 + warp * 32;
                ctx.mmaStoreInt(s00, sums, row, 0, 8);
                ctx.mmaStoreInt(s01, sums, row + 16, 0, 8);
                // A lane reads the sums that it wrote itself, so that no warp waits for another.
                int p0 = half * FEW + placeFrom;
                int p1 = p0 + 8;
                int r0 = half * STRIP + columnFrom;
                int r1 = r0 + 1;
                int r2 = r0 + 8;
                int r3 = r0 + 9;
                t0 = t0 + sums.get(sumsAt) * scaleOf[p0] * scales[r0];
                t1 = t1 + sums.get(sumsAt + 1) * scaleOf[p0] * scales[r1];
                t2 = t2 + sums.get(sumsAt + 64) * scaleOf[p1] * scales[r0];
                t3 = t3 + sums.get(sumsAt + 65) * scaleOf[p1] * scales[r1];
                t4 = t4 + sums.get(sumsAt + 128) * scaleOf[p0] * scales[r2];
                t5 = t5 + sums.get(sumsAt + 129) * scaleOf[p0] * scales[r3];
                t6 = t6 + sums.get(sumsAt + 192) * scaleOf[p1] * scales[r2];
                t7 = t7 + sums.get(sumsAt + 193) * scaleOf[p1] * scales[r3];
            }
            totals[to] = t0;
            totals[to + 1] = t1;
            totals[to + 64] = t2;
            totals[to + 65] = t3;
            totals[to + 128] = t4;
            totals[to + 129] = t5;
            totals[to + 192] = t6;
            totals[to + 193] = t7;
            ctx.localBarrier();
            for (int i = lid; i < FEW_SUMS; i += FEW_GROUP) {
                int place = i / STRIP;
                int column = i & (STRIP - 1);
                int pair = sortedIds.get(block * FEW + place);
                float value = totals[column / 8 * 128 + place * 8 + (column & 7)];
                Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, strip * STRIP + column, value);
            }
            ctx.localBarrier();
        }
    }

    /**
     * For many pairs: tiles of {@link #MANY} pairs and {@link #MANY_ROWS} weight rows.
     *
     * <p>Grid: groups of {@link #MANY_GROUP} work-items, {@link #MANY_GROUPS} or, where there are fewer, one a tile. A
     * warp has 32 pairs and 32 weight rows. The next chunk's operands are on their way to registers while a chunk in
     * local memory (44 KB with a tile's totals) is multiplied. Costs K·N bytes of weights a block, mostly from the
     * cache.
     *
     * @param header [0] = M, [1] = pairs of a block; nothing is done if those aren't {@link #MANY}
     * @param sortedIds pairs in expert order, in blocks; what is no pair (P) pads a block at its end
     * @param expertIds [blocks]; a block with −1 is written zeros
     * @param padded [0] = places in use in {@code sortedIds}
     * @param a [rows of a, chunks · 16]
     * @param aScales [rows of a, groups]
     * @param b weights
     * @param bScales [E, groups, ⌈N / rowsPerScale⌉]
     * @param bias with {@link Pairs#BIASED} [E, N]; else not looked at
     * @param topkWeights [P]
     * @param sums [groups, {@link #MANY_SCRATCH}], for the kernel's own use
     * @param out [P, N], written for every pair in {@code sortedIds}
     * @param rows N
     * @param chunks of a row of K columns
     * @param groupChunks chunks of a group of columns, all if there is one group
     * @param form what else there is, of {@link Pairs}
     */
    public static void many(
            KernelContext ctx,
            IntArray header,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            IntArray a,
            FloatArray aScales,
            IntArray b,
            FloatArray bScales,
            FloatArray bias,
            FloatArray topkWeights,
            IntArray sums,
            FloatArray out,
            int topK,
            int rows,
            int chunks,
            int groupChunks,
            int rowsPerScale,
            int form) {
        int[] aTile = ctx.allocateIntLocalArray(MANY * CHUNK / 4);
        int[] bTile = ctx.allocateIntLocalArray(MANY_ROWS * CHUNK / 4);
        float[] totals = ctx.allocateFloatLocalArray(MANY_SUMS);
        int lid = ctx.localIdx;
        int lane = lid & 31;
        int warp = lid / 32;
        // Where a warp's operands are in the tiles, in bytes; the second step's are half a tile or half a strip on.
        int aAt = warp / 4 * 1024 + swapped(lane);
        int bAt = (warp & 3) / 2 * 4096 + (warp & 1) * 1024;
        int rowInts = chunks * 16;
        int groups = (chunks + groupChunks - 1) / groupChunks;
        int scaleRows = (rows + rowsPerScale - 1) / rowsPerScale;
        int pairs = header.get(0) * topK;
        int strips = (rows + STRIP - 1) / STRIP;
        int across = (rows + MANY_ROWS - 1) / MANY_ROWS;
        int tiles = header.get(1) == MANY ? padded.get(0) / MANY * across : 0;
        // 4, which no compiler knows: a loop of constant length would be unrolled, and need twice the registers.
        int panels = header.get(1) / 16;
        int sumsFrom = ctx.groupIdx * MANY_SCRATCH + warp * (MANY_SUMS / 8 + 128);
        int sumsAt = sumsFrom + lane;
        int placeFrom = warp / 4 * 32 + lane / 8;
        int columnFrom = (warp & 3) * 32 + (lane & 7);
        int aTo = lid / 8 * 8 + ((lid & 7) ^ (lid >> 5 & 1) * 4);
        for (int tile = ctx.groupIdx; tile < tiles; tile += MANY_GROUPS) {
            int block = tile / across;
            int strip = tile % across * 2;
            int expert = expertIds.get(block);
            int from = block * MANY;
            int aFrom0 = Pairs.row(sortedIds.get(from + lid / 8), pairs, topK, form) * rowInts + (lid & 7);
            int aFrom1 = Pairs.row(sortedIds.get(from + lid / 8 + 32), pairs, topK, form) * rowInts + (lid & 7);
            int aRow0 = Pairs.row(sortedIds.get(from + placeFrom), pairs, topK, form) * groups;
            int aRow1 = Pairs.row(sortedIds.get(from + placeFrom + 4), pairs, topK, form) * groups;
            int aRow2 = Pairs.row(sortedIds.get(from + placeFrom + 8), pairs, topK, form) * groups;
            int aRow3 = Pairs.row(sortedIds.get(from + placeFrom + 12), pairs, topK, form) * groups;
            int aRow4 = Pairs.row(sortedIds.get(from + placeFrom + 16), pairs, topK, form) * groups;
            int aRow5 = Pairs.row(sortedIds.get(from + placeFrom + 20), pairs, topK, form) * groups;
            int aRow6 = Pairs.row(sortedIds.get(from + placeFrom + 24), pairs, topK, form) * groups;
            int aRow7 = Pairs.row(sortedIds.get(from + placeFrom + 28), pairs, topK, form) * groups;
            int bFrom = expert >= 0 ? (expert * strips + strip) * chunks * CHUNK_INTS + lid : lid;
            // The last tile may have one strip only: it takes that twice.
            int apart = strip + 1 < strips ? chunks * CHUNK_INTS : 0;
            int n = strip * STRIP + columnFrom;
            int scaleFrom = expert * groups * scaleRows;
            for (int i = lid; i < MANY_SUMS; i += MANY_GROUP) {
                totals[i] = 0.0f;
            }

            int a0 = a.get(aFrom0);
            int a1 = a.get(aFrom0 + 8);
            int a2 = a.get(aFrom1);
            int a3 = a.get(aFrom1 + 8);
            int b0 = b.get(bFrom);
            int b1 = b.get(bFrom + 256);
            int b2 = b.get(bFrom + 512);
            int b3 = b.get(bFrom + 768);
            int b4 = b.get(bFrom + apart);
            int b5 = b.get(bFrom + apart + 256);
            int b6 = b.get(bFrom + apart + 512);
            int b7 = b.get(bFrom + apart + 768);
            int end = expert >= 0 ? groups : 0;
            for (int group = 0; group < end; group++) {
                int first = group * groupChunks;
                int last = group + 1 < groups ? first + groupChunks : chunks;
                int scalesAt = scaleFrom + group * scaleRows;
                int[] s00 = ctx.mmaFragmentInt(0);
                int[] s01 = ctx.mmaFragmentInt(0);
                int[] s02 = ctx.mmaFragmentInt(0);
                int[] s03 = ctx.mmaFragmentInt(0);
                int[] s10 = ctx.mmaFragmentInt(0);
                int[] s11 = ctx.mmaFragmentInt(0);
                int[] s12 = ctx.mmaFragmentInt(0);
                int[] s13 = ctx.mmaFragmentInt(0);
                for (int c = first; c < last; c++) {
                    aTile[aTo] = a0;
                    aTile[aTo + 512] = a1;
                    aTile[aTo + 256] = a2;
                    aTile[aTo + 768] = a3;
                    bTile[lid] = b0;
                    bTile[lid + 256] = b1;
                    bTile[lid + 512] = b2;
                    bTile[lid + 768] = b3;
                    bTile[lid + 1024] = b4;
                    bTile[lid + 1280] = b5;
                    bTile[lid + 1536] = b6;
                    bTile[lid + 1792] = b7;
                    ctx.localBarrier();
                    int next = c + 1 < chunks ? c + 1 : c;
                    int aNext = next * 16;
                    int bNext = bFrom + next * CHUNK_INTS;
                    a0 = a.get(aFrom0 + aNext);
                    a1 = a.get(aFrom0 + aNext + 8);
                    a2 = a.get(aFrom1 + aNext);
                    a3 = a.get(aFrom1 + aNext + 8);
                    b0 = b.get(bNext);
                    b1 = b.get(bNext + 256);
                    b2 = b.get(bNext + 512);
                    b3 = b.get(bNext + 768);
                    b4 = b.get(bNext + apart);
                    b5 = b.get(bNext + apart + 256);
                    b6 = b.get(bNext + apart + 512);
                    b7 = b.get(bNext + apart + 768);
                    for (int step = 0; step < 2; step++) {
                        byte[] x0 = (byte[]) (Object) ctx.mmaLoadA(aTile, 16, aAt + 2048 * step);
                        byte[] x1 = (byte[]) (Object) ctx.mmaLoadA(aTile, 16, aAt + 2048 * step + 512);
                        byte[] w0 = (byte[]) (Object) ctx.mmaLoadB(bTile, 16, bAt + 2048 * step);
                        byte[] w1 = (byte[]) (Object) ctx.mmaLoadB(bTile, 16, bAt + 2048 * step + 256);
                        byte[] w2 = (byte[]) (Object) ctx.mmaLoadB(bTile, 16, bAt + 2048 * step + 512);
                        byte[] w3 = (byte[]) (Object) ctx.mmaLoadB(bTile, 16, bAt + 2048 * step + 768);
                        s00 = ctx.mmaInt8(x0, w0, s00, MMAShape.M16N8K32);
                        s01 = ctx.mmaInt8(x0, w1, s01, MMAShape.M16N8K32);
                        s02 = ctx.mmaInt8(x0, w2, s02, MMAShape.M16N8K32);
                        s03 = ctx.mmaInt8(x0, w3, s03, MMAShape.M16N8K32);
                        s10 = ctx.mmaInt8(x1, w0, s10, MMAShape.M16N8K32);
                        s11 = ctx.mmaInt8(x1, w1, s11, MMAShape.M16N8K32);
                        s12 = ctx.mmaInt8(x1, w2, s12, MMAShape.M16N8K32);
                        s13 = ctx.mmaInt8(x1, w3, s13, MMAShape.M16N8K32);
                    }
                    ctx.localBarrier();
                }
                // A fragment's 16 x 8 sums lie together, so that a warp writes few lines of the cache. Groups take
                // turns with two places, since a compiler would keep the addresses of one in 64 registers.
                int turn = group & 1;
                int row = sumsFrom / 8 + 16 * turn;
                ctx.mmaStoreInt(s00, sums, row, 0, 8);
                ctx.mmaStoreInt(s01, sums, row + 16, 0, 8);
                ctx.mmaStoreInt(s02, sums, row + 32, 0, 8);
                ctx.mmaStoreInt(s03, sums, row + 48, 0, 8);
                ctx.mmaStoreInt(s10, sums, row + 64, 0, 8);
                ctx.mmaStoreInt(s11, sums, row + 80, 0, 8);
                ctx.mmaStoreInt(s12, sums, row + 96, 0, 8);
                ctx.mmaStoreInt(s13, sums, row + 112, 0, 8);
                ctx.globalBarrier();
                float scaleA0 = aScales.get(aRow0 + group);
                float scaleA1 = aScales.get(aRow1 + group);
                float scaleA2 = aScales.get(aRow2 + group);
                float scaleA3 = aScales.get(aRow3 + group);
                float scaleA4 = aScales.get(aRow4 + group);
                float scaleA5 = aScales.get(aRow5 + group);
                float scaleA6 = aScales.get(aRow6 + group);
                float scaleA7 = aScales.get(aRow7 + group);
                // Lanes read what lies together, not what they wrote: half the lines of the cache. Of two panels at
                // once, since a read takes long.
                for (int w = 0; w < panels; w += 2) {
                    int at = sumsAt + 128 * (w + turn);
                    int to = lid + w * 1024;
                    int[] read = new int[16];
                    for (int j = 0; j < 16; j++) {
                        read[j] = sums.get(at + j / 8 * 128 + j / 4 % 2 * 512 + j % 4 * 32);
                    }
                    float scale0 = bScales.get(scalesAt + scaleRow(n + 8 * w, rows, rowsPerScale));
                    float scale1 = bScales.get(scalesAt + scaleRow(n + 8 * w + 8, rows, rowsPerScale));
                    totals[to] = totals[to] + read[0] * scaleA0 * scale0;
                    totals[to + 256] = totals[to + 256] + read[1] * scaleA1 * scale0;
                    totals[to + 512] = totals[to + 512] + read[2] * scaleA2 * scale0;
                    totals[to + 768] = totals[to + 768] + read[3] * scaleA3 * scale0;
                    totals[to + 4096] = totals[to + 4096] + read[4] * scaleA4 * scale0;
                    totals[to + 4352] = totals[to + 4352] + read[5] * scaleA5 * scale0;
                    totals[to + 4608] = totals[to + 4608] + read[6] * scaleA6 * scale0;
                    totals[to + 4864] = totals[to + 4864] + read[7] * scaleA7 * scale0;
                    totals[to + 1024] = totals[to + 1024] + read[8] * scaleA0 * scale1;
                    totals[to + 1280] = totals[to + 1280] + read[9] * scaleA1 * scale1;
                    totals[to + 1536] = totals[to + 1536] + read[10] * scaleA2 * scale1;
                    totals[to + 1792] = totals[to + 1792] + read[11] * scaleA3 * scale1;
                    totals[to + 5120] = totals[to + 5120] + read[12] * scaleA4 * scale1;
                    totals[to + 5376] = totals[to + 5376] + read[13] * scaleA5 * scale1;
                    totals[to + 5632] = totals[to + 5632] + read[14] * scaleA6 * scale1;
                    totals[to + 5888] = totals[to + 5888] + read[15] * scaleA7 * scale1;
                }
            }
            for (int i = lid; i < MANY_SUMS; i += MANY_GROUP) {
                int fragment = i / 1024;
                int place = placeFrom + fragment / 4 * 16 + (i >> 8 & 3) * 4;
                int column = n + (fragment & 3) * 8;
                int pair = sortedIds.get(from + place);
                Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, column, totals[i]);
            }
        }
    }

    /**
     * What to add to a lane's offset in the first operand's tile, in bytes. Of every eight rows of 32 bytes the last
     * four have their halves swapped, so that eight rows are in eight groups of local memory's banks.
     */
    static int swapped(int lane) {
        return (lane >> 2 & 1) * ((lane & 16) == 0 ? 16 : -16);
    }

    private static int scaleRow(int n, int rows, int rowsPerScale) {
        return (n < rows ? n : rows - 1) / rowsPerScale;
    }
}
