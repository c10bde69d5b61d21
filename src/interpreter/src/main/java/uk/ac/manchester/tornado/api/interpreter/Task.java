package uk.ac.manchester.tornado.api.interpreter;

import java.util.function.Consumer;
import uk.ac.manchester.tornado.api.KernelContext;

/** One task of a graph. */
record Task(String id, Object code, Consumer<Object[]> body, Object[] arguments) {
    /** The kernel context's index among the arguments; -1 if the task is a method with parallel loops. */
    int context() {
        for (int i = 0; i < arguments.length; i++) {
            if (arguments[i] instanceof KernelContext) {
                return i;
            }
        }
        return -1;
    }
}
