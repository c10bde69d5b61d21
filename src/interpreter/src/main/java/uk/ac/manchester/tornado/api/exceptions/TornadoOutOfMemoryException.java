package uk.ac.manchester.tornado.api.exceptions;

/** The device has too little memory, or a plan would exceed its limit. */
public class TornadoOutOfMemoryException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoOutOfMemoryException(String message) {
        super(message);
    }
}
