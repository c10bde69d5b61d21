package uk.ac.manchester.tornado.api.interpreter;

/** A group whose work-items never wait for each other: one runs after the other on the calling thread. */
final class Sequence extends Group {
    private final Body body;

    Sequence(Launch launch, Body body) {
        super(launch);
        this.body = body;
    }

    @Override
    void runItems() {
        int size = launch.grid.groupSize();
        for (int i = 0; i < size; i++) {
            WorkItem item = new WorkItem(this, i);
            WorkItem.enter(item);
            try {
                body.run(launch.contexts.apply(item));
            } catch (Throwable t) {
                launch.fail(item, t);
                break;
            }
        }
        WorkItem.enter(null);
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
