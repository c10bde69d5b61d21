package uk.ac.manchester.tornado.api.interpreter;

import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;

/**
 * A mistake in a kernel that a device would not tell: the message names the task, the kernel's line, the work-item,
 * and, where there is one, the array and the index. The cause is what the kernel threw.
 */
public final class KernelException extends TornadoRuntimeException {
    private static final long serialVersionUID = 1;

    KernelException(String message, Throwable cause) {
        super(message);
        initCause(cause);
    }
}
