package uk.ac.manchester.tornado.api.exceptions;

/** A task that could not be compiled. */
public class TornadoCompilationException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoCompilationException(String message) {
        super(message);
    }
}
