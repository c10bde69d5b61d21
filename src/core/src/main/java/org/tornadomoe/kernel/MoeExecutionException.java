package org.tornadomoe.kernel;

/** A device or one of its kernels failed. The message names task, device and cause. */
public final class MoeExecutionException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public MoeExecutionException(String message, Throwable cause) {
        super(message, cause);
    }

    public MoeExecutionException(String message) {
        super(message);
    }
}
