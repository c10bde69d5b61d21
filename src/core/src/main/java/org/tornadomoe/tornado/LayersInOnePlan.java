package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.device.Device;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.LongArray;

/**
 * Layers of {@link MoeTasks} one after the other in a plan, as in a model, to measure what one of them takes there: all
 * read the same hidden states. On CUDA the plan is recorded as a CUDA graph, so an instance is for one token count. Not
 * thread-safe.
 */
public final class LayersInOnePlan implements AutoCloseable {
    private final MoeTasks moe;
    private final TornadoExecutionPlan plan;
    private final FloatArray output;

    /** What the device's clock says before the layers and after them; none where there is no kernel that reads it. */
    private final List<LongArray> clock;

    private @Nullable TornadoExecutionResult last;

    /**
     * Weights go to the device, and kernels are compiled, in the first {@link #run}.
     *
     * @param experts the weights of every layer
     * @param layers how many
     * @param distinct as many of them have weights of their own on the device; the others share them in turn
     * @param hidden [M, H]
     */
    public LayersInOnePlan(
            FusedMoeConfig config, Int8Experts experts, int layers, int distinct, MemorySegment hidden, int tokens) {
        int size = Math.multiplyExact(config.maxNumTokens(), config.hiddenDim());
        FloatArray input = new FloatArray(size);
        output = new FloatArray(size);
        MemorySegment.copy(hidden, 0, input.getSegment(), 0, 4L * tokens * config.hiddenDim());
        TaskGraph graph = new TaskGraph("layers").transferToDevice(DataTransferMode.FIRST_EXECUTION, input);
        GridScheduler grids = new GridScheduler();
        moe = new MoeTasks(graph, grids, config);
        clock = CudaKernel.hopperObstacle(moe.device()) == null
                ? List.of(new LongArray(1), new LongArray(1))
                : List.of();
        readClock(graph, "begin", 0);
        for (int i = 0; i < layers; i++) {
            if (i < distinct) {
                moe.append("layer" + i, experts, input, output);
            } else {
                moe.appendAgain("layer" + i, i % distinct, experts, input, output);
            }
        }
        readClock(graph, "end", 1);
        graph.transferToHost(DataTransferMode.UNDER_DEMAND, output);
        clock.forEach(time -> graph.transferToHost(DataTransferMode.UNDER_DEMAND, time));
        moe.setTokens(tokens);
        plan = new TornadoExecutionPlan(graph.snapshot());
        moe.launchOn(plan);
        if (isRecorded()) {
            plan.withCUDAGraph();
        }
    }

    private void readClock(TaskGraph graph, String name, int which) {
        if (!clock.isEmpty()) {
            CudaKernel now = new CudaKernel(
                    name,
                    "clock.cu",
                    List.of("--gpu-architecture=sm_90"),
                    m -> new CudaKernel.Launch("now", 1, 1, 1, 0),
                    List.of(moe.header()),
                    List.of(clock.get(which)),
                    List.of(),
                    List.of());
            CudaTask.addTo(graph, "", new ArrayList<>(List.of(now)), array -> false);
        }
    }

    /**
     * Nanoseconds that the device took in the last {@link #run}, without what the host did before and after; none where
     * nobody measures it.
     */
    public OptionalLong nanosOnDevice() {
        if (clock.isEmpty() || last == null) {
            return OptionalLong.empty();
        }
        last.transferToHost(clock.toArray());
        return OptionalLong.of(clock.get(1).get(0) - clock.get(0).get(0));
    }

    /** Whether executions after the first are a CUDA graph's. */
    public boolean isRecorded() {
        return moe.device().is(Device.CUDA);
    }

    /** The class of the kernels. */
    public String kernels() {
        return String.valueOf(moe.kernels());
    }

    /** Runs all layers once, and waits for them. */
    public void run() {
        last = moe.execute(plan);
    }

    /** Runs them once more and gives the last one's output, [M, H]. */
    public MemorySegment output() {
        TornadoExecutionResult result = moe.execute(plan);
        result.transferToHost(output);
        return output.getSegment();
    }

    @Override
    public void close() {
        moe.close();
    }
}
