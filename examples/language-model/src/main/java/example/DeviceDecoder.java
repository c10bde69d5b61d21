package example;

import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.stream.Stream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.MoeTasks;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.ImmutableTaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;

/**
 * The decoder as one TornadoVM plan: the embedding, every layer, the head and the choice of a token run on the device,
 * one after the other. Tokens go there, and the next token comes back. One sequence at a time.
 *
 * <p>A task graph holds only a few layers, because TornadoVM limits it to 8 KB and 1024 nodes. So there are several
 * graphs, and hidden states stay on the device from one to the next. If prompts are read in chunks, there is a second
 * set of graphs for single tokens, recorded as CUDA graphs, with the same experts and the same KV cache.
 */
final class DeviceDecoder implements Decoder {
    private static final class Conversation implements Sequence {
        private int length;

        @Override
        public int length() {
            return length;
        }
    }

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

    private final Model.Sizes sizes;
    private final int maxTokens;
    private final int context;
    private final DeviceArrays on;
    private final Grids scheduler = new Grids();

    /** The graphs for chunks of prompts (empty without chunks), then those for single tokens. */
    private final List<DeviceGraph> chunks = new ArrayList<>();

    private final List<DeviceGraph> singles = new ArrayList<>();
    private final TornadoExecutionPlan plan;
    private Conversation current = new Conversation();
    private TornadoExecutionResult last;

    /** The number of tokens last set in the graphs. */
    private int set;

    /**
     * Loads a model onto a device.
     *
     * @param device TornadoVM's name, such as {@code cuda:0}; null for the best device
     * @param maxTokens number of a prompt's tokens that are computed together
     * @param context number of positions in the KV cache, at most the model's
     * @param layersAGraph layers per TornadoVM graph: at most four, or with the kernels for Hopper twelve of Qwen3
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
        sizes = model.sizes;
        this.maxTokens = maxTokens;
        this.context = Math.min(context, sizes.context());
        int d = sizes.headDim();
        if (AttentionKernels.WIDEST % d != 0 || d % 8 != 0) {
            throw new IllegalArgumentException(
                    "head_dim: expected a multiple of 8 that divides " + AttentionKernels.WIDEST + ", got " + d);
        }
        on = new DeviceArrays(model, maxTokens, this.context);
        try {
            for (int i = 0; i < sizes.layers(); i++) {
                try (Arena arena = Arena.ofShared();
                        Int8Experts experts = model.experts(i, scheme)) {
                    Int8Tensor inputWeights = DeviceArrays.quantize(model.attentionInput(i), arena);
                    Int8Tensor outputWeights = DeviceArrays.quantize(model.attentionOutput(i), arena);
                    if (i % layersAGraph == 0) {
                        FusedMoeConfig config = experts.config().toBuilder()
                                .maxNumTokens(maxTokens)
                                .device(device)
                                .build();
                        begin(i / layersAGraph, config, layersAGraph);
                    }
                    if (maxTokens > 1) {
                        chunks.getLast().layer(i, inputWeights, outputWeights, experts);
                    }
                    singles.getLast().layer(i, inputWeights, outputWeights, experts);
                }
            }
            model.requireUnchanged();
            end(chunks);
            end(singles);
            List<DeviceGraph> all =
                    Stream.concat(chunks.stream(), singles.stream()).toList();
            plan = new TornadoExecutionPlan(
                    all.stream().map(each -> each.graph.snapshot()).toArray(ImmutableTaskGraph[]::new));
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

    /** Makes a graph for chunks, and one for single tokens. */
    private void begin(int number, FusedMoeConfig config, int layersAGraph) {
        int layers = Math.min(layersAGraph, sizes.layers() - number * layersAGraph);
        int graphs = Math.ceilDiv(sizes.layers(), layersAGraph);
        DeviceGraph chunk = null;
        if (maxTokens > 1) {
            List<String> before = number == 0 ? List.of() : List.of("chunk" + (number - 1));
            chunk = new ChunkGraph("chunk" + number, sizes, on, maxTokens, context, config, scheduler, before);
            chunks.add(chunk);
        }
        List<String> before = number > 0
                ? List.of("single" + (number - 1))
                : chunk == null ? List.of() : List.of("chunk" + (graphs - 1), "single" + (graphs - 1));
        singles.add(new TokenGraph("single" + number, sizes, on, context, config, scheduler, before, chunk, layers));
        if (number == 0) {
            Stream.concat(chunks.stream(), singles.stream()).forEach(DeviceGraph::embed);
        }
    }

    private static void end(List<DeviceGraph> graphs) {
        for (DeviceGraph each : graphs) {
            if (each == graphs.getLast()) {
                each.head();
            } else {
                each.leave();
            }
        }
    }

    /**
     * Runs each graph once, on a token that is overwritten later, because a graph finds another graph's arrays only in
     * its first execution, right after that graph has run.
     */
    private void link() {
        chunks.forEach(each -> each.setTokens(1));
        singles.forEach(each -> each.setTokens(1));
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

    /**
     * Reads a prompt and appends a token as often as it takes until Java has compiled what TornadoVM does on the host:
     * until then the device waits for it. Starts a sequence.
     */
    void warmUp(int times) {
        for (int i = 0; i < times; i++) {
            append(start(), new int[Math.min(maxTokens, context - 1)]);
            appendGreedily(current, 0);
        }
        start();
    }

    private void execute(int number) {
        DeviceGraph graph = number < chunks.size() ? chunks.get(number) : singles.get(number - chunks.size());
        scheduler.name = graph.firstTask();
        plan.withGraph(number);
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
        last.transferToHost(on.logits);
        return on.logits.toHeapArray();
    }

    @Override
    public int appendGreedily(Sequence sequence, int token) {
        run(sequence, token);
        return on.next.get(0);
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
            on.step.set(0, current.length);
            for (int i = 0; i < count; i++) {
                on.step.set(1 + i, tokens[from + i]);
            }
            boolean chunk = count > 1;
            if (count != set) {
                (chunk ? chunks : singles).forEach(each -> each.setTokens(count));
                set = count;
            }
            for (int i = 0; i < singles.size(); i++) {
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
    public String backend() {
        return singles.getFirst().moe.device().backend();
    }

    @Override
    public String device() {
        return singles.getFirst().moe.device().name();
    }

    @Override
    public void close() {
        Cleanup.all(
                () -> Cleanup.each(chunks, each -> each.moe.close()),
                () -> Cleanup.each(singles, each -> each.moe.close()));
    }
}
