package uk.ac.manchester.tornado.api.exceptions;

/** The implementation behind the API could not be loaded. */
public class TornadoAPIException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoAPIException(String message, Exception cause) {
        super(message, cause);
    }

    public TornadoAPIException(String message) {
        super(message);
    }
}
