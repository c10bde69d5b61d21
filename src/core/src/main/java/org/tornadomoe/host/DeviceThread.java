package org.tornadomoe.host;

import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import org.jspecify.annotations.Nullable;

/**
 * The thread of one device's part of a layer, or of a layer's execution plan. All work on the device runs on this
 * thread, because a CUDA context is current per thread, and TornadoVM gives each thread that executes a plan its own
 * queue. One caller at a time. After a task it spins for some microseconds for the next one, if there are cores to
 * spare; then it parks. A waiting caller does the same; a virtual thread releases its carrier.
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
     * Starts the thread.
     *
     * @param name the thread's name
     * @param devices number of devices with such threads; it spins only if there are more than two cores per device
     */
    public DeviceThread(String name, int devices) {
        lingers = Runtime.getRuntime().availableProcessors() > 2 * devices;
        thread = new Own(this::work, name);
        thread.start();
    }

    /** Whether the calling thread is a device thread. */
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

    /** Begins a task; {@link #await} waits for it. */
    public <T extends @Nullable Object> FutureTask<T> begin(Callable<T> what) {
        FutureTask<T> task = new FutureTask<>(what);
        next.set(task);
        LockSupport.unpark(thread);
        return task;
    }

    /** Runs a task and waits for it as {@link #await} does. */
    public <T extends @Nullable Object> T call(Callable<T> what) {
        return await(begin(what));
    }

    /** The thread to which memory must be accessible. */
    public Thread thread() {
        return thread;
    }

    /**
     * Waits until a task is over, even if interrupted, because the caller must not reuse the memory that the task
     * writes before; the interrupt is kept. Throws what the task threw.
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

    /** Ends the thread and waits until it has ended. */
    @Override
    public void close() {
        open = false;
        LockSupport.unpark(thread);
        awaitEnd(thread);
    }

    /** Waits for the thread's end even if interrupted; the interrupt is kept. */
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
