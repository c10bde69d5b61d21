package uk.ac.manchester.tornado.api.interpreter;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Function;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;

/** One run of a kernel over a grid. As many threads as there are processors take groups in order. */
final class Launch {
    final String task;
    final Kernel kernel;
    final Grid grid;
    final Function<WorkItem, KernelContext> contexts;
    private final Object[] arguments;
    private final int context;
    /** The accesses so far; null if races are not checked. */
    final Races races;

    private final AtomicLong next = new AtomicLong();
    /** The first group that failed. Groups before it run to their end, so that the report is always the same. */
    private volatile long failedGroup = Long.MAX_VALUE;

    private KernelException failure;

    Launch(
            String task,
            Kernel kernel,
            Grid grid,
            Function<WorkItem, KernelContext> contexts,
            Object[] arguments,
            int context,
            boolean races) {
        this.task = task;
        this.kernel = kernel;
        this.grid = grid;
        this.contexts = contexts;
        this.arguments = arguments;
        this.context = context;
        this.races = races ? new Races(arguments, grid.groupSize()) : null;
    }

    void run() {
        int threads = races != null
                ? 1
                : (int) Math.min(grid.groups(), Runtime.getRuntime().availableProcessors());
        if (threads == 1) {
            work();
        } else {
            CountDownLatch done = new CountDownLatch(threads);
            for (int i = 0; i < threads; i++) {
                Thread.ofVirtual().name(task).start(() -> {
                    try {
                        work();
                    } finally {
                        done.countDown();
                    }
                });
            }
            awaitUninterruptibly(done);
        }
        synchronized (this) {
            if (failure != null) {
                throw failure;
            }
            if (failedGroup != Long.MAX_VALUE) {
                throw new TornadoRuntimeException("task " + task + ": group " + failedGroup + " failed");
            }
        }
    }

    private static void awaitUninterruptibly(CountDownLatch done) {
        boolean interrupted = false;
        while (true) {
            try {
                done.await();
                break;
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    private void work() {
        Body body = kernel.body(arguments.clone(), context);
        try (Group group = kernel.threads ? new Lockstep(this, body) : new Sequence(this, body)) {
            long groups = grid.groups();
            for (long index = next.getAndIncrement();
                    index < groups && index < failedGroup;
                    index = next.getAndIncrement()) {
                group.run(index);
            }
        }
    }

    /** A work-item's global id and its group, for messages. */
    String position(long group, int linear) {
        int[] local = grid.local();
        int[] in = {linear % local[0], linear / local[0] % local[1], linear / local[0] / local[1]};
        int[] of = grid.group(group);
        int[] global = new int[3];
        for (int d = 0; d < 3; d++) {
            global[d] = grid.offset()[d] + of[d] * local[d] + in[d];
        }
        return place(global) + " of group " + place(of);
    }

    private static String place(int[] at) {
        return "(" + at[0] + ", " + at[1] + ", " + at[2] + ")";
    }

    /** Ends the launch; keeps the failure of the first group if there are several. */
    synchronized void fail(WorkItem item, Throwable cause) {
        if (item.group.index < failedGroup) {
            failedGroup = item.group.index;
            failure = new KernelException(describe(item, cause), cause);
        }
    }

    private String describe(WorkItem item, Throwable cause) {
        StringBuilder text =
                new StringBuilder("task ").append(task).append(": ").append(kernel.name);
        for (StackTraceElement frame : cause.getStackTrace()) {
            if (!frame.getClassName().startsWith("uk.ac.manchester.tornado.api.")
                    && !frame.getClassName().startsWith("java.")) {
                text.append(" (")
                        .append(frame.getFileName())
                        .append(':')
                        .append(frame.getLineNumber())
                        .append(')');
                break;
            }
        }
        text.append(", work-item ").append(item.position()).append(": ");
        if (cause instanceof ElementIndexException e) {
            text.append("index ").append(e.index).append(" of ").append(nameOf(e.array, item.group));
            text.append(" is out of bounds for length ").append(e.length);
        } else if (cause instanceof Fault) {
            text.append(cause.getMessage());
        } else {
            text.append(cause);
        }
        return text.toString();
    }

    /** The kernel's name of an array: its parameter's or its local variable's name. */
    @SuppressWarnings("ReferenceEquality") // compares identity
    String nameOf(Object array, Group group) {
        for (int i = 0; i < arguments.length; i++) {
            if (arguments[i] == array) {
                return kernel.parameter(i);
            }
        }
        LocalArray local = group.find(array);
        return local == null ? "an array" : local.name();
    }
}
