package uk.ac.manchester.tornado.api.interpreter;

import java.lang.System.Logger.Level;
import java.lang.invoke.MethodHandle;
import java.util.List;
import java.util.function.UnaryOperator;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.types.arrays.ByteArray;
import uk.ac.manchester.tornado.api.types.arrays.CharArray;
import uk.ac.manchester.tornado.api.types.arrays.DoubleArray;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.HalfFloatArray;
import uk.ac.manchester.tornado.api.types.arrays.Int8Array;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.LongArray;
import uk.ac.manchester.tornado.api.types.arrays.ShortArray;

/** A task's method: where it can wait, and how to run a work-item. */
final class Kernel {
    private static final System.Logger LOG = System.getLogger(Kernel.class.getName());

    /** The method behind a lambda; if it is not readable, it runs unchanged. */
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
    /** Whether a work-item may have to wait at a point where it can't return and continue; each then has a thread. */
    final boolean threads;

    private final Task task;
    private final List<String> parameters;
    private final MethodHandle checked;

    private Kernel(Task task, String name, boolean threads, List<String> parameters, MethodHandle checked) {
        this.task = task;
        this.name = name;
        this.threads = threads;
        this.parameters = parameters;
        this.checked = checked;
    }

    static Kernel of(Task task, boolean races) {
        KernelClasses.Method method = METHODS.get(task.code().getClass()).method(task);
        if (method == null) {
            return new Kernel(task, "its method", true, List.of(), null);
        }
        MethodHandle checked = races || method.waits() || method.sharesMemory() ? method.checked(races) : null;
        return new Kernel(task, method.name(), method.waits() && !method.resumable(), method.parameters(), checked);
    }

    String parameter(int argument) {
        return argument < parameters.size() ? parameters.get(argument) : "argument " + (argument + 1);
    }

    /** The kernel with these arguments; {@code context} is the context's index among them. Not thread-safe. */
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
     * The method behind a task's lambda, or null. Java offers no way to ask, so the lambda is called once with null
     * arguments: the exception of their first use has the method in its stack trace. Compiled code may throw an
     * exception without a trace (HotSpot's {@code OmitStackTraceInFastThrow}); then empty arrays are used instead.
     */
    private static KernelClasses.Method locate(Task task) {
        StackTraceElement found = found(task, argument -> null);
        return found == null ? search(task, found(task, Kernel::empty)) : search(task, found);
    }

    private static KernelClasses.Method search(Task task, StackTraceElement found) {
        return found == null ? null : KernelClasses.find(found, task);
    }

    private static Object empty(Object argument) {
        return switch (argument) {
            case KernelContext context -> new KernelContext();
            case ByteArray array -> new ByteArray(0);
            case CharArray array -> new CharArray(0);
            case DoubleArray array -> new DoubleArray(0);
            case FloatArray array -> new FloatArray(0);
            case HalfFloatArray array -> new HalfFloatArray(0);
            case Int8Array array -> new Int8Array(0);
            case IntArray array -> new IntArray(0);
            case LongArray array -> new LongArray(0);
            case ShortArray array -> new ShortArray(0);
            default -> null;
        };
    }

    /**
     * The outermost method in the exception's stack trace when {@code instead} replaces the arguments that aren't
     * numbers.
     */
    private static StackTraceElement found(Task task, UnaryOperator<Object> instead) {
        Object[] arguments = task.arguments().clone();
        for (int i = 0; i < arguments.length; i++) {
            arguments[i] = arguments[i] instanceof Number || arguments[i] instanceof Boolean
                    ? arguments[i]
                    : instead.apply(arguments[i]);
        }
        StackTraceElement found = null;
        try {
            task.body().accept(arguments);
        } catch (RuntimeException e) {
            for (StackTraceElement frame : e.getStackTrace()) {
                if (frame.getClassName().equals(TaskGraph.class.getName())) {
                    break;
                }
                found = frame;
            }
        }
        return found;
    }
}
