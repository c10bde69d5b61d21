package org.tornadomoe.tornado;

import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.IntUnaryOperator;
import org.tornadomoe.modular.MoeExecutionException;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.WorkerGrid;
import uk.ac.manchester.tornado.api.WorkerGrid2D;

/**
 * One kernel of a layer, bound to its arrays.
 *
 * @param name the task's name in its graph
 * @param group work-items of a group
 * @param groupsX groups along x for M tokens
 * @param groupsY groups along y for M tokens
 * @param task adds the task to a graph, under {@code name}
 * @param reads arrays that must be filled before
 * @param writes arrays that are filled after
 */
record Stage(
        String name,
        int group,
        IntUnaryOperator groupsX,
        IntUnaryOperator groupsY,
        Consumer<TaskGraph> task,
        List<Object> reads,
        List<Object> writes) {
    /** CUDA's limit; a launch beyond it would fail without TornadoVM saying so. */
    private static final int MAX_GROUPS_Y = 65_535;

    /** The grid for M tokens: the same kernel serves every M, only its grid changes. */
    void resize(WorkerGrid grid, int tokens) {
        int y = groupsY.applyAsInt(tokens);
        if (y > MAX_GROUPS_Y) {
            throw new IllegalArgumentException("tokens: expected fewer, " + tokens + " make a grid of " + y
                    + " groups along y for " + name + ", and devices take " + MAX_GROUPS_Y);
        }
        grid.setGlobalWork((long) groupsX.applyAsInt(tokens) * group, y, 1);
        grid.setLocalWork(group, 1, 1);
    }

    /** Several stages in one task graph, with the grids its tasks are launched with. */
    record Graph(TaskGraph tasks, GridScheduler grids, List<Stage> stages) {
        /**
         * A graph without tasks yet.
         *
         * @throws MoeExecutionException if the device doesn't take a stage's work-groups: TornadoVM would let the driver
         *     choose others and launch the kernel all the same
         */
        static Graph of(String name, Device device, List<Stage> stages) {
            Graph graph = new Graph(new TaskGraph(name), new GridScheduler(), stages);
            for (Stage stage : stages) {
                if (device.maxGroup() > 0 && stage.group > device.maxGroup()) {
                    throw new MoeExecutionException("task " + name + "." + stage.name + " needs work-groups of "
                            + stage.group + ", and " + device + " takes " + device.maxGroup());
                }
                graph.grids.addWorkerGrid(name + "." + stage.name, new WorkerGrid2D(stage.group, 1));
            }
            return graph;
        }

        /** Adds the tasks; what goes to the device has to be declared before, what comes back after. */
        void addTasks() {
            stages.forEach(stage -> stage.task.accept(tasks));
        }

        void resize(int tokens) {
            for (Stage stage : stages) {
                stage.resize(grids.get(tasks.getTaskGraphName() + "." + stage.name), tokens);
            }
        }

        /** What the stages read and none of them has written before. */
        List<Object> inputs() {
            Set<Object> inputs = new LinkedHashSet<>();
            Set<Object> written = new LinkedHashSet<>();
            for (Stage stage : stages) {
                for (Object array : stage.reads) {
                    if (!written.contains(array)) {
                        inputs.add(array);
                    }
                }
                written.addAll(stage.writes);
            }
            return new ArrayList<>(inputs);
        }

        /** What the stages write. */
        List<Object> outputs() {
            Set<Object> outputs = new LinkedHashSet<>();
            stages.forEach(stage -> outputs.addAll(stage.writes));
            return new ArrayList<>(outputs);
        }
    }
}
