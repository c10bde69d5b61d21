package org.tornadomoe.tornado.device;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.tornadomoe.quant.SystemMemory;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Host memory for a layer's arrays. On backends on which an array's pages may stay pinned after the array is freed
 * ({@link Quirks#leavesArraysPinned}), arrays get whole pages that never go back to the system. A closed layer leaves
 * them to arrays of exactly the same size, those of the next layer with the same shape. Elsewhere the garbage collector
 * frees the arrays.
 *
 * <p>Several threads may allocate arrays at the same time.
 */
public final class HostMemory implements AutoCloseable {
    private static final long PAGE = 4096;

    /** Memory that closed layers have left, by size. */
    private static final Map<Long, Deque<MemorySegment>> LEFT = new HashMap<>();

    private final boolean keepsAddresses;
    private final List<MemorySegment> taken = new ArrayList<>();

    private HostMemory(boolean keepsAddresses) {
        this.keepsAddresses = keepsAddresses;
    }

    /** The kind of host memory that a backend's devices need. */
    public static HostMemory of(String backend) {
        return of(Quirks.HERE.leavesArraysPinned(backend));
    }

    /**
     * Memory for one layer's arrays.
     *
     * @param keepsAddresses whether closing keeps the memory for later layers
     */
    public static HostMemory of(boolean keepsAddresses) {
        return new HostMemory(keepsAddresses);
    }

    /** An array of zeros. */
    public IntArray ints(int count) {
        return isOwn(count) ? IntArray.fromSegmentShallow(take(bytes(count))) : new IntArray(count);
    }

    /** An array of zeros. */
    public FloatArray floats(int count) {
        return isOwn(count) ? FloatArray.fromSegmentShallow(take(bytes(count))) : new FloatArray(count);
    }

    /** Small arrays may be TornadoVM's; large ones would be zeroed by one thread. */
    private boolean isOwn(int count) {
        return keepsAddresses || bytes(count) >= SystemMemory.LEAST;
    }

    private static long bytes(int count) {
        return TornadoNativeArray.ARRAY_HEADER + 4L * count;
    }

    private MemorySegment take(long bytes) {
        if (!keepsAddresses) {
            return SystemMemory.allocateWithinLimit(Arena.ofAuto(), bytes, 64);
        }
        MemorySegment array;
        synchronized (LEFT) {
            array = LEFT.computeIfAbsent(bytes, size -> new ArrayDeque<>()).poll();
        }
        if (array == null) {
            long pages = (bytes + PAGE - 1) / PAGE * PAGE;
            array = SystemMemory.allocateWithinLimit(Arena.global(), pages, PAGE)
                    .asSlice(0, bytes);
        } else {
            array.fill((byte) 0);
        }
        synchronized (LEFT) {
            taken.add(array);
        }
        return array;
    }

    /** Leaves the memory to later layers. The arrays must not be used any more. */
    @Override
    public void close() {
        synchronized (LEFT) {
            for (MemorySegment array : taken) {
                LEFT.computeIfAbsent(array.byteSize(), size -> new ArrayDeque<>())
                        .add(array);
            }
            taken.clear();
        }
    }
}
