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
 * Several layers of {@link MoeTasks} in one plan, as in a model, to measure the time of one layer there. All read the
 * same hidden states. On CUDA the plan is recorded as a CUDA graph, so an instance is for one token count. Not
 * thread-safe.
 */
public final class LayersInOnePlan implements AutoCloseable {
    private final MoeTasks moe;
    private final TornadoExecutionPlan plan;
    private final FloatArray output;

    /** The device's clock before the layers and after them; empty if no kernel can read it. */
    private final List<LongArray> clock;

    private @Nullable TornadoExecutionResult last;

    /**
     * Makes the plan. The first {@link #run} sends the weights to the device and compiles the kernels.
     *
     * @param experts the weights of every layer
     * @param layers number of layers
     * @param distinct number of layers with their own copy of the weights on the device; the others share these copies
     *     in turn
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
     * The device's time for the last {@link #run} in nanoseconds, without the host's time before and after; empty if it
     * can't be measured.
     */
    public OptionalLong nanosOnDevice() {
        if (clock.isEmpty() || last == null) {
            return OptionalLong.empty();
        }
        last.transferToHost(clock.toArray());
        return OptionalLong.of(clock.get(1).get(0) - clock.get(0).get(0));
    }

    /** Whether executions after the first replay a CUDA graph. */
    public boolean isRecorded() {
        return moe.device().is(Device.CUDA);
    }

    /** The name of the kernel class. */
    public String kernels() {
        return String.valueOf(moe.kernels());
    }

    /** Runs all layers once, and waits for them. */
    public void run() {
        last = moe.execute(plan);
    }

    /** Runs all layers again and returns the last one's output, [M, H]. */
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
