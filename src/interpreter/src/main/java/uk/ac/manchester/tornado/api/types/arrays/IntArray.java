package uk.ac.manchester.tornado.api.types.arrays;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.nio.IntBuffer;

/** Off-heap array of int values. */
public final class IntArray extends TornadoNativeArray {
    private static final ValueLayout.OfInt ELEMENT = ValueLayout.JAVA_INT;
    /** A constant, which makes a load or store of its methods wherever the JVM has compiled them. */
    private static final VarHandle VALUE = ELEMENT.withByteAlignment(1).varHandle();

    private final MemorySegment segment;
    private final int size;

    /** An array of zeros. */
    public IntArray(int numberOfElements) {
        this.segment = allocate(numberOfElements, 4);
        this.size = numberOfElements;
    }

    /** All values of the arrays, one after the other. */
    public IntArray(IntArray... arrays) {
        this(totalSize(arrays));
        copyAll(arrays, this);
    }

    private IntArray(MemorySegment withHeader) {
        this.size = adopt(withHeader, 4);
        this.segment = withHeader;
    }

    /** A copy of the values. */
    public static IntArray fromArray(int[] values) {
        IntArray array = new IntArray(values.length);
        MemorySegment.copy(values, 0, array.segment, ELEMENT, ARRAY_HEADER, values.length);
        return array;
    }

    /** A copy of the values. */
    public static IntArray fromElements(int... values) {
        return fromArray(values);
    }

    /** A copy of a segment of values (no header in it). */
    public static IntArray fromSegment(MemorySegment segment) {
        IntArray array = new IntArray(elements(segment.byteSize(), 4));
        array.getSegment().copyFrom(segment);
        return array;
    }

    /**
     * A view of a segment that starts with a header of {@link #ARRAY_HEADER} bytes, which is written; the values are
     * not.
     */
    public static IntArray fromSegmentShallow(MemorySegment segment) {
        return new IntArray(segment);
    }

    /** A copy of what remains in the buffer. */
    public static IntArray fromIntBuffer(IntBuffer buffer) {
        IntArray array = new IntArray(buffer.remaining());
        array.getSegment().copyFrom(MemorySegment.ofBuffer(buffer));
        return array;
    }

    /** Sets every element of the array. */
    public static void initialize(IntArray array, int value) {
        array.init(value);
    }

    /** All values of the arrays, one after the other. */
    public static IntArray concat(IntArray... arrays) {
        return new IntArray(arrays);
    }

    /** A copy on the Java heap. */
    public int[] toHeapArray() {
        return getSegment().toArray(ELEMENT);
    }

    /** Stores a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public void set(int index, int value) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        VALUE.set(segment, ARRAY_HEADER + ((long) index << 2), value);
    }

    /** Loads a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public int get(int index) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        return (int) VALUE.get(segment, ARRAY_HEADER + ((long) index << 2));
    }

    @Override
    public void clear() {
        getSegment().fill((byte) 0);
    }

    @Override
    public int getElementSize() {
        return 4;
    }

    /** Sets every element. */
    public void init(int value) {
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
    public IntArray slice(int offset, int length) {
        return fromSegment(segment.asSlice(sliceOffset(offset, length), (long) length * 4));
    }
}
