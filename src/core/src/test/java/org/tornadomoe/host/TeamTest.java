package org.tornadomoe.host;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.concurrent.locks.LockSupport;
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

    /** Fewer tasks than threads, as many and more; a thread that is slow leaves its tasks to the others. */
    @Test
    void everyTaskRunsOnce() {
        for (int threads = 1; threads <= 5; threads++) {
            Team team = new Team(threads);
            boolean together = team.begin();
            try {
                for (int tasks = 0; tasks < 200; tasks++) {
                    AtomicIntegerArray runs = new AtomicIntegerArray(tasks);
                    team.run(
                            together,
                            tasks,
                            (task, _) -> {
                                if (task % 50 == 0) {
                                    LockSupport.parkNanos(20_000);
                                }
                                runs.incrementAndGet(task);
                            },
                            new Scratch());
                    for (int task = 0; task < tasks; task++) {
                        assertThat(runs.get(task))
                                .as("task %d of %d", task, tasks)
                                .isEqualTo(1);
                    }
                }
            } finally {
                if (together) {
                    team.end();
                }
            }
        }
    }
}
