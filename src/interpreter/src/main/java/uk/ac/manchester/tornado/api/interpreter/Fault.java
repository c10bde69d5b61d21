package uk.ac.manchester.tornado.api.interpreter;

/**
 * An error of the work-item that throws it. The launch adds the work-item and makes a {@link KernelException} from it.
 */
final class Fault extends RuntimeException {
    private static final long serialVersionUID = 1;

    Fault(String message) {
        super(message);
    }

    /** The error of a work-item that waits at a barrier which another one never reaches. */
    static Fault notReachedBy(WorkItem returned) {
        return new Fault("a barrier is not reached by all of the group: this work-item waits, work-item "
                + returned.position() + " has returned");
    }
}
