package org.tornadomoe.checkpoint.file;

/**
 * The values of 8-bit and 4-bit floats, by their bits. Those of 4 bits (E2M1) lie on a grid: in half steps a value is a
 * whole number of -12 to 12.
 *
 * <p>The formats are OCP's: 8-bit Floating Point (OFP8) 1.0 and <a
 * href="https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf">Microscaling Formats
 * 1.0</a>.
 */
@SuppressWarnings("MutablePublicArray") // only the library sees them, and reads them in its innermost loops
public final class SmallFloats {
    /** The values of E4M3 without infinities (OFP8's), by their bits. */
    public static final float[] E4M3 = new float[256];

    public static final float[] E5M2 = new float[256];

    /** Powers of two, 2^-127 to 2^127; NaN. */
    public static final float[] E8M0 = new float[256];

    /** E2M1 in half steps: {@code 2 * value}, by the bits. */
    public static final byte[] HALF_STEPS = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

    /** Two of them, by the bits of both: the lower one's in the lower byte. */
    public static final char[] TWO_HALF_STEPS = pairs(HALF_STEPS);

    /** Two whole numbers of four bits, likewise. */
    public static final char[] TWO_INTS = pairs(new byte[] {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1});

    static {
        for (int bits = 0; bits < 256; bits++) {
            int magnitude = bits & 0x7f;
            float sign = bits < 128 ? 1 : -1;
            E4M3[bits] = sign * (magnitude == 0x7f ? Float.NaN : e4m3(magnitude));
            // The upper half of an F16.
            E5M2[bits] = Float.float16ToFloat((short) (bits << 8));
            E8M0[bits] = bits == 255 ? Float.NaN : (float) Math.scalb(1d, bits - 127);
        }
    }

    private SmallFloats() {}

    /** What two numbers of four bits stand for, by both of them: the lower one's byte is the lower. */
    static char[] pairs(byte[] values) {
        char[] pairs = new char[256];
        for (int both = 0; both < 256; both++) {
            pairs[both] = (char) ((values[both & 15] & 0xff) | (values[both >> 4] << 8));
        }
        return pairs;
    }

    /** The value of E4M3's bits without the sign, as if those of the NaN were a number's, too. */
    static float e4m3(int bits) {
        int exponent = bits >> 3;
        int mantissa = bits & 7;
        return exponent == 0 ? Math.scalb((float) mantissa, -9) : Math.scalb(8f + mantissa, exponent - 10);
    }

    /** What the lowest bytes of four numbers stand for, eight bytes. */
    public static long lookUp(char[] pairs, int a, int b, int c, int d) {
        return pairs[a & 0xff]
                | (long) pairs[b & 0xff] << 16
                | (long) pairs[c & 0xff] << 32
                | (long) pairs[d & 0xff] << 48;
    }
}
