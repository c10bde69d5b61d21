package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.enums.MMAShape;
import uk.ac.manchester.tornado.api.types.HalfFloat;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The expert GEMM of float activations on NVIDIA's tensor cores in Java, with the matrix instructions of TornadoVM's
 * API ({@code mma.m16n8k16} on halves), for {@code w8a16_*}: {@code out[p][n] = aScales · Σ_g bScales[e][g][n] · Σ_k
 * a[row(p)][k] · (b[expert(p)][n][k] − zeroPoints[e][g][n])}, k being the columns of group g.
 *
 * <p>Two kernels, by the pairs of a block: {@link #few} and {@link #many}. A layer has both in its graph, and in a call
 * one of them has nothing to do. They give the same bits.
 *
 * <p>An activation is the sum of two halves ({@link SplitKernels#split}) to a float's precision. A weight less its zero
 * point is a whole number of at most 255, and its bits with a sign are those of the half that is 2^-24 of it. So
 * products are exact, and those of both halves are added up in one float. (Three int8 digits of an activation would
 * take three quarters of the time on tensor cores. But each has a sum of its own, which goes through memory.) Tensor
 * cores truncate sums, always towards zero, so what they add up is at most {@link #PART_STEPS} steps.
 *
 * <p>Weights lie as {@link FragmentGemmKernels} has them. Of an int with k and the next of rows n and n + 1 the first k
 * makes an int of halves, the second another: of 32 k those with even numbers are multiplied first, as activations lie.
 *
 * <p>TornadoVM 5.2 lets sums out of a fragment into the device's memory only. As every group has a place for one tile
 * and goes on to another tile, that memory stays in the cache. In {@link #few} a lane reads there what it wrote itself,
 * so no warp waits for another: of a fragment at 2 · lane the sums of a row and the next column, and 64 on those of the
 * row eight below. In {@link #many} lanes read what lies together, after a barrier.
 *
 * <p>What is fetched ahead has a name for each number, since through PTX an array stays in memory.
 */
public final class FragmentHalfKernels {
    /** Columns that are multiplied between two barriers of {@link #many}. */
    public static final int STEP = 32;

    /** Steps whose products a fragment adds up at most. */
    private static final int PART_STEPS = 4;

    private static final int FEW = FragmentGemmKernels.FEW;
    private static final int MANY = FragmentGemmKernels.MANY;
    private static final int STRIP = FragmentGemmKernels.STRIP;
    private static final int CHUNK_INTS = FragmentGemmKernels.CHUNK_INTS;
    private static final int MANY_ROWS = FragmentGemmKernels.MANY_ROWS;
    private static final int MANY_GROUP = FragmentGemmKernels.MANY_GROUP;
    private static final int FEW_GROUPS = FragmentGemmKernels.FEW_GROUPS;
    private static final int MANY_GROUPS = FragmentGemmKernels.MANY_GROUPS;
    private static final int FEW_SUMS = FragmentGemmKernels.FEW_SUMS;
    private static final int MANY_SUMS = FragmentGemmKernels.MANY_SUMS;
    private static final int MANY_SCRATCH = FragmentGemmKernels.MANY_SCRATCH;

    private FragmentHalfKernels() {}

    /**
     * For few pairs: tiles of {@link FragmentGemmKernels#FEW} pairs and a strip of weight rows, of which a warp has 16.
     * Otherwise as {@link #many}, at most {@link FragmentGemmKernels#FEW_GROUPS} groups of {@link
     * FragmentGemmKernels#FEW_GROUP} work-items.
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
            FloatArray zeroPoints,
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray sums,
            FloatArray out,
            int topK,
            int rows,
            int chunks,
            int groups,
            int groupSteps,
            int form) {
        int[] aTile = ctx.allocateIntLocalArray(FEW * PART_STEPS * STEP);
        int[] bTile = ctx.allocateIntLocalArray(STRIP * PART_STEPS * STEP / 2);
        int lid = ctx.localIdx;
        int lane = lid & 31;
        int warp = lid / 32;
        int aAt = FragmentGemmKernels.swapped(lane);
        int bAt = warp * 512;
        int steps = 2 * chunks;
        int groupParts = (groupSteps + PART_STEPS - 1) / PART_STEPS;
        int lastSteps = steps - (groups - 1) * groupSteps;
        int parts = (groups - 1) * groupParts + (lastSteps + PART_STEPS - 1) / PART_STEPS;
        int round = groupSteps < 2 ? 1 : groupSteps < PART_STEPS ? 2 : PART_STEPS;
        int rowInts = steps * STEP;
        int pairs = header.get(0) * topK;
        int strips = (rows + STRIP - 1) / STRIP;
        int tiles = header.get(1) == FEW ? padded.get(0) / FEW * strips : 0;
        int sumsFrom = ctx.groupIdx * FEW_SUMS + warp * 256;
        int sumsAt = sumsFrom + 2 * lane;
        int columnFrom = warp * 16 + (lane & 3) * 2;
        int aTo = lid / 8 * 8 + ((lid & 7) ^ (lid >> 5 & 1) * 4);
        for (int tile = ctx.groupIdx; tile < tiles; tile += FEW_GROUPS) {
            int block = tile / strips;
            int strip = tile % strips;
            int expert = expertIds.get(block);
            int own = sortedIds.get(block * FEW + lid / 8);
            int aFrom = Pairs.row(own, pairs, topK, form) * rowInts + (lid & 7);
            int bFrom = expert >= 0 ? (expert * strips + strip) * chunks * CHUNK_INTS + lid : lid;
            int pair0 = sortedIds.get(block * FEW + lane / 4);
            int pair1 = sortedIds.get(block * FEW + lane / 4 + 8);
            float aScale0 = aScales.get(Pairs.row(pair0, pairs, topK, form));
            float aScale1 = aScales.get(Pairs.row(pair1, pairs, topK, form));
            int n = strip * STRIP + columnFrom;
            int scaleFrom = expert * groups * rows;
            // The third step, if there is one.
            int later = chunks > 1 ? 2 * STEP : 0;
            float t0 = 0.0f;
            float t1 = 0.0f;
            float t2 = 0.0f;
            float t3 = 0.0f;
            float t4 = 0.0f;
            float t5 = 0.0f;
            float t6 = 0.0f;
            float t7 = 0.0f;

            int a0 = a.get(aFrom);
            int a1 = a.get(aFrom + 8);
            int a2 = a.get(aFrom + 16);
            int a3 = a.get(aFrom + 24);
            int a4 = round > 1 ? a.get(aFrom + 32) : 0;
            int a5 = round > 1 ? a.get(aFrom + 40) : 0;
            int a6 = round > 1 ? a.get(aFrom + 48) : 0;
            int a7 = round > 1 ? a.get(aFrom + 56) : 0;
            int a8 = round > 2 ? a.get(aFrom + later) : 0;
            int a9 = round > 2 ? a.get(aFrom + later + 8) : 0;
            int a10 = round > 2 ? a.get(aFrom + later + 16) : 0;
            int a11 = round > 2 ? a.get(aFrom + later + 24) : 0;
            int a12 = round > 2 ? a.get(aFrom + later + 32) : 0;
            int a13 = round > 2 ? a.get(aFrom + later + 40) : 0;
            int a14 = round > 2 ? a.get(aFrom + later + 48) : 0;
            int a15 = round > 2 ? a.get(aFrom + later + 56) : 0;
            int b0 = b.get(bFrom);
            int b1 = b.get(bFrom + 128);
            int b2 = b.get(bFrom + 256);
            int b3 = b.get(bFrom + 384);
            int b4 = round > 1 ? b.get(bFrom + 512) : 0;
            int b5 = round > 1 ? b.get(bFrom + 640) : 0;
            int b6 = round > 1 ? b.get(bFrom + 768) : 0;
            int b7 = round > 1 ? b.get(bFrom + 896) : 0;
            int b8 = round > 2 ? b.get(bFrom + later * 16) : 0;
            int b9 = round > 2 ? b.get(bFrom + later * 16 + 128) : 0;
            int b10 = round > 2 ? b.get(bFrom + later * 16 + 256) : 0;
            int b11 = round > 2 ? b.get(bFrom + later * 16 + 384) : 0;
            int b12 = round > 2 ? b.get(bFrom + later * 16 + 512) : 0;
            int b13 = round > 2 ? b.get(bFrom + later * 16 + 640) : 0;
            int b14 = round > 2 ? b.get(bFrom + later * 16 + 768) : 0;
            int b15 = round > 2 ? b.get(bFrom + later * 16 + 896) : 0;
            int end = expert >= 0 ? parts : 0;
            for (int part = 0; part < end; part++) {
                int group = part / groupParts;
                int first = group * groupSteps + (part - group * groupParts) * PART_STEPS;
                int groupEnd = group + 1 < groups ? (group + 1) * groupSteps : steps;
                int last = first + PART_STEPS < groupEnd ? first + PART_STEPS : groupEnd;
                int scalesAt = scaleFrom + group * rows;
                int z0 = zeros(zeroPoints, scalesAt, strip * STRIP + 0 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                int z1 = zeros(zeroPoints, scalesAt, strip * STRIP + 16 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                int z2 = zeros(zeroPoints, scalesAt, strip * STRIP + 32 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                int z3 = zeros(zeroPoints, scalesAt, strip * STRIP + 48 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                float[] s0 = ctx.mmaFragment(0.0f);
                float[] s1 = ctx.mmaFragment(0.0f);
                for (int step = first; step < last; step += round) {
                    aTile[aTo] = a0;
                    aTile[aTo + 256] = a1;
                    aTile[aTo + 128] = a2;
                    aTile[aTo + 384] = a3;
                    bTile[lid] = even(b0, z0, form);
                    bTile[lid + 512] = odd(b0, z0, form);
                    bTile[lid + 128] = even(b1, z1, form);
                    bTile[lid + 640] = odd(b1, z1, form);
                    bTile[lid + 256] = even(b2, z2, form);
                    bTile[lid + 768] = odd(b2, z2, form);
                    bTile[lid + 384] = even(b3, z3, form);
                    bTile[lid + 896] = odd(b3, z3, form);
                    // A part may end before the round does: sums of zeros are added.
                    if (round > 1) {
                        int there = step + 1 < last ? -1 : 0;
                        aTile[aTo + 512] = a4 & there;
                        aTile[aTo + 768] = a5 & there;
                        aTile[aTo + 640] = a6 & there;
                        aTile[aTo + 896] = a7 & there;
                        bTile[lid + 1024] = even(b4, z0, form);
                        bTile[lid + 1536] = odd(b4, z0, form);
                        bTile[lid + 1152] = even(b5, z1, form);
                        bTile[lid + 1664] = odd(b5, z1, form);
                        bTile[lid + 1280] = even(b6, z2, form);
                        bTile[lid + 1792] = odd(b6, z2, form);
                        bTile[lid + 1408] = even(b7, z3, form);
                        bTile[lid + 1920] = odd(b7, z3, form);
                    }
                    if (round > 2) {
                        int there = step + 2 < last ? -1 : 0;
                        aTile[aTo + 1024] = a8 & there;
                        aTile[aTo + 1280] = a9 & there;
                        aTile[aTo + 1152] = a10 & there;
                        aTile[aTo + 1408] = a11 & there;
                        bTile[lid + 2048] = even(b8, z0, form);
                        bTile[lid + 2560] = odd(b8, z0, form);
                        bTile[lid + 2176] = even(b9, z1, form);
                        bTile[lid + 2688] = odd(b9, z1, form);
                        bTile[lid + 2304] = even(b10, z2, form);
                        bTile[lid + 2816] = odd(b10, z2, form);
                        bTile[lid + 2432] = even(b11, z3, form);
                        bTile[lid + 2944] = odd(b11, z3, form);
                        int alsoThere = step + 3 < last ? -1 : 0;
                        aTile[aTo + 1536] = a12 & alsoThere;
                        aTile[aTo + 1792] = a13 & alsoThere;
                        aTile[aTo + 1664] = a14 & alsoThere;
                        aTile[aTo + 1920] = a15 & alsoThere;
                        bTile[lid + 3072] = even(b12, z0, form);
                        bTile[lid + 3584] = odd(b12, z0, form);
                        bTile[lid + 3200] = even(b13, z1, form);
                        bTile[lid + 3712] = odd(b13, z1, form);
                        bTile[lid + 3328] = even(b14, z2, form);
                        bTile[lid + 3840] = odd(b14, z2, form);
                        bTile[lid + 3456] = even(b15, z3, form);
                        bTile[lid + 3968] = odd(b15, z3, form);
                    }
                    ctx.localBarrier();
                    int next = step + round < last ? step + round : last;
                    next = next < steps ? next : step;
                    int aNext = aFrom + next * STEP;
                    int bNext = bFrom + next * (CHUNK_INTS / 2);
                    a0 = a.get(aNext);
                    a1 = a.get(aNext + 8);
                    a2 = a.get(aNext + 16);
                    a3 = a.get(aNext + 24);
                    b0 = b.get(bNext);
                    b1 = b.get(bNext + 128);
                    b2 = b.get(bNext + 256);
                    b3 = b.get(bNext + 384);
                    if (round > 1) {
                        int second = next + 1 < steps ? 1 : 0;
                        int aSecond = aNext + second * STEP;
                        int bSecond = bNext + second * (CHUNK_INTS / 2);
                        a4 = a.get(aSecond);
                        a5 = a.get(aSecond + 8);
                        a6 = a.get(aSecond + 16);
                        a7 = a.get(aSecond + 24);
                        b4 = b.get(bSecond);
                        b5 = b.get(bSecond + 128);
                        b6 = b.get(bSecond + 256);
                        b7 = b.get(bSecond + 384);
                    }
                    if (round > 2) {
                        int third = next + 2 < steps ? 2 : 0;
                        int fourth = next + 3 < steps ? 3 : 0;
                        a8 = a.get(aNext + third * STEP);
                        a9 = a.get(aNext + third * STEP + 8);
                        a10 = a.get(aNext + third * STEP + 16);
                        a11 = a.get(aNext + third * STEP + 24);
                        b8 = b.get(bNext + third * (CHUNK_INTS / 2));
                        b9 = b.get(bNext + third * (CHUNK_INTS / 2) + 128);
                        b10 = b.get(bNext + third * (CHUNK_INTS / 2) + 256);
                        b11 = b.get(bNext + third * (CHUNK_INTS / 2) + 384);
                        a12 = a.get(aNext + fourth * STEP);
                        a13 = a.get(aNext + fourth * STEP + 8);
                        a14 = a.get(aNext + fourth * STEP + 16);
                        a15 = a.get(aNext + fourth * STEP + 24);
                        b12 = b.get(bNext + fourth * (CHUNK_INTS / 2));
                        b13 = b.get(bNext + fourth * (CHUNK_INTS / 2) + 128);
                        b14 = b.get(bNext + fourth * (CHUNK_INTS / 2) + 256);
                        b15 = b.get(bNext + fourth * (CHUNK_INTS / 2) + 384);
                    }
                    for (int half = 0; half < 2 * round; half++) {
                        HalfFloat[] x = ctx.mmaLoadA(aTile, 16, aAt + 1024 * half);
                        HalfFloat[] y = ctx.mmaLoadA(aTile, 16, aAt + 1024 * half + 512);
                        HalfFloat[] w0 = ctx.mmaLoadB(bTile, 16, bAt + 2048 * half);
                        HalfFloat[] w1 = ctx.mmaLoadB(bTile, 16, bAt + 2048 * half + 256);
                        s0 = ctx.mma(y, w0, s0, MMAShape.M16N8K16);
                        s1 = ctx.mma(y, w1, s1, MMAShape.M16N8K16);
                        s0 = ctx.mma(x, w0, s0, MMAShape.M16N8K16);
                        s1 = ctx.mma(x, w1, s1, MMAShape.M16N8K16);
                    }
                    ctx.localBarrier();
                }
                ctx.mmaStore(s0, sums, sumsFrom / 8, 0, 8);
                ctx.mmaStore(s1, sums, sumsFrom / 8 + 16, 0, 8);
                float scale0 = scale(bScales, scalesAt, n, rows);
                float scale1 = scale(bScales, scalesAt, n + 1, rows);
                float scale2 = scale(bScales, scalesAt, n + 8, rows);
                float scale3 = scale(bScales, scalesAt, n + 9, rows);
                t0 = t0 + sums.get(sumsAt) * scale0;
                t1 = t1 + sums.get(sumsAt + 1) * scale1;
                t2 = t2 + sums.get(sumsAt + 64) * scale0;
                t3 = t3 + sums.get(sumsAt + 65) * scale1;
                t4 = t4 + sums.get(sumsAt + 128) * scale2;
                t5 = t5 + sums.get(sumsAt + 129) * scale3;
                t6 = t6 + sums.get(sumsAt + 192) * scale2;
                t7 = t7 + sums.get(sumsAt + 193) * scale3;
            }
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair0, n, t0 * aScale0);
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair0, n + 1, t1 * aScale0);
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair1, n, t2 * aScale1);
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair1, n + 1, t3 * aScale1);
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair0, n + 8, t4 * aScale0);
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair0, n + 9, t5 * aScale0);
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair1, n + 8, t6 * aScale1);
            Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair1, n + 9, t7 * aScale1);
        }
    }

    /**
     * For many pairs: tiles of {@link FragmentGemmKernels#MANY} pairs and {@link FragmentGemmKernels#MANY_ROWS} weight
     * rows.
     *
     * <p>Grid: groups of {@link FragmentGemmKernels#MANY_GROUP} work-items, {@link FragmentGemmKernels#MANY_GROUPS} or,
     * where there are fewer, one a tile. A warp has 32 pairs and 32 weight rows. The next step's operands are on their
     * way to registers while a step in local memory (48 KB with a tile's totals) is multiplied. Costs K·N bytes of
     * weights a block and 4·K·N / 128 of each pair, mostly from the cache.
     *
     * @param header [0] = M, [1] = pairs of a block; nothing is done if those aren't {@link FragmentGemmKernels#MANY}
     * @param sortedIds pairs in expert order, in blocks; what is no pair (P) pads a block at its end
     * @param expertIds [blocks]; a block with −1 is written zeros
     * @param padded [0] = places in use in {@code sortedIds}
     * @param a [rows of a, chunks · {@link SplitKernels#CHUNK_INTS}], as {@link SplitKernels#split} writes it
     * @param aScales [rows of a]
     * @param b weights
     * @param bScales [E, groups, N]
     * @param zeroPoints with {@link Pairs#ZERO_POINTS} as {@code bScales}, whole numbers; else not looked at
     * @param bias with {@link Pairs#BIASED} [E, N]; else not looked at
     * @param topkWeights [P]
     * @param sums [groups of work-items, {@link FragmentGemmKernels#MANY_SCRATCH}], for the kernel's own use
     * @param out [P, N], written for every pair in {@code sortedIds}
     * @param rows N
     * @param chunks of a row of K columns
     * @param groups of a row of columns
     * @param groupSteps columns of a group in steps of {@link #STEP}
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
            FloatArray zeroPoints,
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray sums,
            FloatArray out,
            int topK,
            int rows,
            int chunks,
            int groups,
            int groupSteps,
            int form) {
        int[] aTile = ctx.allocateIntLocalArray(MANY * STEP);
        int[] bTile = ctx.allocateIntLocalArray(MANY_ROWS * STEP / 2);
        float[] totals = ctx.allocateFloatLocalArray(MANY_SUMS);
        int lid = ctx.localIdx;
        int lane = lid & 31;
        int warp = lid / 32;
        // Where a warp's operands are in the tiles, in bytes.
        int aAt = warp / 4 * 1024 + FragmentGemmKernels.swapped(lane);
        int bAt = (warp & 3) * 1024;
        int steps = 2 * chunks;
        int groupParts = (groupSteps + PART_STEPS - 1) / PART_STEPS;
        int lastSteps = steps - (groups - 1) * groupSteps;
        int parts = (groups - 1) * groupParts + (lastSteps + PART_STEPS - 1) / PART_STEPS;
        int rowInts = steps * 32;
        int pairs = header.get(0) * topK;
        int strips = (rows + STRIP - 1) / STRIP;
        int across = (rows + MANY_ROWS - 1) / MANY_ROWS;
        int tiles = header.get(1) == MANY ? padded.get(0) / MANY * across : 0;
        // 4, which no compiler knows: a loop of constant length would be unrolled, and need twice the registers.
        int panels = header.get(1) / 16;
        int sumsFrom = ctx.groupIdx * MANY_SCRATCH + warp * 1152;
        int sumsAt = sumsFrom + lane;
        int placeFrom = warp / 4 * 32 + lane / 8;
        int columnFrom = (warp & 3) * 32 + (lane & 7);
        int aTo = lid / 8 * 8 + ((lid & 7) ^ (lid >> 5 & 1) * 4);
        for (int tile = ctx.groupIdx; tile < tiles; tile += MANY_GROUPS) {
            int block = tile / across;
            int strip = tile % across * 2;
            int expert = expertIds.get(block);
            int from = block * MANY;
            int aFrom0 = Pairs.row(sortedIds.get(from + lid / 8 + 0), pairs, topK, form) * rowInts + (lid & 7);
            int aFrom1 = Pairs.row(sortedIds.get(from + lid / 8 + 32), pairs, topK, form) * rowInts + (lid & 7);
            int bFrom = expert >= 0 ? (expert * strips + strip) * chunks * CHUNK_INTS + lid : lid;
            // The last tile may have one strip only: it takes that twice.
            int apart = strip + 1 < strips ? chunks * CHUNK_INTS : 0;
            int n = strip * STRIP + columnFrom;
            int scaleFrom = expert * groups * rows;
            for (int i = lid; i < MANY_SUMS; i += MANY_GROUP) {
                totals[i] = 0.0f;
            }

            int a0 = a.get(aFrom0);
            int a1 = a.get(aFrom0 + 8);
            int a2 = a.get(aFrom0 + 16);
            int a3 = a.get(aFrom0 + 24);
            int a4 = a.get(aFrom1);
            int a5 = a.get(aFrom1 + 8);
            int a6 = a.get(aFrom1 + 16);
            int a7 = a.get(aFrom1 + 24);
            int b0 = b.get(bFrom);
            int b1 = b.get(bFrom + 256);
            int b2 = b.get(bFrom + apart);
            int b3 = b.get(bFrom + apart + 256);
            int end = expert >= 0 ? parts : 0;
            for (int part = 0; part < end; part++) {
                int group = part / groupParts;
                int first = group * groupSteps + (part - group * groupParts) * PART_STEPS;
                int groupEnd = group + 1 < groups ? (group + 1) * groupSteps : steps;
                int last = first + PART_STEPS < groupEnd ? first + PART_STEPS : groupEnd;
                int scalesAt = scaleFrom + group * rows;
                int z0 = zeros(zeroPoints, scalesAt, strip * STRIP + 0 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                int z1 = zeros(zeroPoints, scalesAt, strip * STRIP + 32 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                int z2 = zeros(zeroPoints, scalesAt, strip * STRIP + 64 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                int z3 = zeros(zeroPoints, scalesAt, strip * STRIP + 96 + lid / 64 * 8 + (lid & 3) * 2, rows, form);
                float[] s00 = ctx.mmaFragment(0.0f);
                float[] s01 = ctx.mmaFragment(0.0f);
                float[] s02 = ctx.mmaFragment(0.0f);
                float[] s03 = ctx.mmaFragment(0.0f);
                float[] s10 = ctx.mmaFragment(0.0f);
                float[] s11 = ctx.mmaFragment(0.0f);
                float[] s12 = ctx.mmaFragment(0.0f);
                float[] s13 = ctx.mmaFragment(0.0f);
                for (int step = first; step < last; step++) {
                    aTile[aTo] = a0;
                    aTile[aTo + 512] = a1;
                    aTile[aTo + 1024] = a2;
                    aTile[aTo + 1536] = a3;
                    aTile[aTo + 256] = a4;
                    aTile[aTo + 768] = a5;
                    aTile[aTo + 1280] = a6;
                    aTile[aTo + 1792] = a7;
                    bTile[lid] = even(b0, z0, form);
                    bTile[lid + 1024] = odd(b0, z0, form);
                    bTile[lid + 256] = even(b1, z1, form);
                    bTile[lid + 1280] = odd(b1, z1, form);
                    bTile[lid + 512] = even(b2, z2, form);
                    bTile[lid + 1536] = odd(b2, z2, form);
                    bTile[lid + 768] = even(b3, z3, form);
                    bTile[lid + 1792] = odd(b3, z3, form);
                    ctx.localBarrier();
                    int next = step + 1 < steps ? step + 1 : step;
                    int aNext = next * 32;
                    int bNext = bFrom + next * (CHUNK_INTS / 2);
                    a0 = a.get(aFrom0 + aNext);
                    a1 = a.get(aFrom0 + aNext + 8);
                    a2 = a.get(aFrom0 + aNext + 16);
                    a3 = a.get(aFrom0 + aNext + 24);
                    a4 = a.get(aFrom1 + aNext);
                    a5 = a.get(aFrom1 + aNext + 8);
                    a6 = a.get(aFrom1 + aNext + 16);
                    a7 = a.get(aFrom1 + aNext + 24);
                    b0 = b.get(bNext);
                    b1 = b.get(bNext + 256);
                    b2 = b.get(bNext + apart);
                    b3 = b.get(bNext + apart + 256);
                    for (int half = 0; half < 2; half++) {
                        HalfFloat[] y0 = ctx.mmaLoadA(aTile, 16, aAt + 2048 * half + 4096);
                        HalfFloat[] y1 = ctx.mmaLoadA(aTile, 16, aAt + 2048 * half + 4608);
                        HalfFloat[] w0 = ctx.mmaLoadB(bTile, 16, bAt + 4096 * half);
                        HalfFloat[] w1 = ctx.mmaLoadB(bTile, 16, bAt + 4096 * half + 256);
                        HalfFloat[] w2 = ctx.mmaLoadB(bTile, 16, bAt + 4096 * half + 512);
                        HalfFloat[] w3 = ctx.mmaLoadB(bTile, 16, bAt + 4096 * half + 768);
                        s00 = ctx.mma(y0, w0, s00, MMAShape.M16N8K16);
                        s01 = ctx.mma(y0, w1, s01, MMAShape.M16N8K16);
                        s02 = ctx.mma(y0, w2, s02, MMAShape.M16N8K16);
                        s03 = ctx.mma(y0, w3, s03, MMAShape.M16N8K16);
                        s10 = ctx.mma(y1, w0, s10, MMAShape.M16N8K16);
                        s11 = ctx.mma(y1, w1, s11, MMAShape.M16N8K16);
                        s12 = ctx.mma(y1, w2, s12, MMAShape.M16N8K16);
                        s13 = ctx.mma(y1, w3, s13, MMAShape.M16N8K16);
                        HalfFloat[] x0 = ctx.mmaLoadA(aTile, 16, aAt + 2048 * half);
                        HalfFloat[] x1 = ctx.mmaLoadA(aTile, 16, aAt + 2048 * half + 512);
                        s00 = ctx.mma(x0, w0, s00, MMAShape.M16N8K16);
                        s01 = ctx.mma(x0, w1, s01, MMAShape.M16N8K16);
                        s02 = ctx.mma(x0, w2, s02, MMAShape.M16N8K16);
                        s03 = ctx.mma(x0, w3, s03, MMAShape.M16N8K16);
                        s10 = ctx.mma(x1, w0, s10, MMAShape.M16N8K16);
                        s11 = ctx.mma(x1, w1, s11, MMAShape.M16N8K16);
                        s12 = ctx.mma(x1, w2, s12, MMAShape.M16N8K16);
                        s13 = ctx.mma(x1, w3, s13, MMAShape.M16N8K16);
                    }
                    ctx.localBarrier();
                }
                // A fragment's 16 x 8 sums lie together, so that a warp writes few lines of the cache. Parts take
                // turns with two places, since a compiler would keep the addresses of one in registers.
                int turn = part & 1;
                int row = sumsFrom / 8 + 16 * turn;
                ctx.mmaStore(s00, sums, row, 0, 8);
                ctx.mmaStore(s01, sums, row + 16, 0, 8);
                ctx.mmaStore(s02, sums, row + 32, 0, 8);
                ctx.mmaStore(s03, sums, row + 48, 0, 8);
                ctx.mmaStore(s10, sums, row + 64, 0, 8);
                ctx.mmaStore(s11, sums, row + 80, 0, 8);
                ctx.mmaStore(s12, sums, row + 96, 0, 8);
                ctx.mmaStore(s13, sums, row + 112, 0, 8);
                ctx.globalBarrier();
                // Lanes read what lies together, not what they wrote: half the lines of the cache. Of two panels at
                // once, since a read takes long.
                for (int w = 0; w < panels; w += 2) {
                    int at = sumsAt + 128 * (w + turn);
                    int to = lid + w * 1024;
                    float[] read = new float[16];
                    for (int j = 0; j < 16; j++) {
                        read[j] = sums.get(at + j / 8 * 128 + j / 4 % 2 * 512 + j % 4 * 32);
                    }
                    float scale0 = scale(bScales, scalesAt, n + 8 * w, rows);
                    float scale1 = scale(bScales, scalesAt, n + 8 * w + 8, rows);
                    totals[to] = totals[to] + read[0] * scale0;
                    totals[to + 256] = totals[to + 256] + read[1] * scale0;
                    totals[to + 512] = totals[to + 512] + read[2] * scale0;
                    totals[to + 768] = totals[to + 768] + read[3] * scale0;
                    totals[to + 4096] = totals[to + 4096] + read[4] * scale0;
                    totals[to + 4352] = totals[to + 4352] + read[5] * scale0;
                    totals[to + 4608] = totals[to + 4608] + read[6] * scale0;
                    totals[to + 4864] = totals[to + 4864] + read[7] * scale0;
                    totals[to + 1024] = totals[to + 1024] + read[8] * scale1;
                    totals[to + 1280] = totals[to + 1280] + read[9] * scale1;
                    totals[to + 1536] = totals[to + 1536] + read[10] * scale1;
                    totals[to + 1792] = totals[to + 1792] + read[11] * scale1;
                    totals[to + 5120] = totals[to + 5120] + read[12] * scale1;
                    totals[to + 5376] = totals[to + 5376] + read[13] * scale1;
                    totals[to + 5632] = totals[to + 5632] + read[14] * scale1;
                    totals[to + 5888] = totals[to + 5888] + read[15] * scale1;
                }
            }
            for (int i = lid; i < MANY_SUMS; i += MANY_GROUP) {
                int fragment = i / 1024;
                int place = placeFrom + fragment / 4 * 16 + (i / 256 & 3) * 4;
                int column = n + (fragment & 3) * 8;
                int pair = sortedIds.get(from + place);
                float value = totals[i] * aScales.get(Pairs.row(pair, pairs, topK, form));
                Pairs.put(bias, topkWeights, out, pairs, rows, form, expert, pair, column, value);
            }
        }
    }

    /** A weight row's scale of a group, times what the halves of weights lack. */
    private static float scale(FloatArray scales, int from, int n, int rows) {
        return scales.get(from + (n < rows ? n : rows - 1)) * 16777216.0f;
    }

    /** For {@link #lessZeros}, 2^14 less 128 and the zero point of weight row n, and of the next in the upper half. */
    private static int zeros(FloatArray zeroPoints, int from, int n, int rows, int form) {
        int low = Pairs.zeroPoint(zeroPoints, from + (n < rows ? n : rows - 1), form);
        int high = Pairs.zeroPoint(zeroPoints, from + (n + 1 < rows ? n + 1 : rows - 1), form);
        return (0x3F80 - low) | ((0x3F80 - high) << 16);
    }

    /** Of an int of weights those of the first k as halves. */
    private static int even(int four, int zeros, int form) {
        return (form & Pairs.ZERO_POINTS) != 0 ? lessZeros(four, zeros) : halves(four);
    }

    /** Of an int of weights those of the second k as halves. */
    private static int odd(int four, int zeros, int form) {
        return even(four >> 8, zeros, form);
    }

    /** The first and third byte as halves: a negative one's seven low bits inverted are its magnitude less one. */
    private static int halves(int two) {
        int negative = (two >> 7) & 0x00010001;
        return ((two & 0x007F007F) ^ (negative * 0x7F)) + negative * 0x8001;
    }

    /** The same less zero points, with 2^14 on both meanwhile, so that neither borrows from the other. */
    private static int lessZeros(int two, int zeros) {
        int biased = ((two & 0x00FF00FF) ^ 0x00800080) + zeros;
        int negative = ((biased >> 14) & 0x00010001) ^ 0x00010001;
        return ((biased ^ (negative * 0x3FFF)) & 0x3FFF3FFF) + negative * 0x8001;
    }
}
