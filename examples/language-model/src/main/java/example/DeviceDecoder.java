package example;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.IntUnaryOperator;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.WeightRows;
import org.tornadomoe.tornado.MoeTasks;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.ImmutableTaskGraph;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The decoder as one plan of TornadoVM's: the embedding, every layer, the head and the choice of a token run on the
 * device, one after the other; tokens go there, and the next comes back. One sequence at a time.
 *
 * <p>A task graph takes a few layers only, since TornadoVM has 8 KB for what it is made of. So there are several, and
 * hidden states stay on the device from one to the next. With one token a step they are recorded as CUDA graphs.
 */
final class DeviceDecoder implements Decoder {
    private static final int GROUP = DeviceKernels.GROUP;

    /** A grid of as many groups as a number of tokens needs. */
    private record Grid(WorkerGrid1D worker, IntUnaryOperator groups) {}

    private final class Conversation implements Sequence {
        private int length;

        @Override
        public int length() {
            return length;
        }
    }

    private final Model model;
    private final int maxTokens;
    private final int context;
    private final IntArray step;
    private final FloatArray hidden;
    private final FloatArray logits;
    private final IntArray next = new IntArray(1);
    private final GridScheduler scheduler = new GridScheduler();
    private final List<Grid> grids = new ArrayList<>();
    private final List<MoeTasks> moe = new ArrayList<>();
    private final TornadoExecutionPlan plan;
    private final int graphs;
    private Conversation current = new Conversation();
    private TornadoExecutionResult last;

    /** A graph that is being built; its first argument everywhere is the header. */
    private final class Part {
        final String name;
        final TaskGraph graph;
        final MoeTasks moe;
        final IntArray header;
        final FloatArray normed = zeros(maxTokens * model.sizes.hidden());
        final FloatArray qkv = zeros(maxTokens * model.sizes.qkv());
        final FloatArray attended = zeros(maxTokens * model.sizes.heads() * model.sizes.headDim());
        final FloatArray output = zeros(maxTokens * model.sizes.hidden());
        final FloatArray rotations = new FloatArray(context * model.sizes.headDim());

        Part(int number, FusedMoeConfig config) {
            name = "part" + number;
            graph = new TaskGraph(name);
            for (int p = 0; p < context; p++) {
                float[] rotation = model.rotation(p);
                for (int i = 0; i < rotation.length; i++) {
                    rotations.set(p * rotation.length + i, rotation[i]);
                }
            }
            graph.transferToDevice(DataTransferMode.EVERY_EXECUTION, step);
            if (number == 0) {
                once(hidden);
            } else {
                graph.consumeFromDevice("part" + (number - 1), hidden);
            }
            once(normed, qkv, attended, output, rotations);
            moe = new MoeTasks(graph, scheduler, config);
            header = moe.header();
        }

        void once(Object... arrays) {
            graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, arrays);
        }

        /** Says how many groups a task has for M tokens. */
        void grid(String task, IntUnaryOperator groups) {
            WorkerGrid1D worker = new WorkerGrid1D(groups.applyAsInt(maxTokens) * GROUP);
            worker.setLocalWork(GROUP, 1, 1);
            scheduler.addWorkerGrid(name + "." + task, worker);
            grids.add(new Grid(worker, groups));
        }

        void norm(String task, FloatArray values, FloatArray into, float[] gains, int perToken, int stride, int from) {
            FloatArray on = FloatArray.fromArray(gains);
            once(on);
            graph.task(
                    task,
                    DeviceKernels::rmsNorm,
                    new KernelContext(),
                    header,
                    values,
                    output,
                    on,
                    into,
                    0,
                    perToken,
                    stride,
                    from,
                    gains.length,
                    model.sizes.epsilon());
            grid(task, tokens -> tokens * perToken);
        }

        void project(String task, FloatArray x, Packed w, FloatArray y, boolean adding, boolean last) {
            once(w.values, w.scales);
            if (maxTokens > 1 && !last) {
                graph.task(
                        task,
                        DeviceKernels::projectTile,
                        new KernelContext(),
                        header,
                        x,
                        w.values,
                        w.scales,
                        y,
                        w.rows,
                        w.cols,
                        w.ints,
                        adding ? 1 : 0);
                int tile = DeviceKernels.TILE;
                grid(task, tokens -> Math.ceilDiv(tokens, tile) * Math.ceilDiv(w.rows, tile));
                return;
            }
            graph.task(
                    task,
                    DeviceKernels::project,
                    new KernelContext(),
                    header,
                    x,
                    w.values,
                    w.scales,
                    y,
                    w.rows,
                    w.cols,
                    w.ints,
                    adding ? 1 : 0,
                    last ? 1 : 0);
            int groups = Math.ceilDiv(w.rows, GROUP / DeviceKernels.LANES);
            grid(task, tokens -> last ? groups : tokens * groups);
        }

        void layer(int number, Int8Experts experts) {
            String n = "_" + number;
            int d = model.sizes.headDim();
            int qkvWidth = model.sizes.qkv();
            norm("attentionNorm" + n, hidden, normed, model.attentionNorm(number), 1, model.sizes.hidden(), 0);
            project("qkv" + n, normed, new Packed(model.attentionInput(number)), qkv, false, false);
            float[] queryNorm = model.queryNorm(number);
            boolean ofHeads = queryNorm != null && queryNorm.length == d;
            if (queryNorm != null && !ofHeads) {
                norm("queryNorm" + n, qkv, qkv, queryNorm, 1, qkvWidth, 0);
                norm("keyNorm" + n, qkv, qkv, model.keyNorm(number), 1, qkvWidth, model.sizes.heads() * d);
            }
            FloatArray queryGains = ofHeads ? FloatArray.fromArray(queryNorm) : zeros(1);
            FloatArray keyGains = ofHeads ? FloatArray.fromArray(model.keyNorm(number)) : zeros(1);
            FloatArray keys = zeros(model.sizes.kvHeads() * d * context);
            FloatArray values = zeros(model.sizes.kvHeads() * d * context);
            once(queryGains, keyGains, keys, values);
            graph.task(
                    "rotate" + n,
                    DeviceKernels::rotateHeads,
                    new KernelContext(),
                    header,
                    step,
                    qkv,
                    queryGains,
                    keyGains,
                    rotations,
                    keys,
                    values,
                    model.sizes.heads(),
                    model.sizes.kvHeads(),
                    d,
                    context,
                    ofHeads ? 1 : 0,
                    model.sizes.epsilon());
            grid("rotate" + n, tokens -> tokens * (model.sizes.heads() + model.sizes.kvHeads()));
            graph.task(
                    "attend" + n,
                    DeviceKernels::attend,
                    new KernelContext(),
                    header,
                    step,
                    qkv,
                    keys,
                    values,
                    attended,
                    model.sizes.heads(),
                    model.sizes.kvHeads(),
                    d,
                    context);
            grid("attend" + n, tokens -> tokens * model.sizes.heads());
            project("out" + n, attended, new Packed(model.attentionOutput(number)), hidden, true, false);
            norm("moeNorm" + n, hidden, normed, model.moeNorm(number), 1, model.sizes.hidden(), 0);
            moe.append("moe" + n, experts, normed, output);
            graph.task("add" + n, DeviceKernels::add, new KernelContext(), header, output, hidden, model.sizes.hidden());
            grid("add" + n, tokens -> Math.ceilDiv(tokens * model.sizes.hidden(), GROUP));
        }
    }

    /** A matrix in int8 as the kernels read it: rows one after the other, each of whole ints. */
    private static final class Packed {
        final int rows;
        final int cols;
        final int ints;
        final IntArray values;
        final FloatArray scales;

        Packed(WeightRows of) {
            rows = of.rows();
            cols = of.cols();
            if (cols % 16 != 0) {
                throw new IllegalArgumentException(of.source() + ": expected a multiple of 16 columns, got " + cols);
            }
            try (Arena arena = Arena.ofShared()) {
                Int8Tensor int8 = Int8Quantizer.quantize(of, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), arena);
                ints = int8.rowBytes() / 4;
                values = new IntArray(Math.multiplyExact(rows, ints));
                MemorySegment.copy(int8.values(), 0, values.getSegment(), 0, int8.values().byteSize());
                scales = FloatArray.fromArray(int8.scales());
            }
        }
    }

    private static FloatArray zeros(int count) {
        FloatArray zeros = new FloatArray(count);
        zeros.init(0);
        return zeros;
    }

    /**
     * Brings a model to a device.
     *
     * @param device TornadoVM's, such as {@code cuda:0}; null for the best there is
     * @param maxTokens of a step
     * @param context positions, at most the model's, that the cache has room for
     * @param layersAGraph as many as TornadoVM's graphs take: four, or ten of the kernels for Hopper
     * @param recorded as CUDA graphs, where the device has them and a step is one token
     */
    DeviceDecoder(
            Model model,
            String device,
            Int8Scheme scheme,
            int maxTokens,
            int context,
            int layersAGraph,
            boolean recorded) {
        this.model = model;
        this.maxTokens = maxTokens;
        this.context = Math.min(context, model.sizes.context());
        if (GROUP % model.sizes.headDim() != 0) {
            throw new IllegalArgumentException("head_dim: expected one that divides " + GROUP + ", got " + model.sizes.headDim());
        }
        step = new IntArray(1 + maxTokens);
        step.init(0);
        hidden = zeros(maxTokens * model.sizes.hidden());
        logits = zeros(model.sizes.vocabulary());
        next.init(0);
        List<ImmutableTaskGraph> built = new ArrayList<>();
        try {
            Packed embedding = new Packed(model.embedding());
            Part part = null;
            for (int i = 0; i < model.sizes.layers(); i++) {
                try (Int8Experts experts = model.experts(i, scheme)) {
                    if (i % layersAGraph == 0) {
                        FusedMoeConfig.Builder config = experts.config().toBuilder();
                        part = new Part(
                                i / layersAGraph,
                                config.maxNumTokens(maxTokens).device(device).build());
                        moe.add(part.moe);
                        if (i == 0) {
                            embed(part, embedding);
                        }
                    }
                    part.layer(i, experts);
                }
                if ((i + 1) % layersAGraph == 0 && i + 1 < model.sizes.layers()) {
                    part.graph.persistOnDevice(hidden);
                    built.add(part.graph.snapshot());
                }
            }
            model.requireUnchanged();
            part.norm("norm", hidden, part.normed, model.norm(), 1, model.sizes.hidden(), 0);
            Packed head = model.head() == null ? embedding : new Packed(model.head());
            part.once(logits, next);
            part.project("head", part.normed, head, logits, false, true);
            part.graph.task("choose", DeviceKernels::choose, new KernelContext(), logits, next, model.sizes.vocabulary());
            part.grid("choose", tokens -> 1);
            part.graph
                    .transferToHost(DataTransferMode.UNDER_DEMAND, logits)
                    .transferToHost(DataTransferMode.EVERY_EXECUTION, next);
            built.add(part.graph.snapshot());
            graphs = built.size();
            plan = new TornadoExecutionPlan(built.toArray(ImmutableTaskGraph[]::new));
            moe.getFirst().launchOn(plan);
            if (recorded && maxTokens == 1 && moe.getFirst().device().id().startsWith("cuda")) {
                plan.withCUDAGraph();
            }
        } catch (Throwable failure) {
            Cleanup.after(failure, this::close);
            throw failure;
        }
    }

    private void embed(Part part, Packed embedding) {
        part.once(embedding.values, embedding.scales);
        part.graph.task(
                "embed",
                DeviceKernels::embed,
                new KernelContext(),
                part.header,
                step,
                embedding.values,
                embedding.scales,
                hidden,
                embedding.cols,
                embedding.ints);
        part.grid("embed", tokens -> Math.ceilDiv(tokens * embedding.ints, GROUP));
    }

    @Override
    public Sequence start() {
        current = new Conversation();
        return current;
    }

    @Override
    public float[] append(Sequence sequence, int... tokens) {
        run(sequence, tokens);
        last.transferToHost(logits);
        return logits.toHeapArray();
    }

    @Override
    public int appendGreedily(Sequence sequence, int token) {
        run(sequence, token);
        return next.get(0);
    }

    private void run(Sequence sequence, int... tokens) {
        if (sequence != current) {
            throw new IllegalStateException("sequence: expected the one that was started last");
        }
        if (current.length + tokens.length > context) {
            throw new IllegalArgumentException("tokens: expected at most " + context + " in a sequence, got "
                    + (current.length + tokens.length));
        }
        for (int from = 0; from < tokens.length; from += maxTokens) {
            int count = Math.min(maxTokens, tokens.length - from);
            step.set(0, current.length);
            for (int i = 0; i < count; i++) {
                step.set(1 + i, tokens[from + i]);
            }
            moe.forEach(each -> each.setTokens(count));
            grids.forEach(grid -> grid.worker.setGlobalWork((long) grid.groups.applyAsInt(count) * GROUP, 1, 1));
            for (int i = 0; i < graphs; i++) {
                plan.withGraph(i);
                last = moe.getFirst().execute(plan);
            }
            current.length += count;
        }
    }

    @Override
    public String kernels() {
        return moe.getFirst().kernels() + " on " + moe.getFirst().device();
    }

    @Override
    public void close() {
        Cleanup.each(moe, MoeTasks::close);
    }
}
