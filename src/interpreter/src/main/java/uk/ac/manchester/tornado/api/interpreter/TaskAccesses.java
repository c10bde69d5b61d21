package uk.ac.manchester.tornado.api.interpreter;

import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.Set;
import java.util.function.Consumer;

/**
 * A kernel launch's accesses to its task's arrays; known if races are checked.
 *
 * @param task the graph's and the task's name
 * @param read arrays whose earlier content was read, by identity
 * @param written arrays that were written, by identity
 */
public record TaskAccesses(String task, Set<Object> read, Set<Object> written) {
    private static volatile Consumer<TaskAccesses> listener;

    /** Sets the listener for every launch from now on; null for none. */
    public static void listen(Consumer<TaskAccesses> to) {
        listener = to;
    }

    /** @param copies the device's copies of the arguments */
    static void tell(String task, Object[] arguments, Object[] copies, Races races) {
        Consumer<TaskAccesses> to = listener;
        if (to != null && races != null) {
            Set<Object> read = Collections.newSetFromMap(new IdentityHashMap<>());
            Set<Object> written = Collections.newSetFromMap(new IdentityHashMap<>());
            for (int i = 0; i < arguments.length; i++) {
                if (races.reads(copies[i])) {
                    read.add(arguments[i]);
                }
                if (races.writes(copies[i])) {
                    written.add(arguments[i]);
                }
            }
            to.accept(new TaskAccesses(task, read, written));
        }
    }
}
