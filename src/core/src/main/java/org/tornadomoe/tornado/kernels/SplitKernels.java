package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Floats as sums of two halves, for products of halves: what {@link FragmentHalfKernels} multiplies. */
public final class SplitKernels {
    /** Work-items of a group. */
    public static final int GROUP = QuantizeKernels.GROUP;

    /** Ints of a row's chunk. */
    public static final int CHUNK_INTS = 2 * FragmentGemmKernels.CHUNK / 2;

    /** The greatest magnitude of a row as a whole number: 2^29. */
    private static final float MOST = 0x1p29f;

    /** The first half's least bit, as a power of two of such a number. */
    private static final int LEAST = 15;

    private SplitKernels() {}

    /**
     * Rows in float as a first half and a second, which has 11 bits of the rest. A row's greatest magnitude becomes
     * 2^15. The first half has 11 bits too, but none that is less than 2 (2^-14 of the greatest), so that sums of its
     * products are whole numbers, which tensor cores needn't truncate.
     *
     * <p>Grid: one group of {@link #GROUP} work-items a row; there are {@code header[0] · rowsPerToken} rows. Costs
     * 8·cols bytes read (the second pass from the cache) and 4·cols bytes written a row.
     *
     * @param header [0] = M
     * @param keys with {@code keyed} 1 [rows]: a row with −1 isn't there, and nothing is written for it; else not
     *     looked at
     * @param weights with {@code weighted} 1 [rows]: what a row is multiplied by first; else not looked at
     * @param values [rows, cols]; with {@code weighted} 1 [M, cols], each for as many rows as a token has
     * @param halves [rows, chunks · {@link #CHUNK_INTS}], written: of each 32 columns the first halves of those with
     *     even numbers, of those with odd ones, then the second halves, two an int; what pads the last chunk is 0
     * @param scales [rows], written: what halves are multiplied by
     */
    public static void split(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            FloatArray weights,
            FloatArray values,
            IntArray halves,
            FloatArray scales,
            int rowsPerToken,
            int cols,
            int keyed,
            int weighted) {
        float[] magnitudes = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int row = ctx.groupIdx;
        int active = QuantizeKernels.active(header, keys, row, rowsPerToken, keyed);
        float weight = QuantizeKernels.weight(weights, row, active, weighted);
        int end = active * cols;
        int from = QuantizeKernels.valuesRow(row, rowsPerToken, weighted) * cols;
        // Of less than this, 2^29 over it would be more than a float holds.
        magnitudes[lane] = QuantizeKernels.magnitude(values, from + lane, from + end, weight, 1.0e-29f);
        for (int stride = GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                magnitudes[lane] = TornadoMath.max(magnitudes[lane], magnitudes[lane + stride]);
            }
        }
        ctx.localBarrier();
        float magnitude = magnitudes[0];
        float inverse = MOST / magnitude;
        int chunks = (cols + FragmentGemmKernels.CHUNK - 1) / FragmentGemmKernels.CHUNK;
        int to = row * chunks * CHUNK_INTS;
        for (int i = lane; i < active * chunks * 16; i += GROUP) {
            int firstEven = 0;
            int firstOdd = 0;
            int secondEven = 0;
            int secondOdd = 0;
            for (int b = 0; b < 4; b++) {
                int c = 4 * i + b;
                if (c < cols) {
                    int whole = QuantizeKernels.roundHalfAway(values.get(from + c) * weight * inverse);
                    int magnitudeOf = whole < 0 ? -whole : whole;
                    int sign = whole < 0 ? 0x8000 : 0;
                    int first = nearest(magnitudeOf, LEAST);
                    int rest = magnitudeOf - first;
                    int restOf = rest < 0 ? -rest : rest;
                    int high = bits(first) | sign;
                    int low = bits(nearest(restOf, 0)) | (rest < 0 ? sign ^ 0x8000 : sign);
                    int shift = b / 2 * 16;
                    firstEven |= b % 2 == 0 ? high << shift : 0;
                    firstOdd |= b % 2 == 1 ? high << shift : 0;
                    secondEven |= b % 2 == 0 ? low << shift : 0;
                    secondOdd |= b % 2 == 1 ? low << shift : 0;
                }
            }
            int at = to + i / 8 * 32 + i % 8;
            halves.set(at, firstEven);
            halves.set(at + 8, firstOdd);
            halves.set(at + 16, secondEven);
            halves.set(at + 24, secondOdd);
        }
        if (lane == 0 && active == 1) {
            scales.set(row, magnitude / 32768.0f);
        }
    }

    /** The nearest number of 11 significant bits, and a multiple of 2^least. */
    private static int nearest(int whole, int least) {
        // The greater of log2 - 10 and least: TornadoVM from 6 on has no greater of ints that is known.
        int drop = -TornadoMath.min(10 - log2(whole), -least);
        return ((whole + ((1 << drop) >> 1)) >> drop) << drop;
    }

    /** The half that is 2^-14 times a whole number of 11 significant bits, at most 2^29. */
    private static int bits(int whole) {
        int log2 = log2(whole);
        return (log2 << 10) + (log2 > 10 ? whole >> (log2 - 10) : whole << (10 - log2));
    }

    /** Rounded down; 0 of 0. */
    private static int log2(int whole) {
        int rest = whole;
        int log2 = 0;
        for (int step = 16; step > 0; step >>= 1) {
            int more = rest >= 1 << step ? step : 0;
            rest = rest >> more;
            log2 = log2 + more;
        }
        return log2;
    }
}
