package uk.ac.manchester.tornado.api.types.arrays;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.nio.ShortBuffer;

/** Off-heap array of short values. */
public final class ShortArray extends TornadoNativeArray {
    private static final ValueLayout.OfShort ELEMENT = ValueLayout.JAVA_SHORT;
    /** A constant, which makes a load or store of its methods wherever the JVM has compiled them. */
    private static final VarHandle VALUE = ELEMENT.withByteAlignment(1).varHandle();

    private final MemorySegment segment;
    private final int size;

    /** An array of zeros. */
    public ShortArray(int numberOfElements) {
        this.segment = allocate(numberOfElements, 2);
        this.size = numberOfElements;
    }

    /** All values of the arrays, one after the other. */
    public ShortArray(ShortArray... arrays) {
        this(totalSize(arrays));
        copyAll(arrays, this);
    }

    private ShortArray(MemorySegment withHeader) {
        this.size = adopt(withHeader, 2);
        this.segment = withHeader;
    }

    /** A copy of the values. */
    public static ShortArray fromArray(short[] values) {
        ShortArray array = new ShortArray(values.length);
        MemorySegment.copy(values, 0, array.segment, ELEMENT, ARRAY_HEADER, values.length);
        return array;
    }

    /** A copy of the values. */
    public static ShortArray fromElements(short... values) {
        return fromArray(values);
    }

    /** A copy of a segment of values (no header in it). */
    public static ShortArray fromSegment(MemorySegment segment) {
        ShortArray array = new ShortArray(elements(segment.byteSize(), 2));
        array.getSegment().copyFrom(segment);
        return array;
    }

    /**
     * A view of a segment that starts with a header of {@link #ARRAY_HEADER} bytes, which is written; the values are
     * not.
     */
    public static ShortArray fromSegmentShallow(MemorySegment segment) {
        return new ShortArray(segment);
    }

    /** A copy of what remains in the buffer. */
    public static ShortArray fromShortBuffer(ShortBuffer buffer) {
        ShortArray array = new ShortArray(buffer.remaining());
        array.getSegment().copyFrom(MemorySegment.ofBuffer(buffer));
        return array;
    }

    /** Sets every element of the array. */
    public static void initialize(ShortArray array, short value) {
        array.init(value);
    }

    /** All values of the arrays, one after the other. */
    public static ShortArray concat(ShortArray... arrays) {
        return new ShortArray(arrays);
    }

    /** A copy on the Java heap. */
    public short[] toHeapArray() {
        return getSegment().toArray(ELEMENT);
    }

    /** Stores a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public void set(int index, short value) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        VALUE.set(segment, ARRAY_HEADER + ((long) index << 1), value);
    }

    /** Loads a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public short get(int index) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        return (short) VALUE.get(segment, ARRAY_HEADER + ((long) index << 1));
    }

    @Override
    public void clear() {
        getSegment().fill((byte) 0);
    }

    @Override
    public int getElementSize() {
        return 2;
    }

    /** Sets every element. */
    public void init(short value) {
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
    public ShortArray slice(int offset, int length) {
        return fromSegment(segment.asSlice(sliceOffset(offset, length), (long) length * 2));
    }
}
