package org.tornadomoe.checkpoint.file;

import static org.tornadomoe.checkpoint.file.GgmlBits.INT;
import static org.tornadomoe.checkpoint.file.GgmlBits.INTS;
import static org.tornadomoe.checkpoint.file.GgmlBits.LONG;
import static org.tornadomoe.checkpoint.file.GgmlBits.SHORT;
import static org.tornadomoe.checkpoint.file.GgmlBits.bits;
import static org.tornadomoe.checkpoint.file.GgmlBits.each;
import static org.tornadomoe.checkpoint.file.GgmlBits.eight;
import static org.tornadomoe.checkpoint.file.GgmlBits.eighths;
import static org.tornadomoe.checkpoint.file.GgmlBits.fiveBits;
import static org.tornadomoe.checkpoint.file.GgmlBits.half;
import static org.tornadomoe.checkpoint.file.GgmlBits.minus;
import static org.tornadomoe.checkpoint.file.GgmlBits.nibble;
import static org.tornadomoe.checkpoint.file.GgmlBits.nibbles;
import static org.tornadomoe.checkpoint.file.GgmlBits.put;
import static org.tornadomoe.checkpoint.file.GgmlBits.signs;
import static org.tornadomoe.checkpoint.file.GgmlBits.sixBitMin;
import static org.tornadomoe.checkpoint.file.GgmlBits.sixBitScale;
import static org.tornadomoe.checkpoint.file.GgmlBits.sixBits;
import static org.tornadomoe.checkpoint.file.GgmlBits.twoBits;
import static org.tornadomoe.checkpoint.file.GgmlBits.unsigned;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Tensor types of GGUF files, by the numbers and block sizes of ggml ({@code ggml.h}, {@code ggml-common.h}).
 *
 * <p>A block that is read here holds whole numbers of -128 to 127, a scale for each group of them and, of some types, a
 * least value, too: weight = number * scale - min. Without a min that is what {@code w8a16_group} holds, exactly.
 */
public enum GgmlType {
    F32(0, 1, DType.F32),
    F16(1, 1, DType.F16),
    /** Element j of the first half is the lower half of byte j, of the second half its upper half; d before them. */
    Q4_0(2, 32, 18, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            nibbles(data, at + 2, 16, 8, into, to);
        }
    },
    Q4_1(3, 32, 20, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            nibbles(data, at + 4, 16, 0, into, to);
        }

        @Override
        float min(MemorySegment data, long at, int group) {
            return -half(data, at + 2);
        }
    },
    /** As Q4_0, with a fifth bit of each element in a word of 32. */
    Q5_0(6, 32, 22, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            fiveBits(data, at + 2, 16, into, to);
        }
    },
    Q5_1(7, 32, 24, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            fiveBits(data, at + 4, 0, into, to);
        }

        @Override
        float min(MemorySegment data, long at, int group) {
            return -half(data, at + 2);
        }
    },
    /** 32 int8 values after their scale, an F16. */
    Q8_0(8, 32, 34, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 32; i += 8) {
                put(into, to + i, data.get(LONG, at + 2 + i));
            }
        }
    },
    Q8_1(9, 32, 36),
    /** Groups of 16 with scale and min of 4 bits each, then two bits an element. */
    Q2_K(10, 256, 84, 16) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            twoBits(data, at + 16, 0, into, to);
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return half(data, at + 80) * (unsigned(data, at + group) & 0xf);
        }

        @Override
        float min(MemorySegment data, long at, int group) {
            return half(data, at + 82) * (unsigned(data, at + group) >> 4);
        }

        @Override
        public void scales(MemorySegment data, long at, float[] into, int to) {
            float scale = half(data, at + 80);
            eight(scale, data.get(LONG, at) & each(0xf), 0, into, to);
            eight(scale, data.get(LONG, at + 8) & each(0xf), 0, into, to + 8);
        }

        @Override
        public void mins(MemorySegment data, long at, float[] into, int to) {
            float min = half(data, at + 82);
            eight(min, (data.get(LONG, at) >>> 4) & each(0xf), 0, into, to);
            eight(min, (data.get(LONG, at + 8) >>> 4) & each(0xf), 0, into, to + 8);
        }
    },
    /** The third bit of all elements, two bits each, then 16 scales of six bits. */
    Q3_K(11, 256, 110, 16) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int l = 0; l < 32; l += 8) {
                long high = data.get(LONG, at + l);
                for (int half = 0; half < 2; half++) {
                    long low = data.get(LONG, at + 32 + 32L * half + l);
                    for (int n = 0; n < 4; n++, low >>>= 2, high >>>= 1) {
                        put(into, to + 128 * half + 32 * n + l, minus((low & each(3)) | (high & each(1)) << 2, 4));
                    }
                }
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            int low = (unsigned(data, at + 96 + group % 8) >> (4 * (group / 8))) & 0xf;
            int high = (unsigned(data, at + 104 + group % 4) >> (2 * (group / 4))) & 3;
            return half(data, at + 108) * ((low | high << 4) - 32);
        }

        @Override
        public void scales(MemorySegment data, long at, float[] into, int to) {
            float scale = half(data, at + 108);
            long low = data.get(LONG, at + 96);
            int high = data.get(INT, at + 104);
            for (int n = 0; n < 2; n++, low >>>= 4, high >>>= 4) {
                long upper = (high & 0x0303_0303) | ((high >>> 2) & 0x0303_0303L) << 32;
                eight(scale, (low & each(0xf)) | upper << 4, 32, into, to + 8 * n);
            }
        }
    },
    Q4_K(12, 256, 144, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int n = 0; n < 4; n++) {
                nibbles(data, at + 16 + 32L * n, 32, 0, into, to + 64 * n);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return half(data, at) * sixBitScale(data, at + 4, group);
        }

        @Override
        float min(MemorySegment data, long at, int group) {
            return half(data, at + 2) * sixBitMin(data, at + 4, group);
        }

        @Override
        public void scales(MemorySegment data, long at, float[] into, int to) {
            sixBits(half(data, at), data.get(INT, at + 4), data.get(INT, at + 12), into, to);
        }

        @Override
        public void mins(MemorySegment data, long at, float[] into, int to) {
            sixBits(half(data, at + 2), data.get(INT, at + 8), data.get(INT, at + 12) >>> 4, into, to);
        }
    },
    /** As Q4_K, with the fifth bit of element l of group n in bit n of byte l. */
    Q5_K(13, 256, 176, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int l = 0; l < 32; l += 8) {
                long high = data.get(LONG, at + 16 + l);
                for (int n = 0; n < 4; n++, high >>>= 2) {
                    long low = data.get(LONG, at + 48 + 32L * n + l);
                    put(into, to + 64 * n + l, (low & each(0xf)) | (high & each(1)) << 4);
                    put(into, to + 64 * n + 32 + l, ((low >>> 4) & each(0xf)) | ((high >>> 1) & each(1)) << 4);
                }
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return Q4_K.scale(data, at, group);
        }

        @Override
        float min(MemorySegment data, long at, int group) {
            return Q4_K.min(data, at, group);
        }

        @Override
        public void scales(MemorySegment data, long at, float[] into, int to) {
            Q4_K.scales(data, at, into, to);
        }

        @Override
        public void mins(MemorySegment data, long at, float[] into, int to) {
            Q4_K.mins(data, at, into, to);
        }
    },
    /** Four bits of all elements, two more, then 16 scales of eight bits. */
    Q6_K(14, 256, 210, 16) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int n = 0; n < 2; n++) {
                for (int l = 0; l < 32; l += 8) {
                    long high = data.get(LONG, at + 128 + 32L * n + l);
                    for (int m = 0; m < 64; m += 32, high >>>= 2) { // each byte's halves are two quarters apart
                        long low = data.get(LONG, at + 64L * n + m + l);
                        long first = (low & each(0xf)) | (high & each(3)) << 4;
                        long third = ((low >>> 4) & each(0xf)) | ((high >>> 4) & each(3)) << 4;
                        put(into, to + 128 * n + m + l, minus(first, 32));
                        put(into, to + 128 * n + 64 + m + l, minus(third, 32));
                    }
                }
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return half(data, at + 208) * data.get(ValueLayout.JAVA_BYTE, at + 192 + group);
        }

        @Override
        public void scales(MemorySegment data, long at, float[] into, int to) {
            float scale = half(data, at + 208);
            eight(scale, data.get(LONG, at + 192), 0, into, to);
            eight(scale, data.get(LONG, at + 200), 0, into, to + 8);
        }
    },
    Q8_K(15, 256, 292),
    /** Of 32 elements four indices of eight, then a word of their signs, and the scale's four bits. */
    IQ2_XXS(16, 256, 66, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 32; i++) {
                int index = unsigned(data, at + 2 + 8L * (i / 4) + i % 4);
                int signs = signs(data.get(INT, at + 6 + 8L * (i / 4)) >>> (7 * (i % 4)));
                GgmlCodebook.IQ2_XXS.put(index, signs, into, to + 8 * i);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return eighths(data, at, data.get(INT, at + 6 + 8L * group) >>> 28);
        }
    },
    /** Nine bits of an index and seven of signs for eight elements, then the scales. */
    IQ2_XS(17, 256, 74, 16) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 32; i++) {
                int both = data.get(SHORT, at + 2 + 2L * i) & 0xffff;
                GgmlCodebook.IQ2_XS.put(both & 511, signs(both >> 9), into, to + 8 * i);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return eighths(data, at, nibble(data, at + 66, group));
        }
    },
    /** Indices of four elements; of 32 a word of their signs, and the scale's four bits. */
    IQ3_XXS(18, 256, 98, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 64; i++) {
                int signs = signs(data.get(INT, at + 66 + 4L * (i / 8)) >>> (7 * (i / 2 % 4)));
                GgmlCodebook.IQ3_XXS.put(unsigned(data, at + 2 + i), signs >> (4 * (i % 2)), into, to + 4 * i);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return 2 * eighths(data, at, data.get(INT, at + 66 + 4L * group) >>> 28);
        }
    },
    /** -1 to 1, plus or minus an eighth: indices of eight elements; of 32 more bits of them, scale and sign. */
    IQ1_S(19, 256, 50, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 32; i++) {
                int high = data.get(SHORT, at + 34 + 2L * (i / 4));
                int index = unsigned(data, at + 2 + i) | (high >> (3 * (i % 4)) & 7) << 8;
                GgmlCodebook.IQ1.put(index, 8, high < 0 ? -1 : 1, into, to + 8 * i);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return eighths(data, at, data.get(SHORT, at + 34 + 2L * group) >> 12 & 7);
        }
    },
    IQ4_NL(20, 32, 18, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            nibbles(data, at + 2, 16, NORMAL, into, to);
        }
    },
    /** Lower bits of indices of four elements, a bit more of each, signs, scales. */
    IQ3_S(21, 256, 110, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 64; i++) {
                int index = unsigned(data, at + 2 + i) | (unsigned(data, at + 66 + i / 8) >> (i % 8) & 1) << 8;
                GgmlCodebook.IQ3_S.put(index, nibble(data, at + 74, i), into, to + 4 * i);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return half(data, at) * (1 + 2 * nibble(data, at + 106, group));
        }
    },
    /** Lower bits of indices of eight elements, signs, two bits more of each index, scales. */
    IQ2_S(22, 256, 82, 16) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 32; i++) {
                int high = unsigned(data, at + 66 + i / 4) >> (2 * (i % 4)) & 3;
                int index = unsigned(data, at + 2 + i) | high << 8;
                GgmlCodebook.IQ2_S.put(index, unsigned(data, at + 34 + i), into, to + 8 * i);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return eighths(data, at, nibble(data, at + 74, group));
        }
    },
    /** Eight scales of six bits: the upper two of all, then the lower four. */
    IQ4_XS(23, 256, 136, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int n = 0; n < 8; n++) {
                nibbles(data, at + 8 + 16L * n, 16, NORMAL, into, to + 32 * n);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            int low = nibble(data, at + 4, group);
            int high = (data.get(SHORT, at + 2) >> (2 * group)) & 3;
            return half(data, at) * ((low | high << 4) - 32);
        }

        @Override
        public void scales(MemorySegment data, long at, float[] into, int to) {
            float scale = half(data, at);
            int low = data.get(INT, at + 4);
            int high = data.get(SHORT, at + 2);
            for (int n = 0; n < 8; n++, low >>>= 4, high >>>= 2) {
                into[to + n] = scale * (((low & 0xf) | (high & 3) << 4) - 32);
            }
        }
    },
    I8(24, 1, DType.I8),
    I16(25, 1, DType.I16),
    I32(26, 1, DType.I32),
    I64(27, 1, DType.I64),
    F64(28, 1, DType.F64),
    /** As IQ1_S, with three bits of an index and the sign in half a byte; the scale is in the scales' upper bits. */
    IQ1_M(29, 256, 56, 16) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 32; i++) {
                int high = nibble(data, at + 32, i);
                int index = unsigned(data, at + i) | (high & 7) << 8;
                GgmlCodebook.IQ1.put(index, 8, high > 7 ? -1 : 1, into, to + 8 * i);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            int bits = 0;
            for (int i = 0; i < 4; i++) {
                bits |= nibble(data, at + 48, 4 * i + 3) << (4 * i);
            }
            int own = data.get(SHORT, at + 48 + 2L * (group / 4)) >> (3 * (group % 4)) & 7;
            return Float.float16ToFloat((short) bits) * (2 * own + 1) / 8;
        }
    },
    BF16(30, 1, DType.BF16),
    /** -1, 0 and 1, five of them in a byte as the digits of a fraction in base 3. */
    TQ1_0(34, 256, 54, 256) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 48; i += 8) {
                int bytes = i < 32 ? 32 : 16; // whose leading digits come first, then the next of all
                digits(data.get(LONG, at + i), 5, bytes, into, i < 32 ? to + i : to + 160 + i - 32);
            }
            digits(data.get(INT, at + 48), 4, 4, into, to + 240);
        }

        // The leading digits of eight bytes, or of four, `step` behind each other.
        private void digits(long bytes, int digits, int step, byte[] into, int to) {
            long even = bytes & 0x00ff_00ff_00ff_00ffL;
            long odd = (bytes >>> 8) & 0x00ff_00ff_00ff_00ffL;
            for (int digit = 0; digit < digits; digit++, to += step) {
                even *= 3;
                odd *= 3;
                long eight = minus(((even >>> 8) & 0x0003_0003_0003_0003L) | (odd & 0x0300_0300_0300_0300L), 1);
                if (step == 4) {
                    INTS.set(into, to, (int) eight);
                } else {
                    put(into, to, eight);
                }
                even &= 0x00ff_00ff_00ff_00ffL;
                odd &= 0x00ff_00ff_00ff_00ffL;
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return half(data, at + 52);
        }
    },
    /** -1 to 2, two bits each. */
    TQ2_0(35, 256, 66, 256) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            twoBits(data, at, 1, into, to);
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return half(data, at + 64);
        }
    },
    /** FP4 in halves, under a power of two. */
    MXFP4(39, 32, 17, 32) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            nibbles(data, at + 1, 16, SmallFloats.TWO_HALF_STEPS, into, to);
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            return SmallFloats.E8M0[unsigned(data, at)] / 2;
        }
    },
    /** FP4 in halves, under FP8 (E4M3 whose sign is not read); 0x7f, FP8's NaN, is 0 to ggml. */
    NVFP4(40, 64, 36, 16) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int n = 0; n < 4; n++) {
                nibbles(data, at + 4 + 8L * n, 8, SmallFloats.TWO_HALF_STEPS, into, to + 16 * n);
            }
        }

        @Override
        public float scale(MemorySegment data, long at, int group) {
            int bits = unsigned(data, at + group);
            return bits == 0x7f ? 0 : SmallFloats.e4m3(bits & 0x7f) / 2;
        }
    },
    /** -1 and 1, a bit each. */
    Q1_0(41, 128, 18, 128) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 16; i++) {
                put(into, to + 8 * i, minus(bits(unsigned(data, at + 2 + i)) << 1, 1));
            }
        }
    },
    /** -1 to 2, two bits each, four neighbours in a byte. */
    Q2_0(42, 64, 18, 64) {
        @Override
        public void numbers(MemorySegment data, long at, byte[] into, int to) {
            for (int i = 0; i < 64; i++) {
                into[to + i] = (byte) (((unsigned(data, at + 2 + i / 4) >> (2 * (i % 4))) & 3) - 1);
            }
        }
    };

    /** Values about as far apart as those of a normal distribution; two of IQ4's, by the bits of both. */
    private static final char[] NORMAL =
            SmallFloats.pairs(new byte[] {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113});

    /** Types that matrices may have. */
    public static final List<GgmlType> READ = Arrays.stream(values())
            .filter(type -> type.group > 0 || (type.dtype != null && type.dtype.isFloat()))
            .toList();

    public final int number;

    /** Elements of a block; rows consist of whole blocks. */
    public final int elements;

    /** Bytes of a block. */
    public final int bytes;

    /** Elements that share a scale; 0 if such blocks are not read. */
    public final int group;

    /** Groups of a block. */
    public final int groups;

    /** The same type in safetensors; null for blocks. */
    public final @Nullable DType dtype;

    GgmlType(int number, int elements, int bytes) {
        this(number, elements, bytes, 0);
    }

    GgmlType(int number, int elements, int bytes, int group) {
        this.number = number;
        this.elements = elements;
        this.bytes = bytes;
        this.group = group;
        groups = group == 0 ? 0 : elements / group;
        this.dtype = null;
    }

    GgmlType(int number, int elements, DType dtype) {
        this.number = number;
        this.elements = elements;
        this.bytes = dtype.bytes();
        group = 0;
        groups = 0;
        this.dtype = dtype;
    }

    static @Nullable GgmlType of(int number) {
        for (GgmlType type : values()) {
            if (type.number == number) {
                return type;
            }
        }
        return null;
    }

    /**
     * Reads the whole numbers of the block that begins at that byte.
     *
     * @param into receives them from index {@code to} on, {@link #elements} of them
     * @throws UnsupportedOperationException if such blocks are not read
     */
    public void numbers(MemorySegment data, long at, byte[] into, int to) {
        throw new UnsupportedOperationException(name());
    }

    /** The scale of a group of that block; NaN or infinite where the file says so. */
    public float scale(MemorySegment data, long at, int group) {
        return half(data, at);
    }

    /** What is taken off each value of that group. */
    float min(MemorySegment data, long at, int group) {
        return 0;
    }

    /** All scales of that block, from index {@code to} on. */
    public void scales(MemorySegment data, long at, float[] into, int to) {
        for (int group = 0; group < groups; group++) {
            into[to + group] = scale(data, at, group);
        }
    }

    /** All its mins, likewise. */
    public void mins(MemorySegment data, long at, float[] into, int to) {
        for (int group = 0; group < groups; group++) {
            into[to + group] = min(data, at, group);
        }
    }

    /** Whether blocks hold mins, so that their values are no multiples of a scale. */
    public boolean hasMin() {
        return switch (this) {
            case Q4_1, Q5_1, Q2_K, Q4_K, Q5_K -> true;
            default -> false;
        };
    }
}
