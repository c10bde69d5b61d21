package uk.ac.manchester.tornado.api.interpreter;

import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;

/**
 * An error in a kernel, which a device would not report. The message names the task, the kernel's line, the work-item
 * and, if applicable, the array and the index. The cause is the kernel's exception.
 */
public final class KernelException extends TornadoRuntimeException {
    private static final long serialVersionUID = 1;

    KernelException(String message, Throwable cause) {
        super(message);
        initCause(cause);
    }
}
