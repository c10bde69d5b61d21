package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
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
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.host.DeviceThread;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.Replicated;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.OpenPlan;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.device.SignalHandlers;
import org.tornadomoe.tornado.graph.ExpertGemm;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tuning.LaunchConfigs;
import uk.ac.manchester.tornado.api.DataRange;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.enums.ProfilerMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.exceptions.TornadoInternalError;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * One layer on one device: one task graph, one execution plan. The weights go to the device once. In a call the token
 * count and the hidden states go there and the output comes back; intermediate values stay on the device.
 *
 * <p>An execution plan serves one thread, and plans can't share device buffers, so callers take turns in the order in
 * which they came.
 */
final class TornadoMoeKernel implements MoeKernel, Adapters, Replicated, Profiled {
    private static final Pattern TASK_TIME =
            Pattern.compile("\"moe\\.(\\w+)\": \\{[^}]*?\"TASK_KERNEL_TIME\" *: *\"(\\d+)\"");

    /** One plan is compiled at a time. */
    private static final ReentrantLock COMPILING = new ReentrantLock(true);

    private final ReentrantLock turn = new ReentrantLock(true);
    private final Device device;
    private final ExpertGemm gemm;
    private final LayerArrays arrays;

    /**
     * The thread that makes, executes and closes the plan: TornadoVM gives every thread that does so its own queue, and
     * closing the plan frees only the closing thread's queue. Null if the caller is such a thread already.
     */
    private final @Nullable DeviceThread thread;

    private Running running;

    /** The overlapped call for many tokens; null before the first. */
    private @Nullable CudaCall call;

    /** The result of the last call through TornadoVM. */
    private @Nullable TornadoExecutionResult result;

    /** Whether the weights are on the device, and whether adapters have changed since. */
    private boolean sent;

    private boolean stale;

    /** Whether calls are profiled, their number, and the times of the last one. */
    private boolean timed;

    private long calls;
    private Map<String, Long> stageTimes = Map.of();

    /** The graph and its plan. */
    record Running(Stage.Graph graph, OpenPlan open) {
        TornadoExecutionPlan plan() {
            return open.plan();
        }
    }

    /**
     * @param thread the thread to use, which the kernel closes; null for the caller's, which must always be the same
     *     thread
     */
    TornadoMoeKernel(
            Device device, ExpertGemm gemm, LayerArrays arrays, @Nullable DeviceThread thread, Running running) {
        this.device = device;
        this.gemm = gemm;
        this.arrays = arrays;
        this.thread = thread;
        this.running = running;
    }

    static TornadoMoeKernel load(
            Device device, FusedMoeConfig config, Int8Experts experts, ExpertGemm gemm, LaunchConfigs launches) {
        // Kernels in Java apply the adapters.
        LayerArrays arrays = new LayerArrays(
                config,
                experts,
                device.memory(),
                HostMemory.of(device.backend()),
                gemm,
                !config.isLoraEnabled(),
                launches,
                Map.of());
        DeviceThread thread = DeviceThread.isCurrent() ? null : new DeviceThread("moe " + device.id(), 1);
        try {
            return new TornadoMoeKernel(device, gemm, arrays, thread, on(thread, () -> build(device, gemm, arrays)));
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, () -> end(thread));
            Cleanup.after(failure, arrays::close);
            throw failure;
        }
    }

    /** Runs a request to TornadoVM on its thread. */
    private static <T> T on(@Nullable DeviceThread thread, Supplier<T> what) {
        return thread == null ? what.get() : thread.call(what::get);
    }

    private static void end(@Nullable DeviceThread thread) {
        if (thread != null) {
            thread.close();
        }
    }

    private static Running build(Device device, ExpertGemm gemm, LayerArrays arrays) {
        COMPILING.lock();
        try (SignalHandlers.Step _ = SignalHandlers.step()) {
            Stage.Graph graph =
                    Stage.Graph.of("moe", device, gemm.program(arrays).call());
            Map<Integer, Object> byHash = new HashMap<>();
            Quirks.requireOtherHashes(byHash, graph.inputs());
            Quirks.requireOtherHashes(byHash, graph.outputs());
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
            List<Object> weights = new ArrayList<>(graph.inputs());
            everyCall.retainAll(weights);
            weights.removeAll(everyCall);
            graph.tasks()
                    .transferToDevice(DataTransferMode.FIRST_EXECUTION, weights.toArray())
                    .transferToDevice(DataTransferMode.EVERY_EXECUTION, everyCall.toArray());
            graph.addTasks();
            graph.keepOnDevice(graph.outputs());
            Running running = new Running(
                    graph, new OpenPlan(new TornadoExecutionPlan(graph.tasks().snapshot())));
            try {
                graph.launchOn(running.plan());
                // Here instead of in the first call, so that a kernel that can't be compiled fails the loading.
                running.plan().withPreCompilation();
            } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
                Cleanup.after(failure, () -> close(running, device));
                throw failure;
            }
            return running;
        } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
            throw failed("building the layer's task graph", device, failure);
        } finally {
            COMPILING.unlock();
        }
    }

    private static void close(Running running, Device device) {
        try {
            device.close(running.plan());
        } catch (TornadoExecutionPlanException | RuntimeException | TornadoInternalError failure) {
            throw failed("freeing the layer's device memory", device, failure);
        }
    }

    @Override
    public void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        turn.lock();
        try {
            arrays.setAdapter(slot, adapter);
            stale = sent;
        } finally {
            turn.unlock();
        }
    }

    @Override
    public void setReplicas(Replicas replicas) {
        turn.lock();
        try {
            arrays.setReplicas(replicas);
        } finally {
            turn.unlock();
        }
    }

    @Override
    public int[] expertLoads() {
        return arrays.work.loads.toHeapArray();
    }

    /** A plan sends such arrays to the device only once, so changed adapters need another plan. */
    private void refresh() {
        if (stale) {
            closeCall();
            running = on(thread, () -> {
                close(running, device);
                return build(device, gemm, arrays);
            });
            stale = false;
        }
    }

    @Override
    public void forward(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken) {
        int most = arrays.shape.config.maxNumTokens();
        if (tokens < 1 || tokens > most) {
            throw new IllegalArgumentException("tokens: expected 1 to " + most + ", got " + tokens);
        }
        turn.lock();
        try {
            refresh();
            if (slotOfToken == null) {
                arrays.adapters.slots.init(-1);
            } else {
                MemorySegment.copy(slotOfToken, 0, arrays.adapters.slots.getSegment(), ValueLayout.JAVA_INT, 0, tokens);
            }
            Device.lockRunning();
            try {
                if (running.graph.replay() != null && !timed && bytes(tokens) > HostCopies.LEAST) {
                    overlapped(hidden, tokens, output, chosen);
                    return;
                }
                prepare(tokens, chosen, chosen != null);
                BeyondRange beyond = BeyondRange.of(arrays, device, hidden, tokens);
                if (isTimed()) {
                    executeTimed(hidden, tokens);
                } else {
                    execute(hidden, tokens);
                }
                long values = (long) tokens * arrays.shape.config.hiddenDim();
                fetch(arrays.work.outgoing(), arrays.shape.halves ? Math.ceilDiv(values, 2) : values);
                HostCopies.copy(arrays.work.outgoing().getSegment(), output, bytes(tokens));
                beyond.makeNaN(output);
                if (arrays.shape.balanced) {
                    fetch(arrays.work.loads, arrays.shape.localExperts);
                }
                if (chosen != null && arrays.shape.routes) {
                    int pairs = tokens * arrays.shape.config.pairsPerToken();
                    fetch(arrays.work.topkIds, pairs);
                    fetch(arrays.work.topkWeights, pairs);
                    answer(chosen, pairs);
                }
            } finally {
                Device.unlockRunning();
            }
        } finally {
            turn.unlock();
        }
    }

    /** The bytes of hidden states, or of the output. */
    private long bytes(int tokens) {
        return (long) arrays.shape.config.inDtype().bytes() * tokens * arrays.shape.config.hiddenDim();
    }

    /** Runs in CUDA alone, which keeps NaNs. */
    private void overlapped(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        stageTimes = Map.of();
        try {
            if (call == null) {
                call = new CudaCall(List.of(this));
            }
            call.forward(hidden, tokens, output, chosen);
        } catch (MoeExecutionException failure) {
            throw failed("running the layer", device, failure);
        }
    }

    @Override
    public MemorySegment allocate(long bytes, Arena arena) {
        return running.graph.isCudaAlone()
                ? PinnedMemory.allocate(bytes, arena)
                : MoeKernel.super.allocate(bytes, arena);
    }

    @Override
    public @Nullable MoeKernel joinedWith(List<MoeKernel> others) {
        List<TornadoMoeKernel> parts = new ArrayList<>(List.of(this));
        for (MoeKernel other : others) {
            if (other instanceof TornadoMoeKernel kernel) {
                parts.add(kernel);
            }
        }
        boolean all = parts.size() == others.size() + 1 && parts.size() <= CudaPart.MOST;
        return all && parts.stream().allMatch(part -> part.running.graph.replay() != null)
                ? new JoinedMoeKernel(parts)
                : null;
    }

    /** Takes a call's inputs other than the hidden states; the caller holds the turn. */
    void prepare(int tokens, @Nullable ChosenExperts chosen, boolean answersChoice) {
        if (!arrays.shape.routes) {
            take(Objects.requireNonNull(chosen, "chosen"), tokens);
        }
        arrays.returnsRouting = answersChoice;
    }

    CudaTask.Replay replay() {
        return Objects.requireNonNull(running.graph.replay(), "no call yet");
    }

    LayerArrays arrays() {
        return arrays;
    }

    ReentrantLock turn() {
        return turn;
    }

    /** Copies the layer's choice of experts. */
    void answer(ChosenExperts chosen, int pairs) {
        MemorySegment.copy(arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, chosen.ids(), 0, pairs);
        MemorySegment.copy(arrays.work.topkWeights.getSegment(), ValueLayout.JAVA_FLOAT, 0, chosen.weights(), 0, pairs);
    }

    /** Takes the caller's ids and weights. */
    private void take(ChosenExperts given, int tokens) {
        int pairs = tokens * arrays.shape.config.pairsPerToken();
        MemorySegment.copy(given.ids(), 0, arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, pairs);
        MemorySegment.copy(given.weights(), 0, arrays.work.topkWeights.getSegment(), ValueLayout.JAVA_FLOAT, 0, pairs);
    }

    @Override
    public Map<String, Long> profile(MemorySegment hidden, int tokens) {
        turn.lock();
        try {
            refresh();
            arrays.adapters.slots.init(-1);
            Device.lockRunning();
            try {
                executeTimed(hidden, tokens);
            } finally {
                Device.unlockRunning();
            }
            return stageTimes;
        } finally {
            turn.unlock();
        }
    }

    @Override
    public void timeStages() {
        timed = true;
    }

    @Override
    public Map<String, Long> stageTimes() {
        return stageTimes;
    }

    /**
     * TornadoVM keeps some KB of every run that it profiles, so profiled runs become rarer; CUDA's own clock costs no
     * memory.
     */
    private boolean isTimed() {
        stageTimes = Map.of();
        calls++;
        return timed && (running.graph.isCudaAlone() || calls <= 64 || Long.bitCount(calls) == 1);
    }

    /** Executes and records each kernel's time. */
    private void executeTimed(MemorySegment hidden, int tokens) {
        Map<String, Long> times = new HashMap<>();
        try {
            if (running.graph.isCudaAlone()) {
                running.graph.timeCuda(times);
                execute(hidden, tokens);
            } else {
                running.plan().withProfiler(ProfilerMode.SILENT);
                running.graph.timeCuda(times);
                execute(hidden, tokens);
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
            running.graph.timeCuda(null);
            running.plan().withoutProfiler();
        }
        Map<String, Long> inOrder = new LinkedHashMap<>();
        for (Stage stage : running.graph.stages()) {
            Long nanos = times.get(stage.name());
            if (nanos != null) {
                inOrder.put(stage.name(), nanos);
            }
        }
        stageTimes = inOrder;
    }

    private void execute(MemorySegment hidden, int tokens) {
        HostCopies.copy(hidden, arrays.work.incoming().getSegment(), bytes(tokens));
        arrays.setTokens(tokens);
        running.graph.resize(tokens);
        sent = true;
        try {
            Runnable replay = running.graph.replay();
            if (replay != null) {
                replay.run();
            } else {
                result = on(thread, () -> running.open.execute(tokens));
            }
        } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
            throw failed("running the layer", device, failure);
        }
    }

    /** Fetches an array that isn't on the host yet. */
    private void fetch(TornadoNativeArray array, long elements) {
        if (running.graph.copiesToHost(array)) {
            return;
        }
        try {
            TornadoExecutionResult last = Objects.requireNonNull(result, "no call yet");
            on(thread, () -> last.transferToHost(new DataRange(array).withSize(elements)));
        } catch (RuntimeException | LinkageError | TornadoInternalError failure) {
            throw failed("reading the result", device, failure);
        }
    }

    /** TornadoVM's own message names the task; its cause says what happened. */
    private static MoeExecutionException failed(String doing, Device device, Throwable failure) {
        Throwable root = failure;
        while (root.getCause() != null) {
            root = root.getCause();
        }
        String cause = failure.getCause() == null ? "" : " (" + root + ")";
        return new MoeExecutionException(doing + " on " + device + ": " + failure.getMessage() + cause, failure);
    }

    /** TornadoVM only logs a launch that the driver refuses, and its compilers have had bugs. */
    @Override
    public boolean needsSelfCheck() {
        return !device.is(Device.INTERPRETER);
    }

    @Override
    public String device() {
        return device.toString();
    }

    @Override
    public long deviceBytes() {
        return arrays.deviceBytes();
    }

    /** The graph, with its tasks as the last call launched them. */
    Stage.Graph graph() {
        return running.graph;
    }

    /** The bytes that TornadoVM has allocated for it so far. */
    long bytesInUse() {
        return running.plan().getCurrentDeviceMemoryUsage();
    }

    @Override
    public void close() {
        Cleanup.all(this::closeCall, this::closePlan, () -> end(thread), arrays::close);
    }

    private void closePlan() {
        on(thread, () -> {
            close(running, device);
            return running;
        });
    }

    private void closeCall() {
        CudaCall old = call;
        call = null;
        if (old != null) {
            old.close();
        }
    }
}
