package uk.ac.manchester.tornado.api.utils;

import uk.ac.manchester.tornado.api.interpreter.CheckedMemory;
import uk.ac.manchester.tornado.api.types.arrays.Int8Array;

/** Dot products of four int8 pairs, added to an int32; all wrap on overflow. */
public class QuantizationUtils {
    public QuantizationUtils() {}

    /** c plus the dot product of a[offsetA, offsetA + 4) and b[offsetB, offsetB + 4). */
    public static int dp4a(Int8Array a, long offsetA, Int8Array b, long offsetB, int c) {
        int from = Math.toIntExact(offsetA);
        int with = Math.toIntExact(offsetB);
        return c
                + a.get(from) * b.get(with)
                + a.get(from + 1) * b.get(with + 1)
                + a.get(from + 2) * b.get(with + 2)
                + a.get(from + 3) * b.get(with + 3);
    }

    /** c plus the dot product of a[offsetA, offsetA + 4) and b[offsetB, offsetB + 4), b being local memory. */
    public static int dp4a(Int8Array a, long offsetA, byte[] b, long offsetB, int c) {
        int from = Math.toIntExact(offsetA);
        int with = Math.toIntExact(offsetB);
        return c
                + a.get(from) * CheckedMemory.load(b, with)
                + a.get(from + 1) * CheckedMemory.load(b, with + 1)
                + a.get(from + 2) * CheckedMemory.load(b, with + 2)
                + a.get(from + 3) * CheckedMemory.load(b, with + 3);
    }

    /** An int32 sum of products, scaled back. */
    public static float dequantizeFusedResult(int dotProductResult, float wScale, float xScale) {
        return dotProductResult * wScale * xScale;
    }

    /** c plus the dot product of the four int8 in a with the four in b. */
    public static int dp4a_packed(int a, int b, int c) {
        return c
                + (byte) a * (byte) b
                + (byte) (a >> 8) * (byte) (b >> 8)
                + (byte) (a >> 16) * (byte) (b >> 16)
                + (a >> 24) * (b >> 24);
    }
}
