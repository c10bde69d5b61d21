package org.tornadomoe.reference;

/**
 * Helper functions of the definition and of comparisons with it: conversions, sums in index order, the error of a
 * result.
 */
public final class Numerics {
    private Numerics() {}

    /** The same values as doubles. */
    public static double[] widen(float[] x) {
        double[] wide = new double[x.length];
        for (int i = 0; i < x.length; i++) {
            wide[i] = x[i];
        }
        return wide;
    }

    /** The same values rounded to floats. */
    public static float[] narrow(double[] x) {
        float[] narrow = new float[x.length];
        for (int i = 0; i < x.length; i++) {
            narrow[i] = (float) x[i];
        }
        return narrow;
    }

    /** The relative L2 error: |actual - expected| / |expected| in the Euclidean norm; 0 if both are all zero. */
    public static double relativeL2(double[] actual, double[] expected) {
        if (actual.length != expected.length) {
            throw new IllegalArgumentException("actual: expected " + expected.length + " values, got " + actual.length);
        }
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < expected.length; i++) {
            difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
            norm += expected[i] * expected[i];
        }
        return difference == 0 ? 0 : Math.sqrt(difference / norm);
    }

    /** The sum in index order. */
    static double sum(double[] x) {
        double sum = 0;
        for (double v : x) {
            sum += v;
        }
        return sum;
    }

    static void requireLength(String name, long length, long rows, long cols) {
        if (rows < 0 || length != rows * cols) {
            throw new IllegalArgumentException(
                    name + ": expected [" + rows + ", " + cols + "] = " + rows * cols + " values, got " + length);
        }
    }
}
