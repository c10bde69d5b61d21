package org.tornadomoe.tornado.graph;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.SignalHandlers;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.exceptions.TornadoInternalError;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A layer's stages one at a time, each a task graph of its own with its inputs taken there and its outputs back. */
public final class StageRun {
    private final Device device;
    private final LayerArrays arrays;
    private final LayerProgram stages;
    private final int tokens;

    private StageRun(Device device, LayerArrays arrays, LayerProgram stages, int tokens) {
        this.device = device;
        this.arrays = arrays;
        this.stages = stages;
        this.tokens = tokens;
    }

    /** See {@link org.tornadomoe.kernel.FusedMoeExperts#stages}. */
    public static StageValues run(
            Device device,
            FusedMoeConfig config,
            Int8Experts experts,
            ExpertGemm gemm,
            float[] hidden,
            int tokens,
            StageValues given) {
        try (LayerArrays arrays = new LayerArrays(
                config.withMaxNumTokens(tokens),
                experts,
                device.memory(),
                HostMemory.of(device.backend()),
                gemm,
                false)) {
            return new StageRun(device, arrays, gemm.program(arrays), tokens).run(hidden, given);
        }
    }

    private StageValues run(float[] hidden, StageValues given) {
        LayerArrays a = arrays;
        int h = a.shape.hidden;
        int i = a.shape.intermediate;
        int pairs = tokens * a.shape.topK;
        boolean int8 = a.shape.int8;
        a.setTokens(tokens);
        put(hidden, a.work.hidden);

        int[] topkIds = given.topkIds();
        float[] topkWeights = given.topkWeights();
        if (a.shape.routes) {
            put(given.logits(), a.work.logits);
            execute("topK", stages.topK());
            topkIds = a.work.topkIds.toHeapArray();
            topkWeights = a.work.topkWeights.toHeapArray();
        }

        MemorySegment.copy(given.topkIds(), 0, a.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, pairs);
        MemorySegment.copy(given.topkIds(), 0, a.work.placedIds.getSegment(), ValueLayout.JAVA_INT, 0, pairs);
        put(given.topkWeights(), a.work.topkWeights);
        execute("quantizeTokens", stages.quantizeTokens());
        int[] everyToken =
                IntStream.range(0, tokens * a.shape.config.inputRowsPerToken()).toArray();
        byte[] a1 = int8 ? unpack(a.work.hiddenQ, a.shape.hiddenInts, everyToken, h) : new byte[0];
        float[] a1Scales = int8 ? a.work.hiddenScales.toHeapArray() : new float[0];

        a.work.header.set(1, given.blockSize());
        execute("alignBlocks", stages.align(1));
        a.setTokens(tokens);
        int places = a.work.numPostPadded.get(0);
        int[] sortedIds = Arrays.copyOf(a.work.sortedIds.toHeapArray(), places);
        int[] expertIds = Arrays.copyOf(a.work.expertIds.toHeapArray(), places / given.blockSize());
        int[] rows = align(given);

        if (int8) {
            pack(given.a1(), a.work.hiddenQ, a.shape.hiddenInts, everyToken, h);
            put(given.a1Scales(), a.work.hiddenScales);
        }
        execute("gateUp", stages.gateUp());
        float[] gemm1 = take(a.work.gateUp, rows, a.shape.gateUpRows);

        put(given.gemm1(), a.work.gateUp, rows);
        execute("activate", stages.activateAndQuantize());
        float[] act = take(a.work.activated, rows, i);

        put(given.act(), a.work.activated, rows);
        execute("quantizePairs", stages.quantizePairs());
        byte[] a2 = int8 ? unpack(a.work.activatedQ, a.shape.intermediateInts, rows, i) : new byte[0];
        float[] a2Scales = int8 ? take(a.work.activatedScales, rows, a.shape.intermediateGroups) : new float[0];

        if (int8) {
            pack(given.a2(), a.work.activatedQ, a.shape.intermediateInts, rows, i);
            put(given.a2Scales(), a.work.activatedScales, rows);
        }
        execute("down", stages.down());
        float[] gemm2 = take(a.work.down, rows, h);

        put(given.gemm2(), a.work.down, rows);
        execute("combine", stages.combine());
        execute("zeroExperts", stages.zeroExperts());
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
                a.work.output.toHeapArray());
    }

    /**
     * All in one graph, or each in one: where floats are packed by a prebuilt task, which follows the activation, and
     * would be taken for it.
     */
    private void execute(String name, List<Stage> steps) {
        if (stages.gemm.packsFloats() && !stages.gemm.preparations(arrays).isEmpty()) {
            steps.forEach(step -> execute(device, step.name(), List.of(step), tokens));
        } else {
            execute(device, name, steps, tokens);
        }
    }

    /** Runs some stages by themselves: what they read goes there from the arrays here, what they write comes back. */
    public static void execute(Device device, String name, List<Stage> steps, int tokens) {
        if (steps.isEmpty()) {
            return;
        }
        try (SignalHandlers.Step _ = SignalHandlers.step()) {
            Stage.Graph graph = Stage.Graph.of(name, device, steps);
            graph.tasks()
                    .transferToDevice(
                            DataTransferMode.EVERY_EXECUTION, graph.inputs().toArray());
            graph.addTasks();
            graph.tasks()
                    .transferToHost(
                            DataTransferMode.EVERY_EXECUTION, graph.outputs().toArray());
            graph.resize(tokens);
            TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.tasks().snapshot());
            try {
                graph.launchOn(plan);
                plan.execute();
            } finally {
                device.close(plan);
            }
        } catch (RuntimeException | LinkageError | TornadoInternalError | TornadoExecutionPlanException failure) {
            throw new MoeExecutionException("stage " + name + " on " + device + ": " + failure.getMessage(), failure);
        }
    }

    private static void put(float[] from, FloatArray into) {
        MemorySegment.copy(from, 0, into.getSegment(), ValueLayout.JAVA_FLOAT, 0, from.length);
    }

    /**
     * Aligns, in the standard format with the pairs of experts elsewhere, and gives the row of each pair: its number,
     * −1 where it is in no block.
     */
    private int[] align(StageValues given) {
        boolean keeps = !arrays.shape.batched;
        execute("align", keeps ? stages.align(1) : stages.align());
        execute("alignParts", stages.alignParts());
        int most = arrays.shape.config.globalNumExperts();
        return IntStream.range(0, given.topkIds().length)
                .map(p -> {
                    int id = given.topkIds()[p];
                    boolean isThere = id >= 0 && id < most && (keeps || arrays.weights.expertMap.get(id) >= 0);
                    return isThere ? p : -1;
                })
                .toArray();
    }

    /** Each pair's values into its row. */
    private static void put(float[] from, FloatArray into, int[] rows) {
        int width = rows.length == 0 ? 0 : from.length / rows.length;
        for (int p = 0; p < rows.length; p++) {
            if (rows[p] >= 0) {
                MemorySegment.copy(
                        from, p * width, into.getSegment(), ValueLayout.JAVA_FLOAT, 4L * rows[p] * width, width);
            }
        }
    }

    /** Each pair's values out of its row, zeros for a pair without one. */
    private static float[] take(FloatArray from, int[] rows, int width) {
        float[] values = new float[rows.length * width];
        for (int p = 0; p < rows.length; p++) {
            if (rows[p] >= 0) {
                MemorySegment.copy(
                        from.getSegment(), ValueLayout.JAVA_FLOAT, 4L * rows[p] * width, values, p * width, width);
            }
        }
        return values;
    }

    /** Pairs into their rows. A row starts at a whole int; what is left of its last one is 0. */
    private void pack(byte[] from, IntArray into, int rowInts, int[] rows, int cols) {
        into.getSegment().fill((byte) 0);
        for (int p = 0; p < rows.length; p++) {
            if (rows[p] >= 0) {
                for (int k = 0; k < cols; k++) {
                    into.getSegment()
                            .set(ValueLayout.JAVA_BYTE, 4L * rows[p] * rowInts + placeOf(cols, k), from[p * cols + k]);
                }
            }
        }
    }

    private byte[] unpack(IntArray from, int rowInts, int[] rows, int cols) {
        byte[] values = new byte[rows.length * cols];
        for (int p = 0; p < rows.length; p++) {
            if (rows[p] >= 0) {
                for (int k = 0; k < cols; k++) {
                    values[p * cols + k] =
                            from.getSegment().get(ValueLayout.JAVA_BYTE, 4L * rows[p] * rowInts + placeOf(cols, k));
                }
            }
        }
        return values;
    }

    private int placeOf(int cols, int k) {
        boolean blocked = arrays.shape.scheme == Int8Scheme.W8A8_BLOCK;
        int colsPerScale = blocked ? arrays.shape.quantization.colsPerScale(cols) : 0;
        return arrays.shape.gemm.placeOf(k, cols, arrays.work.header.get(1), colsPerScale);
    }
}
