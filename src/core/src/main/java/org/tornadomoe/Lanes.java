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
 * A fair (FIFO) pool of lanes, which a layer's calls run on: kernels over the same weights, each for one call at a
 * time. Threads park while they wait, virtual ones off their carriers.
 */
final class Lanes {
    private final List<MoeKernel> all;
    private final @Nullable Int8Experts source;
    private final Semaphore permits;

    /** As many as there are permits; the one used last is taken first, since its arrays are in the caches. */
    private final ConcurrentLinkedDeque<MoeKernel> idle;

    /** Nanoseconds; negative for no limit. */
    private final long patience;

    private volatile boolean closed;

    /** @param source what the lanes may still read weights from, closed after them; null if that is none of theirs */
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
     * A lane, to be given back.
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

    /** Runs something when no call is under way and before the next one begins, in turn with those that wait. */
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
     * Closes the lanes, the first of which has the weights, after the calls under way and those that wait already.
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
