package org.tornadomoe;

import java.time.Duration;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedDeque;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.Int8Experts;

/**
 * A fair (FIFO) pool of lanes for a layer's calls. A lane is a kernel that runs one call at a time; all lanes share the
 * weights. Waiting threads park; virtual threads release their carriers.
 */
final class Lanes {
    private final List<MoeKernel> all;
    private final @Nullable Int8Experts source;
    private final Semaphore permits;

    /** As many as there are permits. The lane used last is taken first, because its arrays are still in the caches. */
    private final ConcurrentLinkedDeque<MoeKernel> idle;

    /** Nanoseconds; negative for no limit. */
    private final long patience;

    private volatile boolean closed;

    /** @param source weights that the lanes may still read, closed after them; null if they own none */
    Lanes(List<MoeKernel> all, @Nullable Int8Experts source, @Nullable Duration wait) {
        this.all = List.copyOf(all);
        this.source = source;
        permits = new Semaphore(all.size(), true);
        idle = new ConcurrentLinkedDeque<>(all);
        patience = wait == null ? -1 : TimeUnit.NANOSECONDS.convert(wait);
    }

    int count() {
        return all.size();
    }

    /**
     * Takes a lane, which the caller must give back.
     *
     * @throws LaneException if none was free in time, or the thread was interrupted
     * @throws IllegalStateException after {@link #close}
     */
    MoeKernel take() {
        requireOpen();
        try {
            if (patience < 0) {
                permits.acquire();
            } else if (!permits.tryAcquire(patience, TimeUnit.NANOSECONDS)) {
                throw LaneException.busy(all.size(), patience);
            }
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            throw LaneException.interrupted(interrupted);
        }
        if (closed) {
            permits.release();
            requireOpen();
        }
        return idle.removeFirst();
    }

    void give(MoeKernel lane) {
        idle.addFirst(lane);
        permits.release();
    }

    /** Runs something while no call runs. It waits its turn among the waiting calls. */
    void alone(Runnable what) {
        permits.acquireUninterruptibly(all.size());
        try {
            requireOpen();
            what.run();
        } finally {
            permits.release(all.size());
        }
    }

    void requireOpen() {
        if (closed) {
            throw new IllegalStateException("the layer is closed");
        }
    }

    /**
     * Closes the lanes, after the calls that run or already wait. The first lane, which owns the weights, is closed
     * last.
     *
     * @return whether they were open
     */
    boolean close() {
        permits.acquireUninterruptibly(all.size());
        try {
            if (closed) {
                return false;
            }
            closed = true;
            try (Int8Experts _ = source) {
                Cleanup.each(all.reversed(), MoeKernel::close);
            }
            return true;
        } finally {
            permits.release(all.size());
        }
    }
}
