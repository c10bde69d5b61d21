package org.tornadomoe.checkpoint.file;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/**
 * Numbers of a few bits in the blocks of GGUF files, taken apart eight at a time: a word of eight bytes, a number a
 * byte.
 */
final class GgmlBits {
    static final ValueLayout.OfShort SHORT = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    static final VarHandle INTS = MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
    private static final VarHandle LONGS = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

    private GgmlBits() {}

    static float half(MemorySegment data, long at) {
        return Float.float16ToFloat(data.get(SHORT, at));
    }

    static int unsigned(MemorySegment data, long at) {
        return data.get(ValueLayout.JAVA_BYTE, at) & 0xff;
    }

    /** The i-th half of the bytes from there on, the lower ones first. */
    static int nibble(MemorySegment data, long at, int i) {
        return unsigned(data, at + i / 2) >> (4 * (i % 2)) & 0xf;
    }

    /** Eight signs of the lower seven bits: an even number of them are set. */
    static int signs(int bits) {
        int seven = bits & 127;
        return seven | (Integer.bitCount(seven) & 1) << 7;
    }

    /** The scale of numbers in eighths: d times 1, 3, 5, ..., an eighth of it. */
    static float eighths(MemorySegment data, long at, int scale) {
        return half(data, at) * (2 * scale + 1) / 8;
    }

    static void put(byte[] into, int at, long eight) {
        LONGS.set(into, at, eight);
    }

    /** That byte, eight times. */
    static long each(int value) {
        return value * 0x0101010101010101L;
    }

    /** Eight numbers of 0 to 127, less another one of that range. */
    static long minus(long numbers, int less) {
        return ((numbers | each(0x80)) - each(less)) ^ each(0x80);
    }

    /** The lower eight bits as eight bytes, 0 or 1 each, the lowest first. */
    static long bits(int bits) {
        long apart = each(bits & 0xff) & 0x8040201008040201L;
        return ((apart + each(0x7f)) >>> 7) & each(1);
    }

    /** The lower halves of some bytes, then the upper ones, less a number. */
    static void nibbles(MemorySegment data, long at, int bytes, int less, byte[] into, int to) {
        for (int i = 0; i < bytes; i += 8) {
            long word = data.get(LONG, at + i);
            put(into, to + i, minus(word & each(0xf), less));
            put(into, to + bytes + i, minus((word >>> 4) & each(0xf), less));
        }
    }

    /** The values that the lower halves of some bytes stand for, then those of the upper ones. */
    static void nibbles(MemorySegment data, long at, int bytes, char[] pairs, byte[] into, int to) {
        for (int i = 0; i < bytes; i += 8) {
            long word = data.get(LONG, at + i);
            put(into, to + i, lookUp(pairs, word & each(0xf)));
            put(into, to + bytes + i, lookUp(pairs, (word >>> 4) & each(0xf)));
        }
    }

    /** Of eight bytes of four bits each. */
    private static long lookUp(char[] pairs, long eight) {
        long two = eight | eight >>> 4; // two neighbours in every other byte
        return SmallFloats.lookUp(pairs, (int) two, (int) (two >>> 16), (int) (two >>> 32), (int) (two >>> 48));
    }

    /** 32 numbers of five bits, less a number: the fifth bits, then the others as nibbles. */
    static void fiveBits(MemorySegment data, long at, int less, byte[] into, int to) {
        for (int i = 0; i < 16; i += 8) {
            long word = data.get(LONG, at + 4 + i);
            put(into, to + i, minus((word & each(0xf)) | bits(unsigned(data, at + i / 8)) << 4, less));
            long second = ((word >>> 4) & each(0xf)) | bits(unsigned(data, at + 2 + i / 8)) << 4;
            put(into, to + 16 + i, minus(second, less));
        }
    }

    /** 256 numbers of two bits, less a number: of 32 bytes the lowest two bits of all, then the next, twice. */
    static void twoBits(MemorySegment data, long at, int less, byte[] into, int to) {
        for (int half = 0; half < 2; half++) {
            for (int l = 0; l < 32; l += 8) {
                long word = data.get(LONG, at + 32L * half + l);
                for (int n = 0; n < 4; n++, word >>>= 2) {
                    put(into, to + 128 * half + 32 * n + l, minus(word & each(3), less));
                }
            }
        }
    }

    /** Eight signed bytes less a number, times a scale. */
    static void eight(float scale, long bytes, int less, float[] into, int to) {
        for (int n = 0; n < 8; n++, bytes >>>= 8) {
            into[to + n] = scale * ((byte) bytes - less);
        }
    }

    /**
     * Eight numbers of six bits, times a scale: all six of the first four in a byte each, beside two of the last four,
     * whose other four are in {@code high}.
     */
    static void sixBits(float scale, int low, int high, float[] into, int to) {
        for (int n = 0; n < 4; n++, low >>>= 8, high >>>= 8) {
            into[to + n] = scale * (low & 0x3f);
            into[to + 4 + n] = scale * ((high & 0xf) | ((low >>> 2) & 0x30));
        }
    }

    /** Of eight scales and eight mins of six bits in twelve bytes, a scale. */
    static int sixBitScale(MemorySegment data, long at, int group) {
        return group < 4
                ? unsigned(data, at + group) & 0x3f
                : (unsigned(data, at + group + 4) & 0xf) | ((unsigned(data, at + group - 4) >> 6) << 4);
    }

    /** Likewise a min. */
    static int sixBitMin(MemorySegment data, long at, int group) {
        return group < 4
                ? unsigned(data, at + group + 4) & 0x3f
                : (unsigned(data, at + group + 4) >> 4) | ((unsigned(data, at + group) >> 6) << 4);
    }
}
