package org.tornadomoe.tornado.cuda;

import java.util.ArrayList;
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
 * Steps that CUDA takes one after the other, and TornadoVM as one library task: what TornadoVM does for a task on the
 * host takes longer than many a kernel. The task's parameters are the steps' arrays.
 */
public final class CudaTask {
    /** The name by which TornadoVM finds {@link CudaLibrary}. */
    static final String LIBRARY = "tornado-moe";

    private final List<CudaStep> steps;
    private final List<Object> arrays;

    /** Where the steps' times go, in nanoseconds by name; null where nobody wants to know. */
    private @Nullable Map<String, Long> times;

    /** Runs it once more without TornadoVM; null where it hasn't run in a plan that is open. */
    private @Nullable Replay replay;

    /**
     * Once more what a task did, without TornadoVM: its arrays are known, and its steps are enqueued on its plan's
     * stream, all of them or one at a time.
     */
    public interface Replay extends Runnable {
        /** All steps, and waits for what comes back. */
        @Override
        void run();

        /** Makes the device the calling thread's, and the steps what M and the launch's number want. */
        void begin();

        /** What can be enqueued, in order. */
        List<CudaStep> steps();

        /**
         * Enqueues one of the steps; between {@link #begin} and {@link #await}.
         *
         * @param step its number
         * @param firstToken where its tokens begin in the arrays that are copied by tokens
         */
        void enqueue(int step, int firstToken);

        /** Waits for all that is on the stream. */
        void await();

        CudaDriver driver();

        /** The driver's handles of the device's context and of the stream. */
        long context();

        long stream();

        /** Where an array that is copied begins on the device. */
        long address(TornadoNativeArray array);
    }

    private CudaTask(List<CudaStep> steps, List<Object> arrays) {
        this.steps = steps;
        this.arrays = arrays;
    }

    /**
     * Adds some steps as a task, named after the first with a prefix; none if there are no steps, which are taken out
     * of the list.
     *
     * @param isKnown whether TornadoVM need not be told that an array is written, since it is on the device already and
     *     nobody else reads it: each array that a task writes is one of the 1024 nodes of a
     *     graph
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

    /** The one that copies an array; null if none does. */
    CudaStep.@Nullable Copy copyOf(Object array) {
        return steps.stream()
                .filter(step -> step instanceof CudaStep.Copy copy && copy.array() == array)
                .map(CudaStep.Copy.class::cast)
                .findFirst()
                .orElse(null);
    }

    /** Of the task's parameters. */
    public int indexOf(Object array) {
        for (int i = 0; i < arrays.size(); i++) {
            if (arrays.get(i) == array) {
                return i;
            }
        }
        throw new IllegalArgumentException("array: expected one of the steps'");
    }

    /** M, as the steps' header has it here, from which the device's is copied. */
    int tokens() {
        return steps.getFirst().header().get(0);
    }

    /** What its header says of the launch beside that. */
    int launch() {
        return steps.getFirst().header().get(2);
    }

    /**
     * Has the next runs timed, by the device's clock, with an empty cache before each step.
     *
     * @param into by the steps' names; null for no more
     */
    public void time(@Nullable Map<String, Long> into) {
        times = into;
    }

    @Nullable
    Map<String, Long> times() {
        return times;
    }

    /**
     * Its arrays' buffers stay where they are as long as their plan is open, so after its first run in a plan it needs
     * nothing more of TornadoVM.
     */
    public void replayBy(@Nullable Replay how) {
        replay = how;
    }

    @Nullable
    public Replay replay() {
        return replay;
    }
}
