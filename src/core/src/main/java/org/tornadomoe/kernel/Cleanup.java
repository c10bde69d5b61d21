package org.tornadomoe.kernel;

import java.util.List;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * Runs all of several steps even if some fail. At the end it throws the first failure, with the later ones as
 * suppressed exceptions.
 */
public final class Cleanup {
    private Cleanup() {}

    /** Runs the steps in this order. */
    public static void all(Runnable... steps) {
        each(List.of(steps), Runnable::run);
    }

    /** Runs the same step for each thing, in order. */
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

    /** Runs a step after a failure, which the caller throws afterwards. */
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
            if (first != failure) { // Java forbids self-suppression
                first.addSuppressed(failure);
            }
        }
        return first;
    }
}
