package org.tornadomoe.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

class CleanupTest {
    private final List<Object> taken = new ArrayList<>();

    private Runnable failing(Throwable failure) {
        return () -> {
            taken.add(failure);
            if (failure instanceof Error error) {
                throw error;
            }
            throw (RuntimeException) failure;
        };
    }

    @Test
    void everyStepIsTakenAndTheFirstFailureThrown() {
        IllegalStateException first = new IllegalStateException("first");
        LinkageError second = new LinkageError("second");
        assertThatThrownBy(() -> Cleanup.all(
                        () -> taken.add("a"), failing(first), () -> taken.add("b"), failing(second), failing(first)))
                .isSameAs(first)
                .satisfies(failure -> assertThat(failure.getSuppressed()).containsExactly(second));
        assertThat(taken).containsExactly("a", first, "b", second, first);
        assertThatThrownBy(() -> Cleanup.each(
                        List.of(second, first), failure -> failing(failure).run()))
                .isSameAs(second);
    }

    @Test
    void withoutAFailureNothingIsThrown() {
        Cleanup.all(() -> taken.add("a"), () -> taken.add("b"));
        Cleanup.each(List.of("c", "d"), taken::add);
        assertThat(taken).containsExactly("a", "b", "c", "d");
    }

    @Test
    void whatFailsAfterAFailureIsSuppressedInIt() {
        Exception failure = new Exception("first");
        Error error = new AssertionError("second");
        Cleanup.after(failure, failing(error));
        Cleanup.after(failure, () -> taken.add("a"));
        assertThat(failure.getSuppressed()).containsExactly(error);
        assertThat(taken).containsExactly(error, "a");
    }
}
