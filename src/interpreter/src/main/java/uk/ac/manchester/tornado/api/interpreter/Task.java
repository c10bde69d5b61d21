package uk.ac.manchester.tornado.api.interpreter;

import java.util.function.Consumer;
import uk.ac.manchester.tornado.api.KernelContext;

/** One task of a graph. */
record Task(String id, Object code, Consumer<Object[]> body, Object[] arguments) {
    /** Where the kernel context is among the arguments, or -1: the task is a method with parallel loops. */
    int context() {
        for (int i = 0; i < arguments.length; i++) {
            if (arguments[i] instanceof KernelContext) {
                return i;
            }
        }
        return -1;
    }
}
