package org.tornadomoe.host;

/**
 * e^x in float64, by steps that vectors can do too, so that both give the same bits: x = n ln 2 + r; e^r by its series
 * up to r^13, which for |r| at most (ln 2) / 2 is within 4e-18; then 2^n added to the exponent. Within one unit in the
 * last place.
 */
final class Exp {
    /** Above it, the result is infinite. */
    static final double MOST = 709;

    /** Below it, the result is zero. */
    static final double LEAST = -708;

    static final double LOG2_E = 1 / Math.log(2);

    /** Added to a double, it rounds the double to an integer, which is then in the last bits. */
    static final double WHOLE = 0x1.8p52;

    /** ln 2 in two parts; the first ends in zero bits, so that n times it is exact. */
    static final double LN2 = 0x1.62e42fefap-1;

    static final double LN2_REST = 0x1.cf79abc9e3b3ap-40;

    /** 1 / k! for k from 13 down to 0. */
    static final double[] SERIES = new double[14];

    static final int EXPONENT = 52;
    static final long ONE = 1023L << EXPONENT;

    static {
        double factorial = 1;
        for (int k = 0; k < SERIES.length; k++) {
            factorial *= Math.max(1, k);
            SERIES[SERIES.length - 1 - k] = 1 / factorial;
        }
    }

    private Exp() {}

    static double of(double x) {
        if (x > MOST) {
            return Double.POSITIVE_INFINITY;
        }
        if (x < LEAST) {
            return 0;
        }
        double whole = Math.fma(x, LOG2_E, WHOLE);
        double n = whole - WHOLE;
        double r = Math.fma(n, -LN2_REST, Math.fma(n, -LN2, x));
        double sum = SERIES[0];
        for (int k = 1; k < SERIES.length; k++) {
            sum = Math.fma(sum, r, SERIES[k]);
        }
        return sum * Double.longBitsToDouble((Double.doubleToRawLongBits(whole) << EXPONENT) + ONE);
    }
}
