package org.tornadomoe.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.tornadomoe.config.ScalarType;

/**
 * Hidden states in memory in a layer's hidden type: F32, F16 or BF16, in native byte order. Narrowing rounds to
 * nearest, ties to even; overflow becomes infinite; infinities and NaNs stay.
 */
public final class HiddenStates {
    private HiddenStates() {}

    /**
     * Reads the first {@code count} values as floats.
     *
     * @throws IllegalArgumentException for {@code I8}, or if there are fewer than {@code count} values, or room for
     *     fewer
     */
    public static void read(ScalarType type, MemorySegment from, float[] into, int count) {
        requireRoom(type, from, into, count);
        switch (type) {
            case F32 -> MemorySegment.copy(from, ValueLayout.JAVA_FLOAT_UNALIGNED, 0, into, 0, count);
            case F16 -> {
                for (int i = 0; i < count; i++) {
                    into[i] = Float.float16ToFloat(from.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i));
                }
            }
            case BF16 -> {
                for (int i = 0; i < count; i++) {
                    into[i] = Float.intBitsToFloat(from.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i) << 16);
                }
            }
            case I8 -> throw unsupported(type);
        }
    }

    /** The values in memory as that type: the array itself for F32. */
    public static MemorySegment memory(ScalarType type, float[] values, int count) {
        if (type == ScalarType.F32) {
            return MemorySegment.ofArray(values);
        }
        MemorySegment narrow = MemorySegment.ofArray(new short[count]);
        write(type, values, count, narrow);
        return narrow;
    }

    /** Writes the first {@code count} values. Throws as {@link #read}. */
    public static void write(ScalarType type, float[] from, int count, MemorySegment into) {
        requireRoom(type, into, from, count);
        switch (type) {
            case F32 -> MemorySegment.copy(from, 0, into, ValueLayout.JAVA_FLOAT_UNALIGNED, 0, count);
            case F16, BF16 -> {
                for (int i = 0; i < count; i++) {
                    into.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, narrow(type, from[i]));
                }
            }
            case I8 -> throw unsupported(type);
        }
    }

    /**
     * Checks that all values of the tokens are finite.
     *
     * @throws IllegalArgumentException naming the first value that isn't
     */
    public static void requireFinite(ScalarType type, MemorySegment hidden, int tokens, int hiddenDim) {
        float[] token = new float[hiddenDim];
        long bytes = (long) hiddenDim * type.bytes();
        for (int t = 0; t < tokens; t++) {
            read(type, hidden.asSlice(t * bytes, bytes), token, hiddenDim);
            for (int c = 0; c < hiddenDim; c++) {
                if (!Float.isFinite(token[c])) {
                    throw new IllegalArgumentException(
                            "hidden: expected finite values, got " + token[c] + " at [" + t + ", " + c + "]");
                }
            }
        }
    }

    private static void requireRoom(ScalarType type, MemorySegment memory, float[] values, int count) {
        long most = Math.min(memory.byteSize() / type.bytes(), values.length);
        if (count < 0 || count > most) {
            throw new IllegalArgumentException("count: expected 0 to " + most + ", got " + count);
        }
    }

    /** The float value of a 16-bit number. */
    public static float widen(ScalarType type, short bits) {
        return type == ScalarType.F16 ? Float.float16ToFloat(bits) : Float.intBitsToFloat(bits << 16);
    }

    /** The 16-bit number nearest to a value. */
    public static short narrow(ScalarType type, float value) {
        if (type == ScalarType.F16) {
            return Float.floatToFloat16(value);
        }
        int bits = Float.floatToRawIntBits(value);
        return Float.isNaN(value)
                ? (short) (bits >> 16 | 0x40) // a NaN with a payload in the lower half only would become infinite
                : (short) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }

    private static IllegalArgumentException unsupported(ScalarType type) {
        return new IllegalArgumentException("hidden states: expected f32, f16 or bf16, got " + type.abbreviation());
    }
}
