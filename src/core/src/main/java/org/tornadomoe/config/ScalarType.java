package org.tornadomoe.config;

/** Types of single values, under PyTorch's names. */
public enum ScalarType {
    F32("f32", "float32", 4),
    F16("f16", "float16", 2),
    BF16("bf16", "bfloat16", 2),
    I8("i8", "int8", 1);

    private final String abbreviation;
    private final String torchName;
    private final int bytes;

    ScalarType(String abbreviation, String torchName, int bytes) {
        this.abbreviation = abbreviation;
        this.torchName = torchName;
        this.bytes = bytes;
    }

    /** {@code f32}. */
    public String abbreviation() {
        return abbreviation;
    }

    /** The bytes of a value. */
    public int bytes() {
        return bytes;
    }

    /** {@code torch.float32}. */
    @Override
    public String toString() {
        return "torch." + torchName;
    }
}
