package org.tornadomoe.checkpoint.file;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Objects;

/**
 * One tensor of a safetensors or GGUF file, row-major. Its data is the mapped file, so nothing is read before it is
 * asked for, and nothing can be read after the file is closed ({@link IllegalStateException}). Thread-safe.
 *
 * @param file the file it lies in, for messages
 * @param shape sizes, outermost first; empty for a single value
 * @param data the elements as they lie in the file, little-endian, not necessarily aligned
 */
public record Tensor(Path file, String name, DType dtype, long[] shape, MemorySegment data) {
    private static final ValueLayout.OfDouble DOUBLE =
            ValueLayout.JAVA_DOUBLE_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfFloat FLOAT =
            ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfShort SHORT =
            ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /** Elements that are copied to an array at once, of which the JVM converts several together. */
    private static final int PART = 2048;

    /** Number of elements. */
    public long elements() {
        return 8 * data.byteSize() / dtype.bits();
    }

    /**
     * Converts elements [from, from + length) to float, rounding to the nearest where they are wider.
     *
     * @param into receives them at [at, at + length)
     * @throws CheckpointException if the dtype is not readable
     * @throws IndexOutOfBoundsException if a range is outside the tensor or the array
     */
    public void readFloats(long from, float[] into, int at, int length) {
        Objects.checkFromIndexSize(from, length, elements());
        Objects.checkFromIndexSize(at, length, into.length);
        try {
            read(from, into, at, length);
        } catch (InternalError e) {
            throw gone(e);
        }
    }

    private void read(long from, float[] into, int at, int length) {
        long start = from * dtype.bytes();
        switch (dtype) {
            case F32 -> MemorySegment.copy(data, FLOAT, start, into, at, length);
            case F64 -> {
                for (int i = 0; i < length; i++) {
                    into[at + i] = (float) data.get(DOUBLE, start + 8L * i);
                }
            }
            case F16 -> {
                short[] part = new short[Math.min(length, PART)];
                for (int done = 0; done < length; done += part.length) {
                    int count = Math.min(part.length, length - done);
                    MemorySegment.copy(data, SHORT, start + 2L * done, part, 0, count);
                    for (int i = 0; i < count; i++) {
                        into[at + done + i] = Float.float16ToFloat(part[i]);
                    }
                }
            }
            case BF16 -> {
                short[] part = new short[Math.min(length, PART)];
                for (int done = 0; done < length; done += part.length) {
                    int count = Math.min(part.length, length - done);
                    MemorySegment.copy(data, SHORT, start + 2L * done, part, 0, count);
                    for (int i = 0; i < count; i++) {
                        into[at + done + i] = Float.intBitsToFloat(part[i] << 16);
                    }
                }
            }
            case F8_E4M3 -> read(SmallFloats.E4M3, from, into, at, length);
            case F8_E5M2 -> read(SmallFloats.E5M2, from, into, at, length);
            case F8_E8M0 -> read(SmallFloats.E8M0, from, into, at, length);
            default -> {
                for (int i = 0; i < length; i++) {
                    into[at + i] = integer(from + i);
                }
            }
        }
    }

    /** Elements of a byte, by a table. */
    private void read(float[] table, long from, float[] into, int at, int length) {
        byte[] part = new byte[Math.min(length, PART)];
        for (int done = 0; done < length; done += part.length) {
            int count = Math.min(part.length, length - done);
            MemorySegment.copy(data, ValueLayout.JAVA_BYTE, from + done, part, 0, count);
            for (int i = 0; i < count; i++) {
                into[at + done + i] = table[part[i] & 0xff];
            }
        }
    }

    /**
     * Converts the elements from, from + stride, from + 2 stride, ... to float, {@code length} of them. Otherwise as
     * {@link #readFloats(long, float[], int, int)}.
     *
     * @param stride at least 1
     */
    public void readFloats(long from, long stride, float[] into, int at, int length) {
        if (stride == 1 || length == 0) {
            readFloats(from, into, at, length);
            return;
        }
        Objects.checkFromIndexSize(from, (length - 1) * stride + 1, elements());
        try {
            read(from, stride, into, at, length);
        } catch (InternalError e) {
            throw gone(e);
        }
    }

    private void read(long from, long stride, float[] into, int at, int length) {
        for (int i = 0; i < length; i++) {
            into[at + i] = read(from + i * stride);
        }
    }

    private float read(long index) {
        return switch (dtype) {
            case F32 -> data.get(FLOAT, 4 * index);
            case F64 -> (float) data.get(DOUBLE, 8 * index);
            case F16 -> Float.float16ToFloat(data.get(SHORT, 2 * index));
            case BF16 -> Float.intBitsToFloat(data.get(SHORT, 2 * index) << 16);
            case F8_E4M3 -> SmallFloats.E4M3[data.get(ValueLayout.JAVA_BYTE, index) & 0xff];
            case F8_E5M2 -> SmallFloats.E5M2[data.get(ValueLayout.JAVA_BYTE, index) & 0xff];
            case F8_E8M0 -> SmallFloats.E8M0[data.get(ValueLayout.JAVA_BYTE, index) & 0xff];
            default -> integer(index);
        };
    }

    /** One element as a float. Throws as {@link #readFloats(long, float[], int, int)}. */
    public float getFloat(long index) {
        Objects.checkIndex(index, elements());
        try {
            return read(index);
        } catch (InternalError e) {
            throw gone(e);
        }
    }

    /**
     * All elements as floats, rounded to the nearest where they are wider.
     *
     * @throws CheckpointException if the dtype is not readable, or there are over 2^31 - 9 elements
     */
    public float[] toFloats() {
        float[] all = new float[arrayLength()];
        readFloats(0, all, 0, all.length);
        return all;
    }

    /**
     * All elements of an I8, U8, I32 or I64 tensor as ints.
     *
     * @throws CheckpointException if the dtype is another or a value is outside int's range
     */
    public int[] toInts() {
        int[] all = new int[arrayLength()];
        for (int i = 0; i < all.length; i++) {
            long value = integer(i);
            if (value != (int) value) {
                throw problem("expected values in the range of a 32-bit integer, got " + value + " at index " + i);
            }
            all[i] = (int) value;
        }
        return all;
    }

    /**
     * All elements of an I8 or U8 tensor, as they are.
     *
     * @throws CheckpointException if the dtype is another
     */
    public byte[] toBytes() {
        if (dtype != DType.I8 && dtype != DType.U8) {
            throw problem("expected dtype I8 or U8, got " + dtype);
        }
        byte[] all = new byte[arrayLength()];
        try {
            MemorySegment.copy(data, ValueLayout.JAVA_BYTE, 0, all, 0, all.length);
        } catch (InternalError e) {
            throw gone(e);
        }
        return all;
    }

    /**
     * This tensor, if it has that shape.
     *
     * @throws CheckpointException if not
     */
    public Tensor requireShape(long... expected) {
        if (!Arrays.equals(shape, expected)) {
            throw problem("expected shape " + Arrays.toString(expected) + ", got " + Arrays.toString(shape));
        }
        return this;
    }

    /** Whether it holds so many rows of so many elements, one after the other, in however many dimensions. */
    public boolean holds(long rows, long length) {
        long row = 1;
        for (int d = shape.length - 1; d >= 0 && row < length; d--) {
            row *= shape[d];
        }
        return row == length && elements() == rows * length;
    }

    /**
     * This tensor, if it has one of those dtypes.
     *
     * @throws CheckpointException if not
     */
    public Tensor requireDType(DType... expected) {
        if (!Arrays.asList(expected).contains(dtype)) {
            throw problem("expected dtype "
                    + String.join(
                            " or ", Arrays.stream(expected).map(DType::name).toList()) + ", got " + dtype);
        }
        return this;
    }

    /**
     * This tensor, if its dtype is a floating-point type.
     *
     * @throws CheckpointException if not
     */
    public Tensor requireFloat() {
        return requireDType(DType.F64, DType.F32, DType.F16, DType.BF16);
    }

    /**
     * This tensor of floats, if they are all finite.
     *
     * @throws CheckpointException if not
     */
    public Tensor requireFinite() {
        float[] values = toFloats();
        for (int i = 0; i < values.length; i++) {
            if (!Float.isFinite(values[i])) {
                throw problem("expected finite values, got " + values[i] + " at index " + i);
            }
        }
        return this;
    }

    /**
     * The only element of a tensor of floats, if it can be a scale.
     *
     * @throws CheckpointException if the dtype is another, there are more elements, or it is not positive and finite
     */
    public float toScale() {
        if (requireFloat().elements() != 1) {
            throw problem("expected one scale, got " + this);
        }
        float scale = getFloat(0);
        if (!(scale > 0 && scale <= Float.MAX_VALUE)) {
            throw problem("expected a positive finite scale, got " + scale);
        }
        return scale;
    }

    /** An exception about this tensor. */
    public CheckpointException problem(String problem) {
        return new CheckpointException(file, "tensor '" + name + "': " + problem);
    }

    private long integer(long index) {
        try {
            return switch (dtype) {
                case I8 -> data.get(ValueLayout.JAVA_BYTE, index);
                case U8 -> data.get(ValueLayout.JAVA_BYTE, index) & 0xff;
                case I32 -> data.get(INT, 4 * index);
                case I64 -> data.get(LONG, 8 * index);
                default -> throw problem("cannot be read as integers or converted: its dtype is " + dtype);
            };
        } catch (InternalError e) {
            throw gone(e);
        }
    }

    /** What the JVM makes of a page that the file doesn't have any more. */
    private CheckpointException gone(InternalError e) {
        return new CheckpointException(
                file, "tensor '" + name + "': cannot be read: was the file shortened meanwhile?", e);
    }

    private int arrayLength() {
        // The largest array HotSpot makes is a few elements short of 2^31 - 1.
        if (elements() > Integer.MAX_VALUE - 8) {
            throw problem("has " + elements() + " elements, more than a Java array holds: read it by rows");
        }
        return (int) elements();
    }

    @Override
    public String toString() {
        return name + " " + dtype + Arrays.toString(shape);
    }
}
