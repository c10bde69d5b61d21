package org.tornadomoe.parallel;

import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import org.jspecify.annotations.Nullable;

/**
 * The thread of one device's part of a layer: all that the device is asked for is asked for here, since a CUDA context
 * is the current one of a thread. One caller at a time. It lingers for some microseconds after a task, for the next
 * one, where there are cores to spare; then it parks. So does who waits for it, a virtual thread off its carrier.
 */
final class DeviceThread implements AutoCloseable {
    private static final long LINGER_NANOS = 50_000;

    private final Thread thread;
    private final boolean lingers;
    private final AtomicReference<@Nullable FutureTask<?>> next = new AtomicReference<>();
    private volatile boolean open = true;

    /**
     * @param name of the thread
     * @param lingers whether it may keep a core busy for that while
     */
    DeviceThread(String name, boolean lingers) {
        this.lingers = lingers;
        thread = Thread.ofPlatform().name(name).daemon().unstarted(this::work);
        thread.start();
    }

    private void work() {
        long idleSince = System.nanoTime();
        while (true) {
            FutureTask<?> task = next.getAndSet(null);
            if (task != null) {
                task.run();
                idleSince = System.nanoTime();
            } else if (!open) {
                return;
            } else if (lingers && System.nanoTime() - idleSince < LINGER_NANOS) {
                Thread.onSpinWait();
            } else {
                LockSupport.park(this);
            }
        }
    }

    /** Begins a task, which {@link #await} waits for. */
    <T extends @Nullable Object> FutureTask<T> begin(Callable<T> what) {
        FutureTask<T> task = new FutureTask<>(what);
        next.set(task);
        LockSupport.unpark(thread);
        return task;
    }

    Thread thread() {
        return thread;
    }

    /**
     * Waits until a task is over, whatever interrupts, which are kept: what it writes to must not be given back before.
     * Throws what it threw.
     */
    <T extends @Nullable Object> T await(FutureTask<T> task) {
        boolean interrupted = false;
        long since = System.nanoTime();
        while (lingers && !task.isDone() && System.nanoTime() - since < LINGER_NANOS) {
            Thread.onSpinWait();
        }
        try {
            while (true) {
                try {
                    return task.get();
                } catch (InterruptedException later) {
                    interrupted = true;
                }
            }
        } catch (ExecutionException failure) {
            switch (failure.getCause()) {
                case RuntimeException known -> throw known;
                case Error error -> throw error;
                case null, default -> throw new IllegalStateException(failure.getCause());
            }
        } finally {
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }

    /** Ends the thread, and waits until it has. */
    @Override
    public void close() {
        open = false;
        LockSupport.unpark(thread);
        awaitEnd(thread);
    }

    /** Waits whatever interrupts, which is kept. */
    static void awaitEnd(Thread thread) {
        boolean interrupted = false;
        while (true) {
            try {
                thread.join();
                break;
            } catch (InterruptedException later) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
