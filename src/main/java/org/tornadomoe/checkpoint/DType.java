package org.tornadomoe.checkpoint;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/** Element types of safetensors files, little-endian. Those marked unreadable may lie in a file, but can't be read. */
public enum DType {
    F64(8, true),
    F32(4, true),
    F16(2, true),
    BF16(2, true),
    I64(8, true),
    I32(4, true),
    I8(1, true),
    U8(1, true),
    I16(2, false),
    U16(2, false),
    U32(4, false),
    U64(8, false),
    BOOL(1, false),
    F8_E4M3(1, false),
    F8_E5M2(1, false),
    F8_E8M0(1, false);

    private final int bytes;
    private final boolean readable;

    DType(int bytes, boolean readable) {
        this.bytes = bytes;
        this.readable = readable;
    }

    /** Bytes of one element. */
    public int bytes() {
        return bytes;
    }

    /** Bytes of a tensor of that shape, whose sizes are not negative; -1 if they are over 2^63 - 1. */
    long bytes(long[] shape) {
        if (Arrays.stream(shape).anyMatch(size -> size == 0)) {
            return 0;
        }
        long total = bytes;
        for (long size : shape) {
            if (Math.multiplyHigh(total, size) != 0 || total * size < 0) {
                return -1;
            }
            total *= size;
        }
        return total;
    }

    /** Whether {@link Tensor} converts its elements. */
    public boolean isReadable() {
        return readable;
    }

    /** Whether it is a readable floating-point type. */
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
