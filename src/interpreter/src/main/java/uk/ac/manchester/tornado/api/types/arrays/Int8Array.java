package uk.ac.manchester.tornado.api.types.arrays;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;

/** Off-heap array of byte values. */
public final class Int8Array extends TornadoNativeArray {
    private static final ValueLayout.OfByte ELEMENT = ValueLayout.JAVA_BYTE;
    /** A constant, which makes a load or store of its methods wherever the JVM has compiled them. */
    private static final VarHandle VALUE = ELEMENT.withByteAlignment(1).varHandle();

    private final MemorySegment segment;
    private final int size;

    /** An array of zeros. */
    public Int8Array(int numberOfElements) {
        this.segment = allocate(numberOfElements, 1);
        this.size = numberOfElements;
    }

    /** All values of the arrays, one after the other. */
    public Int8Array(Int8Array... arrays) {
        this(totalSize(arrays));
        copyAll(arrays, this);
    }

    private Int8Array(MemorySegment withHeader) {
        this.size = adopt(withHeader, 1);
        this.segment = withHeader;
    }

    /** A copy of the values. */
    public static Int8Array fromArray(byte[] values) {
        Int8Array array = new Int8Array(values.length);
        MemorySegment.copy(values, 0, array.segment, ELEMENT, ARRAY_HEADER, values.length);
        return array;
    }

    /** A copy of the values. */
    public static Int8Array fromElements(byte... values) {
        return fromArray(values);
    }

    /** A copy of a segment of values (no header in it). */
    public static Int8Array fromSegment(MemorySegment segment) {
        Int8Array array = new Int8Array(elements(segment.byteSize(), 1));
        array.getSegment().copyFrom(segment);
        return array;
    }

    /**
     * A view of a segment that starts with a header of {@link #ARRAY_HEADER} bytes, which is written; the values are
     * not.
     */
    public static Int8Array fromSegmentShallow(MemorySegment segment) {
        return new Int8Array(segment);
    }

    /** Sets every element of the array. */
    public static void initialize(Int8Array array, byte value) {
        array.init(value);
    }

    /** All values of the arrays, one after the other. */
    public static Int8Array concat(Int8Array... arrays) {
        return new Int8Array(arrays);
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
    public Int8Array slice(int offset, int length) {
        return fromSegment(segment.asSlice(sliceOffset(offset, length), (long) length * 1));
    }
}
