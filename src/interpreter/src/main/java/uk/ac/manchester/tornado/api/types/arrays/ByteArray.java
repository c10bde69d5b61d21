package uk.ac.manchester.tornado.api.types.arrays;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.nio.ByteBuffer;
import uk.ac.manchester.tornado.api.types.HalfFloat;

/** Off-heap array of byte values. */
public final class ByteArray extends TornadoNativeArray {
    private static final ValueLayout.OfByte ELEMENT = ValueLayout.JAVA_BYTE;
    /** A constant, which makes a load or store of its methods wherever the JVM has compiled them. */
    private static final VarHandle VALUE = ELEMENT.withByteAlignment(1).varHandle();

    private static final ValueLayout.OfShort HALF = ValueLayout.JAVA_SHORT;

    private final MemorySegment segment;
    private final int size;

    /** An array of zeros. */
    public ByteArray(int numberOfElements) {
        this.segment = allocate(numberOfElements, 1);
        this.size = numberOfElements;
    }

    /** All values of the arrays, one after the other. */
    public ByteArray(ByteArray... arrays) {
        this(totalSize(arrays));
        copyAll(arrays, this);
    }

    private ByteArray(MemorySegment withHeader) {
        this.size = adopt(withHeader, 1);
        this.segment = withHeader;
    }

    /** A copy of the values. */
    public static ByteArray fromArray(byte[] values) {
        ByteArray array = new ByteArray(values.length);
        MemorySegment.copy(values, 0, array.segment, ELEMENT, ARRAY_HEADER, values.length);
        return array;
    }

    /** A copy of the values. */
    public static ByteArray fromElements(byte... values) {
        return fromArray(values);
    }

    /** A copy of a segment of values (no header in it). */
    public static ByteArray fromSegment(MemorySegment segment) {
        ByteArray array = new ByteArray(elements(segment.byteSize(), 1));
        array.getSegment().copyFrom(segment);
        return array;
    }

    /**
     * A view of a segment that starts with a header of {@link #ARRAY_HEADER} bytes, which is written; the values are
     * not.
     */
    public static ByteArray fromSegmentShallow(MemorySegment segment) {
        return new ByteArray(segment);
    }

    /** A copy of what remains in the buffer. */
    public static ByteArray fromByteBuffer(ByteBuffer buffer) {
        ByteArray array = new ByteArray(buffer.remaining());
        array.getSegment().copyFrom(MemorySegment.ofBuffer(buffer));
        return array;
    }

    /** Sets every element of the array. */
    public static void initialize(ByteArray array, byte value) {
        array.init(value);
    }

    /** All values of the arrays, one after the other. */
    public static ByteArray concat(ByteArray... arrays) {
        return new ByteArray(arrays);
    }

    /** A copy on the Java heap. */
    public byte[] toHeapArray() {
        return getSegment().toArray(ELEMENT);
    }

    /** Stores a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public void set(int index, byte value) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        VALUE.set(segment, ARRAY_HEADER + index, value);
    }

    /** Loads a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public byte get(int index) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        return (byte) VALUE.get(segment, ARRAY_HEADER + index);
    }

    /** Stores a half-precision float in the two bytes from index on, which is even. */
    public void setHalfFloat(int index, HalfFloat value) {
        segment.set(HALF, halfOffset(index), value.getHalfFloatValue());
    }

    /** The half-precision float in the two bytes from index on, which is even. */
    public HalfFloat getHalfFloat(int index) {
        return new HalfFloat(segment.get(HALF, halfOffset(index)));
    }

    private long halfOffset(int index) {
        if ((index & 1) != 0) {
            throw new IllegalArgumentException("index: expected a multiple of 2, got " + index);
        }
        if (index < 0 || index > size - 2) {
            throw outOfBounds(index);
        }
        return ARRAY_HEADER + index;
    }

    @Override
    public void clear() {
        getSegment().fill((byte) 0);
    }

    @Override
    public int getElementSize() {
        return 1;
    }

    /** Sets every element. */
    public void init(byte value) {
        for (int i = 0; i < size; i++) {
            set(i, value);
        }
    }

    @Override
    public int getSize() {
        return size;
    }

    @Override
    public MemorySegment getSegment() {
        return segment.asSlice(ARRAY_HEADER);
    }

    @Override
    public MemorySegment getSegmentWithHeader() {
        return segment;
    }

    @Override
    public long getNumBytesOfSegmentWithHeader() {
        return segment.byteSize();
    }

    @Override
    public long getNumBytesOfSegment() {
        return segment.byteSize() - ARRAY_HEADER;
    }

    /** A copy of the elements [offset, offset + length). */
    public ByteArray slice(int offset, int length) {
        return fromSegment(segment.asSlice(sliceOffset(offset, length), (long) length * 1));
    }
}
