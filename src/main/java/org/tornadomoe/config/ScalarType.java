package org.tornadomoe.config;

/** Types of single values, under PyTorch's names. */
public enum ScalarType {
    F32("f32", "float32"),
    F16("f16", "float16"),
    BF16("bf16", "bfloat16"),
    I8("i8", "int8");

    private final String abbreviation;
    private final String torchName;

    ScalarType(String abbreviation, String torchName) {
        this.abbreviation = abbreviation;
        this.torchName = torchName;
    }

    /** {@code f32}. */
    public String abbreviation() {
        return abbreviation;
    }

    /** {@code torch.float32}. */
    @Override
    public String toString() {
        return "torch." + torchName;
    }
}
