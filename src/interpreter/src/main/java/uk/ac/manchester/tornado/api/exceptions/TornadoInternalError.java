package uk.ac.manchester.tornado.api.exceptions;

/** What TornadoVM's compiler throws at what it has not implemented: an Error, not an exception. */
public class TornadoInternalError extends Error {
    private static final long serialVersionUID = 1;

    public TornadoInternalError(Throwable cause) {
        super(cause);
    }
}
