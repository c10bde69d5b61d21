package org.tornadomoe.host;

import static org.tornadomoe.host.Arithmetic.ROWS;
import static org.tornadomoe.host.VectorLanes.LANES;
import static org.tornadomoe.host.VectorLanes.PAIRS;
import static org.tornadomoe.host.VectorLanes.WHOLE;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorOperators;

/** Exact sums of int8 products, two at a time in int16, over oneDNN's layout of the weights. */
final class VectorInt16Products {
    private VectorInt16Products() {}

    /** {@link Arithmetic#products}. */
    static void products(
            MemorySegment w,
            long at,
            int blocks,
            int cols,
            int groups,
            int[] shifts,
            int first,
            MemorySegment a,
            long from,
            int tokens,
            Scratch s) {
        int fours = groups * cols / 4; // of columns, per token
        int[] x = s.requirePairs(2 * fours * tokens + LANES); // the last vectors may be longer than a token
        for (int t = 0; t < tokens; t++) {
            for (int four = 0; four < fours; four += LANES) {
                int to = 2 * fours * t + four;
                pairs(a, from + 4L * (fours * t + four), x, to, to + fours);
            }
        }
        int parts = blocks * groups;
        for (int t = 0; t < tokens; t += 2) {
            for (int part = 0; part < parts; part++) {
                int even = 2 * fours * t + part % groups * cols / 4;
                for (int row = 0; row < ROWS; row += 4 * LANES) {
                    long weights = at + (long) part * cols * ROWS + 4L * row;
                    int shift = first + part * ROWS + row;
                    long to = 4L * ((t * parts + part) * ROWS + row);
                    if (t + 1 < tokens) {
                        products2(w, weights, cols, x, even, fours, shifts, shift, s.products, to, 4L * parts * ROWS);
                    } else {
                        products1(w, weights, cols, x, even, even + fours, shifts, shift, s.products, to);
                    }
                }
            }
        }
    }

    /**
     * A token's values in int16 as the products need them: of each four columns the first and the third, and the second
     * and the fourth, less {@value Int8Products#SHIFT} and negated. So two products with int8 weights, each from -128 *
     * 128 to 127 * 128, add up in int16.
     */
    private static void pairs(MemorySegment a, long at, int[] x, int even, int odd) {
        ShortVector two = ShortVector.fromMemorySegment(PAIRS, a, at, ByteOrder.nativeOrder())
                .lanewise(VectorOperators.XOR, (short) (Int8Products.SHIFT << 8 | Int8Products.SHIFT));
        two.lanewise(VectorOperators.LSHL, 8)
                .lanewise(VectorOperators.ASHR, 8)
                .neg()
                .reinterpretAsInts()
                .intoArray(x, even);
        two.lanewise(VectorOperators.ASHR, 8).neg().reinterpretAsInts().intoArray(x, odd);
    }

    /** Where a vector of weights is: four, one after another, of every four columns. */
    private static long fours(int v) {
        return WHOLE.vectorByteSize() == ROWS ? (long) v * ROWS : (v >>> 2) * 4L * ROWS + (v & 3) * 4L * LANES;
    }

    /**
     * One vector a turn, that is four columns of some rows, and the sums change places: so memory is read in order, and
     * the loop is small enough for C2 to keep vectors in registers.
     */
    private static void products1(
            MemorySegment w,
            long at,
            int cols,
            int[] x,
            int even,
            int odd,
            int[] shifts,
            int shift,
            MemorySegment into,
            long to) {
        IntVector s0 = IntVector.zero(WHOLE);
        IntVector s1 = IntVector.zero(WHOLE);
        IntVector s2 = IntVector.zero(WHOLE);
        IntVector s3 = IntVector.zero(WHOLE);
        for (int v = 0; v < cols; v++) {
            ShortVector two = ShortVector.fromMemorySegment(PAIRS, w, at + fours(v), ByteOrder.nativeOrder());
            ShortVector low = two.lanewise(VectorOperators.LSHL, 8).lanewise(VectorOperators.ASHR, 8);
            ShortVector high = two.lanewise(VectorOperators.ASHR, 8);
            IntVector sums = low.mul(times(x, even + (v >>> 2)))
                    .add(high.mul(times(x, odd + (v >>> 2))))
                    .reinterpretAsInts();
            IntVector next = s0.add(sums.lanewise(VectorOperators.ASHR, 16))
                    .add(sums.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16));
            s0 = s1;
            s1 = s2;
            s2 = s3;
            s3 = next;
        }
        put(s0, shifts, shift, into, to);
        put(s1, shifts, shift + LANES, into, to + 4L * LANES);
        put(s2, shifts, shift + 2 * LANES, into, to + 8L * LANES);
        put(s3, shifts, shift + 3 * LANES, into, to + 12L * LANES);
    }

    /** The same for two tokens. */
    private static void products2(
            MemorySegment w,
            long at,
            int cols,
            int[] x,
            int even0,
            int fours,
            int[] shifts,
            int shift,
            MemorySegment into,
            long to,
            long next) {
        int odd0 = even0 + fours;
        int even1 = odd0 + fours;
        int odd1 = even1 + fours;
        IntVector s00 = IntVector.zero(WHOLE);
        IntVector s01 = IntVector.zero(WHOLE);
        IntVector s02 = IntVector.zero(WHOLE);
        IntVector s03 = IntVector.zero(WHOLE);
        IntVector s10 = IntVector.zero(WHOLE);
        IntVector s11 = IntVector.zero(WHOLE);
        IntVector s12 = IntVector.zero(WHOLE);
        IntVector s13 = IntVector.zero(WHOLE);
        for (int v = 0; v < cols; v++) {
            ShortVector two = ShortVector.fromMemorySegment(PAIRS, w, at + fours(v), ByteOrder.nativeOrder());
            ShortVector low = two.lanewise(VectorOperators.LSHL, 8).lanewise(VectorOperators.ASHR, 8);
            ShortVector high = two.lanewise(VectorOperators.ASHR, 8);
            IntVector sums = low.mul(times(x, even0 + (v >>> 2)))
                    .add(high.mul(times(x, odd0 + (v >>> 2))))
                    .reinterpretAsInts();
            IntVector next0 = s00.add(sums.lanewise(VectorOperators.ASHR, 16))
                    .add(sums.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16));
            s00 = s01;
            s01 = s02;
            s02 = s03;
            s03 = next0;
            sums = low.mul(times(x, even1 + (v >>> 2)))
                    .add(high.mul(times(x, odd1 + (v >>> 2))))
                    .reinterpretAsInts();
            IntVector next1 = s10.add(sums.lanewise(VectorOperators.ASHR, 16))
                    .add(sums.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16));
            s10 = s11;
            s11 = s12;
            s12 = s13;
            s13 = next1;
        }
        put(s00, shifts, shift, into, to);
        put(s01, shifts, shift + LANES, into, to + 4L * LANES);
        put(s02, shifts, shift + 2 * LANES, into, to + 8L * LANES);
        put(s03, shifts, shift + 3 * LANES, into, to + 12L * LANES);
        put(s10, shifts, shift, into, to + next);
        put(s11, shifts, shift + LANES, into, to + next + 4L * LANES);
        put(s12, shifts, shift + 2 * LANES, into, to + next + 8L * LANES);
        put(s13, shifts, shift + 3 * LANES, into, to + next + 12L * LANES);
    }

    private static ShortVector times(int[] x, int at) {
        return IntVector.broadcast(WHOLE, x[at]).reinterpretAsShorts();
    }

    private static void put(IntVector sums, int[] shifts, int shift, MemorySegment into, long to) {
        IntVector.fromArray(WHOLE, shifts, shift).sub(sums).intoMemorySegment(into, to, ByteOrder.nativeOrder());
    }
}
