package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;
import java.util.function.LongConsumer;
import java.util.function.LongSupplier;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.device.CudaDriver;

/** Objects of CUDA's driver that one owner has. {@link #close} releases them, the last one first. */
final class CudaObjects implements AutoCloseable {
    private final CudaDriver driver;
    private final Arena arena = Arena.ofShared();
    private final Deque<Runnable> taken = new ArrayDeque<>();

    CudaObjects(CudaDriver driver) {
        this.driver = driver;
        taken.push(arena::close);
    }

    CudaDriver driver() {
        return driver;
    }

    /** Memory of the host that lives as long as the objects. */
    Arena arena() {
        return arena;
    }

    /** Takes an object of a context. */
    long take(long context, LongSupplier take, LongConsumer giveBack) {
        driver.setContext(context);
        long handle = take.getAsLong();
        taken.push(() -> {
            driver.setContext(context);
            giveBack.accept(handle);
        });
        return handle;
    }

    long stream(long context) {
        return take(context, driver::stream, driver::destroyStream);
    }

    /** An event without a time stamp. */
    long event(long context) {
        return take(context, driver::timelessEvent, driver::destroyEvent);
    }

    /**
     * Pins the host's pages in the calling thread's context, which must be this one.
     *
     * @throws MoeExecutionException if the driver or the system doesn't allow it
     */
    void pin(long context, MemorySegment memory) {
        if (driver.pin(memory)) {
            taken.push(() -> {
                driver.setContext(context);
                driver.unpin(memory);
            });
        }
    }

    @Override
    public void close() {
        List<Runnable> steps = List.copyOf(taken);
        taken.clear();
        Cleanup.each(steps, Runnable::run);
    }
}
