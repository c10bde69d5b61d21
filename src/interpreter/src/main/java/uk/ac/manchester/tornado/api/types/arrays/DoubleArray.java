package uk.ac.manchester.tornado.api.types.arrays;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.nio.DoubleBuffer;

/** Off-heap array of double values. */
public final class DoubleArray extends TornadoNativeArray {
    private static final ValueLayout.OfDouble ELEMENT = ValueLayout.JAVA_DOUBLE;
    /** A constant, which makes a load or store of its methods wherever the JVM has compiled them. */
    private static final VarHandle VALUE = ELEMENT.withByteAlignment(1).varHandle();

    private final MemorySegment segment;
    private final int size;

    /** An array of zeros. */
    public DoubleArray(int numberOfElements) {
        this.segment = allocate(numberOfElements, 8);
        this.size = numberOfElements;
    }

    /** All values of the arrays, one after the other. */
    public DoubleArray(DoubleArray... arrays) {
        this(totalSize(arrays));
        copyAll(arrays, this);
    }

    private DoubleArray(MemorySegment withHeader) {
        this.size = adopt(withHeader, 8);
        this.segment = withHeader;
    }

    /** A copy of the values. */
    public static DoubleArray fromArray(double[] values) {
        DoubleArray array = new DoubleArray(values.length);
        MemorySegment.copy(values, 0, array.segment, ELEMENT, ARRAY_HEADER, values.length);
        return array;
    }

    /** A copy of the values. */
    public static DoubleArray fromElements(double... values) {
        return fromArray(values);
    }

    /** A copy of a segment of values (no header in it). */
    public static DoubleArray fromSegment(MemorySegment segment) {
        DoubleArray array = new DoubleArray(elements(segment.byteSize(), 8));
        array.getSegment().copyFrom(segment);
        return array;
    }

    /**
     * A view of a segment that starts with a header of {@link #ARRAY_HEADER} bytes, which is written; the values are
     * not.
     */
    public static DoubleArray fromSegmentShallow(MemorySegment segment) {
        return new DoubleArray(segment);
    }

    /** A copy of what remains in the buffer. */
    public static DoubleArray fromDoubleBuffer(DoubleBuffer buffer) {
        DoubleArray array = new DoubleArray(buffer.remaining());
        array.getSegment().copyFrom(MemorySegment.ofBuffer(buffer));
        return array;
    }

    /** Sets every element of the array. */
    public static void initialize(DoubleArray array, double value) {
        array.init(value);
    }

    /** All values of the arrays, one after the other. */
    public static DoubleArray concat(DoubleArray... arrays) {
        return new DoubleArray(arrays);
    }

    /** A copy on the Java heap. */
    public double[] toHeapArray() {
        return getSegment().toArray(ELEMENT);
    }

    /** Stores a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public void set(int index, double value) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        VALUE.set(segment, ARRAY_HEADER + ((long) index << 3), value);
    }

    /** Loads a value; throws IndexOutOfBoundsException where index is not below {@link #getSize()}. */
    public double get(int index) {
        if (index < 0 || index >= size) {
            throw outOfBounds(index);
        }
        return (double) VALUE.get(segment, ARRAY_HEADER + ((long) index << 3));
    }

    @Override
    public void clear() {
        getSegment().fill((byte) 0);
    }

    @Override
    public int getElementSize() {
        return 8;
    }

    /** Sets every element. */
    public void init(double value) {
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
    public DoubleArray slice(int offset, int length) {
        return fromSegment(segment.asSlice(sliceOffset(offset, length), (long) length * 8));
    }
}
