package uk.ac.manchester.tornado.api.exceptions;

/** The device has not enough memory, or a plan would pass its limit. */
public class TornadoOutOfMemoryException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoOutOfMemoryException(String message) {
        super(message);
    }
}
