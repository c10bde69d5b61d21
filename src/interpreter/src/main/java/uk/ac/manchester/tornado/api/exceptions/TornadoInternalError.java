package uk.ac.manchester.tornado.api.exceptions;

/** Thrown by TornadoVM's compiler for unimplemented features: an Error, not an exception. */
public class TornadoInternalError extends Error {
    private static final long serialVersionUID = 1;

    public TornadoInternalError(Throwable cause) {
        super(cause);
    }
}
