package uk.ac.manchester.tornado.api.interpreter;

import java.lang.System.Logger.Level;
import java.lang.invoke.MethodHandle;
import java.util.List;
import uk.ac.manchester.tornado.api.TaskGraph;

/** A task's method: what it waits for, and how a work-item of it is run. */
final class Kernel {
    private static final System.Logger LOG = System.getLogger(Kernel.class.getName());

    /** Where a lambda leads, or not readable: the method is then run as it is. */
    private static final ClassValue<Cell> METHODS = new ClassValue<>() {
        @Override
        protected Cell computeValue(Class<?> lambda) {
            return new Cell();
        }
    };

    private static final class Cell {
        private KernelClasses.Method method;
        private boolean searched;

        synchronized KernelClasses.Method method(Task task) {
            if (!searched) {
                searched = true;
                method = locate(task);
                if (method == null) {
                    LOG.log(
                            Level.WARNING,
                            "task {0}: the class of its method cannot be read; reads of unwritten local memory and"
                                    + " races are not looked for",
                            task.id());
                }
            }
            return method;
        }
    }

    final String name;
    /** Whether a work-item may have to wait for another. */
    final boolean waits;

    private final Task task;
    private final List<String> parameters;
    private final MethodHandle checked;

    private Kernel(Task task, String name, boolean waits, List<String> parameters, MethodHandle checked) {
        this.task = task;
        this.name = name;
        this.waits = waits;
        this.parameters = parameters;
        this.checked = checked;
    }

    static Kernel of(Task task, boolean races) {
        KernelClasses.Method method = METHODS.get(task.code().getClass()).method(task);
        if (method == null) {
            return new Kernel(task, "its method", true, List.of(), null);
        }
        MethodHandle checked = races || method.waits() || method.sharesMemory() ? method.checked(races) : null;
        return new Kernel(task, method.name(), method.waits(), method.parameters(), checked);
    }

    String parameter(int argument) {
        return argument < parameters.size() ? parameters.get(argument) : "argument " + (argument + 1);
    }

    /** The kernel with these arguments; where the context goes is an index among them. Not thread-safe. */
    Body body(Object[] arguments, int context) {
        if (checked != null) {
            return c -> {
                arguments[context] = c;
                checked.invokeExact(arguments);
            };
        }
        return c -> {
            arguments[context] = c;
            task.body().accept(arguments);
        };
    }

    /**
     * The method behind a task's lambda, or null. Java does not tell it, so the lambda is called once without memory: the
     * exception of the first use of a null argument has the method in its stack trace.
     */
    private static KernelClasses.Method locate(Task task) {
        Object[] arguments = task.arguments().clone();
        for (int i = 0; i < arguments.length; i++) {
            arguments[i] = arguments[i] instanceof Number || arguments[i] instanceof Boolean ? arguments[i] : null;
        }
        StackTraceElement found = null;
        try {
            task.body().accept(arguments);
        } catch (NullPointerException e) {
            for (StackTraceElement frame : e.getStackTrace()) {
                if (frame.getClassName().equals(TaskGraph.class.getName())) {
                    break;
                }
                found = frame;
            }
        }
        return found == null ? null : KernelClasses.find(found, task);
    }
}
