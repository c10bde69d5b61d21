package example;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntUnaryOperator;
import java.util.stream.Stream;
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
 * hidden states stay on the device from one to the next. Where prompts are read in chunks, there are as many graphs
 * once more for single tokens, recorded as CUDA graphs, with the same weights and the same cache.
 */
final class DeviceDecoder implements Decoder {
    private static final int GROUP = DeviceKernels.GROUP;

    /** A grid of as many groups as a number of tokens needs. */
    private record Grid(WorkerGrid1D worker, IntUnaryOperator groups) {}

    private static final class Conversation implements Sequence {
        private int length;

        @Override
        public int length() {
            return length;
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
                MemorySegment.copy(
                        int8.values(), 0, values.getSegment(), 0, int8.values().byteSize());
                scales = FloatArray.fromArray(int8.scales());
            }
        }
    }

    /** A layer's arrays on the device, but for the MoE layer's. */
    private final class Layer {
        final FloatArray attentionNorm;
        final Packed input;
        final FloatArray queryNorm;
        final FloatArray keyNorm;
        final FloatArray keys = zeros(model.sizes.kvHeads() * model.sizes.headDim() * context);
        final FloatArray values = zeros(model.sizes.kvHeads() * model.sizes.headDim() * context);
        final Packed output;
        final FloatArray moeNorm;

        Layer(int number) {
            attentionNorm = FloatArray.fromArray(model.attentionNorm(number));
            input = new Packed(model.attentionInput(number));
            float[] norm = model.queryNorm(number);
            queryNorm = norm == null ? zeros(1) : FloatArray.fromArray(norm);
            keyNorm = norm == null ? zeros(1) : FloatArray.fromArray(model.keyNorm(number));
            output = new Packed(model.attentionOutput(number));
            moeNorm = FloatArray.fromArray(model.moeNorm(number));
        }
    }

    /** A graph of some layers. */
    private final class Part {
        final String name;
        final Part shared;
        final TaskGraph graph;
        final MoeTasks moe;
        final IntArray header;
        final boolean single;
        final List<Grid> grids = new ArrayList<>();
        int layers;

        /** Whether what the last layer gave is still to be added to the hidden states, as the next norm does. */
        boolean pending;

        /**
         * @param before the part that leaves hidden states on the device for this one; null for the first
         * @param shared the part that has the same layers' arrays on the device; null for one that sends them there
         */
        Part(String name, FusedMoeConfig config, Part before, Part shared, boolean single) {
            this.name = name;
            this.shared = shared;
            this.single = single;
            graph = new TaskGraph(name).transferToDevice(DataTransferMode.EVERY_EXECUTION, step);
            moe = shared == null ? new MoeTasks(graph, scheduler, config) : new MoeTasks(shared.moe, graph);
            header = moe.header();
            if (shared == null && before != null) {
                graph.consumeFromDevice(before.name, hidden);
            } else {
                there(hidden);
            }
            if (shared != null) {
                // TornadoVM (5.2) looks for all that is consumed in whichever graph ran before, unless that one is
                // named.
                List<String> others =
                        before == null ? List.of("chunk" + (parts - 1), "single" + (parts - 1)) : List.of(before.name);
                for (String other : others) {
                    if (!other.equals(shared.name)) {
                        graph.consumeFromDevice(other, hidden);
                    }
                }
            }
            there(normed, qkv, attended, output, rotations);
        }

        /** Arrays that are on the device before this graph's tasks, which write into some. */
        void there(Object... arrays) {
            if (shared == null) {
                graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, arrays);
            } else {
                graph.consumeFromDevice(shared.name, arrays);
            }
        }

        /** Says how many groups a task has for M tokens. */
        void grid(String task, IntUnaryOperator groups) {
            WorkerGrid1D worker = new WorkerGrid1D(groups.applyAsInt(single ? 1 : maxTokens) * GROUP);
            worker.setLocalWork(GROUP, 1, 1);
            scheduler.addWorkerGrid(name + "." + task, worker);
            grids.add(new Grid(worker, groups));
        }

        void setTokens(int tokens) {
            moe.setTokens(tokens);
            grids.forEach(grid -> grid.worker.setGlobalWork((long) grid.groups.applyAsInt(tokens) * GROUP, 1, 1));
        }

        void embed() {
            there(embedding.values, embedding.scales);
            graph.task(
                    "embed",
                    DeviceKernels::embed,
                    new KernelContext(),
                    header,
                    step,
                    embedding.values,
                    embedding.scales,
                    hidden,
                    embedding.cols,
                    embedding.ints);
            grid("embed", tokens -> Math.ceilDiv(tokens * embedding.ints, GROUP));
        }

        void norm(String task, FloatArray values, FloatArray gains, FloatArray into, int stride, int from) {
            there(gains);
            graph.task(
                    task,
                    DeviceKernels::rmsNorm,
                    new KernelContext(),
                    header,
                    values,
                    output,
                    gains,
                    into,
                    values == hidden && pending ? 1 : 0,
                    stride,
                    from,
                    gains.getSize(),
                    model.sizes.epsilon());
            grid(task, tokens -> tokens);
            pending &= values != hidden;
        }

        void project(String task, FloatArray x, Packed w, FloatArray y, boolean adding, boolean last) {
            there(w.values, w.scales);
            if (!single && !last) {
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

        void layer(int number, Layer layer, Int8Experts experts) {
            String n = "_" + number;
            int d = model.sizes.headDim();
            int width = model.sizes.qkv();
            norm("attentionNorm" + n, hidden, layer.attentionNorm, normed, model.sizes.hidden(), 0);
            project("qkv" + n, normed, layer.input, qkv, false, false);
            boolean ofHeads = layer.queryNorm.getSize() == d;
            if (layer.queryNorm.getSize() > d) {
                norm("queryNorm" + n, qkv, layer.queryNorm, qkv, width, 0);
                norm("keyNorm" + n, qkv, layer.keyNorm, qkv, width, model.sizes.heads() * d);
            } else {
                there(layer.queryNorm, layer.keyNorm);
            }
            there(layer.keys, layer.values);
            graph.task(
                    "rotate" + n,
                    DeviceKernels::rotateHeads,
                    new KernelContext(),
                    header,
                    step,
                    qkv,
                    layer.queryNorm,
                    layer.keyNorm,
                    rotations,
                    layer.keys,
                    layer.values,
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
                    layer.keys,
                    layer.values,
                    attended,
                    model.sizes.heads(),
                    model.sizes.kvHeads(),
                    d,
                    context);
            grid("attend" + n, tokens -> tokens * model.sizes.heads());
            project("out" + n, attended, layer.output, hidden, true, false);
            norm("moeNorm" + n, hidden, layer.moeNorm, normed, model.sizes.hidden(), 0);
            if (shared == null) {
                moe.append("moe" + n, experts, normed, output);
            } else {
                moe.appendAgain("moe" + n, layers, experts, normed, output);
            }
            layers++;
            pending = true;
        }

        /** Leaves hidden states on the device for the next part. */
        void leave() {
            graph.task("add", DeviceKernels::add, new KernelContext(), header, output, hidden, model.sizes.hidden());
            grid("add", tokens -> Math.ceilDiv(tokens * model.sizes.hidden(), GROUP));
            graph.persistOnDevice(hidden);
        }

        void head() {
            norm("norm", hidden, lastNorm, normed, model.sizes.hidden(), 0);
            there(logits, next);
            project("head", normed, head, logits, false, true);
            graph.task("choose", DeviceKernels::choose, new KernelContext(), logits, next, head.rows);
            grid("choose", tokens -> 1);
            graph.transferToHost(DataTransferMode.UNDER_DEMAND, logits)
                    .transferToHost(DataTransferMode.EVERY_EXECUTION, next);
        }
    }

    private final Model model;

    /** Graphs of either kind. */
    private final int parts;

    private final int maxTokens;
    private final int context;
    private final IntArray step;
    private final FloatArray hidden;
    private final FloatArray normed;
    private final FloatArray qkv;
    private final FloatArray attended;
    private final FloatArray output;
    private final FloatArray rotations;
    private final Packed embedding;
    private final Packed head;
    private final FloatArray lastNorm;
    private final FloatArray logits;
    private final IntArray next = new IntArray(1);
    private final GridScheduler scheduler = new GridScheduler();

    /** For chunks of prompts, empty where there are none; then for single tokens. */
    private final List<Part> chunks = new ArrayList<>();

    private final List<Part> singles = new ArrayList<>();
    private final TornadoExecutionPlan plan;
    private Conversation current = new Conversation();
    private TornadoExecutionResult last;

    private static FloatArray zeros(int count) {
        FloatArray zeros = new FloatArray(count);
        zeros.init(0);
        return zeros;
    }

    /**
     * Brings a model to a device.
     *
     * @param device TornadoVM's, such as {@code cuda:0}; null for the best there is
     * @param maxTokens of a prompt that are computed together
     * @param context positions, at most the model's, that the cache has room for
     * @param layersAGraph as many as TornadoVM's graphs take: four, or ten of the kernels for Hopper
     * @param recorded whether what single tokens run is recorded as CUDA graphs, where the device has them
     */
    DeviceDecoder(
            Model model,
            String device,
            Int8Scheme scheme,
            int maxTokens,
            int context,
            int layersAGraph,
            boolean recorded) {
        Model.Sizes sizes = model.sizes;
        this.model = model;
        this.maxTokens = maxTokens;
        this.context = Math.min(context, sizes.context());
        parts = Math.ceilDiv(sizes.layers(), layersAGraph);
        if (GROUP % sizes.headDim() != 0 || sizes.headDim() % 8 != 0) {
            throw new IllegalArgumentException(
                    "head_dim: expected a multiple of 8 that divides " + GROUP + ", got " + sizes.headDim());
        }
        step = new IntArray(1 + maxTokens);
        step.init(0);
        next.init(0);
        hidden = zeros(maxTokens * sizes.hidden());
        normed = zeros(maxTokens * sizes.hidden());
        qkv = zeros(maxTokens * sizes.qkv());
        attended = zeros(maxTokens * sizes.heads() * sizes.headDim());
        output = zeros(maxTokens * sizes.hidden());
        rotations = new FloatArray(this.context * sizes.headDim());
        for (int p = 0; p < this.context; p++) {
            float[] rotation = model.rotation(p);
            MemorySegment.copy(
                    MemorySegment.ofArray(rotation),
                    0,
                    rotations.getSegment(),
                    4L * p * rotation.length,
                    4L * rotation.length);
        }
        embedding = new Packed(model.embedding());
        head = model.head() == null ? embedding : new Packed(model.head());
        lastNorm = FloatArray.fromArray(model.norm());
        logits = zeros(sizes.vocabulary());
        try {
            for (int i = 0; i < sizes.layers(); i++) {
                Layer layer = new Layer(i);
                try (Int8Experts experts = model.experts(i, scheme)) {
                    if (i % layersAGraph == 0) {
                        FusedMoeConfig config = experts.config().toBuilder()
                                .maxNumTokens(maxTokens)
                                .device(device)
                                .build();
                        begin(i / layersAGraph, config);
                    }
                    if (maxTokens > 1) {
                        chunks.getLast().layer(i, layer, experts);
                    }
                    singles.getLast().layer(i, layer, experts);
                }
            }
            model.requireUnchanged();
            List<Part> all = Stream.concat(chunks.stream(), singles.stream()).toList();
            for (Part part : all) {
                if (part == singles.getLast() || (maxTokens > 1 && part == chunks.getLast())) {
                    part.head();
                } else {
                    part.leave();
                }
            }
            plan = new TornadoExecutionPlan(
                    all.stream().map(part -> part.graph.snapshot()).toArray(ImmutableTaskGraph[]::new));
            MoeTasks first = all.getFirst().moe;
            first.launchOn(plan);
            if (recorded && first.device().id().startsWith("cuda")) {
                for (int i = chunks.size(); i < all.size(); i++) {
                    plan.withGraph(i);
                    plan.withCUDAGraph();
                }
            }
            link();
        } catch (Throwable failure) {
            Cleanup.after(failure, this::close);
            throw failure;
        }
    }

    /** A part for chunks, and one for single tokens. */
    private void begin(int number, FusedMoeConfig config) {
        boolean first = number == 0;
        Part chunk = null;
        if (maxTokens > 1) {
            chunk = new Part("chunk" + number, config, first ? null : chunks.getLast(), null, false);
            chunks.add(chunk);
        }
        singles.add(new Part("single" + number, config, first ? null : singles.getLast(), chunk, true));
        if (first && chunk != null) {
            chunk.embed();
        }
        if (first) {
            singles.getLast().embed();
        }
    }

    /**
     * Runs each part once, on a token that is written over later: a part finds arrays of another's in its first
     * execution, and in that of the part that ran before it.
     */
    private void link() {
        chunks.forEach(part -> part.setTokens(1));
        singles.forEach(part -> part.setTokens(1));
        for (int i = 0; i < singles.size(); i++) {
            if (maxTokens > 1) {
                if (i > 0) {
                    execute(i - 1);
                }
                execute(i);
            }
            execute(chunks.size() + i);
        }
    }

    private void execute(int graph) {
        plan.withGraph(graph);
        last = (chunks.isEmpty() ? singles : chunks).getFirst().moe.execute(plan);
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
            throw new IllegalArgumentException(
                    "tokens: expected at most " + context + " in a sequence, got " + (current.length + tokens.length));
        }
        for (int from = 0; from < tokens.length; from += maxTokens) {
            int count = Math.min(maxTokens, tokens.length - from);
            step.set(0, current.length);
            for (int i = 0; i < count; i++) {
                step.set(1 + i, tokens[from + i]);
            }
            boolean chunk = count > 1;
            (chunk ? chunks : singles).forEach(part -> part.setTokens(count));
            for (int i = 0; i < parts; i++) {
                execute(chunk ? i : chunks.size() + i);
            }
            current.length += count;
        }
    }

    @Override
    public String kernels() {
        MoeTasks first = singles.getFirst().moe;
        return first.kernels() + " on " + first.device();
    }

    @Override
    public void close() {
        Cleanup.all(
                () -> Cleanup.each(chunks, part -> part.moe.close()),
                () -> Cleanup.each(singles, part -> part.moe.close()));
    }
}
