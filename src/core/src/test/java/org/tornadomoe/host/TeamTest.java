package org.tornadomoe.host;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class TeamTest {
    /** One of them, with all others suppressed; and the next stage runs. */
    @Test
    void noFailureIsLost() {
        Team team = new Team(2);
        AtomicInteger tasks = new AtomicInteger();
        assertThat(team.begin()).isTrue();
        try {
            assertThatThrownBy(() -> team.run(
                            true,
                            50,
                            (task, _) -> {
                                tasks.incrementAndGet();
                                throw new IllegalArgumentException("task " + task);
                            },
                            new Scratch()))
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("a task failed: java.lang.IllegalArgumentException: task ")
                    .satisfies(failure -> assertThat(
                                    Objects.requireNonNull(failure.getCause()).getSuppressed())
                            .hasSize(49));
            assertThat(tasks).hasValue(50);
            team.run(true, 50, (_, _) -> tasks.incrementAndGet(), new Scratch());
            assertThat(tasks).hasValue(100);
        } finally {
            team.end();
        }
    }
}
