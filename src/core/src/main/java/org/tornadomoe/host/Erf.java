package org.tornadomoe.host;

/**
 * The error function in float64, with an error of a few 1e-16. It uses the Taylor polynomial at a point of a grid of
 * 1/16. The coefficients follow from the point's value and slope by f'' = −2 x f'.
 */
public final class Erf {
    private static final int PER_UNIT = 16;
    private static final int DEGREE = 11;

    /** Beyond it, the nearest double is 1. */
    private static final double END = 6;

    private static final double[] COEFFICIENTS = coefficients();

    private Erf() {}

    /** The error function of x; NaN for NaN. */
    public static double erf(double x) {
        double a = Math.abs(x);
        if (!(a < END)) {
            return Double.isNaN(x) ? x : Math.copySign(1, x);
        }
        int point = (int) (a * PER_UNIT + 0.5);
        double d = a - (double) point / PER_UNIT;
        int at = point * (DEGREE + 1);
        double y = COEFFICIENTS[at + DEGREE];
        for (int n = DEGREE - 1; n >= 0; n--) {
            y = y * d + COEFFICIENTS[at + n];
        }
        return Math.copySign(y, x);
    }

    private static double[] coefficients() {
        int points = (int) (END * PER_UNIT) + 1;
        double[] all = new double[points * (DEGREE + 1)];
        double value = 0;
        for (int point = 0; point < points; point++) {
            double x = (double) point / PER_UNIT;
            int at = point * (DEGREE + 1);
            all[at] = value;
            all[at + 1] = 2 / Math.sqrt(Math.PI) * Math.exp(-x * x);
            for (int n = 0; n + 2 <= DEGREE; n++) {
                all[at + n + 2] =
                        -2 * (x * (n + 1) * all[at + n + 1] + (n == 0 ? 0 : n * all[at + n])) / ((n + 2) * (n + 1));
            }
            value = next(x, value);
        }
        return all;
    }

    /** The next grid point's value, by the same polynomial with all terms that matter. */
    private static double next(double x, double value) {
        double d = 1.0 / PER_UNIT;
        double before = value;
        double last = 2 / Math.sqrt(Math.PI) * Math.exp(-x * x);
        double power = d;
        double sum = value + last * d;
        for (int n = 0; n < 30; n++) {
            double term = -2 * (x * (n + 1) * last + (n == 0 ? 0 : n * before)) / ((n + 2) * (n + 1));
            before = last;
            last = term;
            power *= d;
            sum += term * power;
        }
        return sum;
    }
}
