package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageRun;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * A model of layers {@code x += moe(x / rms(x))}: as one plan, and its layers one by one, in which case everything is
 * on the host between.
 */
final class SmallModel implements AutoCloseable {
    private static final int GROUP = 64;

    private final FusedMoeConfig config;
    private final List<Int8Experts> layers;

    private String kernels = "";

    private SmallModel(FusedMoeConfig config, List<Int8Experts> layers) {
        this.config = config;
        this.layers = layers;
    }

    static SmallModel of(RandomLayer like, int layers, Int8Scheme scheme) {
        FusedMoeConfig config = like.config();
        return new SmallModel(
                config,
                IntStream.range(0, layers)
                        .mapToObj(i -> Int8Quantizer.quantize(new RandomLayer(config, 100 + i), scheme, Progress.NONE))
                        .toList());
    }

    /**
     * The hidden states after all layers, for each of some token counts in turn.
     *
     * @param cudaGraphs whether TornadoVM records what it runs; then for the first count alone
     */
    float[][] asOnePlan(float[] hidden, boolean cudaGraphs, int... tokenCounts) {
        return asOnePlan(hidden, cudaGraphs, () -> {}, tokenCounts);
    }

    /** The same with something done before each execution. */
    float[][] asOnePlan(float[] hidden, boolean cudaGraphs, Runnable before, int... tokenCounts) {
        int h = config.hiddenDim();
        TaskGraph graph = new TaskGraph("model");
        GridScheduler grids = new GridScheduler();
        FloatArray x = new FloatArray(config.maxNumTokens() * h);
        FloatArray normed = new FloatArray(x.getSize());
        FloatArray added = new FloatArray(x.getSize());
        float[][] results = new float[tokenCounts.length][];
        try (MoeTasks moe = new MoeTasks(graph, grids, config)) {
            KernelContext context = new KernelContext();
            graph.transferToDevice(DataTransferMode.EVERY_EXECUTION, x);
            for (int i = 0; i < layers.size(); i++) {
                graph.task("norm" + i, SmallModel::rmsNorm, context, moe.header(), x, normed, h);
                moe.append("moe" + i, layers.get(i), normed, added);
                graph.task("add" + i, SmallModel::addTo, context, moe.header(), added, x, h);
                for (String task : List.of("norm", "add")) {
                    WorkerGrid1D grid = new WorkerGrid1D(Math.ceilDiv(config.maxNumTokens(), GROUP) * GROUP);
                    grid.setLocalWork(GROUP, 1, 1);
                    grids.addWorkerGrid("model." + task + i, grid);
                }
            }
            kernels = String.valueOf(moe.kernels());
            graph.transferToHost(DataTransferMode.EVERY_EXECUTION, x);
            TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot());
            moe.launchOn(plan);
            if (cudaGraphs) {
                plan.withCUDAGraph();
            }
            for (int i = 0; i < tokenCounts.length; i++) {
                moe.setTokens(tokenCounts[i]);
                MemorySegment.copy(MemorySegment.ofArray(hidden), 0, x.getSegment(), 0, 4L * tokenCounts[i] * h);
                before.run();
                moe.execute(plan);
                results[i] = new float[tokenCounts[i] * h];
                MemorySegment.copy(x.getSegment(), 0, MemorySegment.ofArray(results[i]), 0, 4L * results[i].length);
            }
        }
        return results;
    }

    /** The class that {@link #asOnePlan} had. */
    String kernels() {
        return kernels;
    }

    /** The same with a plan for every step. */
    float[] oneByOne(TornadoExperts kernels, float[] hidden, int tokens) {
        Device device = new MoeTasks(new TaskGraph("none"), new GridScheduler(), config).device();
        int h = config.hiddenDim();
        IntArray header = IntArray.fromElements(tokens, 0);
        FloatArray x = FloatArray.fromArray(hidden);
        FloatArray normed = new FloatArray(x.getSize());
        FloatArray added = new FloatArray(x.getSize());
        for (Int8Experts layer : layers) {
            run(device, "norm", header, x, normed, h, tokens);
            try (MoeKernel kernel = kernels.load(config, layer)) {
                kernel.forward(normed.getSegment(), tokens, added.getSegment(), null, null);
            }
            run(device, "add", header, added, x, h, tokens);
        }
        return Arrays.copyOf(x.toHeapArray(), tokens * h);
    }

    private static void run(
            Device device, String name, IntArray header, FloatArray from, FloatArray into, int h, int tokens) {
        Stage stage = new Stage(
                name,
                GROUP,
                m -> Math.ceilDiv(m, GROUP),
                m -> 1,
                (g, task) -> {
                    // TornadoVM wants a method reference where the task is added.
                    if (name.equals("norm")) {
                        g.task(task, SmallModel::rmsNorm, new KernelContext(), header, from, into, h);
                    } else {
                        g.task(task, SmallModel::addTo, new KernelContext(), header, from, into, h);
                    }
                },
                List.of(header, from, into),
                List.of(into));
        StageRun.execute(device, name, List.of(stage), tokens);
    }

    /** A work-item a token. */
    static void rmsNorm(KernelContext ctx, IntArray header, FloatArray x, FloatArray into, int h) {
        int token = ctx.globalIdx;
        if (token < header.get(0)) {
            float sum = 0.0f;
            for (int i = 0; i < h; i++) {
                float value = x.get(token * h + i);
                sum += value * value;
            }
            float scale = 1.0f / TornadoMath.sqrt(sum / h + 1.0e-6f);
            for (int i = 0; i < h; i++) {
                into.set(token * h + i, x.get(token * h + i) * scale);
            }
        }
    }

    /** A work-item a token. */
    static void addTo(KernelContext ctx, IntArray header, FloatArray added, FloatArray x, int h) {
        int token = ctx.globalIdx;
        if (token < header.get(0)) {
            for (int i = 0; i < h; i++) {
                x.set(token * h + i, x.get(token * h + i) + added.get(token * h + i));
            }
        }
    }

    @Override
    public void close() {
        layers.forEach(Int8Experts::close);
    }
}
