package uk.ac.manchester.tornado.api.interpreter;

import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.Set;
import java.util.function.Consumer;

/**
 * What a launch of a kernel did to its task's arrays; known where races are looked for.
 *
 * @param task the graph's and the task's name
 * @param read arrays of which something was read that was there before, by identity
 * @param written arrays to which something was written, by identity
 */
public record TaskAccesses(String task, Set<Object> read, Set<Object> written) {
    private static volatile Consumer<TaskAccesses> listener;

    /** Tells someone of every launch from now on; null tells nobody. */
    public static void listen(Consumer<TaskAccesses> to) {
        listener = to;
    }

    /** @param copies the device's of the arguments */
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
