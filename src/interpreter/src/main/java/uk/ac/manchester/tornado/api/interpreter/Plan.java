package uk.ac.manchester.tornado.api.interpreter;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Set;
import java.util.function.Function;
import java.util.stream.Collectors;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.WorkerGrid;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoFailureException;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;

/** Runs graphs, and keeps their device memory between runs. Thread-safe; one thread runs at a time. */
public final class Plan {
    /** The measurements of one execution; times in nanoseconds. */
    public record Profile(long total, long write, long read, long kernels, long bytesIn, long bytesOut, long memory) {}

    private final class State {
        final Graph graph;
        final DeviceMemory.Copies copies = memory.new Copies();
        final IdentityHashMap<Task, Kernel> kernels = new IdentityHashMap<>();
        boolean executed;
        boolean prepared;

        State(Graph graph) {
            this.graph = graph;
        }

        Kernel kernel(Task task) {
            return kernels.computeIfAbsent(task, t -> Kernel.of(t, races));
        }
    }

    private final boolean races = Boolean.getBoolean("tornadomoe.interpreter.races");
    private final DeviceMemory memory = new DeviceMemory();
    private final List<State> states = new ArrayList<>();
    private final Function<WorkItem, KernelContext> contexts;
    private List<State> selected;
    private State last;
    private GridScheduler grids;
    private boolean closed;
    private long leaked;

    public Plan(List<Graph> graphs, Function<WorkItem, KernelContext> contexts) {
        this.contexts = contexts;
        if (graphs.isEmpty()) {
            throw new TornadoRuntimeException("a plan needs a task graph");
        }
        for (Graph graph : graphs) {
            states.add(new State(graph));
        }
        selected = states;
    }

    private void checkOpen() {
        if (closed) {
            throw new TornadoRuntimeException("the plan is closed");
        }
    }

    public synchronized void select(int graph) {
        checkOpen();
        if (graph < 0 || graph >= states.size()) {
            throw new TornadoRuntimeException("graph: expected 0 to " + (states.size() - 1) + ", got " + graph);
        }
        selected = List.of(states.get(graph));
    }

    public synchronized void selectAll() {
        checkOpen();
        selected = states;
    }

    /** Sets the grids; null unsets them. */
    public synchronized void grids(GridScheduler scheduler) {
        checkOpen();
        if (scheduler != null) {
            checkKeys(scheduler);
        }
        grids = scheduler;
    }

    private void checkKeys(GridScheduler scheduler) {
        Set<String> tasks = states.stream()
                .flatMap(state -> state.graph.tasks.stream().map(task -> key(state, task)))
                .collect(Collectors.toSet());
        for (String key : scheduler.keySet()) {
            if (!tasks.contains(key)) {
                throw new TornadoRuntimeException("grid scheduler: no task is named " + key + "; there are "
                        + tasks.stream().sorted().toList());
            }
        }
    }

    private static String key(State state, Task task) {
        return state.graph.name() + "." + task.id();
    }

    public synchronized void limit(long bytes) {
        checkOpen();
        memory.limit(bytes);
    }

    /** Reads the kernels of the selected graphs, so that the first execution needn't. */
    public synchronized void prepare() {
        checkOpen();
        Interpreter.RUNTIME.takeResetBack();
        for (State state : selected) {
            state.prepared = true;
            state.graph.tasks.stream().filter(task -> task.context() >= 0).forEach(state::kernel);
        }
    }

    public synchronized Profile execute() {
        checkOpen();
        if (Interpreter.RUNTIME.wasReset() && selected.stream().anyMatch(state -> state.prepared)) {
            throw new TornadoFailureException("[ERROR] reset() was called after warmup() on device: "
                    + Interpreter.RUNTIME.getName() + ": memory of another plan there was freed");
        }
        if (grids != null) {
            checkKeys(grids);
        }
        List<Grid[]> launches = selected.stream().map(this::launches).toList();
        long start = System.nanoTime();
        Profile sum = new Profile(0, 0, 0, 0, 0, 0, 0);
        for (int i = 0; i < selected.size(); i++) {
            Profile one = execute(selected.get(i), launches.get(i));
            sum = new Profile(
                    System.nanoTime() - start,
                    sum.write + one.write,
                    sum.read + one.read,
                    sum.kernels + one.kernels,
                    sum.bytesIn + one.bytesIn,
                    sum.bytesOut + one.bytesOut,
                    memory.bytes());
        }
        return sum;
    }

    private Grid[] launches(State state) {
        return state.graph.tasks.stream()
                .map(task -> grid(key(state, task), task))
                .toArray(Grid[]::new);
    }

    private Profile execute(State state, Grid[] launches) {
        Graph graph = state.graph;
        long start = System.nanoTime();
        for (Graph.Consumed consumed : graph.consumed) {
            consume(state, consumed);
        }
        long bytesIn = 0;
        for (Graph.Transfer transfer : graph.toDevice) {
            if (transfer.mode() == DataTransferMode.EVERY_EXECUTION || !state.executed) {
                bytesIn += DeviceMemory.copy(transfer.array(), state.copies.of(transfer.array()));
            }
        }
        long written = System.nanoTime();
        for (int i = 0; i < launches.length; i++) {
            run(state, graph.tasks.get(i), launches[i]);
        }
        long computed = System.nanoTime();
        long bytesOut = 0;
        for (Graph.Transfer transfer : graph.toHost) {
            Object copy = state.copies.of(transfer.array());
            if (transfer.mode() == DataTransferMode.EVERY_EXECUTION) {
                bytesOut += DeviceMemory.copy(copy, transfer.array());
            }
        }
        state.executed = true;
        last = state;
        return new Profile(0, written - start, System.nanoTime() - computed, computed - written, bytesIn, bytesOut, 0);
    }

    private Grid grid(String key, Task task) {
        if (task.context() < 0) {
            return null;
        }
        WorkerGrid grid = grids == null ? null : grids.get(key);
        if (grid == null) {
            throw new TornadoRuntimeException(
                    "task " + key + " takes a kernel context, and there is no grid for it: add one to"
                            + " the plan's grid scheduler under this name");
        }
        return Grid.of(grid, key);
    }

    private void consume(State state, Graph.Consumed consumed) {
        State from = last;
        if (consumed.graph() != null) {
            from = states.stream()
                    .filter(s -> s.graph.name().equals(consumed.graph()))
                    .findFirst()
                    .orElse(null);
        }
        String what = "graph " + state.graph.name() + " consumes a "
                + consumed.array().getClass().getSimpleName() + " from "
                + (consumed.graph() == null ? "the graph executed before" : "graph " + consumed.graph());
        if (from == null || (from != state && !from.executed)) {
            if (consumed.graph() != null && state.copies.ifPresent(consumed.array()) != null) {
                return; // taken over from another graph that it names
            }
            throw new TornadoRuntimeException(what + ", which has not been executed");
        }
        Object copy = from.copies.ifPresent(consumed.array());
        if (copy == null) {
            throw new TornadoRuntimeException(what + ", which has not got it on the device");
        }
        state.copies.share(consumed.array(), copy);
    }

    private void run(State state, Task task, Grid grid) {
        Object[] arguments = task.arguments().clone();
        for (int i = 0; i < arguments.length; i++) {
            if (DeviceMemory.isArray(arguments[i])) {
                arguments[i] = state.copies.of(arguments[i]);
            }
        }
        String key = key(state, task);
        if (grid != null) {
            Launch launch = new Launch(key, state.kernel(task), grid, contexts, arguments, task.context(), races);
            launch.run();
            TaskAccesses.tell(key, task.arguments(), arguments, launch.races);
            return;
        }
        try {
            task.body().accept(arguments);
        } catch (RuntimeException | Error e) {
            throw new KernelException("task " + key + ": " + e, e);
        }
    }

    /** Copies arrays that some graph has on the device back to the host. */
    public synchronized void transferToHost(Object... arrays) {
        checkOpen();
        for (Object array : arrays) {
            DeviceMemory.copy(onDevice(array), array);
        }
    }

    /** Copies bytes [offset, offset + size) of an array's values back to the host. */
    public synchronized void transferToHost(Object array, long offset, long size) {
        checkOpen();
        DeviceMemory.values(array)
                .asSlice(offset, size)
                .copyFrom(DeviceMemory.values(onDevice(array)).asSlice(offset, size));
    }

    private Object onDevice(Object array) {
        Object copy = last == null ? null : last.copies.ifPresent(array);
        for (int i = 0; copy == null && i < states.size(); i++) {
            copy = states.get(i).copies.ifPresent(array);
        }
        if (copy == null) {
            throw new TornadoRuntimeException("transferToHost: the plan has no "
                    + (array == null ? "null" : array.getClass().getSimpleName()) + " of this kind on the device");
        }
        return copy;
    }

    /** Frees the device's copies; the next execution transfers first inputs again. */
    public synchronized void free() {
        checkOpen();
        for (State state : states) {
            state.copies.clear();
            state.executed = false;
        }
        last = null;
        memory.free();
        Interpreter.RUNTIME.markReset();
    }

    /** Bytes of its copies; for a closed plan, of those that TornadoVM wouldn't have freed. */
    public synchronized long memory() {
        return memory.bytes() + leaked;
    }

    public synchronized void close() {
        if (!closed) {
            closed = true;
            for (State state : states) {
                leaked += state.copies.unnamedBytes(state.graph);
                state.copies.clear();
            }
            memory.close();
            Interpreter.RUNTIME.markReset();
        }
    }

    @Override
    public String toString() {
        return Arrays.toString(states.stream().map(state -> state.graph.name()).toArray());
    }
}
