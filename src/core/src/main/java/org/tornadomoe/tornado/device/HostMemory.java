package org.tornadomoe.tornado.device;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Host memory for a layer's arrays. Where an array's pages may stay pinned when the array is gone
 * ({@link Quirks#leavesArraysPinned}), the arrays of a layer get memory that never goes back to the system, whole pages
 * each, and a closed layer leaves it to arrays of exactly the same size: the next layer of the same shape. Elsewhere
 * arrays are the garbage collector's.
 *
 * <p>Several threads may take arrays at once.
 */
public final class HostMemory implements AutoCloseable {
    private static final long PAGE = 4096;

    /** What closed layers have left, by size. */
    private static final Map<Long, Deque<MemorySegment>> LEFT = new HashMap<>();

    private final boolean keepsAddresses;
    private final List<MemorySegment> taken = new ArrayList<>();

    private HostMemory(boolean keepsAddresses) {
        this.keepsAddresses = keepsAddresses;
    }

    /** What devices of a backend need. */
    public static HostMemory of(String backend) {
        return of(Quirks.HERE.leavesArraysPinned(backend));
    }

    /**
     * For one layer's arrays.
     *
     * @param keepsAddresses whether memory is kept for later layers when it is closed
     */
    public static HostMemory of(boolean keepsAddresses) {
        return new HostMemory(keepsAddresses);
    }

    /** An array of zeros. */
    public IntArray ints(int count) {
        return keepsAddresses ? IntArray.fromSegmentShallow(take(count)) : new IntArray(count);
    }

    /** An array of zeros. */
    public FloatArray floats(int count) {
        return keepsAddresses ? FloatArray.fromSegmentShallow(take(count)) : new FloatArray(count);
    }

    private MemorySegment take(int count) {
        long bytes = TornadoNativeArray.ARRAY_HEADER + 4L * count;
        MemorySegment array;
        synchronized (LEFT) {
            array = LEFT.computeIfAbsent(bytes, size -> new ArrayDeque<>()).poll();
        }
        if (array == null) {
            long pages = (bytes + PAGE - 1) / PAGE * PAGE;
            array = Arena.global().allocate(pages, PAGE).asSlice(0, bytes);
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
