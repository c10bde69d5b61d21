package uk.ac.manchester.tornado.api.interpreter;

import java.util.Arrays;
import uk.ac.manchester.tornado.api.types.HalfFloat;

/** 32 work-items with collective operations: each brings an operand and gets its result once all have arrived. */
final class Warp {
    static final int LANES = 32;

    enum Operation {
        SUM,
        BROADCAST_FIRST,
        SHUFFLE_DOWN,
        LOAD_MATRIX,
        MMA_INT8,
        MMA_HALF
    }

    record Shuffle(float value, int delta) {}

    /** A lane's part of the tiles of m16n8k32: 16 int8 of A, 8 int8 of B, 4 int32 of C. */
    record Fragments(byte[] a, byte[] b, int[] c) {}

    /** A lane's part of the tiles of m16n8k16: 8 halves of A, 4 halves of B, 4 floats of C. */
    record HalfFragments(HalfFloat[] a, HalfFloat[] b, float[] c) {}

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
        if (wanted.compareTo(Operation.LOAD_MATRIX) >= 0 && lanes != LANES) {
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
            case LOAD_MATRIX -> Arrays.fill(results, integers());
            case MMA_INT8 -> multiply();
            case MMA_HALF -> multiplyHalves();
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

    private int[] integers() {
        int[] integers = new int[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            integers[lane] = (Integer) operands[lane];
        }
        return integers;
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

    /**
     * m16n8k16: lane = 4 group + t holds rows group and group + 8 of A, at k = 2t, 2t + 1 and 2t + 8, 2t + 9; column
     * group of B at the same k; and columns 2t, 2t + 1 of C's rows group and group + 8. A sum is rounded once, which
     * is at least as exact as on a device.
     */
    private void multiplyHalves() {
        double[][] a = new double[16][16];
        double[][] b = new double[8][16];
        for (int lane = 0; lane < LANES; lane++) {
            HalfFragments f = (HalfFragments) operands[lane];
            int group = lane / 4;
            for (int i = 0; i < 4; i++) {
                int k = lane % 4 * 2 + i % 2 + i / 2 * 8;
                a[group][k] = f.a()[i / 2 * 4 + i % 2].getFloat32();
                a[group + 8][k] = f.a()[i / 2 * 4 + 2 + i % 2].getFloat32();
                b[group][k] = f.b()[i].getFloat32();
            }
        }
        for (int lane = 0; lane < LANES; lane++) {
            float[] c = ((HalfFragments) operands[lane]).c();
            int row = lane / 4;
            int column = lane % 4 * 2;
            results[lane] = new float[] {
                (float) (c[0] + product(a[row], b[column])),
                (float) (c[1] + product(a[row], b[column + 1])),
                (float) (c[2] + product(a[row + 8], b[column])),
                (float) (c[3] + product(a[row + 8], b[column + 1]))
            };
        }
    }

    private static double product(double[] a, double[] b) {
        double sum = 0;
        for (int k = 0; k < a.length; k++) {
            sum += a[k] * b[k];
        }
        return sum;
    }

    private static int product(byte[] a, byte[] b) {
        int sum = 0;
        for (int k = 0; k < a.length; k++) {
            sum += a[k] * b[k];
        }
        return sum;
    }
}
