package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.tornado.graph.Stage;
import uk.ac.manchester.tornado.api.interpreter.TaskAccesses;

/**
 * Compares what stages say that they read and write with what their kernels did, where the interpreter looks for races.
 */
public final class StageAccesses {
    /** Launches since the last {@link #forget}; null where nobody tells of them. */
    private static @Nullable List<TaskAccesses> launches;

    private StageAccesses() {}

    static void listen() {
        List<TaskAccesses> told = Collections.synchronizedList(new ArrayList<>());
        launches = told;
        TaskAccesses.listen(told::add);
    }

    static void stop() {
        if (launches != null) {
            launches = null;
            TaskAccesses.listen(null);
        }
    }

    static void forget() {
        if (launches != null) {
            launches.clear();
        }
    }

    /**
     * What was launched is as declared: of what was there before, no more was read, and no more and no less was
     * written.
     */
    static void match(List<Stage> stages) {
        if (launches == null) {
            return;
        }
        Map<String, Stage> byName = new HashMap<>();
        stages.forEach(stage -> byName.put(stage.name(), stage));
        Map<Stage, Set<Object>> written = new HashMap<>();
        for (TaskAccesses launch : List.copyOf(launches)) {
            Stage stage = byName.get(launch.task().substring(launch.task().indexOf('.') + 1));
            if (stage != null) {
                assertThat(undeclared(launch.read(), stage.reads()))
                        .as("%s's arguments that it reads undeclared", stage.name())
                        .isEmpty();
                assertThat(undeclared(launch.written(), stage.writes()))
                        .as("%s's arguments that it writes undeclared", stage.name())
                        .isEmpty();
                written.computeIfAbsent(stage, _ -> identitySet()).addAll(launch.written());
            }
        }
        assertThat(written).as("stages that were launched").isNotEmpty();
        written.forEach((stage, arrays) -> {
            if (!arrays.isEmpty()) {
                assertThat(undeclared(stage.writes(), arrays))
                        .as("arrays that %s declares and never writes", stage.name())
                        .isEmpty();
            }
        });
    }

    private static Set<Object> identitySet() {
        return Collections.newSetFromMap(new IdentityHashMap<>());
    }

    private static Set<Object> undeclared(Collection<Object> touched, Collection<Object> declared) {
        Set<Object> more = identitySet();
        more.addAll(touched);
        declared.forEach(more::remove);
        return more;
    }
}
