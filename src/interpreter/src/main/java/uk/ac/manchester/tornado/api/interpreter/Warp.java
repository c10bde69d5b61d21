package uk.ac.manchester.tornado.api.interpreter;

import java.util.Arrays;

/** 32 work-items with collective operations: each brings an operand and gets its result once all have arrived. */
final class Warp {
    static final int LANES = 32;

    enum Operation {
        SUM,
        BROADCAST_FIRST,
        SHUFFLE_DOWN,
        MMA_INT8
    }

    record Shuffle(float value, int delta) {}

    /** A lane's part of the tiles of m16n8k32: 16 int8 of A, 8 int8 of B, 4 int32 of C. */
    record Fragments(byte[] a, byte[] b, int[] c) {}

    final int lanes;
    private final Object[] operands = new Object[LANES];
    private final Object[] results = new Object[LANES];
    private int arrived;
    private Operation operation;

    Warp(int lanes) {
        this.lanes = lanes;
    }

    void reset() {
        arrived = 0;
    }

    Operation operation() {
        return operation;
    }

    Object result(int lane) {
        return results[lane];
    }

    /** A lane that has not arrived. */
    int missing() {
        return Integer.numberOfTrailingZeros(~arrived);
    }

    /** Takes a lane's operand; true once all lanes have their results. */
    boolean arrive(int lane, Operation wanted, Object operand) {
        if (arrived != 0 && wanted != operation) {
            throw new Fault("lane " + lane + " of its warp is at " + wanted + " while other lanes are at " + operation);
        }
        if (wanted == Operation.MMA_INT8 && lanes != LANES) {
            throw new Fault("a matrix instruction needs a warp of 32 work-items, this one has " + lanes);
        }
        operation = wanted;
        operands[lane] = operand;
        arrived |= 1 << lane;
        if (Integer.bitCount(arrived) < lanes) {
            return false;
        }
        arrived = 0;
        switch (wanted) {
            case SUM -> sum();
            case BROADCAST_FIRST -> Arrays.fill(results, operands[0]);
            case SHUFFLE_DOWN -> shuffleDown();
            case MMA_INT8 -> multiply();
        }
        return true;
    }

    /** Adds in the order of five shuffles down, so that the rounding is the same. */
    private void sum() {
        float[] values = new float[LANES];
        for (int lane = 0; lane < lanes; lane++) {
            values[lane] = (Float) operands[lane];
        }
        for (int delta = LANES / 2; delta > 0; delta /= 2) {
            for (int lane = 0; lane < LANES - delta; lane++) {
                values[lane] += values[lane + delta];
            }
        }
        Arrays.fill(results, values[0]);
    }

    private void shuffleDown() {
        for (int lane = 0; lane < lanes; lane++) {
            Shuffle own = (Shuffle) operands[lane];
            int from = lane + own.delta();
            results[lane] = from >= 0 && from < lanes ? ((Shuffle) operands[from]).value() : own.value();
        }
    }

    /**
     * m16n8k32: lane = 4 group + t holds rows group and group + 8 of A, at k = 4t + 0..3 and 4t + 16..19; column group
     * of B at the same k; and columns 2t, 2t + 1 of C's rows group and group + 8.
     */
    private void multiply() {
        byte[][] a = new byte[16][32];
        byte[][] b = new byte[8][32];
        for (int lane = 0; lane < LANES; lane++) {
            Fragments f = (Fragments) operands[lane];
            int group = lane / 4;
            int k = lane % 4 * 4;
            for (int i = 0; i < 4; i++) {
                a[group][k + i] = f.a()[i];
                a[group + 8][k + i] = f.a()[4 + i];
                a[group][k + 16 + i] = f.a()[8 + i];
                a[group + 8][k + 16 + i] = f.a()[12 + i];
                b[group][k + i] = f.b()[i];
                b[group][k + 16 + i] = f.b()[4 + i];
            }
        }
        for (int lane = 0; lane < LANES; lane++) {
            int[] c = ((Fragments) operands[lane]).c();
            int row = lane / 4;
            int column = lane % 4 * 2;
            results[lane] = new int[] {
                c[0] + product(a[row], b[column]),
                c[1] + product(a[row], b[column + 1]),
                c[2] + product(a[row + 8], b[column]),
                c[3] + product(a[row + 8], b[column + 1])
            };
        }
    }

    private static int product(byte[] a, byte[] b) {
        int sum = 0;
        for (int k = 0; k < a.length; k++) {
            sum += a[k] * b[k];
        }
        return sum;
    }
}
