package uk.ac.manchester.tornado.api.exceptions;

/** An error in the management of device memory. */
public class TornadoMemoryException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoMemoryException(String message) {
        super(message);
    }
}
