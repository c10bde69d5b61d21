package uk.ac.manchester.tornado.api.interpreter;

/**
 * A mistake of the work-item that throws it; the launch adds which that is and makes a {@link KernelException} of it.
 */
final class Fault extends RuntimeException {
    private static final long serialVersionUID = 1;

    Fault(String message) {
        super(message);
    }

    /** Of a work-item at a barrier. */
    static Fault notReachedBy(WorkItem returned) {
        return new Fault("a barrier is not reached by all of the group: this work-item waits, work-item "
                + returned.position() + " has returned");
    }
}
