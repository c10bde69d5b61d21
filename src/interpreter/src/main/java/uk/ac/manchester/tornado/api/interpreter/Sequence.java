package uk.ac.manchester.tornado.api.interpreter;

import uk.ac.manchester.tornado.api.KernelContext;

/**
 * A group whose work-items run one after the other on the calling thread, each to its end or to its next barrier; they
 * continue in the next round.
 */
final class Sequence extends Group {
    private final Body body;
    private final WorkItem[] items;
    private final KernelContext[] contexts;
    private final Frame[] frames;

    Sequence(Launch launch, Body body) {
        super(launch);
        this.body = body;
        int size = launch.grid.groupSize();
        items = new WorkItem[size];
        contexts = new KernelContext[size];
        frames = new Frame[size];
        for (int i = 0; i < size; i++) {
            frames[i] = new Frame();
        }
    }

    @Override
    void runItems() {
        for (int i = 0; i < items.length; i++) {
            items[i] = new WorkItem(this, i, frames[i]);
            contexts[i] = launch.contexts.apply(items[i]);
        }
        try {
            while (round()) {
                phase++;
            }
        } finally {
            WorkItem.enter(null);
        }
    }

    /** Runs a round; returns whether all wait at a barrier and must continue. */
    private boolean round() {
        WorkItem waiting = null;
        WorkItem returned = null;
        for (int i = 0; i < items.length; i++) {
            WorkItem.enter(items[i]);
            try {
                body.run(contexts[i]);
            } catch (Throwable t) {
                launch.fail(items[i], t);
                return false;
            }
            if (!frames[i].waits()) {
                returned = returned == null ? items[i] : returned;
            } else if (waiting == null) {
                waiting = items[i];
            }
        }
        if (waiting != null && returned != null) {
            launch.fail(waiting, Fault.notReachedBy(returned));
        }
        return returned == null;
    }

    @Override
    void barrier(WorkItem item) {
        throw new IllegalStateException("a barrier in a kernel that has none");
    }

    @Override
    Object collective(WorkItem item, Warp.Operation operation, Object operand) {
        throw new IllegalStateException(operation + " in a kernel that has none");
    }
}
