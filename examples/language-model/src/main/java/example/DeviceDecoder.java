package example;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
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
 * The decoder as one TornadoVM plan: the embedding, every layer, the head and the choice of a token run on the device,
 * one after the other. Tokens go there, and the next token comes back. One sequence at a time.
 *
 * <p>A task graph holds only a few layers, because TornadoVM limits it to 8 KB and 1024 nodes. So there are several
 * graphs, and hidden states stay on the device from one to the next. If prompts are read in chunks, there is a second
 * set of graphs for single tokens, recorded as CUDA graphs, with the same experts and the same KV cache.
 */
final class DeviceDecoder implements Decoder {
    private static final int GROUP = DeviceKernels.GROUP;
    private static final int PARTS = DeviceKernels.PARTS;

    /** The scheme of the matrices outside the experts. */
    private static final Int8Scheme DENSE = Int8Scheme.W8A16_CHANNEL;

    /** A grid whose number of work-groups depends on the number of tokens. */
    private record Grid(WorkerGrid1D worker, int group, IntUnaryOperator groups) {}

    private static final class Conversation implements Sequence {
        private int length;

        @Override
        public int length() {
            return length;
        }
    }

    /** An int8 matrix in the layout of {@link DeviceKernels}: rows one after the other, four columns per int. */
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

    /**
     * All norms' gains in one array, with their offsets. Arrays use most of a graph's nodes, of which TornadoVM allows
     * 1024.
     */
    private static final class Gains {
        final FloatArray values;
        final int[] attention;
        final int[] moe;

        /** The offset of the queries' gains, followed by the keys'. */
        final int[] heads;

        final int last;

        /** The number of the queries' gains: none, one head's, or all heads'. */
        final int width;

        Gains(Model model) {
            int layers = model.sizes.layers();
            attention = new int[layers];
            moe = new int[layers];
            heads = new int[layers];
            List<float[]> all = new ArrayList<>();
            int size = 0;
            int width = 0;
            for (int i = 0; i < layers; i++) {
                attention[i] = size;
                size += add(all, model.attentionNorm(i));
                moe[i] = size;
                size += add(all, model.moeNorm(i));
                heads[i] = size;
                float[] query = model.queryNorm(i);
                if (query != null) {
                    width = query.length;
                    size += add(all, query) + add(all, model.keyNorm(i));
                }
            }
            last = size;
            size += add(all, model.norm());
            this.width = width;
            values = new FloatArray(size);
            int at = 0;
            for (float[] each : all) {
                MemorySegment.copy(MemorySegment.ofArray(each), 0, values.getSegment(), 4L * at, 4L * each.length);
                at += each.length;
            }
        }

        private static int add(List<float[]> all, float[] gains) {
            all.add(gains);
            return gains.length;
        }
    }

    /** A part's arrays beside those of the MoE layers; each array serves all layers of the part. */
    private final class Arrays {
        final int cacheOfLayer = 2 * model.sizes.kvHeads() * model.sizes.headDim() * context;
        final int inputInts = model.sizes.qkv() * (model.sizes.hidden() / 4);
        final int outputInts = model.sizes.hidden() * (model.sizes.heads() * model.sizes.headDim() / 4);
        final int rows = model.sizes.qkv() + model.sizes.hidden();
        final FloatArray cache;

        /** The weights of a single token's projections; a chunk's have the library's layout. */
        final IntArray weights;

        final FloatArray weightScales;

        Arrays(int layers) {
            cache = zeros(Math.multiplyExact(layers, cacheOfLayer));
            weights = new IntArray(Math.multiplyExact(layers, inputInts + outputInts));
            weightScales = new FloatArray(layers * rows);
        }

        void fill(int layer, Int8Tensor input, Int8Tensor output) {
            int at = layer * (inputInts + outputInts);
            copy(MemorySegment.ofArray(input.scales()), weightScales.getSegment(), layer * rows);
            copy(MemorySegment.ofArray(output.scales()), weightScales.getSegment(), layer * rows + input.rows());
            copy(input.values(), weights.getSegment(), at);
            copy(output.values(), weights.getSegment(), at + inputInts);
        }

        private void copy(MemorySegment from, MemorySegment to, int at) {
            MemorySegment.copy(from, 0, to, 4L * at, from.byteSize());
        }
    }

    /** A graph with some layers. */
    private final class Part {
        final String name;
        final Part shared;
        final TaskGraph graph;
        final MoeTasks moe;
        final IntArray header;
        final boolean single;
        final Arrays arrays;
        final List<Grid> grids = new ArrayList<>();
        int layers;
        String firstTask;

        /**
         * @param before the part that leaves hidden states on the device for this one; null for the first
         * @param shared the part that has the same layers' arrays on the device; null to send them there
         * @param layers maximum number of layers
         */
        Part(String name, FusedMoeConfig config, Part before, Part shared, boolean single, int layers) {
            this.name = name;
            arrays = shared == null ? new Arrays(layers) : shared.arrays;
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
                // TornadoVM (5.2) looks for everything that a graph consumes in whichever graph ran before, unless that
                // graph is named.
                List<String> others =
                        before == null ? List.of("chunk" + (parts - 1), "single" + (parts - 1)) : List.of(before.name);
                for (String other : others) {
                    if (!other.equals(shared.name)) {
                        graph.consumeFromDevice(other, hidden, output);
                    }
                }
            }
            there(normed, qkv, rotations, gains.values, arrays.cache);
            if (single) {
                own(attendedParts, digits, scales, arrays.weights, arrays.weightScales);
            } else {
                there(attended);
            }
        }

        /** Declares arrays that no other graph has. */
        private void own(Object... arrays) {
            graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, arrays);
        }

        /** Declares arrays that are on the device before this graph's tasks; the tasks write some of them. */
        void there(Object... arrays) {
            if (shared == null) {
                graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, arrays);
            } else {
                graph.consumeFromDevice(shared.name, arrays);
            }
        }

        /** Sets a task's number of work-groups for M tokens. */
        void grid(String task, IntUnaryOperator groups) {
            grid(task, GROUP, groups);
        }

        void grid(String task, int group, IntUnaryOperator groups) {
            WorkerGrid1D worker = new WorkerGrid1D(groups.applyAsInt(single ? 1 : maxTokens) * group);
            worker.setLocalWork(group, 1, 1);
            scheduler.addWorkerGrid(name + "." + task, worker);
            firstTask = firstTask == null ? task : firstTask;
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

        /** Appends the task that adds a layer's output and norms. */
        void norm(String task, int gainsFrom) {
            graph.task(
                    task,
                    DeviceKernels::addAndNorm,
                    new KernelContext(),
                    header,
                    hidden,
                    output,
                    gains.values,
                    gainsFrom,
                    normed,
                    model.sizes.hidden(),
                    model.sizes.epsilon());
            grid(task, DeviceKernels.WIDE, tokens -> tokens);
        }

        /** The same for {@link #project}: for the last token, as digits. */
        void normToDigits(String task, int gainsFrom) {
            graph.task(
                    task,
                    DeviceKernels::addAndNormToDigits,
                    new KernelContext(),
                    header,
                    hidden,
                    output,
                    gains.values,
                    gainsFrom,
                    digits,
                    scales,
                    model.sizes.hidden(),
                    model.sizes.epsilon());
            grid(task, DeviceKernels.WIDE, tokens -> 1);
        }

        /** Appends norms of queries and keys over all heads, if the model has them. */
        void normHeads(int number) {
            int queries = model.sizes.heads() * model.sizes.headDim();
            if (gains.width > model.sizes.headDim()) {
                normHeads("queryNorm_" + number, gains.heads[number], 0, queries);
                normHeads(
                        "keyNorm_" + number,
                        gains.heads[number] + queries,
                        queries,
                        model.sizes.kvHeads() * model.sizes.headDim());
            }
        }

        private void normHeads(String task, int gainsFrom, int from, int width) {
            graph.task(
                    task,
                    DeviceKernels::normHeads,
                    new KernelContext(),
                    header,
                    qkv,
                    gains.values,
                    gainsFrom,
                    model.sizes.qkv(),
                    from,
                    width,
                    model.sizes.epsilon());
            grid(task, tokens -> tokens);
        }

        int normsEachHead() {
            return gains.width == model.sizes.headDim() ? 1 : 0;
        }

        /** Appends a single token's projection: {@link #digits} times rows of weights from an offset in an array. */
        void project(
                String task,
                IntArray weights,
                int weightsFrom,
                FloatArray weightScales,
                int weightScalesFrom,
                FloatArray y,
                int rows,
                int cols) {
            graph.task(
                    task,
                    moe.device().lacksDp4a() == null ? DeviceKernels::project : DeviceKernels::projectPortable,
                    new KernelContext(),
                    digits,
                    scales,
                    weights,
                    weightsFrom,
                    weightScales,
                    weightScalesFrom,
                    y,
                    rows,
                    cols / 4);
            grid(task, tokens -> Math.ceilDiv(rows, DeviceKernels.ROWS));
        }

        /** Appends a single token's attention: hidden states to {@code output}. */
        void attendSingle(int number) {
            Model.Sizes sizes = model.sizes;
            String n = "_" + number;
            int weightsFrom = layers * (arrays.inputInts + arrays.outputInts);
            int width = sizes.heads() * sizes.headDim();
            normToDigits("attentionNorm" + n, gains.attention[number]);
            project(
                    "qkv" + n,
                    arrays.weights,
                    weightsFrom,
                    arrays.weightScales,
                    layers * arrays.rows,
                    qkv,
                    sizes.qkv(),
                    sizes.hidden());
            normHeads(number);
            graph.task(
                            "attend" + n,
                            DeviceKernels::attendPart,
                            new KernelContext(),
                            step,
                            qkv,
                            gains.values,
                            gains.heads[number],
                            rotations,
                            arrays.cache,
                            layers * arrays.cacheOfLayer,
                            attendedParts,
                            sizes.heads(),
                            sizes.kvHeads(),
                            sizes.headDim(),
                            context,
                            normsEachHead(),
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
            grid("attendAll" + n, tokens -> Math.ceilDiv(width / 4, GROUP));
            project(
                    "out" + n,
                    arrays.weights,
                    weightsFrom + arrays.inputInts,
                    arrays.weightScales,
                    layers * arrays.rows + sizes.qkv(),
                    output,
                    sizes.hidden(),
                    width);
        }

        /** Appends the attention of a chunk's tokens. */
        void attendChunk(int number, Int8Tensor inputWeights, Int8Tensor outputWeights) {
            Model.Sizes sizes = model.sizes;
            String n = "_" + number;
            norm("attentionNorm" + n, gains.attention[number]);
            moe.appendProduct("qkv" + n, inputWeights, DENSE, normed, qkv);
            normHeads(number);
            int share = Math.min(DeviceKernels.QUERIES, Integer.lowestOneBit(sizes.heads() / sizes.kvHeads()));
            graph.task(
                            "rotate" + n,
                            DeviceKernels::rotateHeads,
                            new KernelContext(),
                            header,
                            step,
                            qkv,
                            gains.values,
                            gains.heads[number],
                            rotations,
                            arrays.cache,
                            layers * arrays.cacheOfLayer,
                            sizes.heads(),
                            sizes.kvHeads(),
                            sizes.headDim(),
                            context,
                            normsEachHead(),
                            sizes.epsilon())
                    .task(
                            "attend" + n,
                            DeviceKernels::attend,
                            new KernelContext(),
                            header,
                            step,
                            qkv,
                            arrays.cache,
                            layers * arrays.cacheOfLayer,
                            attended,
                            sizes.heads(),
                            sizes.kvHeads(),
                            sizes.headDim(),
                            context,
                            share);
            grid("rotate" + n, tokens -> tokens * (sizes.heads() + sizes.kvHeads()));
            grid("attend" + n, tokens -> Math.ceilDiv(tokens * share, DeviceKernels.QUERIES) * (sizes.heads() / share));
            moe.appendProduct("out" + n, outputWeights, DENSE, attended, output);
        }

        void layer(int number, Int8Tensor inputWeights, Int8Tensor outputWeights, Int8Experts experts) {
            if (single) {
                arrays.fill(layers, inputWeights, outputWeights);
                attendSingle(number);
            } else {
                attendChunk(number, inputWeights, outputWeights);
            }
            norm("moeNorm_" + number, gains.moe[number]);
            if (shared == null) {
                moe.append("moe_" + number, experts, normed, output);
            } else {
                moe.appendAgain("moe_" + number, layers, experts, normed, output);
            }
            layers++;
        }

        /** Leaves the hidden states and the pending addition on the device for the next part. */
        void leave() {
            graph.persistOnDevice(hidden, output);
        }

        void head() {
            if (!single) {
                own(digits, scales);
            }
            own(places);
            normToDigits("norm", gains.last);
            there(head.values, head.scales, logits, next);
            project("head", head.values, 0, head.scales, 0, logits, head.rows, head.cols);
            graph.task("chooseParts", DeviceKernels::chooseParts, new KernelContext(), logits, places, head.rows)
                    .task("choose", DeviceKernels::choose, new KernelContext(), logits, places, next);
            grid("chooseParts", tokens -> DeviceKernels.CHOICES);
            grid("choose", tokens -> 1);
            graph.transferToHost(DataTransferMode.UNDER_DEMAND, logits)
                    .transferToHost(DataTransferMode.EVERY_EXECUTION, next);
        }
    }

    private final Model model;

    /** The number of graphs of each kind. */
    private final int parts;

    private final int maxTokens;
    private final int context;
    private final IntArray step;
    private final FloatArray hidden;
    private final FloatArray normed;
    private final FloatArray qkv;
    private final FloatArray attended;
    private final FloatArray attendedParts;

    /** The input of a single token's projections. */
    private final IntArray digits;

    private final FloatArray scales;
    private final FloatArray output;
    private final FloatArray rotations;
    private final Packed embedding;
    private final Packed head;
    private final Gains gains;
    private final FloatArray logits;
    private final IntArray places = new IntArray(DeviceKernels.CHOICES);
    private final IntArray next = new IntArray(1);
    private final Grids scheduler = new Grids();

    /** The parts for chunks of prompts (empty without chunks), then those for single tokens. */
    private final List<Part> chunks = new ArrayList<>();

    private final List<Part> singles = new ArrayList<>();
    private final TornadoExecutionPlan plan;
    private Conversation current = new Conversation();
    private TornadoExecutionResult last;

    /** The number of tokens last set in the parts. */
    private int set;

    /**
     * TornadoVM (5.2) compares the scheduler's names with each of a graph's tasks, twice per execution, until one
     * matches. With hundreds of names, many of other graphs, that takes a tenth of a millisecond.
     */
    private static final class Grids extends GridScheduler {
        /** A name of the graph that is about to run; null to show all names. */
        private String name;

        @Override
        public Set<String> keySet() {
            return name == null ? super.keySet() : Set.of(name);
        }
    }

    private static FloatArray zeros(int count) {
        FloatArray zeros = new FloatArray(count);
        zeros.init(0);
        return zeros;
    }

    /**
     * Loads a model onto a device.
     *
     * @param device TornadoVM's name, such as {@code cuda:0}; null for the best device
     * @param maxTokens number of a prompt's tokens that are computed together
     * @param context number of positions in the KV cache, at most the model's
     * @param layersAGraph layers per TornadoVM graph: at most four, or eight with the kernels for Hopper
     * @param recorded whether the graphs for single tokens are recorded as CUDA graphs, if the device supports them
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
        gains = new Gains(model);
        logits = zeros(sizes.vocabulary());
        try {
            for (int i = 0; i < sizes.layers(); i++) {
                try (Arena arena = Arena.ofShared();
                        Int8Experts experts = model.experts(i, scheme)) {
                    Int8Tensor inputWeights = quantize(model.attentionInput(i), arena);
                    Int8Tensor outputWeights = quantize(model.attentionOutput(i), arena);
                    if (i % layersAGraph == 0) {
                        FusedMoeConfig config = experts.config().toBuilder()
                                .maxNumTokens(maxTokens)
                                .device(device)
                                .build();
                        begin(i / layersAGraph, config, Math.min(layersAGraph, sizes.layers() - i));
                    }
                    if (maxTokens > 1) {
                        chunks.getLast().layer(i, inputWeights, outputWeights, experts);
                    }
                    singles.getLast().layer(i, inputWeights, outputWeights, experts);
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

    /** Makes a part for chunks, and one for single tokens. */
    private void begin(int number, FusedMoeConfig config, int layers) {
        boolean first = number == 0;
        Part chunk = null;
        if (maxTokens > 1) {
            chunk = new Part("chunk" + number, config, first ? null : chunks.getLast(), null, false, layers);
            chunks.add(chunk);
        }
        singles.add(new Part("single" + number, config, first ? null : singles.getLast(), chunk, true, layers));
        if (first && chunk != null) {
            chunk.embed();
        }
        if (first) {
            singles.getLast().embed();
        }
    }

    /**
     * Runs each part once, on a token that is overwritten later, because a part finds another part's arrays only in its
     * first execution, right after that part has run.
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
        Part part = graph < chunks.size() ? chunks.get(graph) : singles.get(graph - chunks.size());
        scheduler.name = part.name + "." + part.firstTask;
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
