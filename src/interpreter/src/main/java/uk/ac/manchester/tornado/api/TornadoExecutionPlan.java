package uk.ac.manchester.tornado.api;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.atomic.AtomicLong;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.enums.ProfilerMode;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.interpreter.Plan;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;

/**
 * Task graphs, how to run them, and their memory on the device. Every {@code with} method changes the plan and returns
 * it. Plans are independent of each other; a plan runs for one thread at a time, while others wait.
 *
 * <p>Here the device is this JVM: its memory is a copy of each array, and work-groups run in parallel. Settings for
 * devices, compilers or CUDA graphs have no effect. Arrays that a task uses and that are in no transfer start with
 * arbitrary content.
 */
public class TornadoExecutionPlan implements AutoCloseable {
    public static TornadoDevice DEFAULT_DEVICE =
            TornadoRuntimeProvider.getTornadoRuntime().getDefaultDevice();

    private static final AtomicLong PLANS = new AtomicLong();
    private static final Pattern SIZE = Pattern.compile("(\\d+)\\s*([KMGT]?)B");

    private final long id = PLANS.incrementAndGet();
    private final Plan plan;
    private final int graphs;
    private final List<TornadoExecutionResult> results = new ArrayList<>();
    private ProfilerMode profiler;

    public TornadoExecutionPlan(ImmutableTaskGraph... immutableTaskGraphs) {
        graphs = immutableTaskGraphs.length;
        plan = new Plan(
                Arrays.stream(immutableTaskGraphs)
                        .map(ImmutableTaskGraph::graph)
                        .toList(),
                KernelContext::new);
    }

    public static TornadoDevice getDevice(int driverIndex, int deviceIndex) {
        return TornadoRuntimeProvider.getTornadoRuntime()
                .getBackend(driverIndex)
                .getDevice(deviceIndex);
    }

    /** The number of plans made in this JVM. */
    public static int getTotalPlans() {
        return PLANS.intValue();
    }

    public static TornadoDeviceMap getTornadoDeviceMap() {
        return new TornadoDeviceMap();
    }

    /**
     * Runs the selected graphs and returns when they are done. Throws TornadoRuntimeException if the plan is closed, a
     * grid is missing or does not fit, or a kernel fails; the plan can be used and closed after that.
     */
    public TornadoExecutionResult execute() {
        synchronized (plan) {
            Plan.Profile profile = plan.execute();
            if (profiler == null) {
                profile = new Plan.Profile(0, 0, 0, 0, 0, 0, 0);
            }
            TornadoExecutionResult result = new TornadoExecutionResult(plan, new TornadoProfilerResult(profile));
            if (profiler == ProfilerMode.CONSOLE) {
                result.getProfilerResult().dumpProfiles();
            }
            results.add(result);
            return result;
        }
    }

    /** Executes this graph only, until another selection. */
    public TornadoExecutionPlan withGraph(int graphIndex) {
        plan.select(graphIndex);
        return this;
    }

    /** Executes all graphs, in the order of the constructor. */
    public TornadoExecutionPlan withAllGraphs() {
        plan.selectAll();
        return this;
    }

    /** Sets the grids; every key must be {@code graph.task} of this plan. */
    public TornadoExecutionPlan withGridScheduler(GridScheduler gridScheduler) {
        plan.grids(gridScheduler);
        return this;
    }

    /** Unsets the grids. */
    public TornadoExecutionPlan withDefaultScheduler() {
        plan.grids(null);
        return this;
    }

    public TornadoExecutionPlan withPreCompilation() {
        plan.prepare();
        return this;
    }

    /** Executes for that many milliseconds. */
    public TornadoExecutionPlan withWarmUpTime(long milliseconds) throws InterruptedException {
        long end = System.nanoTime() + milliseconds * 1_000_000;
        while (System.nanoTime() < end) {
            execute();
        }
        return this;
    }

    /** Executes that many times. */
    public TornadoExecutionPlan withWarmUpIterations(int iterations) {
        for (int i = 0; i < iterations; i++) {
            execute();
        }
        return this;
    }

    public TornadoExecutionPlan withDevice(TornadoDevice device) {
        return this;
    }

    public TornadoExecutionPlan withDevice(String taskName, TornadoDevice device) {
        return this;
    }

    public TornadoDevice getDevice(int immutableTaskGraphIndex) {
        if (immutableTaskGraphIndex < 0 || immutableTaskGraphIndex >= graphs) {
            throw new TornadoRuntimeException(
                    "graph: expected 0 to " + (graphs - 1) + ", got " + immutableTaskGraphIndex);
        }
        return TornadoRuntimeProvider.getTornadoRuntime().getDefaultDevice();
    }

    public TornadoExecutionPlan withConcurrentDevices() {
        return this;
    }

    public TornadoExecutionPlan withoutConcurrentDevices() {
        return this;
    }

    public TornadoExecutionPlan withProfiler(ProfilerMode profilerMode) {
        profiler = profilerMode;
        return this;
    }

    public TornadoExecutionPlan withoutProfiler() {
        profiler = null;
        return this;
    }

    /** Limits the plan's device memory, as in 512MB or 2GB. */
    public TornadoExecutionPlan withMemoryLimit(String memoryLimit) {
        Matcher size = SIZE.matcher(memoryLimit.toUpperCase(Locale.ROOT));
        if (!size.matches()) {
            throw new TornadoRuntimeException("memory limit: expected a size such as 512MB, got " + memoryLimit);
        }
        int power = "KMGT".indexOf(size.group(2)) + (size.group(2).isEmpty() ? 0 : 1);
        plan.limit(Math.multiplyExact(Long.parseLong(size.group(1)), 1L << (10 * power)));
        return this;
    }

    public TornadoExecutionPlan withoutMemoryLimit() {
        plan.limit(Long.MAX_VALUE);
        return this;
    }

    public TornadoExecutionPlan withCUDAGraph() {
        return this;
    }

    public TornadoExecutionPlan withThreadInfo() {
        return this;
    }

    public TornadoExecutionPlan withoutThreadInfo() {
        return this;
    }

    public TornadoExecutionPlan withPrintKernel() {
        return this;
    }

    public TornadoExecutionPlan withoutPrintKernel() {
        return this;
    }

    public TornadoExecutionPlan withCompilerFlags(TornadoVMBackendType backend, String flags) {
        return this;
    }

    public TornadoExecutionPlan withIntraPlanConcurrency() {
        return this;
    }

    public TornadoExecutionPlan withoutIntraPlanConcurrency() {
        return this;
    }

    public TornadoExecutionPlan withStagedTransfers() {
        return this;
    }

    public TornadoExecutionPlan withoutStagedTransfers() {
        return this;
    }

    /** Frees the device's copies; the next execution transfers all inputs again. */
    public TornadoExecutionPlan freeDeviceMemory() {
        plan.free();
        return this;
    }

    public TornadoExecutionPlan resetDevice() {
        return this;
    }

    /** Forgets the results of earlier executions. */
    public TornadoExecutionPlan clearProfiles() {
        synchronized (plan) {
            results.clear();
        }
        return this;
    }

    public long getId() {
        return id;
    }

    public long getGlobalExecutionPlansCounter() {
        return PLANS.get();
    }

    /**
     * Bytes of the device's copies. For a closed plan: bytes of the arrays that are in no transfer of its graphs;
     * TornadoVM (5.2.0) never frees their memory.
     */
    public long getCurrentDeviceMemoryUsage() {
        return plan.memory();
    }

    /** The result of an earlier execution; the first has the index 0. */
    public TornadoExecutionResult getPlanResult(int index) {
        synchronized (plan) {
            if (index < 0 || index >= results.size()) {
                throw new TornadoRuntimeException("result: there are " + results.size() + " executions, got " + index);
            }
            return results.get(index);
        }
    }

    /**
     * Frees the device's copies. A closed plan can't be executed; closing it again does nothing. As in TornadoVM, plans
     * of {@link #withPreCompilation} are refused from then on, until {@link TornadoDeviceContext#setResetToFalse} or
     * the next such plan.
     */
    @Override
    public void close() throws TornadoExecutionPlanException {
        plan.close();
    }
}
