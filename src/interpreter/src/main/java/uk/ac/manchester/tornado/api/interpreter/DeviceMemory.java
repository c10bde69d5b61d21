package uk.ac.manchester.tornado.api.interpreter;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.reflect.Array;
import java.util.IdentityHashMap;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.exceptions.TornadoOutOfMemoryException;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.ByteArray;
import uk.ac.manchester.tornado.api.types.arrays.CharArray;
import uk.ac.manchester.tornado.api.types.arrays.DoubleArray;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.HalfFloatArray;
import uk.ac.manchester.tornado.api.types.arrays.Int8Array;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.LongArray;
import uk.ac.manchester.tornado.api.types.arrays.ShortArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A plan's copies of the caller's arrays, which represent device memory. A copy is made when its array is first
 * transferred or used. It is filled with a pattern until it is written, and keeps its content between executions.
 */
final class DeviceMemory implements AutoCloseable {
    /** A graph's copies; graphs share a copy only if one consumes what another persisted. */
    final class Copies {
        private final IdentityHashMap<Object, Object> copies = new IdentityHashMap<>();

        /** The copy of an array, made now if there is none. */
        Object of(Object array) {
            return copies.computeIfAbsent(array, DeviceMemory.this::allocate);
        }

        Object ifPresent(Object array) {
            return copies.get(array);
        }

        void share(Object array, Object copy) {
            copies.put(array, copy);
        }

        void clear() {
            copies.clear();
        }

        /** Bytes of the copies of arrays that a graph doesn't name. */
        long unnamedBytes(Graph graph) {
            return copies.keySet().stream()
                    .filter(array -> !graph.names(array))
                    .mapToLong(DeviceMemory::size)
                    .sum();
        }
    }

    private static final byte POISON_BYTE = (byte) 0xad;

    private Arena arena = Arena.ofShared();
    private long bytes;
    private long limit = Long.MAX_VALUE;

    static void checkSupported(Object array, String where) {
        if (array == null) {
            throw new TornadoRuntimeException(where + ": an array is null");
        }
        if (!(array instanceof TornadoNativeArray) && !isPrimitiveArray(array)) {
            throw new TornadoRuntimeException(where + ": expected a native array or a primitive array, got a "
                    + array.getClass().getName());
        }
    }

    static boolean isArray(Object argument) {
        return argument instanceof TornadoNativeArray || isPrimitiveArray(argument);
    }

    static void checkArgument(Object argument, String where) {
        if (!(argument instanceof Number || argument instanceof Boolean || argument instanceof KernelContext)) {
            checkSupported(argument, where);
        }
    }

    private static boolean isPrimitiveArray(Object object) {
        Class<?> component = object.getClass().getComponentType();
        return component != null && component.isPrimitive() && component != boolean.class;
    }

    long bytes() {
        return bytes;
    }

    void limit(long limit) {
        this.limit = limit;
    }

    /** Frees every copy. */
    void free() {
        arena.close();
        arena = Arena.ofShared();
        bytes = 0;
    }

    @Override
    public void close() {
        arena.close();
        bytes = 0;
    }

    private Object allocate(Object array) {
        long size = size(array);
        if (bytes + size > limit) {
            throw new TornadoOutOfMemoryException("device memory: " + size + " bytes more for a "
                    + array.getClass().getSimpleName() + " would pass the plan's limit of " + limit + " bytes, " + bytes
                    + " are in use");
        }
        try {
            Object copy = array instanceof TornadoNativeArray nativeArray ? poisoned(nativeArray) : poisonedHeap(array);
            bytes += size;
            return copy;
        } catch (OutOfMemoryError e) {
            throw new TornadoOutOfMemoryException("device memory: the JVM has no " + size + " bytes more for a "
                    + array.getClass().getSimpleName() + ", " + bytes + " are in use");
        }
    }

    static long size(Object array) {
        if (array instanceof TornadoNativeArray nativeArray) {
            return nativeArray.getNumBytesOfSegmentWithHeader();
        }
        return heap(array).byteSize();
    }

    private TornadoNativeArray poisoned(TornadoNativeArray array) {
        MemorySegment memory = arena.allocate(array.getNumBytesOfSegmentWithHeader(), 16);
        memory.fill(POISON_BYTE);
        // As a float this pattern would be a small negative number; NaN is easier to notice.
        return switch (array) {
            case FloatArray a -> {
                fill(memory, Float.intBitsToFloat(0x7fc0dead));
                yield FloatArray.fromSegmentShallow(memory);
            }
            case DoubleArray a -> {
                fill(memory, Double.longBitsToDouble(0x7ff80000dead0000L));
                yield DoubleArray.fromSegmentShallow(memory);
            }
            case IntArray a -> IntArray.fromSegmentShallow(memory);
            case LongArray a -> LongArray.fromSegmentShallow(memory);
            case ShortArray a -> ShortArray.fromSegmentShallow(memory);
            case CharArray a -> CharArray.fromSegmentShallow(memory);
            case HalfFloatArray a -> HalfFloatArray.fromSegmentShallow(memory);
            case ByteArray a -> ByteArray.fromSegmentShallow(memory);
            case Int8Array a -> Int8Array.fromSegmentShallow(memory);
        };
    }

    private static void fill(MemorySegment memory, float value) {
        for (long at = TornadoNativeArray.ARRAY_HEADER; at < memory.byteSize(); at += Float.BYTES) {
            memory.set(ValueLayout.JAVA_FLOAT, at, value);
        }
    }

    private static void fill(MemorySegment memory, double value) {
        for (long at = TornadoNativeArray.ARRAY_HEADER; at < memory.byteSize(); at += Double.BYTES) {
            memory.set(ValueLayout.JAVA_DOUBLE, at, value);
        }
    }

    private static Object poisonedHeap(Object array) {
        Object copy = Array.newInstance(array.getClass().getComponentType(), Array.getLength(array));
        heap(copy).fill(POISON_BYTE);
        return copy;
    }

    /** Copies all values and returns the number of bytes. */
    static long copy(Object from, Object to) {
        MemorySegment source = values(from);
        values(to).copyFrom(source);
        return source.byteSize();
    }

    private static MemorySegment heap(Object array) {
        return switch (array) {
            case byte[] a -> MemorySegment.ofArray(a);
            case short[] a -> MemorySegment.ofArray(a);
            case char[] a -> MemorySegment.ofArray(a);
            case int[] a -> MemorySegment.ofArray(a);
            case long[] a -> MemorySegment.ofArray(a);
            case float[] a -> MemorySegment.ofArray(a);
            case double[] a -> MemorySegment.ofArray(a);
            default -> throw new IllegalArgumentException("not a numeric array: " + array.getClass());
        };
    }

    static MemorySegment values(Object array) {
        return array instanceof TornadoNativeArray nativeArray ? nativeArray.getSegment() : heap(array);
    }
}
