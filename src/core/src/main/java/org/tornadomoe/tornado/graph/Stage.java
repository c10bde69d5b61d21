package org.tornadomoe.tornado.graph;

import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.BiConsumer;
import java.util.function.IntUnaryOperator;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.cuda.CudaLibrary;
import org.tornadomoe.tornado.cuda.CudaStep;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.Quirks;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid;
import uk.ac.manchester.tornado.api.WorkerGrid2D;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;

/**
 * One kernel of a layer, bound to its arrays.
 *
 * @param name the task's name in its graph
 * @param group work-items of a group for M tokens
 * @param groupsX groups along x for M tokens
 * @param groupsY groups along y for M tokens
 * @param task adds the task to a graph
 * @param reads arrays that must be filled before
 * @param writes arrays that are filled after
 * @param cuda the kernel itself where it is CUDA's: it has no grid that TornadoVM knows of, and none of {@code task}
 */
public record Stage(
        String name,
        IntUnaryOperator group,
        IntUnaryOperator groupsX,
        IntUnaryOperator groupsY,
        Task task,
        List<Object> reads,
        List<Object> writes,
        @Nullable CudaStep cuda) {
    /** Adds a task under a name to a graph for a device. */
    interface Task {
        void addTo(TaskGraph graph, Device device, String name);
    }

    public Stage(
            String name,
            IntUnaryOperator group,
            IntUnaryOperator groupsX,
            IntUnaryOperator groupsY,
            Task task,
            List<Object> reads,
            List<Object> writes) {
        this(name, group, groupsX, groupsY, task, reads, writes, null);
    }

    /** A stage with the same work-group for every M and the same task for every device. */
    public Stage(
            String name,
            int group,
            IntUnaryOperator groupsX,
            IntUnaryOperator groupsY,
            BiConsumer<TaskGraph, String> task,
            List<Object> reads,
            List<Object> writes) {
        this(name, m -> group, groupsX, groupsY, (graph, device, as) -> task.accept(graph, as), reads, writes);
    }

    public static Stage cuda(CudaStep step) {
        List<Object> reads =
                Stream.of(step.reads(), step.updates()).flatMap(List::stream).toList();
        List<Object> writes =
                Stream.of(step.writes(), step.updates()).flatMap(List::stream).toList();
        return new Stage(step.name(), m -> 0, m -> 0, m -> 0, (graph, device, as) -> {}, reads, writes, step);
    }

    private boolean hasGrid() {
        return cuda == null;
    }

    /** CUDA's limit; a launch beyond it would fail without TornadoVM saying so. */
    private static final int MAX_GROUPS_Y = 65_535;

    /** The grid for M tokens: the same kernel serves every M, only its grid changes. */
    public void resize(WorkerGrid grid, int tokens) {
        int y = groupsY.applyAsInt(tokens);
        if (y > MAX_GROUPS_Y) {
            throw new IllegalArgumentException("tokens: expected fewer, " + tokens + " make a grid of " + y
                    + " groups along y for " + name + ", and devices take " + MAX_GROUPS_Y);
        }
        int items = group.applyAsInt(tokens);
        grid.setGlobalWork((long) groupsX.applyAsInt(tokens) * items, y, 1);
        grid.setLocalWork(items, 1, 1);
    }

    /**
     * Several stages in one task graph, with the grids its tasks are launched with.
     *
     * @param prefix of the tasks' names
     */
    public record Graph(
            Device device,
            TaskGraph tasks,
            GridScheduler grids,
            String prefix,
            List<Stage> stages,
            List<CudaTask> cudaTasks) {
        /**
         * A graph of their own, without tasks yet.
         *
         * @throws MoeExecutionException if the device doesn't take a stage's work-groups: TornadoVM would let the
         *     driver choose others and launch the kernel all the same
         */
        public static Graph of(String name, Device device, List<Stage> stages) {
            return in(new TaskGraph(name), new GridScheduler(), "", device, stages);
        }

        /** In a graph that may have other tasks, too; otherwise as {@link #of}. */
        public static Graph in(TaskGraph tasks, GridScheduler grids, String prefix, Device device, List<Stage> stages) {
            Graph graph = new Graph(device, tasks, grids, prefix, stages, new ArrayList<>());
            for (Stage stage : stages) {
                int group = stage.group.applyAsInt(1);
                if (device.maxGroup() > 0 && group > device.maxGroup()) {
                    throw new MoeExecutionException("task " + graph.key(stage) + " needs work-groups of " + group
                            + ", and " + device + " takes " + device.maxGroup());
                }
                if (stage.hasGrid()) {
                    grids.addWorkerGrid(graph.key(stage), new WorkerGrid2D(group, 1));
                }
            }
            return graph;
        }

        /**
         * Adds the tasks; what goes to the device has to be declared before, what comes back after. What CUDA launches
         * without another kernel in between is one task.
         */
        public void addTasks() {
            addTasks(array -> false);
        }

        /**
         * Adds the tasks to a graph that has others, where some arrays are on the device already.
         *
         * @param isKnown arrays that tasks before have written, and that these write only for each other; see {@link
         *     CudaTask#addTo}
         */
        public void addTasks(Predicate<Object> isKnown) {
            awaitZeros(isKnown);
            List<CudaStep> steps = new ArrayList<>();
            for (Stage stage : stages) {
                if (stage.cuda != null) {
                    steps.add(stage.cuda);
                } else {
                    cudaTasks.addAll(CudaTask.addTo(tasks, prefix, steps, isKnown));
                    stage.task.addTo(tasks, device, prefix + stage.name);
                }
            }
            cudaTasks.addAll(CudaTask.addTo(tasks, prefix, steps, isKnown));
        }

        /**
         * Before kernels of TornadoVM's own, on CUDA: see {@link CudaLibrary}. TornadoVM allocates an array before the
         * first task that it is an argument of, so this task has all that are written and not sent there before.
         */
        private void awaitZeros(Predicate<Object> isKnown) {
            if (Quirks.HERE.zeroesOnAnotherStream(device.backend()) && !isCudaAlone()) {
                List<Object> written = outputs();
                written.removeAll(inputs());
                written.removeIf(isKnown);
                CudaTask.addTo(tasks, prefix, new ArrayList<>(List.of(new CudaStep.Wait(written))), array -> false);
            }
        }

        /**
         * Lets what these stages write stay on the device between them, to be fetched on demand. All of it has to be
         * named, what they bring back themselves, too: TornadoVM (5.2.0) frees with a plan only the arrays that are in
         * one of its transfers.
         */
        public void keepOnDevice(List<Object> written) {
            tasks.transferToHost(DataTransferMode.UNDER_DEMAND, written.toArray());
        }

        private String key(Stage stage) {
            return tasks.getTaskGraphName() + "." + prefix + stage.name;
        }

        /** Tells the plan made of this graph its device and its grids; TornadoVM refuses a scheduler without any. */
        public void launchOn(TornadoExecutionPlan plan) {
            device.selectFor(plan);
            if (stages.stream().anyMatch(Stage::hasGrid)) {
                plan.withGridScheduler(grids);
            }
        }

        public void resize(int tokens) {
            for (Stage stage : stages.stream().filter(Stage::hasGrid).toList()) {
                stage.resize(grids.get(key(stage)), tokens);
            }
        }

        /** Whether a stage copies the array back. */
        public boolean copiesToHost(Object array) {
            return stages.stream()
                    .anyMatch(stage ->
                            stage.cuda instanceof CudaStep.Copy copy && !copy.toDevice() && copy.array() == array);
        }

        /** Runs all of it once more without TornadoVM; null where that isn't possible, or not yet. */
        public CudaTask.@Nullable Replay replay() {
            return isCudaAlone() && cudaTasks.size() == 1 ? cudaTasks.getFirst().replay() : null;
        }

        /** Whether TornadoVM has no kernel of its own here. */
        public boolean isCudaAlone() {
            return stages.stream().noneMatch(Stage::hasGrid);
        }

        /** See {@link CudaTask#time}. */
        public void timeCuda(@Nullable Map<String, Long> into) {
            cudaTasks.forEach(task -> task.time(into));
        }

        /** What the stages read and none of them has written before. */
        public List<Object> inputs() {
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
        public List<Object> outputs() {
            Set<Object> outputs = new LinkedHashSet<>();
            stages.forEach(stage -> outputs.addAll(stage.writes));
            return new ArrayList<>(outputs);
        }
    }
}
