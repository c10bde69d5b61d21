package org.tornadomoe.checkpoint.file;

import java.math.BigInteger;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/** Element types of safetensors files, little-endian. Those marked unreadable may lie in a file, but can't be read. */
public enum DType {
    F64(64, true),
    F32(32, true),
    F16(16, true),
    BF16(16, true),
    I64(64, true),
    I32(32, true),
    I8(8, true),
    U8(8, true),
    C64(64, false),
    I16(16, false),
    U16(16, false),
    U32(32, false),
    U64(64, false),
    BOOL(8, false),
    F8_E4M3(8, true),
    F8_E4M3FNUZ(8, false),
    F8_E5M2(8, true),
    F8_E5M2FNUZ(8, false),
    F8_E8M0(8, true),
    F6_E2M3(6, false),
    F6_E3M2(6, false),
    F4(4, false);

    private final int bits;
    private final boolean readable;

    DType(int bits, boolean readable) {
        this.bits = bits;
        this.readable = readable;
    }

    /** Bits of one element. */
    public int bits() {
        return bits;
    }

    /** Bytes of one element, rounded up where it is shorter than one. */
    public int bytes() {
        return Math.ceilDiv(bits, 8);
    }

    /**
     * Bytes of a tensor of that shape, whose sizes are not negative; -1 if they are over 2^63 - 1 or no whole number.
     */
    long bytes(long[] shape) {
        if (Arrays.stream(shape).anyMatch(size -> size == 0)) {
            return 0;
        }
        BigInteger total = BigInteger.valueOf(bits);
        for (long size : shape) {
            total = total.multiply(BigInteger.valueOf(size));
        }
        BigInteger[] bytes = total.divideAndRemainder(BigInteger.valueOf(8));
        return bytes[1].signum() != 0 || bytes[0].bitLength() > 63 ? -1 : bytes[0].longValue();
    }

    /** Whether {@link Tensor} converts its elements. */
    public boolean isReadable() {
        return readable;
    }

    /** Whether it is a float of 8 bits whose values have a scale beside them. */
    public boolean isFloat8() {
        return this == F8_E4M3 || this == F8_E5M2;
    }

    /** Whether it is a readable floating-point type of at least 16 bits. */
    public boolean isFloat() {
        return this == F64 || this == F32 || this == F16 || this == BF16;
    }

    static @Nullable DType named(String name) {
        for (DType dtype : values()) {
            if (dtype.name().equals(name)) {
                return dtype;
            }
        }
        return null;
    }
}
