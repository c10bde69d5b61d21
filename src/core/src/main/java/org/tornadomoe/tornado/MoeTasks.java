package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.nio.BufferOverflowException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.OpenPlan;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.Workspace;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.exceptions.TornadoInternalError;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * MoE layers as tasks of a caller's own task graph: hidden states are read where a task before has left them on the
 * device, and the output stays there for the next. A layer's weights go to the device once; what is between its
 * kernels, all layers share. Dense matrices of the caller's go in between ({@link #appendProduct}).
 *
 * <pre>{@code
 * TaskGraph graph = new TaskGraph("model").transferToDevice(DataTransferMode.EVERY_EXECUTION, hidden);
 * GridScheduler grids = new GridScheduler();
 * try (MoeTasks moe = new MoeTasks(graph, grids, config)) {
 *     for (int i = 0; i < layers; i++) {
 *         graph.task("norm" + i, Model::rmsNorm, context, moe.header(), hidden, normed, ...);
 *         moe.append("moe" + i, experts.get(i), normed, output);
 *         graph.task("add" + i, Model::add, context, moe.header(), output, hidden, ...);
 *     }
 *     graph.transferToHost(DataTransferMode.EVERY_EXECUTION, hidden);
 *     TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot());
 *     moe.launchOn(plan);
 *     moe.setTokens(17);
 *     moe.execute(plan);
 * }
 * }</pre>
 *
 * <p>The plan is executed and closed here and not by its own methods, so that it and other layers on the device don't
 * get in each other's way: TornadoVM may take the whole device for reset when a plan is closed.
 *
 * <p>With the plan TornadoVM (5.2.0) frees the arrays that are in one of the graph's transfers, and no others. The
 * layers' own are; an array of the caller's that only tasks write and read needs
 * {@code transferToHost(DataTransferMode.UNDER_DEMAND, array)}, which copies nothing.
 *
 * <p>All is on one device: a task graph runs on one, and none of TornadoVM's tasks waits for another device's. A layer
 * over several is {@link org.tornadomoe.MoeLayer}'s, whose hidden states and output are in the host's memory.
 *
 * <p>With {@link TornadoExecutionPlan#withCUDAGraph} TornadoVM records the grids of its first execution; a plan then
 * serves the token count that was set at that time, and no other.
 *
 * <p>A graph of TornadoVM's has 8 KB for its tasks and what they are given, however TornadoVM is started: 32 layers of
 * {@link TornadoHopperExperts}, which are a task each, go into it, of the others 6 to 11. A model of more has several
 * graphs in one plan, each with {@code MoeTasks} of its own and the same {@code grids}; {@link #launchOn} and {@link
 * #execute} are called on one of them, which is closed before the others.
 *
 * <p>The layers' kernels are those of {@link TornadoHopperExperts}, {@link TornadoDp4aExperts},
 * {@link TornadoPanelExperts} or {@link TornadoPortableExperts}: the first that the device and the configuration allow.
 * Not thread-safe.
 */
public final class MoeTasks implements AutoCloseable {
    private final TaskGraph graph;
    private final GridScheduler grids;
    private final FusedMoeConfig config;
    private final Device device;
    private final IntArray header;
    private final List<LayerArrays> layers = new ArrayList<>();
    private final List<LayerArrays> products = new ArrayList<>();
    private final List<Stage.Graph> appended = new ArrayList<>();
    private final Set<Object> sent = new HashSet<>();

    /** What lies between the kernels of those that are appended. */
    private final Set<Object> written = new HashSet<>();

    private final List<TornadoExecutionPlan> plans = new ArrayList<>();

    private final Map<TornadoExecutionPlan, OpenPlan> executed = new HashMap<>();

    private @Nullable TornadoExperts kernels;

    /** Whose layers these are once more; null where they are not. */
    private final @Nullable MoeTasks of;

    /**
     * For layers of one configuration in a graph.
     *
     * @param graph that they are appended to
     * @param grids where their tasks' grids are registered; the plan needs it
     * @param config of every layer, with the most tokens of an execution
     * @throws IllegalArgumentException if there is no such device, or several are named, or the configuration wants
     *     adapters, or experts chosen on the host
     */
    public MoeTasks(TaskGraph graph, GridScheduler grids, FusedMoeConfig config) {
        this.graph = graph;
        this.grids = grids;
        String named = config.device();
        if (named != null && named.contains(",")) {
            throw new IllegalArgumentException("config: expected one device, got " + named
                    + ": a task graph runs on one, and TornadoVM has no task that waits for another device's;"
                    + " MoeLayer runs a layer on several");
        }
        Device found = TornadoHome.current().find(config.device());
        if (found == null) {
            throw new IllegalArgumentException(
                    "config: expected a device of TornadoVM's or none, got " + config.device());
        }
        String unusable = found.unusable();
        if (unusable != null) {
            throw new IllegalArgumentException(
                    "config: expected a device that can be used, got " + found + ": " + unusable);
        }
        if (config.isLoraEnabled()) {
            throw new IllegalArgumentException(
                    "config: expected no adapters in a task graph, got " + config.maxLoras());
        }
        if (config.router().isHandedIn()) {
            throw new IllegalArgumentException(
                    "config: expected a router that runs on the device, got " + config.router());
        }
        device = found;
        // Asked for by name, so that no device is refused for being the CPU or the interpreter.
        this.config = config.toBuilder().device(found.id()).build();
        header = HostMemory.of(device.backend()).ints(Workspace.HEADER);
        of = null;
        graph.transferToDevice(DataTransferMode.EVERY_EXECUTION, header);
    }

    /**
     * For the layers of another graph of the same plan once more, such as one for prompts and one, recorded, for single
     * tokens: {@link #appendAgain} takes their weights and what lies between kernels from the device, where that graph
     * has left them. So it has to run right before this one's first execution. The header is the same array.
     *
     * <p>TornadoVM (5.2) looks for all that a graph consumes in whichever graph ran before, and finds nothing there,
     * unless this one consumes something from it by its name: {@code graph.consumeFromDevice(NAME, array)} for each
     * graph that may run before.
     *
     * @param of the other graph's, with all of its layers
     * @param graph that they are appended to
     */
    public MoeTasks(MoeTasks of, TaskGraph graph) {
        this.of = of;
        this.graph = graph;
        grids = of.grids;
        config = of.config;
        device = of.device;
        header = of.header;
        kernels = of.kernels;
        graph.transferToDevice(DataTransferMode.EVERY_EXECUTION, header);
    }

    /** That the plan has to run on. */
    public Device device() {
        return device;
    }

    /** On the device in every execution: [0] is M, the tokens of {@link #setTokens}; the rest is the layers' own. */
    public IntArray header() {
        return header;
    }

    /** The kernel class of the layers; null before the first. */
    public @Nullable String kernels() {
        return kernels == null ? null : kernels.name();
    }

    /**
     * Appends a layer's tasks.
     *
     * @param name what their names begin with
     * @param experts the layer's weights, which are copied
     * @param hidden [M, H], on the device when the tasks run
     * @param output [M, H], written there; another array than {@code hidden}
     * @throws IllegalArgumentException if an array has fewer than {@code maxNumTokens · H} elements or is both, or no
     *     class of kernels does the layer
     * @throws InsufficientMemoryException if the device hasn't so much left for layers
     * @throws UnsupportedOperationException if TornadoVM's graph can't take so many tasks; it is of no use then
     */
    public void append(String name, Int8Experts experts, FloatArray hidden, FloatArray output) {
        if (of != null) {
            throw new IllegalStateException("expected appendAgain, since the layers are those of another graph");
        }
        Map<String, TornadoNativeArray> given =
                layers.isEmpty() ? Map.of() : layers.getFirst().sharedWith(experts);
        appendLayer(name, experts, given, hidden, output);
    }

    /**
     * Appends the tasks of a layer with the weights of one that is there already.
     *
     * @param like its number, in the order in which layers were appended, to this graph or to the one that this has
     *     the layers of; of the same {@code experts}
     * @throws IllegalArgumentException if there is no such layer; otherwise as
     *     {@link #append(String, Int8Experts, FloatArray, FloatArray)}
     */
    public void appendAgain(String name, int like, Int8Experts experts, FloatArray hidden, FloatArray output) {
        List<LayerArrays> there = of == null ? layers : of.layers;
        if (like < 0 || like >= there.size()) {
            throw new IllegalArgumentException("like: expected a layer of " + there.size() + ", got " + like);
        }
        appendLayer(name, experts, there.get(like).named(), hidden, output);
    }

    /**
     * Appends the product of a dense matrix with the tokens, {@code y = x · wᵀ}, such as a projection of attention's:
     * by the kernels that a layer's first product has, as if it had one expert. They are made for many tokens.
     *
     * @param weights [1, N, K], whose memory is copied
     * @param scheme {@code W8A8_CHANNEL} or {@code W8A16_CHANNEL}: what becomes of x
     * @param x [M, K], on the device when the tasks run
     * @param y [M, N], written there; another array than {@code x}
     * @throws IllegalArgumentException if it is another scheme, an array has fewer than {@code maxNumTokens} rows or is
     *     both, or no class of kernels does it
     * @throws InsufficientMemoryException if the device hasn't so much left
     * @throws UnsupportedOperationException if TornadoVM's graph can't take so many tasks; it is of no use then
     */
    public void appendProduct(String name, Int8Tensor weights, Int8Scheme scheme, FloatArray x, FloatArray y) {
        if (of != null) {
            throw new IllegalStateException("expected layers alone, since weights are those of another graph");
        }
        if (scheme != Int8Scheme.W8A8_CHANNEL && scheme != Int8Scheme.W8A16_CHANNEL) {
            throw new IllegalArgumentException("scheme: expected W8A8_CHANNEL or W8A16_CHANNEL, got " + scheme.name());
        }
        int in = weights.cols();
        int out = weights.rows();
        require("x", x, in);
        require("y", y, out);
        if (x == y) {
            throw new IllegalArgumentException("y: expected another array than x");
        }
        // Without a gate, so that the first product has as many rows as come out of it; the second is never computed.
        FusedMoeConfig alone = FusedMoeConfig.builder()
                .numExperts(1)
                .expertsPerToken(1)
                .hiddenDim(in)
                .intermediateSize(out)
                .activation(MoeActivation.SILU_NO_MUL)
                .router(RouterConfig.of(ScoringFunction.SOFTMAX, true).handedIn())
                .maxNumTokens(config.maxNumTokens())
                .device(device.id())
                .build();
        try (Int8Experts expert = alone(alone, scheme, weights)) {
            TornadoExperts chosen = choose(alone, expert);
            Map<String, TornadoNativeArray> given = new LinkedHashMap<>();
            products.stream()
                    .filter(each -> each.shape.hidden == alone.hiddenDim()
                            && each.shape.intermediate == alone.intermediateSize()
                            && each.shape.scheme == scheme)
                    .findFirst()
                    .ifPresent(like -> given.putAll(like.sharedWith(expert)));
            for (String unused : LayerArrays.SECOND) {
                given.put(unused, unused.equals("w2") ? new IntArray(1) : new FloatArray(1));
            }
            given.put("hidden", x);
            given.put("gateUp", y);
            LayerArrays arrays = arrays(alone, expert, chosen, false, given);
            if (sent.add(arrays.work.header)) {
                graph.transferToDevice(DataTransferMode.EVERY_EXECUTION, arrays.work.header);
            }
            arrays.work.topkIds.init(0);
            products.add(arrays);
            append(name, arrays, chosen.gemm().program(arrays).firstProduct(), x, y);
        }
    }

    /** A matrix as the first product of the only expert. */
    private static Int8Experts alone(FusedMoeConfig config, Int8Scheme scheme, Int8Tensor weights) {
        Arena arena = Arena.ofShared();
        try {
            // the second product's, which nothing reads: as many rows as the first has columns
            Int8Tensor unused = Int8Tensor.allocate(arena, 1, /* rows= */ weights.cols(), /* cols= */ weights.rows());
            return Int8Experts.builder(config, scheme, weights, unused, arena).build();
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, arena::close);
            throw failure;
        }
    }

    private void appendLayer(
            String name,
            Int8Experts experts,
            Map<String, TornadoNativeArray> arraysOfOthers,
            FloatArray hidden,
            FloatArray output) {
        require("hidden", hidden, config.hiddenDim());
        require("output", output, config.hiddenDim());
        if (hidden == output) {
            throw new IllegalArgumentException("output: expected another array than hidden");
        }
        TornadoExperts chosen = kernels == null ? choose(config, experts) : kernels;
        Map<String, TornadoNativeArray> given = new LinkedHashMap<>(arraysOfOthers);
        given.put("header", header);
        given.put("hidden", hidden);
        given.put("output", output);
        LayerArrays arrays = arrays(config, experts, chosen, true, given);
        kernels = chosen;
        layers.add(arrays);
        append(name, arrays, chosen.gemm().program(arrays).all(), hidden, output);
    }

    private LayerArrays arrays(
            FusedMoeConfig of,
            Int8Experts experts,
            TornadoExperts chosen,
            boolean aligned,
            Map<String, TornadoNativeArray> given) {
        return new LayerArrays(
                of,
                experts,
                device.memory() - deviceBytes(),
                HostMemory.of(device.backend()),
                chosen.gemm(),
                aligned,
                chosen.launchConfigs(of, experts),
                given);
    }

    /** Appends stages that read one array of the caller's and write another. */
    private void append(String name, LayerArrays arrays, List<Stage> stages, FloatArray in, FloatArray out) {
        Stage.Graph layer = Stage.Graph.in(graph, grids, name, device, stages);
        List<Object> weights = new ArrayList<>(layer.inputs());
        weights.removeAll(List.of(arrays.work.header, in));
        weights.removeAll(sent);
        sent.addAll(weights);
        List<Object> between = layer.outputs();
        between.removeAll(List.of(in, out));
        between.removeAll(written);
        Set<Object> known = new HashSet<>(written);
        if (of == null) {
            graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, weights.toArray());
        } else {
            known.addAll(between);
            weights.addAll(between);
            graph.consumeFromDevice(of.graph.getTaskGraphName(), weights.toArray());
        }
        try {
            layer.addTasks(array -> array != out && known.contains(array));
        } catch (BufferOverflowException full) {
            throw new UnsupportedOperationException(
                    "graph: TornadoVM's code of one task graph, " + Quirks.GRAPH_CODE_BYTES / 1024
                            + " KB, is full after " + appended.size() + " layers"
                            + (products.isEmpty() ? " of " + kernels : " and products") + ", and what else is in it",
                    full);
        }
        if (of == null && !between.isEmpty()) {
            layer.keepOnDevice(between);
        }
        written.addAll(between);
        appended.add(layer);
    }

    private void require(String name, FloatArray array, int columns) {
        long least = (long) config.maxNumTokens() * columns;
        if (array.getSize() < least) {
            throw new IllegalArgumentException(
                    name + ": expected at least " + least + " elements, got " + array.getSize());
        }
    }

    private static TornadoExperts choose(FusedMoeConfig config, Int8Experts experts) {
        List<String> refused = new ArrayList<>();
        List<TornadoExperts> candidates = TornadoExperts.all().stream()
                .filter(each -> each.gemm().joinsOtherTasks())
                .toList();
        for (TornadoExperts candidate : candidates) {
            Support support = candidate.isSupportedConfig(
                    config, experts.weightKey(), experts.activationKey(), config.activationFormat());
            if (support.supported()) {
                return candidate;
            }
            refused.add(candidate.name() + ": " + support);
        }
        throw new IllegalArgumentException("experts: expected a layer that a class of kernels does, got " + refused);
    }

    /**
     * Tells the plan of the graph its device, and the grids of all its tasks, the caller's own included. From here on
     * it is {@link #close}'s to close.
     */
    public void launchOn(TornadoExecutionPlan plan) {
        plans.add(plan);
        device.selectFor(plan);
        // TornadoVM refuses a scheduler without any.
        if (!grids.keySet().isEmpty()) {
            plan.withGridScheduler(grids);
        }
    }

    /**
     * Sets M for the executions that follow.
     *
     * @throws IllegalArgumentException unless it is 1 to {@code maxNumTokens}
     */
    public void setTokens(int tokens) {
        if (tokens < 1 || tokens > config.maxNumTokens()) {
            throw new IllegalArgumentException("tokens: expected 1 to " + config.maxNumTokens() + ", got " + tokens);
        }
        if (layers.isEmpty()) {
            header.set(0, tokens);
        } else {
            layers.getFirst().setTokens(tokens);
        }
        products.forEach(product -> product.setTokens(tokens));
        appended.forEach(layer -> layer.resize(tokens));
    }

    /**
     * Executes a plan while no layer on a device is closed, which is waited for if one is. What the plan keeps of
     * earlier executions is forgotten now and then ({@code getPlanResult}). Throws what the plan's own
     * method throws; a {@link TornadoInternalError} that a graph can't be resized says that it has too many arrays and
     * tasks for TornadoVM.
     */
    public TornadoExecutionResult execute(TornadoExecutionPlan plan) {
        Device.lockRunning();
        try {
            return executed.computeIfAbsent(plan, OpenPlan::new).execute(header.get(0));
        } finally {
            Device.unlockRunning();
        }
    }

    /** What the layers' arrays take there, without the caller's. */
    public long deviceBytes() {
        return Stream.concat(layers.stream(), products.stream())
                .mapToLong(layer -> layer.ownBytes)
                .sum();
    }

    /**
     * Closes the plans, so that what was on the device is free, and gives the host's memory back; other layers on the
     * device run on.
     *
     * @throws MoeExecutionException if TornadoVM fails at it
     */
    @Override
    public void close() {
        Cleanup.all(
                () -> Cleanup.each(plans.reversed(), this::close),
                plans::clear,
                () -> Cleanup.each(layers, LayerArrays::close),
                () -> Cleanup.each(products, LayerArrays::close),
                layers::clear,
                products::clear,
                executed::clear);
    }

    private void close(TornadoExecutionPlan plan) {
        try {
            device.close(plan);
        } catch (TornadoExecutionPlanException | RuntimeException | TornadoInternalError failure) {
            throw new MoeExecutionException(
                    "freeing the layers' memory on " + device + ": " + failure.getMessage(), failure);
        }
    }
}
