package org.tornadomoe.host;

import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.ForkJoinTask;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.concurrent.locks.ReentrantLock;
import org.jspecify.annotations.Nullable;

/**
 * The calling thread, and as many of the common pool's as there are further cores. A call's stages are split into
 * tasks, which whoever is free takes in order; the caller waits for no helper that has not come, so a busy pool makes a
 * call slower and nothing else. Helpers stay for some microseconds after a call, for the next one, and then leave. One
 * call at a time has the helpers; others go on alone. Nothing is allocated while calls follow one another.
 */
public final class Team {
    /** A part of a call: {@code task} from 0, each once, in any order and on any thread of the team. */
    @FunctionalInterface
    public interface Stage {
        /** Does one task; {@code scratch} is the thread's own. */
        void run(int task, Scratch scratch);
    }

    private static final int LINGER = 50_000;
    private static final int SPINS = 2_000;

    private static final class Shared {
        static final Team TEAM = new Team(
                Math.min(Runtime.getRuntime().availableProcessors(), 1 + ForkJoinPool.getCommonPoolParallelism()));
    }

    /** Of {@link #counters}: the tasks of the stage under way in the upper half, the next of them in the lower. */
    private static final int CLAIM = 16;

    /** How many of them are still to be done. */
    private static final int UNFINISHED = 2 * CLAIM;

    private final Helper[] helpers;
    private final ReentrantLock taken = new ReentrantLock();

    /** Two pairs of the cache's lines apart, since all threads read one of them while others write the other. */
    private final AtomicLongArray counters = new AtomicLongArray(3 * CLAIM);

    private volatile boolean open;
    private volatile @Nullable Throwable failure;

    /** Written before a claim is set, read after one is won. */
    private Stage stage = (_, _) -> {};

    /**
     * A team of so many threads.
     *
     * @param threads at least 1, the caller's included
     */
    public Team(int threads) {
        helpers = new Helper[Math.max(0, threads - 1)];
        for (int i = 0; i < helpers.length; i++) {
            helpers[i] = new Helper();
        }
    }

    /** That of all layers. */
    public static Team shared() {
        return Shared.TEAM;
    }

    /** The caller's included. */
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
        counters.set(CLAIM, (long) tasks << 32);
        work(scratch);
        for (int spin = 0; counters.get(UNFINISHED) > 0; spin++) {
            pause(spin);
        }
        Throwable thrown = failure;
        if (thrown != null) {
            failure = null;
            throw new IllegalStateException("a task failed: " + thrown, thrown);
        }
    }

    /** Does tasks while there are any. The next stage waits until all that were done here are told of, at the end. */
    private void work(Scratch scratch) {
        int done = 0;
        while (isLeft(counters.get(CLAIM))) { // so that who only waits doesn't write
            long claimed = counters.getAndIncrement(CLAIM);
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
        if (done > 0) {
            counters.getAndAdd(UNFINISHED, -done);
        }
    }

    private static boolean isLeft(long claim) {
        return (int) claim < (int) (claim >>> 32);
    }

    /** The first, and the later ones suppressed in it. */
    private synchronized void keep(Throwable thrown) {
        Throwable first = failure;
        if (first == null) {
            failure = thrown;
        } else if (first != thrown) { // which Java doesn't take
            first.addSuppressed(thrown);
        }
    }

    /** Spins, and lets others run if that takes long. */
    @SuppressWarnings("ThreadPriorityCheck") // not for order: with more threads than cores, who is waited for needs one
    private static void pause(int spin) {
        if (spin < SPINS) {
            Thread.onSpinWait();
        } else {
            Thread.yield();
        }
    }

    /** A place in the team; whoever of the pool takes its job works there. */
    private final class Helper {
        private final Scratch scratch = new Scratch();
        private final AtomicInteger present = new AtomicInteger();
        private Job job = new Job(this);

        /** By the caller. If the last job is still to begin or has not left, it does as well. */
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
                work(scratch);
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
