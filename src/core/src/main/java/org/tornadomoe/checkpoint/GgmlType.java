package org.tornadomoe.checkpoint;

import org.jspecify.annotations.Nullable;

/** Tensor types of GGUF files, by the numbers and block sizes of ggml ({@code ggml.h}, {@code ggml-common.h}). */
enum GgmlType {
    F32(0, 1, DType.F32),
    F16(1, 1, DType.F16),
    Q4_0(2, 32, 18),
    Q4_1(3, 32, 20),
    Q5_0(6, 32, 22),
    Q5_1(7, 32, 24),
    /** 32 int8 values after their scale, an F16. */
    Q8_0(8, 32, 34),
    Q8_1(9, 32, 36),
    Q2_K(10, 256, 84),
    Q3_K(11, 256, 110),
    Q4_K(12, 256, 144),
    Q5_K(13, 256, 176),
    Q6_K(14, 256, 210),
    Q8_K(15, 256, 292),
    IQ2_XXS(16, 256, 66),
    IQ2_XS(17, 256, 74),
    IQ3_XXS(18, 256, 98),
    IQ1_S(19, 256, 50),
    IQ4_NL(20, 32, 18),
    IQ3_S(21, 256, 110),
    IQ2_S(22, 256, 82),
    IQ4_XS(23, 256, 136),
    I8(24, 1, DType.I8),
    I16(25, 1, DType.I16),
    I32(26, 1, DType.I32),
    I64(27, 1, DType.I64),
    F64(28, 1, DType.F64),
    IQ1_M(29, 256, 56),
    BF16(30, 1, DType.BF16),
    TQ1_0(34, 256, 54),
    TQ2_0(35, 256, 66),
    MXFP4(39, 32, 17);

    final int number;

    /** Elements of a block; rows consist of whole blocks. */
    final int elements;

    /** Bytes of a block. */
    final int bytes;

    /** The same type in safetensors; null for blocks. */
    final @Nullable DType dtype;

    GgmlType(int number, int elements, int bytes) {
        this.number = number;
        this.elements = elements;
        this.bytes = bytes;
        this.dtype = null;
    }

    GgmlType(int number, int elements, DType dtype) {
        this.number = number;
        this.elements = elements;
        this.bytes = dtype.bytes();
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
}
