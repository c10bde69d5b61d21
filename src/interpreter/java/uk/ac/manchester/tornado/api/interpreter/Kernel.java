package uk.ac.manchester.tornado.api.interpreter;

/** What is known of a task's method. */
final class Kernel {
    final String name;
    final boolean waits;
    private final Task task;

    private Kernel(Task task, String name, boolean waits) {
        this.task = task;
        this.name = name;
        this.waits = waits;
    }

    static Kernel of(Task task) {
        return new Kernel(task, "the kernel", true);
    }

    String parameter(int argument) {
        return "argument " + (argument + 1);
    }

    /** The kernel with these arguments; where the context goes is an index among them. Not thread-safe. */
    Body body(Object[] arguments, int context) {
        return c -> {
            arguments[context] = c;
            task.body().accept(arguments);
        };
    }
}
