package uk.ac.manchester.tornado.api.exceptions;

/** A call in a task that could not be inlined. */
public class TornadoInliningException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoInliningException(String message) {
        super(message);
    }
}
