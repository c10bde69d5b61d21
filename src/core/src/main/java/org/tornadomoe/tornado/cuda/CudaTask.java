package org.tornadomoe.tornado.cuda;

import java.util.ArrayList;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.tornado.device.CudaDriver;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.common.Access;
import uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Steps that CUDA runs one after the other and that are one library task to TornadoVM, because TornadoVM's host work
 * per task takes longer than some kernels. The task's parameters are the steps' arrays.
 */
public final class CudaTask {
    /** The name by which TornadoVM finds {@link CudaLibrary}. */
    static final String LIBRARY = "tornado-moe";

    private final List<CudaStep> steps;
    private final List<Object> arrays;

    /** Receives the steps' times in nanoseconds, by name; null to measure nothing. */
    private @Nullable Map<String, Long> times;

    /** Replays the task without TornadoVM; null if it hasn't run in an open plan. */
    private @Nullable Replay replay;

    /**
     * Replays a task without TornadoVM: the arrays' addresses are known, so it enqueues the steps on the plan's stream,
     * all of them or one at a time.
     */
    public interface Replay extends Runnable {
        /** Enqueues all steps and waits for the results. */
        @Override
        void run();

        /**
         * Makes the device's context current on the calling thread, and sets the steps up for M and the launch's
         * number.
         */
        void begin();

        /** The steps that can be enqueued, in order. */
        List<CudaStep> steps();

        /**
         * Enqueues one step; call it between {@link #begin} and {@link #await}.
         *
         * @param step the step's number
         * @param firstToken where its tokens begin in the arrays that are copied by tokens
         */
        void enqueue(int step, int firstToken);

        /**
         * Enqueues a kernel, with some of its arrays elsewhere.
         *
         * @param elsewhere their addresses on the device, by the arrays themselves
         */
        void enqueue(int step, IdentityHashMap<Object, Long> elsewhere);

        /** Waits for all work on the stream. */
        void await();

        CudaDriver driver();

        /** The driver's handle of the device's context, and below that of the stream. */
        long context();

        long stream();

        /** The device address of a copied array. */
        long address(TornadoNativeArray array);
    }

    private CudaTask(List<CudaStep> steps, List<Object> arrays) {
        this.steps = steps;
        this.arrays = arrays;
    }

    /**
     * Adds steps as one task, named after the first step with a prefix, and removes them from the list; adds none if
     * the list is empty.
     *
     * @param isKnown whether TornadoVM need not know that an array is written, because the array is on the device
     *     already and nothing else reads it. Each array that a task writes uses one of a graph's 1024 nodes
     */
    public static List<CudaTask> addTo(
            TaskGraph graph, String prefix, List<CudaStep> steps, Predicate<Object> isKnown) {
        if (steps.isEmpty()) {
            return List.of();
        }
        Map<Object, Access> access = new LinkedHashMap<>();
        for (CudaStep step : steps) {
            for (Object array : step.reads()) {
                access.putIfAbsent(array, Access.READ_ONLY);
            }
            for (Object array : step.updates()) {
                access.put(array, access.get(array) == Access.WRITE_ONLY ? Access.WRITE_ONLY : Access.READ_WRITE);
            }
            for (Object array : step.writes()) {
                access.put(
                        array,
                        access.getOrDefault(array, Access.WRITE_ONLY) == Access.WRITE_ONLY
                                ? Access.WRITE_ONLY
                                : Access.READ_WRITE);
            }
        }
        access.replaceAll((array, known) -> isKnown.test(array) ? Access.READ_ONLY : known);
        CudaTask task = new CudaTask(List.copyOf(steps), new ArrayList<>(access.keySet()));
        String name = prefix + steps.getFirst().name();
        graph.libraryTask(
                name,
                descriptor -> descriptor,
                new LibraryTaskDescriptor()
                        .withLibrary(LIBRARY)
                        .withFunction(name)
                        .withParameters(task.arrays.toArray())
                        .withAccess(access.values().toArray(Access[]::new))
                        .withTuning(task));
        steps.clear();
        return List.of(task);
    }

    public List<CudaStep> steps() {
        return steps;
    }

    /** The step that copies an array; null if there is none. */
    CudaStep.@Nullable Copy copyOf(Object array) {
        return steps.stream()
                .filter(step -> step instanceof CudaStep.Copy copy && copy.array() == array)
                .map(CudaStep.Copy.class::cast)
                .findFirst()
                .orElse(null);
    }

    /** The array's index among the task's parameters. */
    public int indexOf(Object array) {
        for (int i = 0; i < arrays.size(); i++) {
            if (arrays.get(i) == array) {
                return i;
            }
        }
        throw new IllegalArgumentException("array: expected one of the steps'");
    }

    /** M, from the host's copy of the steps' header, which is the source of the device's. */
    int tokens() {
        return steps.getFirst().header().get(0);
    }

    /** The launch's number, from the same header. */
    int launch() {
        return steps.getFirst().header().get(2);
    }

    /**
     * Times the next runs by the device's clock, with an empty cache before each step.
     *
     * @param into receives the times by step name; null to stop
     */
    public void time(@Nullable Map<String, Long> into) {
        times = into;
    }

    @Nullable
    Map<String, Long> times() {
        return times;
    }

    /**
     * Sets the replay. The arrays' buffers don't move while their plan is open, so after its first run in a plan the
     * task doesn't need TornadoVM any more.
     */
    public void replayBy(@Nullable Replay how) {
        replay = how;
    }

    @Nullable
    public Replay replay() {
        return replay;
    }
}
