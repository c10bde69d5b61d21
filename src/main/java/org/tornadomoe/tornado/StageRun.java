package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.modular.MoeExecutionException;
import org.tornadomoe.modular.StageValues;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.kernels.GemmKernels;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.exceptions.TornadoInternalError;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A layer's stages one at a time, each a task graph of its own with its inputs taken there and its outputs back. */
final class StageRun {
    private final Device device;
    private final LayerArrays arrays;
    private final LayerStages stages;
    private final int tokens;

    private StageRun(Device device, LayerArrays arrays, LayerStages stages, int tokens) {
        this.device = device;
        this.arrays = arrays;
        this.stages = stages;
        this.tokens = tokens;
    }

    /** See {@link org.tornadomoe.modular.FusedMoeExperts#stages}. */
    static StageValues run(
            Device device,
            FusedMoeConfig config,
            Int8Experts experts,
            boolean dp4a,
            float[] hidden,
            int tokens,
            StageValues given) {
        try (LayerArrays arrays =
                new LayerArrays(config.withMaxNumTokens(tokens), experts, device.memory(), HostMemory.of(device))) {
            return new StageRun(device, arrays, new LayerStages(arrays, dp4a), tokens).run(hidden, given);
        }
    }

    private StageValues run(float[] hidden, StageValues given) {
        LayerArrays a = arrays;
        int h = a.config.hiddenDim();
        int i = a.config.intermediateSizePerPartition();
        int pairs = tokens * a.config.expertsPerToken();
        boolean int8 = a.scheme.quantizesActivations();
        a.header.set(0, tokens);
        put(hidden, a.hidden);

        put(given.logits(), a.logits);
        execute("topK", stages.topK());
        int[] topkIds = a.topkIds.toHeapArray();
        float[] topkWeights = a.topkWeights.toHeapArray();

        MemorySegment.copy(given.topkIds(), 0, a.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, pairs);
        put(given.topkWeights(), a.topkWeights);
        execute("quantizeTokens", stages.quantizeTokens());
        byte[] a1 = int8 ? unpack(a.tokens, tokens, h) : new byte[0];
        float[] a1Scales = int8 ? a.tokenScales.toHeapArray() : new float[0];

        execute("alignBlocks", stages.align(given.blockSize(), 1));
        int places = a.padded.get(0);
        int[] sortedIds = Arrays.copyOf(a.sortedIds.toHeapArray(), places);
        int[] expertIds = Arrays.copyOf(a.expertIds.toHeapArray(), places / given.blockSize());
        execute("align", stages.align(GemmKernels.BLOCK, 1));

        if (int8) {
            pack(given.a1(), a.tokens, tokens, h);
            put(given.a1Scales(), a.tokenScales);
        }
        execute("gateUp", stages.gateUp());
        float[] gemm1 = a.gateUp.toHeapArray();

        put(given.gemm1(), a.gateUp);
        execute("activate", stages.activate());
        float[] act = a.activated.toHeapArray();

        put(given.act(), a.activated);
        execute("quantizePairs", stages.quantizePairs());
        byte[] a2 = int8 ? unpack(a.pairs, pairs, i) : new byte[0];
        float[] a2Scales = int8 ? a.pairScales.toHeapArray() : new float[0];

        if (int8) {
            pack(given.a2(), a.pairs, pairs, i);
            put(given.a2Scales(), a.pairScales);
        }
        execute("down", stages.down());
        float[] gemm2 = a.down.toHeapArray();

        put(given.gemm2(), a.down);
        execute("combine", stages.combine());
        return new StageValues(
                given.logits(),
                topkIds,
                topkWeights,
                given.blockSize(),
                sortedIds,
                expertIds,
                a1,
                a1Scales,
                gemm1,
                act,
                a2,
                a2Scales,
                gemm2,
                a.output.toHeapArray());
    }

    private void execute(String name, List<Stage> steps) {
        execute(device, name, steps, tokens);
    }

    /** Runs some stages by themselves: what they read goes there from the arrays here, what they write comes back. */
    static void execute(Device device, String name, List<Stage> steps, int tokens) {
        if (steps.isEmpty()) {
            return;
        }
        try {
            Stage.Graph graph = Stage.Graph.of(name, device, steps);
            graph.tasks()
                    .transferToDevice(
                            DataTransferMode.EVERY_EXECUTION, graph.inputs().toArray());
            graph.addTasks();
            graph.tasks()
                    .transferToHost(
                            DataTransferMode.EVERY_EXECUTION, graph.outputs().toArray());
            graph.resize(tokens);
            try (TornadoExecutionPlan plan =
                    new TornadoExecutionPlan(graph.tasks().snapshot())) {
                plan.withDevice(device.tornado())
                        .withGridScheduler(graph.grids())
                        .execute();
            }
        } catch (RuntimeException | LinkageError | TornadoInternalError | TornadoExecutionPlanException failure) {
            throw new MoeExecutionException("stage " + name + " on " + device + ": " + failure.getMessage(), failure);
        }
    }

    private static void put(float[] from, FloatArray into) {
        MemorySegment.copy(from, 0, into.getSegment(), ValueLayout.JAVA_FLOAT, 0, from.length);
    }

    /** A row starts at a whole int; what is left of its last one is 0. */
    private static void pack(byte[] from, IntArray into, int rows, int cols) {
        int rowBytes = (cols + 3) / 4 * 4;
        into.getSegment().fill((byte) 0);
        for (int row = 0; row < rows; row++) {
            MemorySegment.copy(from, row * cols, into.getSegment(), ValueLayout.JAVA_BYTE, (long) row * rowBytes, cols);
        }
    }

    private static byte[] unpack(IntArray from, int rows, int cols) {
        int rowBytes = (cols + 3) / 4 * 4;
        byte[] values = new byte[rows * cols];
        for (int row = 0; row < rows; row++) {
            MemorySegment.copy(
                    from.getSegment(), ValueLayout.JAVA_BYTE, (long) row * rowBytes, values, row * cols, cols);
        }
        return values;
    }
}
