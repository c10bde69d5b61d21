package uk.ac.manchester.tornado.api.types.arrays;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import uk.ac.manchester.tornado.api.interpreter.ElementIndexException;

/**
 * An off-heap array: a header of {@link #ARRAY_HEADER} bytes, which starts with the number of elements as an int, then
 * the values. The memory is freed once the array can't be reached.
 */
public abstract sealed class TornadoNativeArray
        permits ByteArray,
                CharArray,
                DoubleArray,
                FloatArray,
                HalfFloatArray,
                IntArray,
                LongArray,
                ShortArray,
                Int8Array {
    /** Bytes before the first value. */
    public static final long ARRAY_HEADER = Long.getLong("tornado.panama.objectHeader", 16);

    public TornadoNativeArray() {}

    static MemorySegment allocate(int size, int elementSize) {
        if (size < 0) {
            throw new IllegalArgumentException("numberOfElements: expected 0 or more, got " + size);
        }
        MemorySegment segment = Arena.ofAuto().allocate(ARRAY_HEADER + (long) size * elementSize, 16);
        segment.set(ValueLayout.JAVA_INT, 0, size);
        return segment;
    }

    /** Writes the header of a segment that brings room for one, and returns the number of elements after it. */
    static int adopt(MemorySegment withHeader, int elementSize) {
        int size = elements(withHeader.byteSize() - ARRAY_HEADER, elementSize);
        withHeader.set(ValueLayout.JAVA_INT, 0, size);
        return size;
    }

    static int elements(long bytes, int elementSize) {
        if (bytes < 0 || bytes % elementSize != 0) {
            throw new IllegalArgumentException(
                    "segment: expected a multiple of " + elementSize + " bytes of values, got " + bytes);
        }
        return Math.toIntExact(bytes / elementSize);
    }

    static int totalSize(TornadoNativeArray[] arrays) {
        int size = 0;
        for (TornadoNativeArray array : arrays) {
            size = Math.addExact(size, array.getSize());
        }
        return size;
    }

    static void copyAll(TornadoNativeArray[] arrays, TornadoNativeArray into) {
        long at = ARRAY_HEADER;
        for (TornadoNativeArray array : arrays) {
            long bytes = array.getNumBytesOfSegment();
            MemorySegment.copy(array.getSegmentWithHeader(), ARRAY_HEADER, into.getSegmentWithHeader(), at, bytes);
            at += bytes;
        }
    }

    final long sliceOffset(int offset, int length) {
        if (offset < 0 || length < 0 || offset > getSize() - length) {
            throw new IllegalArgumentException(
                    "slice: expected a part of [0, " + getSize() + "), got offset " + offset + " and length " + length);
        }
        return ARRAY_HEADER + (long) offset * getElementSize();
    }

    final IndexOutOfBoundsException outOfBounds(int index) {
        return new ElementIndexException(this, index, getSize());
    }

    /** Number of elements. */
    public abstract int getSize();

    /** The values. */
    public abstract MemorySegment getSegment();

    /** The header and the values. */
    public abstract MemorySegment getSegmentWithHeader();

    public abstract long getNumBytesOfSegmentWithHeader();

    public abstract long getNumBytesOfSegment();

    /** Sets every element to zero. */
    protected void clear() {}

    /** Bytes of one element. */
    public abstract int getElementSize();
}
