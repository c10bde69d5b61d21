package org.tornadomoe.tornado;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Supplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.DeviceThread;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.OpenPlan;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.device.SignalHandlers;
import org.tornadomoe.tornado.graph.ExpertGemm;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.Stage;
import uk.ac.manchester.tornado.api.DataRange;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.enums.ProfilerMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.exceptions.TornadoInternalError;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A layer's task graph on a device and its execution plan: builds, executes and closes them. The weights go to the
 * device in the first execution. Not thread-safe: one thread at a time.
 *
 * <p>Failures of TornadoVM become a {@link MoeExecutionException} that names the device.
 */
final class LayerPlan {
    private static final Pattern TASK_TIME =
            Pattern.compile("\"moe\\.(\\w+)\": \\{[^}]*?\"TASK_KERNEL_TIME\" *: *\"(\\d+)\"");

    /** One plan is compiled at a time. */
    private static final ReentrantLock COMPILING = new ReentrantLock(true);

    private final Device device;
    private final @Nullable DeviceThread thread;
    private final Stage.Graph graph;
    private final OpenPlan open;

    /** The result of the last execution through TornadoVM. */
    private @Nullable TornadoExecutionResult result;

    /**
     * Makes a plan of a graph whose transfers and tasks are declared.
     *
     * @param thread the thread that makes, executes and closes the plan: TornadoVM gives every thread that does so its
     *     own queue, and closing the plan frees only the closing thread's queue. Null for the caller's, which must
     *     always be the same thread
     */
    LayerPlan(Device device, @Nullable DeviceThread thread, Stage.Graph graph, OpenPlan open) {
        this.device = device;
        this.thread = thread;
        this.graph = graph;
        this.open = open;
    }

    /** Builds the graph of a family's stages over the arrays, and compiles its kernels. */
    static LayerPlan build(Device device, @Nullable DeviceThread thread, ExpertGemm gemm, LayerArrays arrays) {
        return on(thread, () -> {
            COMPILING.lock();
            try (SignalHandlers.Step _ = SignalHandlers.step()) {
                Stage.Graph graph =
                        Stage.Graph.of("moe", device, gemm.program(arrays).call());
                Map<Integer, Object> byHash = new HashMap<>();
                Quirks.requireOtherHashes(byHash, graph.inputs());
                Quirks.requireOtherHashes(byHash, graph.outputs());
                List<Object> everyCall = everyCall(arrays);
                List<Object> weights = new ArrayList<>(graph.inputs());
                everyCall.retainAll(weights);
                weights.removeAll(everyCall);
                graph.tasks()
                        .transferToDevice(DataTransferMode.FIRST_EXECUTION, weights.toArray())
                        .transferToDevice(DataTransferMode.EVERY_EXECUTION, everyCall.toArray());
                graph.addTasks();
                graph.keepOnDevice(graph.outputs());
                TornadoExecutionPlan plan =
                        new TornadoExecutionPlan(graph.tasks().snapshot());
                try {
                    graph.launchOn(plan);
                    // Here instead of in the first call, so that a kernel that can't be compiled fails the loading.
                    plan.withPreCompilation();
                } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
                    Cleanup.after(failure, () -> close(plan, device));
                    throw failure;
                }
                return new LayerPlan(device, thread, graph, new OpenPlan(plan));
            } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
                throw failed("building the layer's task graph", device, failure);
            } finally {
                COMPILING.unlock();
            }
        });
    }

    /** The arrays that go to the device in every call. */
    private static List<Object> everyCall(LayerArrays arrays) {
        List<Object> everyCall = new ArrayList<>(List.of(arrays.work.header, arrays.work.incoming()));
        if (!arrays.shape.routes) {
            everyCall.addAll(List.of(arrays.work.topkIds, arrays.work.topkWeights));
        }
        if (arrays.shape.adapted) {
            everyCall.add(arrays.adapters.slots);
        }
        if (arrays.shape.balanced) {
            everyCall.add(arrays.work.replicas);
        }
        return everyCall;
    }

    /** Runs a request to TornadoVM on its thread. */
    private static <T> T on(@Nullable DeviceThread thread, Supplier<T> what) {
        return thread == null ? what.get() : thread.call(what::get);
    }

    /** The graph, with its tasks as the last execution launched them. */
    Stage.Graph graph() {
        return graph;
    }

    /** The bytes that TornadoVM has allocated for it so far. */
    long bytesInUse() {
        return open.plan().getCurrentDeviceMemoryUsage();
    }

    /** Executes the graph for the header's tokens: through TornadoVM the first time, later without it if CUDA can. */
    void execute(int tokens) {
        try {
            Runnable replay = graph.replay();
            if (replay != null) {
                replay.run();
            } else {
                result = on(thread, () -> open.execute(tokens));
            }
        } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
            throw failed("running the layer", device, failure);
        }
    }

    /** Executes the graph, and returns the nanoseconds of each kernel by stage, in the stages' order. */
    Map<String, Long> executeTimed(int tokens) {
        Map<String, Long> times = new HashMap<>();
        try {
            if (graph.isCudaAlone()) {
                graph.timeCuda(times);
                execute(tokens);
            } else {
                open.plan().withProfiler(ProfilerMode.SILENT);
                graph.timeCuda(times);
                execute(tokens);
                String log = Objects.requireNonNull(result, "no call yet")
                        .getProfilerResult()
                        .getProfileLog();
                // The log grows by one object per run and can't be cleared. The last time of each task counts, and
                // CUDA's own time is preferred to TornadoVM's.
                Map<String, Long> last = new HashMap<>();
                Matcher task = TASK_TIME.matcher(log);
                while (task.find()) {
                    last.put(task.group(1), Long.parseLong(task.group(2)));
                }
                last.forEach(times::putIfAbsent);
            }
        } finally {
            graph.timeCuda(null);
            open.plan().withoutProfiler();
        }
        Map<String, Long> inOrder = new LinkedHashMap<>();
        for (Stage stage : graph.stages()) {
            Long nanos = times.get(stage.name());
            if (nanos != null) {
                inOrder.put(stage.name(), nanos);
            }
        }
        return inOrder;
    }

    /** Fetches an array's first elements, if the last execution has not copied it to the host. */
    void fetch(TornadoNativeArray array, long elements) {
        if (graph.copiesToHost(array)) {
            return;
        }
        try {
            TornadoExecutionResult last = Objects.requireNonNull(result, "no call yet");
            on(thread, () -> last.transferToHost(new DataRange(array).withSize(elements)));
        } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
            throw failed("reading the result", device, failure);
        }
    }

    /** Closes the plan and frees its device memory; the thread stays. */
    void close() {
        on(thread, () -> {
            close(open.plan(), device);
            return true;
        });
    }

    private static void close(TornadoExecutionPlan plan, Device device) {
        try {
            device.close(plan);
        } catch (TornadoExecutionPlanException | RuntimeException | TornadoInternalError failure) {
            throw failed("freeing the layer's device memory", device, failure);
        }
    }

    /** TornadoVM's own message names the task; its cause says what happened. */
    static MoeExecutionException failed(String doing, Device device, Throwable failure) {
        Throwable root = failure;
        while (root.getCause() != null) {
            root = root.getCause();
        }
        String cause = failure.getCause() == null ? "" : " (" + root + ")";
        return new MoeExecutionException(doing + " on " + device + ": " + failure.getMessage() + cause, failure);
    }
}
