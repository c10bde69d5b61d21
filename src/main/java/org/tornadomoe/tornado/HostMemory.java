package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Host memory for a layer's arrays. TornadoVM's PTX backend (5.2.0) pins an array's pages and may leave them pinned when the
 * array is gone; a later array that the system puts at the same address is then transferred from and to pages that are no
 * longer its own, silently. So the arrays of a layer on PTX get memory that never goes back to the system: whole pages, which
 * a closed layer leaves to the next one. Elsewhere arrays are the garbage collector's.
 *
 * <p>Thread-safe as far as the arrays of different layers go; one instance is for one thread.
 */
final class HostMemory implements AutoCloseable {
    private static final long PAGE = 4096;

    /** Blocks that closed layers have left, by size. */
    private static final TreeMap<Long, List<MemorySegment>> FREE = new TreeMap<>();

    private final boolean keepsAddresses;
    private final List<MemorySegment> taken = new ArrayList<>();

    private HostMemory(boolean keepsAddresses) {
        this.keepsAddresses = keepsAddresses;
    }

    /** What a device needs. */
    static HostMemory of(Device device) {
        return of(device.backend() == TornadoVMBackendType.PTX);
    }

    /** @param keepsAddresses whether memory is kept for later layers when it is closed */
    static HostMemory of(boolean keepsAddresses) {
        return new HostMemory(keepsAddresses);
    }

    /** An array of zeros. */
    IntArray ints(int count) {
        return keepsAddresses ? IntArray.fromSegmentShallow(take(count)) : new IntArray(count);
    }

    /** An array of zeros. */
    FloatArray floats(int count) {
        return keepsAddresses ? FloatArray.fromSegmentShallow(take(count)) : new FloatArray(count);
    }

    private MemorySegment take(int count) {
        long bytes = TornadoNativeArray.ARRAY_HEADER + 4L * count;
        long size = (bytes + PAGE - 1) / PAGE * PAGE;
        MemorySegment block = left(size);
        if (block == null) {
            block = Arena.global().allocate(size, PAGE);
        } else {
            block.fill((byte) 0);
        }
        taken.add(block);
        return block.asSlice(0, bytes);
    }

    /** A block that was left and isn't much larger than needed. */
    private static @Nullable MemorySegment left(long size) {
        synchronized (FREE) {
            Map.Entry<Long, List<MemorySegment>> fit = FREE.ceilingEntry(size);
            if (fit == null || fit.getKey() > size + size / 4) {
                return null;
            }
            MemorySegment block = fit.getValue().removeLast();
            if (fit.getValue().isEmpty()) {
                FREE.remove(fit.getKey());
            }
            return block;
        }
    }

    /** Leaves the memory to later layers. The arrays must not be used any more. */
    @Override
    public void close() {
        synchronized (FREE) {
            for (MemorySegment block : taken) {
                FREE.computeIfAbsent(block.byteSize(), size -> new ArrayList<>())
                        .add(block);
            }
        }
        taken.clear();
    }
}
