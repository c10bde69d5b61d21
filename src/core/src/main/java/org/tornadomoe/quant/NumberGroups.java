package org.tornadomoe.quant;

import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * Quantises a row of integers 0 to 31 that have a scale and an offset per group. For each group it computes the int8
 * value of each of the 32 integers once, and then looks values up. The result has the same bits as quantising the float
 * values. It uses 128-bit vectors, which every machine has. Each loop is a separate method: in one method C1 would run
 * out of registers, and C2 would then never compile it.
 */
final class NumberGroups {
    /** Integers per vector, and the minimum group size. */
    private static final int LANES = 16;

    private static final VectorSpecies<Byte> B = ByteVector.SPECIES_128;
    private static final VectorSpecies<Float> F = FloatVector.SPECIES_128;

    /** Every fourth integer: byte k of lane n, which shifts combine from four vectors, belongs to integer 4 n + k. */
    private static final FloatVector FOURTHS = FloatVector.fromArray(F, new float[] {0, 4, 8, 12}, 0);

    private static final float ROUNDS = Int8Quantizer.ROUNDS;

    /** Integers that share a scale. */
    private final int group;

    final byte[] numbers;
    final float[] scales;
    final float[] mins;

    /** The minimum and the maximum integer of each group. */
    private final byte[] least;

    private final byte[] greatest;

    /** The int8 values of 0 to 15 in each group, and of 16 to 31. */
    private final byte[] lower;

    private final byte[] upper;

    /** For rows for which {@link #serve} is true. */
    NumberGroups(int cols, int group) {
        this.group = group;
        numbers = new byte[cols];
        scales = new float[cols / group];
        mins = new float[scales.length];
        least = new byte[scales.length];
        greatest = new byte[scales.length];
        lower = new byte[LANES * scales.length];
        upper = new byte[lower.length];
    }

    /** Whether the vectors fit the groups. */
    static boolean serve(int cols, int group) {
        return (group == LANES || group == 2 * LANES) && cols % group == 0;
    }

    /**
     * Quantises the row.
     *
     * @param held receives the groups' scales from {@code at} on
     * @return false if a value isn't finite
     */
    boolean quantize(float[] held, int at, byte[] values) {
        extremes(numbers, group, least, greatest);
        int shift = group == LANES ? 4 : 5; // from an index to its group
        int most = 0;
        for (int g = 0; g < scales.length; g++) {
            float low = Math.abs(least[g] * scales[g] - mins[g]);
            float high = Math.abs(greatest[g] * scales[g] - mins[g]);
            float size = Math.max(low, high);
            if (!(size <= Float.MAX_VALUE)) {
                return false;
            }
            held[at + g] = Math.max(size, Int8Activations.MIN_ABS_MAX) / 127f;
            most = Math.max(most, greatest[g]);
        }
        if (most < 4) {
            tabulateFour(scales, mins, held, at, lower);
            lookUpFour(numbers, shift, lower, values);
            return true;
        }
        tabulate(scales, mins, held, at, 0, lower);
        if (most < LANES) {
            lookUp(numbers, shift, lower, values);
        } else {
            tabulate(scales, mins, held, at, LANES, upper);
            lookUp(numbers, shift, lower, upper, values);
        }
        return true;
    }

    private static void extremes(byte[] numbers, int group, byte[] least, byte[] greatest) {
        for (int g = 0, from = 0; g < least.length; g++, from += group) {
            ByteVector a = ByteVector.fromArray(B, numbers, from);
            ByteVector b = ByteVector.fromArray(B, numbers, from + group - LANES);
            least[g] = a.min(b).reduceLanes(VectorOperators.MIN);
            greatest[g] = a.max(b).reduceLanes(VectorOperators.MAX);
        }
    }

    /** Computes the int8 values of sixteen integers in each group. */
    private static void tabulate(float[] scales, float[] mins, float[] held, int at, int first, byte[] table) {
        FloatVector n = FOURTHS.add(first);
        for (int g = 0; g < scales.length; g++) {
            float scale = scales[g];
            float min = mins[g];
            float its = held[at + g];
            IntVector t0 = n.mul(scale).sub(min).div(its).add(ROUNDS).reinterpretAsInts();
            IntVector t1 = n.add(1).mul(scale).sub(min).div(its).add(ROUNDS).reinterpretAsInts();
            IntVector t2 = n.add(2).mul(scale).sub(min).div(its).add(ROUNDS).reinterpretAsInts();
            IntVector t3 = n.add(3).mul(scale).sub(min).div(its).add(ROUNDS).reinterpretAsInts();
            t0.and(0xff)
                    .or(t1.and(0xff).lanewise(VectorOperators.LSHL, 8))
                    .or(t2.and(0xff).lanewise(VectorOperators.LSHL, 16))
                    .or(t3.lanewise(VectorOperators.LSHL, 24))
                    .reinterpretAsBytes()
                    .intoArray(table, LANES * g);
        }
    }

    /** The same for the integers 0 to 3, one per byte of every four. */
    private static void tabulateFour(float[] scales, float[] mins, float[] held, int at, byte[] table) {
        FloatVector n = FOURTHS.mul(0.25f);
        for (int g = 0; g < scales.length; g++) {
            n.mul(scales[g])
                    .sub(mins[g])
                    .div(held[at + g])
                    .add(ROUNDS)
                    .reinterpretAsBytes()
                    .intoArray(table, LANES * g);
        }
    }

    private static void lookUpFour(byte[] numbers, int shift, byte[] table, byte[] values) {
        for (int from = 0; from < values.length; from += LANES) {
            ByteVector its = ByteVector.fromArray(B, table, (from >> shift) * LANES);
            ByteVector twice = ByteVector.fromArray(B, numbers, from);
            twice = twice.add(twice);
            twice.add(twice).selectFrom(its).intoArray(values, from);
        }
    }

    private static void lookUp(byte[] numbers, int shift, byte[] table, byte[] values) {
        for (int from = 0; from < values.length; from += LANES) {
            ByteVector its = ByteVector.fromArray(B, table, (from >> shift) * LANES);
            ByteVector.fromArray(B, numbers, from).selectFrom(its).intoArray(values, from);
        }
    }

    private static void lookUp(byte[] numbers, int shift, byte[] lower, byte[] upper, byte[] values) {
        for (int from = 0; from < values.length; from += LANES) {
            ByteVector n = ByteVector.fromArray(B, numbers, from);
            ByteVector low = ByteVector.fromArray(B, lower, (from >> shift) * LANES);
            ByteVector high = ByteVector.fromArray(B, upper, (from >> shift) * LANES);
            n.selectFrom(low)
                    .blend(n.selectFrom(high), n.compare(VectorOperators.GE, (byte) LANES))
                    .intoArray(values, from);
        }
    }
}
