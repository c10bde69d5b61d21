package org.tornadomoe.host;

import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.ForkJoinTask;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.concurrent.locks.ReentrantLock;
import org.jspecify.annotations.Nullable;

/**
 * The calling thread and helpers from the common pool, one for each further core. A call's stages are split into tasks.
 * Each thread takes a range of them in order, because neighbouring tasks read neighbouring memory, and then what is
 * left of the other threads' ranges. The caller doesn't wait for a helper that has not started, so a busy pool only
 * makes a call slower. After a call helpers spin for some microseconds for the next one, and then leave. One call at a
 * time has the helpers; others run alone. Consecutive calls allocate nothing.
 */
public final class Team {
    /** A stage of a call. Its tasks, numbered from 0, run once each, in any order and on any thread of the team. */
    @FunctionalInterface
    public interface Stage {
        /** Runs one task; {@code scratch} belongs to the thread. */
        void run(int task, Scratch scratch);
    }

    private static final int LINGER = 50_000;
    private static final int SPINS = 2_000;

    private static final class Shared {
        static final Team TEAM = new Team(
                Math.min(Runtime.getRuntime().availableProcessors(), 1 + ForkJoinPool.getCommonPoolParallelism()));
    }

    /** Longs between counters: two pairs of cache lines, because threads write some while all read others. */
    private static final int APART = 16;

    /** Index in {@link #counters}: the number of unfinished tasks. */
    private static final int UNFINISHED = 0;

    private final Helper[] helpers;
    private final ReentrantLock taken = new ReentrantLock();

    /**
     * {@value #APART} apart: {@link #UNFINISHED}, then each thread's claim, the end of its range of the running stage's
     * tasks in the upper half, the next task in the lower.
     */
    private final AtomicLongArray counters;

    private volatile boolean open;
    private volatile @Nullable Throwable failure;

    /** Written before a claim is set, read after one is won. */
    private Stage stage = (_, _) -> {};

    /**
     * A team.
     *
     * @param threads number of threads, at least 1, including the caller's
     */
    public Team(int threads) {
        helpers = new Helper[Math.max(0, threads - 1)];
        for (int i = 0; i < helpers.length; i++) {
            helpers[i] = new Helper(i + 1);
        }
        counters = new AtomicLongArray((1 + threads()) * APART);
    }

    /** The team that all layers share. */
    public static Team shared() {
        return Shared.TEAM;
    }

    /** The number of threads, including the caller's. */
    public int threads() {
        return 1 + helpers.length;
    }

    /** Calls the helpers; false if another call has them. */
    public boolean begin() {
        if (helpers.length == 0 || !taken.tryLock()) {
            return false;
        }
        open = true;
        for (Helper helper : helpers) {
            helper.call();
        }
        return true;
    }

    /** Lets the helpers go, after a {@link #begin} that was true. */
    public void end() {
        open = false;
        taken.unlock();
    }

    /**
     * Runs a stage to its end.
     *
     * @param together whether this is between {@link #begin} and {@link #end}
     * @param scratch the caller's
     */
    public void run(boolean together, int tasks, Stage stage, Scratch scratch) {
        if (!together || tasks < 2) {
            for (int task = 0; task < tasks; task++) {
                stage.run(task, scratch);
            }
            return;
        }
        this.stage = stage;
        counters.set(UNFINISHED, tasks);
        int threads = threads();
        for (int thread = 0; thread < threads; thread++) {
            long end = (thread + 1L) * tasks / threads;
            counters.set(claim(thread), end << 32 | (long) thread * tasks / threads);
        }
        work(0, scratch);
        for (int spin = 0; counters.get(UNFINISHED) > 0; spin++) {
            pause(spin);
        }
        Throwable thrown = failure;
        if (thrown != null) {
            failure = null;
            throw new IllegalStateException("a task failed: " + thrown, thrown);
        }
    }

    /**
     * Runs tasks while there are any, first those of a thread's own range, and at the end reports how many; the next
     * stage waits for that.
     */
    private void work(int thread, Scratch scratch) {
        int done = 0;
        for (int past = 0; past <= helpers.length && counters.get(UNFINISHED) > 0; past++) {
            int claim = claim((thread + past) % threads());
            while (isLeft(counters.get(claim))) { // a thread that only waits doesn't write
                long claimed = counters.getAndIncrement(claim);
                if (!isLeft(claimed)) {
                    break;
                }
                try {
                    stage.run((int) claimed, scratch);
                } catch (RuntimeException | Error thrown) {
                    keep(thrown);
                }
                done++;
            }
        }
        if (done > 0) {
            counters.getAndAdd(UNFINISHED, -done);
        }
    }

    private static int claim(int thread) {
        return (1 + thread) * APART;
    }

    private static boolean isLeft(long claim) {
        return (int) claim < (int) (claim >>> 32);
    }

    /** Keeps the first exception, with the later ones suppressed in it. */
    private synchronized void keep(Throwable thrown) {
        Throwable first = failure;
        if (first == null) {
            failure = thrown;
        } else if (first != thrown) { // Java forbids self-suppression
            first.addSuppressed(thrown);
        }
    }

    /** Spins, and yields if that takes long. */
    @SuppressWarnings(
            "ThreadPriorityCheck") // not for ordering: with more threads than cores, the awaited thread needs a core
    private static void pause(int spin) {
        if (spin < SPINS) {
            Thread.onSpinWait();
        } else {
            Thread.yield();
        }
    }

    /** A helper's place in the team; a pool thread that takes its job works there. */
    private final class Helper {
        private final int thread;
        private final Scratch scratch = new Scratch();
        private final AtomicInteger present = new AtomicInteger();
        private Job job = new Job(this);

        Helper(int thread) {
            this.thread = thread;
        }

        /** Called by the caller. A previous job that has not started or not left yet serves too. */
        void call() {
            if (present.compareAndSet(0, 1)) {
                if (job.isDone()) {
                    job.reinitialize();
                } else {
                    job = new Job(this);
                }
                ForkJoinPool.commonPool().execute(job);
            }
        }

        void serve() {
            long since = System.nanoTime();
            for (int spin = 0; ; spin++) {
                work(thread, scratch);
                if (open) {
                    since = 0;
                    pause(spin);
                } else if (since == 0) {
                    since = System.nanoTime();
                    spin = 0;
                } else if (System.nanoTime() - since > LINGER) {
                    break;
                } else {
                    Thread.onSpinWait();
                }
            }
            present.set(0);
        }
    }

    private static final class Job extends ForkJoinTask<@Nullable Void> {
        private static final long serialVersionUID = 1L;

        private final transient Helper helper;

        Job(Helper helper) {
            this.helper = helper;
        }

        @Override
        public @Nullable Void getRawResult() {
            return null;
        }

        @Override
        protected void setRawResult(@Nullable Void value) {}

        @Override
        protected boolean exec() {
            helper.serve();
            return true;
        }
    }
}
