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
 * Adds MoE layers as tasks to a caller's own task graph. A layer reads hidden states that an earlier task has left on
 * the device, and leaves its output there for the next task. A layer's weights go to the device once; all layers share
 * the intermediate buffers. Products with the caller's dense matrices can be added between layers ({@link
 * #appendProduct}).
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
 * <p>Execute and close the plan with this class's methods instead of its own, so that it and other layers on the device
 * don't disturb each other: TornadoVM may consider the whole device reset when a plan is closed.
 *
 * <p>When a plan is closed, TornadoVM (5.2.0) frees only arrays that are in one of the graph's transfers. The layers'
 * own arrays are; a caller's array that only tasks write and read needs {@code
 * transferToHost(DataTransferMode.UNDER_DEMAND, array)}, which copies nothing.
 *
 * <p>Everything is on one device, because a task graph runs on one device, and none of TornadoVM's tasks waits for
 * another device's. For a layer on several devices use {@link org.tornadomoe.MoeLayer}, whose hidden states and output
 * are in the host's memory.
 *
 * <p>With {@link TornadoExecutionPlan#withCUDAGraph} TornadoVM records the grids of its first execution; the plan then
 * works only for the token count that was set at that time.
 *
 * <p>A TornadoVM graph has 8 KB for its tasks and their arguments, however TornadoVM is started. 32 layers of {@link
 * TornadoHopperExperts}, which are one task each, fit into it; of the other classes 6 to 11. A model with more layers
 * has several graphs in one plan, each with its own {@code MoeTasks} and the same {@code grids}. Call {@link #launchOn}
 * and {@link #execute} on one of them, and close that one before the others.
 *
 * <p>The layers' kernels are those of {@link TornadoHopperExperts}, {@link TornadoDp4aExperts}, {@link
 * TornadoPanelExperts} or {@link TornadoPortableExperts}: the first that the device and the configuration allow. Not
 * thread-safe.
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

    /** The intermediate arrays of the appended layers. */
    private final Set<Object> written = new HashSet<>();

    /** All arrays of the appended layers, by hash code. */
    private final Map<Integer, Object> byHash = new HashMap<>();

    private final List<TornadoExecutionPlan> plans = new ArrayList<>();

    private final Map<TornadoExecutionPlan, OpenPlan> executed = new HashMap<>();

    private @Nullable TornadoExperts kernels;

    /** The instance whose layers this one shares; null for none. */
    private final @Nullable MoeTasks of;

    /**
     * For layers with one configuration in a graph.
     *
     * @param graph the graph to append to
     * @param grids receives the tasks' grids; the plan needs it
     * @param config the configuration of every layer, with the maximum number of tokens per execution
     * @throws IllegalArgumentException if there is no such device, or several are named, or the configuration asks for
     *     adapters or for routing on the host
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
            throw new IllegalArgumentException("config: expected a TornadoVM device or none, got " + config.device());
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
        // Names the device, so that the CPU or the interpreter is not refused.
        this.config = config.toBuilder().device(found.id()).build();
        header = HostMemory.of(device.backend()).ints(Workspace.HEADER);
        of = null;
        graph.transferToDevice(DataTransferMode.EVERY_EXECUTION, header);
    }

    /**
     * For the same layers in another graph of the same plan, such as one graph for prompts and a recorded one for
     * single tokens. {@link #appendAgain} uses the weights and intermediate arrays that the other graph has left on the
     * device, so that graph must run right before this one's first execution. Both share the header array.
     *
     * <p>TornadoVM (5.2) looks for everything that a graph consumes in whichever graph ran before, and finds nothing
     * there unless this graph consumes something from it by name. So call {@code graph.consumeFromDevice(NAME, array)}
     * for each graph that may run before.
     *
     * @param of the other graph's instance, with all of its layers
     * @param graph the graph to append to
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

    /** The device on which the plan has to run. */
    public Device device() {
        return device;
    }

    /**
     * An array that goes to the device in every execution: [0] is M, set by {@link #setTokens}; the layers use the
     * rest.
     */
    public IntArray header() {
        return header;
    }

    /** The layers' kernel class; null before the first layer. */
    public @Nullable String kernels() {
        return kernels == null ? null : kernels.name();
    }

    /**
     * Appends a layer's tasks.
     *
     * @param name the prefix of the tasks' names
     * @param experts the layer's weights, which are copied
     * @param hidden [M, H], on the device when the tasks run
     * @param output [M, H], written there; must not be the array {@code hidden}
     * @throws IllegalArgumentException if an array has fewer than {@code maxNumTokens · H} elements, both are the same,
     *     or no kernel class supports the layer
     * @throws InsufficientMemoryException if the device has too little memory left
     * @throws UnsupportedOperationException if TornadoVM's graph has no room for the tasks; the graph is then unusable
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
     * Appends the tasks of a layer with the weights of an earlier one.
     *
     * @param like the earlier layer's number, in the order in which layers were appended to this graph or to the graph
     *     whose layers this one shares; it must have the same {@code experts}
     * @throws IllegalArgumentException if there is no such layer; otherwise as {@link #append(String, Int8Experts,
     *     FloatArray, FloatArray)}
     */
    public void appendAgain(String name, int like, Int8Experts experts, FloatArray hidden, FloatArray output) {
        List<LayerArrays> there = of == null ? layers : of.layers;
        if (like < 0 || like >= there.size()) {
            throw new IllegalArgumentException("like: expected a layer of " + there.size() + ", got " + like);
        }
        appendLayer(name, experts, there.get(like).named(), hidden, output);
    }

    /**
     * Appends the product of a dense matrix with the tokens, {@code y = x · wᵀ}, such as a projection of attention. It
     * uses the kernels of a layer's first GEMM, as if the layer had one expert. They are made for many tokens.
     *
     * @param weights [1, N, K], whose memory is copied
     * @param scheme {@code W8A8_CHANNEL} or {@code W8A16_CHANNEL}: whether x is quantised to int8
     * @param x [M, K], on the device when the tasks run
     * @param y [M, N], written there; must not be the array {@code x}
     * @throws IllegalArgumentException if it is another scheme, an array has fewer than {@code maxNumTokens} rows, both
     *     are the same, or no kernel class supports it
     * @throws InsufficientMemoryException if the device has too little memory left
     * @throws UnsupportedOperationException if TornadoVM's graph has no room for the tasks; the graph is then unusable
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
        // Without a gate, so that the first GEMM has as many rows as its output; the second is never computed.
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

    /** A matrix as the first projection of the only expert. */
    private static Int8Experts alone(FusedMoeConfig config, Int8Scheme scheme, Int8Tensor weights) {
        Arena arena = Arena.ofShared();
        try {
            // the second projection, which nothing reads; it has as many rows as the first has columns
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

    /** Appends stages that read one of the caller's arrays and write another. */
    private void append(String name, LayerArrays arrays, List<Stage> stages, FloatArray in, FloatArray out) {
        Stage.Graph layer = Stage.Graph.in(graph, grids, name, device, stages);
        Quirks.requireOtherHashes(byHash, layer.inputs());
        Quirks.requireOtherHashes(byHash, layer.outputs());
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
                            + (products.isEmpty() ? " of " + kernels() : " and products") + ", and what else is in it",
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
     * Sets the plan's device and the grids of all its tasks, the caller's own included. From then on {@link #close}
     * closes the plan.
     */
    public void launchOn(TornadoExecutionPlan plan) {
        plans.add(plan);
        device.selectFor(plan);
        // TornadoVM refuses a scheduler without grids.
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
     * Executes a plan. If a layer on a device is being closed, it waits until that is done. From time to time it drops
     * the plan's results of earlier executions ({@code getPlanResult}). Throws what the plan's own method throws; a
     * {@link TornadoInternalError} saying that a graph can't be resized means that the graph has too many arrays and
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

    /** The bytes of the layers' arrays on the device, without the caller's. */
    public long deviceBytes() {
        return Stream.concat(layers.stream(), products.stream())
                .mapToLong(layer -> layer.ownBytes)
                .sum();
    }

    /**
     * Closes the plans and frees their device memory and host memory; other layers on the device go on running.
     *
     * @throws MoeExecutionException if TornadoVM fails
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
