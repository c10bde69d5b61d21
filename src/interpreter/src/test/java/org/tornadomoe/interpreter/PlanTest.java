package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.FIRST_EXECUTION;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.UNDER_DEMAND;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoBackend;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoProfilerResult;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.annotations.Parallel;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.enums.ProfilerMode;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.exceptions.TornadoFailureException;
import uk.ac.manchester.tornado.api.exceptions.TornadoOutOfMemoryException;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class PlanTest {
    private final IntArray values = new IntArray(64);

    static void increment(KernelContext ctx, IntArray data) {
        int[] tile = ctx.allocateIntLocalArray(16);
        tile[ctx.localIdx] = data.get(ctx.globalIdx);
        ctx.localBarrier();
        data.set(ctx.globalIdx, tile[ctx.localIdx] + 1);
    }

    private TaskGraph graph() {
        return new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, values)
                .task("t", PlanTest::increment, new KernelContext(), values)
                .transferToHost(EVERY_EXECUTION, values);
    }

    private static GridScheduler grids() {
        return new GridScheduler("g.t", Grids.of(64, 16));
    }

    @Test
    void aTaskWithAContextNeedsAGrid() throws Exception {
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot())) {
            assertThatThrownBy(plan::execute)
                    .isInstanceOf(TornadoRuntimeException.class)
                    .hasMessageContaining("task g.t")
                    .hasMessageContaining("grid");
            plan.withGridScheduler(grids()).execute();
            plan.withDefaultScheduler();
            assertThatThrownBy(plan::execute).hasMessageContaining("grid");
        }
        assertThat(values.toHeapArray()).containsOnly(1);
    }

    @Test
    void aGridNeedsATask() throws Exception {
        GridScheduler grids = grids();
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot())) {
            assertThatThrownBy(() -> plan.withGridScheduler(new GridScheduler("g.typo", new WorkerGrid1D(4))))
                    .isInstanceOf(TornadoRuntimeException.class)
                    .hasMessageContaining("no task is named g.typo")
                    .hasMessageContaining("g.t");
            plan.withGridScheduler(grids);
            grids.addWorkerGrid("g.later", new WorkerGrid1D(4));
            assertThatThrownBy(plan::execute).hasMessageContaining("g.later");
        }
    }

    @Test
    void gridsThatDoNotFit() throws Exception {
        WorkerGrid1D grid = Grids.of(64, 16);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot())) {
            plan.withGridScheduler(new GridScheduler("g.t", grid));
            grid.setGlobalWork(60, 1, 1);
            assertThatThrownBy(plan::execute)
                    .isInstanceOf(TornadoRuntimeException.class)
                    .hasMessageContaining("expected a multiple of the local work 16, got 60");
            grid.setGlobalWork(0, 1, 1);
            assertThatThrownBy(plan::execute)
                    .hasMessageContaining("global work x")
                    .hasMessageContaining("got 0");
            grid.setGlobalWork(4096, 1, 1);
            grid.setLocalWork(2048, 1, 1);
            assertThatThrownBy(plan::execute)
                    .hasMessageContaining("at most 1024")
                    .hasMessageContaining("2048");
        }
    }

    @Test
    void aClosedPlanTellsWhatTornadoVmWouldHaveLeftOnTheDevice() throws Exception {
        TaskGraph graph = new TaskGraph("g").task("t", PlanTest::increment, new KernelContext(), values);
        TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot());
        plan.withGridScheduler(grids()).execute();
        plan.close();
        assertThat(plan.getCurrentDeviceMemoryUsage()).isEqualTo(values.getNumBytesOfSegmentWithHeader());

        graph.transferToHost(UNDER_DEMAND, values);
        TornadoExecutionPlan named = new TornadoExecutionPlan(graph.snapshot());
        named.withGridScheduler(grids()).execute();
        named.close();
        assertThat(named.getCurrentDeviceMemoryUsage()).isZero();
    }

    @Test
    void aClosedPlanIsNotExecuted() throws Exception {
        TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot());
        plan.withGridScheduler(grids()).execute();
        assertThat(plan.getCurrentDeviceMemoryUsage()).isEqualTo(values.getNumBytesOfSegmentWithHeader());
        plan.close();
        plan.close();
        assertThat(plan.getCurrentDeviceMemoryUsage()).isZero();
        assertThatThrownBy(plan::execute)
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("closed");
    }

    @Test
    void memoryLimit() throws Exception {
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot())) {
            plan.withGridScheduler(grids()).withMemoryLimit("100B");
            assertThatThrownBy(plan::execute)
                    .isInstanceOf(TornadoOutOfMemoryException.class)
                    .hasMessageContaining("272 bytes more")
                    .hasMessageContaining("limit of 100 bytes");
            plan.withMemoryLimit("1KB").execute();
            assertThatThrownBy(() -> plan.withMemoryLimit("much")).hasMessageContaining("got much");
        }
    }

    @Test
    void profile() throws Exception {
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot())) {
            plan.withGridScheduler(grids());
            assertThat(plan.execute().getProfilerResult().getTotalTime()).isZero();
            TornadoProfilerResult profile =
                    plan.withProfiler(ProfilerMode.SILENT).execute().getProfilerResult();
            assertThat(profile.getDeviceKernelTime()).isPositive();
            assertThat(profile.getTotalTime())
                    .isGreaterThanOrEqualTo(profile.getDeviceKernelTime() + profile.getDataTransfersTime());
            assertThat(profile.getTotalBytesCopyIn()).isEqualTo(256);
            assertThat(profile.getTotalBytesCopyOut()).isEqualTo(256);
            assertThat(profile.getProfileLog()).contains("\"TOTAL_KERNEL_TIME\": " + profile.getDeviceKernelTime());
            assertThat(plan.getPlanResult(1).getProfilerResult()).isSameAs(profile);
            assertThatThrownBy(() -> plan.getPlanResult(2)).isInstanceOf(TornadoRuntimeException.class);
            assertThat(plan.withoutProfiler().execute().getProfilerResult().getDeviceKernelTime())
                    .isZero();
        }
    }

    @Test
    void optionsKeepThePlan() throws Exception {
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot())) {
            plan.withGridScheduler(grids())
                    .withPreCompilation()
                    .withCUDAGraph()
                    .withDevice(TornadoExecutionPlan.DEFAULT_DEVICE)
                    .withWarmUpIterations(2)
                    .resetDevice()
                    .clearProfiles()
                    .execute();
            assertThat(plan.getDevice(0)).isSameAs(TornadoExecutionPlan.DEFAULT_DEVICE);
            assertThatThrownBy(() -> plan.withGraph(1)).hasMessageContaining("got 1");
        }
        assertThat(values.toHeapArray()).containsOnly(3);
    }

    /** TornadoVM 5.2.0's interpreter of bytecodes refuses it so. */
    @Test
    void aPlanCompiledBeforehandIsRefusedOnceAnotherIsClosed() throws Exception {
        try (TornadoExecutionPlan early = new TornadoExecutionPlan(graph().snapshot());
                TornadoExecutionPlan late = new TornadoExecutionPlan(graph().snapshot())) {
            early.withGridScheduler(grids()).withPreCompilation().execute();
            late.withGridScheduler(grids()).execute();
            new TornadoExecutionPlan(graph().snapshot()).close();
            assertThatThrownBy(early::execute)
                    .isInstanceOf(TornadoFailureException.class)
                    .hasMessageContaining("reset() was called after warmup()");
            late.execute();
            early.getDevice(0).getDeviceContext().setResetToFalse();
            early.execute();
        }
        assertThat(values.toHeapArray()).containsOnly(4);
    }

    @Test
    void oneDeviceThatSaysWhatItIs() {
        assertThat(TornadoRuntimeProvider.getTornadoRuntime().getNumBackends()).isEqualTo(1);
        TornadoBackend backend = TornadoRuntimeProvider.getTornadoRuntime().getBackend(0);
        assertThat(backend.getBackendType()).isEqualTo(TornadoVMBackendType.JAVA);
        assertThat(backend.getNumDevices()).isEqualTo(1);
        TornadoDevice device = TornadoExecutionPlan.getDevice(0, 0);
        assertThat(device.getDeviceName()).containsIgnoringCase("interpreter");
        assertThat(device.getMaxGlobalMemory()).isPositive();
        assertThat(device.getPhysicalDevice().getDeviceMaxComputeUnits()).isPositive();
        assertThat(TornadoExecutionPlan.getTornadoDeviceMap().getDevicesByName("INTERPRETER"))
                .containsExactly(device);
        assertThatThrownBy(() -> TornadoExecutionPlan.getDevice(0, 1)).isInstanceOf(TornadoRuntimeException.class);
        assertThatThrownBy(() -> TornadoExecutionPlan.getDevice(1, 0)).isInstanceOf(TornadoRuntimeException.class);
    }

    static void vectorAdd(IntArray a, IntArray b) {
        for (@Parallel int i = 0; i < a.getSize(); i++) {
            a.set(i, a.get(i) + b.get(i));
        }
    }

    @Test
    void aLoopNeedsNoGrid() throws Exception {
        IntArray b = IntArray.fromElements(1, 2, 3);
        IntArray a = IntArray.fromElements(10, 20, 30);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(FIRST_EXECUTION, a, b)
                .task("t", PlanTest::vectorAdd, a, b)
                .transferToHost(EVERY_EXECUTION, a);
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.execute();
            plan.execute();
        }
        assertThat(a.toHeapArray()).containsExactly(12, 24, 36);
    }

    @Test
    void plansRunAtTheSameTime() throws Exception {
        List<Future<int[]>> results = new ArrayList<>();
        try (ExecutorService threads = Executors.newFixedThreadPool(4)) {
            for (int i = 0; i < 4; i++) {
                int start = 100 * i;
                results.add(threads.submit(() -> {
                    IntArray data = new IntArray(512);
                    data.init(start);
                    TaskGraph graph = new TaskGraph("g")
                            .transferToDevice(FIRST_EXECUTION, data)
                            .task("t", PlanTest::increment, new KernelContext(), data)
                            .transferToHost(EVERY_EXECUTION, data);
                    try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
                        plan.withGridScheduler(new GridScheduler("g.t", Grids.of(512, 16)))
                                .withWarmUpIterations(19)
                                .execute();
                    }
                    return data.toHeapArray();
                }));
            }
        }
        for (int i = 0; i < 4; i++) {
            assertThat(results.get(i).get()).containsOnly(100 * i + 20);
        }
    }

    @Test
    void anInterruptedCallerGetsItsResultAndStaysInterrupted() throws Exception {
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph().snapshot())) {
            plan.withGridScheduler(grids());
            Thread.currentThread().interrupt();
            plan.execute();
            assertThat(Thread.interrupted()).isTrue();
        }
        assertThat(values.toHeapArray()).containsOnly(1);
    }
}
