package uk.ac.manchester.tornado.api.exceptions;

/** An internal failure. */
public class TornadoFailureException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoFailureException(String message) {
        super(message);
    }

    public TornadoFailureException(Exception cause) {
        super(cause);
    }
}
