package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.locks.ReentrantLock;
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
import org.tornadomoe.tornado.graph.ExpertGemm;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tuning.LaunchConfigs;

/**
 * One layer on one device: one task graph, one execution plan. The weights go to the device once. In a call the token
 * count and the hidden states go there and the output comes back; intermediate values stay on the device.
 *
 * <p>An execution plan serves one thread, and plans can't share device buffers, so callers take turns in the order in
 * which they came.
 */
final class TornadoMoeKernel implements MoeKernel, Adapters, Replicated, Profiled {
    private final ReentrantLock turn = new ReentrantLock(true);
    private final Device device;
    private final ExpertGemm gemm;
    private final LayerArrays arrays;

    /** The plan's thread; null if it is the caller's. */
    private final @Nullable DeviceThread thread;

    private LayerPlan plan;

    /** Calls in CUDA alone; null before the first. */
    private @Nullable CudaCall call;

    /** Whether the weights are on the device, and whether adapters have changed since. */
    private boolean sent;

    private boolean stale;

    /** Whether calls are profiled, their number, and the times of the last one. */
    private boolean timed;

    private long calls;
    private Map<String, Long> stageTimes = Map.of();

    /** @param thread the plan's thread, which the kernel closes */
    TornadoMoeKernel(
            Device device, ExpertGemm gemm, LayerArrays arrays, @Nullable DeviceThread thread, LayerPlan plan) {
        this.device = device;
        this.gemm = gemm;
        this.arrays = arrays;
        this.thread = thread;
        this.plan = plan;
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
            return new TornadoMoeKernel(device, gemm, arrays, thread, LayerPlan.build(device, thread, gemm, arrays));
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, () -> end(thread));
            Cleanup.after(failure, arrays::close);
            throw failure;
        }
    }

    private static void end(@Nullable DeviceThread thread) {
        if (thread != null) {
            thread.close();
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
            plan.close();
            plan = LayerPlan.build(device, thread, gemm, arrays);
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
                if (plan.graph().replay() != null && !timed && forwardInCuda(hidden, tokens, output, chosen)) {
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
                plan.fetch(arrays.work.outgoing(), arrays.shape.halves ? Math.ceilDiv(values, 2) : values);
                HostCopies.copy(arrays.work.outgoing().getSegment(), output, bytes(tokens));
                beyond.makeNaN(output);
                if (arrays.shape.balanced) {
                    plan.fetch(arrays.work.loads, arrays.shape.localExperts);
                }
                if (chosen != null && arrays.shape.routes) {
                    int pairs = tokens * arrays.shape.config.pairsPerToken();
                    plan.fetch(arrays.work.topkIds, pairs);
                    plan.fetch(arrays.work.topkWeights, pairs);
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

    /** Runs a call in CUDA alone, which keeps NaNs; false, without having run it, where that is no faster. */
    private boolean forwardInCuda(
            MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        boolean few = bytes(tokens) <= RecordedCall.MOST_BYTES;
        if (few && !replay().driver().recordsGraphs()) {
            return false;
        }
        try {
            if (call == null) {
                call = new CudaCall(List.of(this));
            }
            if (few && !call.isRecorded(tokens, chosen)) {
                return false;
            }
            stageTimes = Map.of();
            call.forward(hidden, tokens, output, chosen);
            return true;
        } catch (MoeExecutionException failure) {
            throw LayerPlan.failed("running the layer", device, failure);
        }
    }

    @Override
    public MemorySegment allocate(long bytes, Arena arena) {
        return plan.graph().isCudaAlone()
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
        return all && parts.stream().allMatch(part -> part.plan.graph().replay() != null)
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
        return Objects.requireNonNull(plan.graph().replay(), "no call yet");
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
        return timed && (plan.graph().isCudaAlone() || calls <= 64 || Long.bitCount(calls) == 1);
    }

    /** Executes and records each kernel's time. */
    private void executeTimed(MemorySegment hidden, int tokens) {
        bring(hidden, tokens);
        stageTimes = plan.executeTimed(tokens);
    }

    private void execute(MemorySegment hidden, int tokens) {
        bring(hidden, tokens);
        plan.execute(tokens);
    }

    /** Passes a call's hidden states and size to the plan. */
    private void bring(MemorySegment hidden, int tokens) {
        HostCopies.copy(hidden, arrays.work.incoming().getSegment(), bytes(tokens));
        arrays.setTokens(tokens);
        plan.graph().resize(tokens);
        sent = true;
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
        return plan.graph();
    }

    /** The bytes that TornadoVM has allocated for it so far. */
    long bytesInUse() {
        return plan.bytesInUse();
    }

    @Override
    public void close() {
        Cleanup.all(this::closeCall, plan::close, () -> end(thread), arrays::close);
    }

    private void closeCall() {
        CudaCall old = call;
        call = null;
        if (old != null) {
            old.close();
        }
    }
}
