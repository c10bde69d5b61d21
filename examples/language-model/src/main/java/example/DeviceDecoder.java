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
    private static final int PARTS = DeviceKernels.PARTS;

    /** What the matrices outside of the experts are quantised in. */
    private static final Int8Scheme DENSE = Int8Scheme.W8A16_CHANNEL;

    /** A grid of as many groups as a number of tokens needs. */
    private record Grid(WorkerGrid1D worker, int group, IntUnaryOperator groups) {}

    private static final class Conversation implements Sequence {
        private int length;

        @Override
        public int length() {
            return length;
        }
    }

    /** A matrix in int8 as {@link DeviceKernels} reads it: rows one after the other, four columns an int. */
    private static final class Packed {
        final int rows;
        final int cols;
        final int ints;
        final IntArray values;
        final FloatArray scales;

        static Packed of(WeightRows rows) {
            try (Arena arena = Arena.ofShared()) {
                return new Packed(quantize(rows, arena));
            }
        }

        Packed(Int8Tensor of) {
            rows = of.rows();
            cols = of.cols();
            ints = of.rowBytes() / 4;
            values = new IntArray(Math.multiplyExact(rows, ints));
            MemorySegment.copy(
                    of.values(), 0, values.getSegment(), 0, of.values().byteSize());
            scales = FloatArray.fromArray(of.scales());
        }
    }

    private static Int8Tensor quantize(WeightRows of, Arena arena) {
        if (of.cols() % 16 != 0) {
            throw new IllegalArgumentException(of.source() + ": expected a multiple of 16 columns, got " + of.cols());
        }
        return Int8Quantizer.quantize(of, Int8Quantization.of(DENSE), arena);
    }

    /** A layer's arrays on the device, but for the MoE layer's and the matrices, whose memory is here until closed. */
    private final class Layer implements AutoCloseable {
        private final Arena arena = Arena.ofShared();
        final FloatArray attentionNorm;
        final Int8Tensor input;
        final FloatArray queryNorm;
        final FloatArray keyNorm;
        final FloatArray keys = zeros(model.sizes.kvHeads() * model.sizes.headDim() * context);
        final FloatArray values = zeros(model.sizes.kvHeads() * model.sizes.headDim() * context);
        final Int8Tensor output;
        final FloatArray moeNorm;
        final Packed ownInput;
        final Packed ownOutput;

        Layer(int number) {
            attentionNorm = FloatArray.fromArray(model.attentionNorm(number));
            input = quantize(model.attentionInput(number), arena);
            float[] norm = model.queryNorm(number);
            queryNorm = norm == null ? zeros(1) : FloatArray.fromArray(norm);
            keyNorm = norm == null ? zeros(1) : FloatArray.fromArray(model.keyNorm(number));
            output = quantize(model.attentionOutput(number), arena);
            moeNorm = FloatArray.fromArray(model.moeNorm(number));
            ownInput = new Packed(input);
            ownOutput = new Packed(output);
        }

        @Override
        public void close() {
            arena.close();
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
                graph.consumeFromDevice(before.name, hidden, output);
            } else {
                there(hidden, output);
            }
            if (shared != null) {
                // TornadoVM (5.2) looks for all that is consumed in whichever graph ran before, unless that one is
                // named.
                List<String> others =
                        before == null ? List.of("chunk" + (parts - 1), "single" + (parts - 1)) : List.of(before.name);
                for (String other : others) {
                    if (!other.equals(shared.name)) {
                        graph.consumeFromDevice(other, hidden, output);
                    }
                }
            }
            there(normed, qkv, rotations);
            if (single) {
                own(attendedParts, digits, scales);
            } else {
                there(attended);
            }
        }

        /** Arrays that no other graph has. */
        private void own(Object... arrays) {
            graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, arrays);
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
            grid(task, GROUP, groups);
        }

        void grid(String task, int group, IntUnaryOperator groups) {
            WorkerGrid1D worker = new WorkerGrid1D(groups.applyAsInt(single ? 1 : maxTokens) * group);
            worker.setLocalWork(group, 1, 1);
            scheduler.addWorkerGrid(name + "." + task, worker);
            grids.add(new Grid(worker, group, groups));
        }

        void setTokens(int tokens) {
            moe.setTokens(tokens);
            grids.forEach(grid -> grid.worker.setGlobalWork((long) grid.groups.applyAsInt(tokens) * grid.group, 1, 1));
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
                    output,
                    embedding.cols,
                    embedding.ints);
            grid("embed", tokens -> Math.ceilDiv(tokens * embedding.ints, GROUP));
        }

        /** Adds what a layer gave, and norms. */
        void norm(String task, FloatArray gains) {
            there(gains);
            graph.task(
                    task,
                    DeviceKernels::addAndNorm,
                    new KernelContext(),
                    header,
                    hidden,
                    output,
                    gains,
                    normed,
                    model.sizes.hidden(),
                    model.sizes.epsilon());
            grid(task, DeviceKernels.WIDE, tokens -> tokens);
        }

        /** The same for {@link #project}: of the last token. */
        void normToDigits(String task, FloatArray gains) {
            there(gains);
            graph.task(
                    task,
                    DeviceKernels::addAndNormToDigits,
                    new KernelContext(),
                    header,
                    hidden,
                    output,
                    gains,
                    digits,
                    scales,
                    model.sizes.hidden(),
                    model.sizes.epsilon());
            grid(task, DeviceKernels.WIDE, tokens -> 1);
        }

        void normHeads(String task, FloatArray gains, int from) {
            there(gains);
            graph.task(
                    task,
                    DeviceKernels::normHeads,
                    new KernelContext(),
                    header,
                    qkv,
                    gains,
                    model.sizes.qkv(),
                    from,
                    gains.getSize(),
                    model.sizes.epsilon());
            grid(task, tokens -> tokens);
        }

        void project(String task, Packed w, FloatArray y) {
            graph.task(
                    task,
                    moe.device().lacksDp4a() == null ? DeviceKernels::project : DeviceKernels::projectPortable,
                    new KernelContext(),
                    digits,
                    scales,
                    w.values,
                    w.scales,
                    y,
                    w.rows,
                    w.ints);
            grid(task, tokens -> Math.ceilDiv(w.rows, DeviceKernels.ROWS));
        }

        /** Norms of queries and keys over all heads, where a model has those. */
        void normHeads(String n, Layer layer) {
            int d = model.sizes.headDim();
            if (layer.queryNorm.getSize() > d) {
                normHeads("queryNorm" + n, layer.queryNorm, 0);
                normHeads("keyNorm" + n, layer.keyNorm, model.sizes.heads() * d);
            } else {
                there(layer.queryNorm, layer.keyNorm);
            }
        }

        int normsEachHead(Layer layer) {
            return layer.queryNorm.getSize() == model.sizes.headDim() ? 1 : 0;
        }

        /** A token: hidden states to {@code output}. */
        void attendSingle(String n, Layer layer) {
            Model.Sizes sizes = model.sizes;
            normToDigits("attentionNorm" + n, layer.attentionNorm);
            own(layer.ownInput.values, layer.ownInput.scales, layer.ownOutput.values, layer.ownOutput.scales);
            project("qkv" + n, layer.ownInput, qkv);
            normHeads(n, layer);
            there(layer.keys, layer.values);
            graph.task(
                            "attend" + n,
                            DeviceKernels::attendPart,
                            new KernelContext(),
                            step,
                            qkv,
                            layer.queryNorm,
                            layer.keyNorm,
                            rotations,
                            layer.keys,
                            layer.values,
                            attendedParts,
                            sizes.heads(),
                            sizes.kvHeads(),
                            sizes.headDim(),
                            context,
                            normsEachHead(layer),
                            sizes.epsilon())
                    .task(
                            "attendAll" + n,
                            DeviceKernels::attendAll,
                            new KernelContext(),
                            attendedParts,
                            digits,
                            scales,
                            sizes.heads(),
                            sizes.headDim());
            grid("attend" + n, tokens -> sizes.heads() * PARTS);
            grid("attendAll" + n, tokens -> Math.ceilDiv(layer.ownOutput.ints, GROUP));
            project("out" + n, layer.ownOutput, output);
        }

        /** A chunk's tokens. */
        void attendChunk(String n, Layer layer) {
            Model.Sizes sizes = model.sizes;
            norm("attentionNorm" + n, layer.attentionNorm);
            moe.appendProduct("qkv" + n, layer.input, DENSE, normed, qkv);
            normHeads(n, layer);
            there(layer.keys, layer.values);
            int share = Math.min(DeviceKernels.QUERIES, Integer.lowestOneBit(sizes.heads() / sizes.kvHeads()));
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
                            sizes.heads(),
                            sizes.kvHeads(),
                            sizes.headDim(),
                            context,
                            normsEachHead(layer),
                            sizes.epsilon())
                    .task(
                            "attend" + n,
                            DeviceKernels::attend,
                            new KernelContext(),
                            header,
                            step,
                            qkv,
                            layer.keys,
                            layer.values,
                            attended,
                            sizes.heads(),
                            sizes.kvHeads(),
                            sizes.headDim(),
                            context,
                            share);
            grid("rotate" + n, tokens -> tokens * (sizes.heads() + sizes.kvHeads()));
            grid("attend" + n, tokens -> Math.ceilDiv(tokens * share, DeviceKernels.QUERIES) * (sizes.heads() / share));
            moe.appendProduct("out" + n, layer.output, DENSE, attended, output);
        }

        void layer(int number, Layer layer, Int8Experts experts) {
            String n = "_" + number;
            if (single) {
                attendSingle(n, layer);
            } else {
                attendChunk(n, layer);
            }
            norm("moeNorm" + n, layer.moeNorm);
            if (shared == null) {
                moe.append("moe" + n, experts, normed, output);
            } else {
                moe.appendAgain("moe" + n, layers, experts, normed, output);
            }
            layers++;
        }

        /** Leaves hidden states, and what is to be added to them, on the device for the next part. */
        void leave() {
            graph.persistOnDevice(hidden, output);
        }

        void head() {
            if (!single) {
                own(digits, scales);
            }
            own(places);
            normToDigits("norm", lastNorm);
            there(head.values, head.scales, logits, next);
            project("head", head, logits);
            graph.task("chooseParts", DeviceKernels::chooseParts, new KernelContext(), logits, places, head.rows)
                    .task("choose", DeviceKernels::choose, new KernelContext(), logits, places, next);
            grid("chooseParts", tokens -> DeviceKernels.CHOICES);
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
    private final FloatArray attendedParts;

    /** What a token's projections multiply. */
    private final IntArray digits;

    private final FloatArray scales;
    private final FloatArray output;
    private final FloatArray rotations;
    private final Packed embedding;
    private final Packed head;
    private final FloatArray lastNorm;
    private final FloatArray logits;
    private final IntArray places = new IntArray(DeviceKernels.CHOICES);
    private final IntArray next = new IntArray(1);
    private final GridScheduler scheduler = new GridScheduler();

    /** For chunks of prompts, empty where there are none; then for single tokens. */
    private final List<Part> chunks = new ArrayList<>();

    private final List<Part> singles = new ArrayList<>();
    private final TornadoExecutionPlan plan;
    private Conversation current = new Conversation();
    private TornadoExecutionResult last;

    /** Tokens that the parts were told of last. */
    private int set;

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
        attendedParts = zeros(sizes.heads() * PARTS * (sizes.headDim() + 2));
        int ints = Math.max(sizes.hidden(), sizes.heads() * sizes.headDim()) / 4;
        digits = new IntArray(3 * ints);
        digits.init(0);
        scales = zeros(Math.ceilDiv(ints, GROUP));
        places.init(0);
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
        embedding = Packed.of(model.embedding());
        head = model.head() == null ? embedding : Packed.of(model.head());
        lastNorm = FloatArray.fromArray(model.norm());
        logits = zeros(sizes.vocabulary());
        try {
            for (int i = 0; i < sizes.layers(); i++) {
                try (Layer layer = new Layer(i);
                        Int8Experts experts = model.experts(i, scheme)) {
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
            if (count != set) {
                (chunk ? chunks : singles).forEach(part -> part.setTokens(count));
                set = count;
            }
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
