package org.tornadomoe.host;

import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import org.jspecify.annotations.Nullable;

/**
 * The thread of one device's part of a layer, or of a layer's execution plan: all that the device is asked for is asked
 * for here, since a CUDA context is the current one of a thread, and TornadoVM gives each thread that executes a plan a
 * queue of its own. One caller at a time. It lingers for some microseconds after a task, for the next one, where there
 * are cores to spare; then it parks. So does who waits for it, a virtual thread off its carrier.
 */
public final class DeviceThread implements AutoCloseable {
    private static final long LINGER_NANOS = 50_000;

    private final Thread thread;
    private final boolean lingers;
    private final AtomicReference<@Nullable FutureTask<?>> next = new AtomicReference<>();
    private volatile boolean open = true;

    private static final class Own extends Thread {
        Own(Runnable work, String name) {
            super(work, name);
            setDaemon(true);
        }
    }

    /**
     * Starts it.
     *
     * @param name of the thread
     * @param devices that have such threads, two cores each of which aren't to be kept busy by waiting
     */
    public DeviceThread(String name, int devices) {
        lingers = Runtime.getRuntime().availableProcessors() > 2 * devices;
        thread = new Own(this::work, name);
        thread.start();
    }

    /** Whether the calling thread is one of these. */
    public static boolean isCurrent() {
        return Thread.currentThread() instanceof Own;
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
    public <T extends @Nullable Object> FutureTask<T> begin(Callable<T> what) {
        FutureTask<T> task = new FutureTask<>(what);
        next.set(task);
        LockSupport.unpark(thread);
        return task;
    }

    /** Has a task done, and waits until it is; {@link #await}. */
    public <T extends @Nullable Object> T call(Callable<T> what) {
        return await(begin(what));
    }

    /** For whom memory has to be accessible. */
    public Thread thread() {
        return thread;
    }

    /**
     * Waits until a task is over, whatever interrupts, which are kept: what it writes to must not be given back before.
     * Throws what it threw.
     */
    public <T extends @Nullable Object> T await(FutureTask<T> task) {
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
    public static void awaitEnd(Thread thread) {
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
