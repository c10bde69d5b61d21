package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Map;
import java.util.concurrent.ConcurrentSkipListMap;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.device.CudaDriver;

/**
 * Callers' memory that CUDA GPUs copy from and to themselves: whole pages, pinned from the first call that uses them
 * until their arena is closed. Thread-safe.
 */
final class PinnedMemory {
    private static final long PAGE = 4096;
    private static final System.Logger LOG = System.getLogger(PinnedMemory.class.getName());

    /** All pinned memory, by start address. */
    private static final ConcurrentSkipListMap<Long, PinnedMemory> ALL = new ConcurrentSkipListMap<>();

    private final Arena pages = Arena.ofShared();
    private final MemorySegment memory;

    /** The driver that pins it; null before the first call, or if pinning was refused. */
    private @Nullable CudaDriver keeper;

    private long context;
    private boolean isTried;

    private PinnedMemory(long bytes) {
        memory = pages.allocate(Math.ceilDiv(Math.max(1, bytes), PAGE) * PAGE, PAGE);
    }

    /** Allocates zeroed memory that lives as long as the arena. */
    @SuppressWarnings("restricted") // the only way to learn of the arena's end
    static MemorySegment allocate(long bytes, Arena arena) {
        PinnedMemory pinned = new PinnedMemory(bytes);
        MemorySegment given =
                MemorySegment.ofAddress(pinned.memory.address()).reinterpret(bytes, arena, _ -> pinned.close());
        ALL.put(pinned.memory.address(), pinned);
        return given;
    }

    /** Whether GPUs copy from and to this memory themselves. Pins it now if it is memory of this kind. */
    static boolean isPinned(MemorySegment memory, CudaDriver driver, long context) {
        if (!memory.isNative()) {
            return false;
        }
        Map.Entry<Long, PinnedMemory> before = ALL.floorEntry(memory.address());
        return before != null
                && memory.address() + memory.byteSize()
                        <= before.getKey() + before.getValue().memory.byteSize()
                && before.getValue().pin(driver, context);
    }

    private synchronized boolean pin(CudaDriver driver, long context) {
        if (!isTried) {
            isTried = true;
            try {
                driver.setContext(context);
                if (driver.pin(memory)) {
                    keeper = driver;
                    this.context = context;
                }
            } catch (MoeExecutionException refused) {
                LOG.log(System.Logger.Level.DEBUG, "copies of this memory go through the host's", refused);
            }
        }
        return keeper != null;
    }

    private synchronized void close() {
        ALL.remove(memory.address());
        try {
            if (keeper != null) {
                keeper.setContext(context);
                keeper.unpin(memory);
            }
        } finally {
            keeper = null;
            isTried = true;
            pages.close();
        }
    }
}
