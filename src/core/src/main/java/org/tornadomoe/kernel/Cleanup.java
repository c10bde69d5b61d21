package org.tornadomoe.kernel;

import java.util.List;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * Steps that are all taken whatever fails. Of several failures the first is thrown at the end, with the later ones
 * suppressed in it.
 */
public final class Cleanup {
    private Cleanup() {}

    /** In that order. */
    public static void all(Runnable... steps) {
        each(List.of(steps), Runnable::run);
    }

    /** The same step for each, in their order. */
    public static <T> void each(Iterable<? extends T> things, Consumer<? super T> step) {
        Throwable first = null;
        for (T thing : things) {
            first = run(first, () -> step.accept(thing));
        }
        if (first instanceof Error error) {
            throw error;
        }
        if (first != null) {
            throw (RuntimeException) first;
        }
    }

    /** A step after a failure, which is to be thrown then. */
    public static void after(Throwable failure, Runnable step) {
        run(failure, step);
    }

    private static @Nullable Throwable run(@Nullable Throwable first, Runnable step) {
        try {
            step.run();
        } catch (RuntimeException | Error failure) {
            if (first == null) {
                return failure;
            }
            if (first != failure) { // which Java doesn't take
                first.addSuppressed(failure);
            }
        }
        return first;
    }
}
