package example;

import java.util.ArrayList;
import java.util.List;
import java.util.function.IntUnaryOperator;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.MoeTasks;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A task graph with some layers of a {@link DeviceDecoder}; the first also has the embedding, the last the head. */
abstract class DeviceGraph {
    /** A grid whose number of work-groups depends on the number of tokens. */
    private record Grid(WorkerGrid1D worker, int items, IntUnaryOperator groups) {}

    final String name;
    final TaskGraph graph;

    /** One for all tasks, because each takes nodes and device memory. */
    final KernelContext kernel = new KernelContext();

    final MoeTasks moe;
    final Model.Sizes sizes;
    final DeviceArrays on;

    /** The number of positions in the KV cache. */
    final int context;

    private final int maxTokens;
    private final DeviceGraph shared;
    private final GridScheduler scheduler;
    private final List<Grid> grids = new ArrayList<>();
    private String firstTask;

    /** The number of layers so far. */
    private int layers;

    /**
     * @param maxTokens maximum number of tokens that this graph computes together
     * @param config the MoE layers' configuration
     * @param before the graphs that may run right before and leave hidden states on the device; empty for the very
     *     first
     * @param shared the graph that has the same layers' arrays on the device; null to send them there
     */
    DeviceGraph(
            String name,
            Model.Sizes sizes,
            DeviceArrays on,
            int maxTokens,
            int context,
            FusedMoeConfig config,
            GridScheduler scheduler,
            List<String> before,
            DeviceGraph shared) {
        this.name = name;
        this.sizes = sizes;
        this.on = on;
        this.maxTokens = maxTokens;
        this.context = context;
        this.shared = shared;
        this.scheduler = scheduler;
        graph = new TaskGraph(name).transferToDevice(DataTransferMode.EVERY_EXECUTION, on.step);
        moe = shared == null ? new MoeTasks(graph, scheduler, config) : new MoeTasks(shared.moe, graph);
        if (shared != null || before.isEmpty()) {
            there(on.hidden, on.output);
        }
        // TornadoVM (5.2) looks for everything that a graph consumes in whichever graph ran before, unless that graph
        // is named.
        for (String other : before) {
            if (shared == null || !other.equals(shared.name)) {
                graph.consumeFromDevice(other, on.hidden, on.output);
            }
        }
        there(on.normed, on.qkv, on.attended, on.projected, on.rotations, on.gains.values);
    }

    /** Appends a layer's attention: hidden states to {@code on.projected}. */
    abstract void attend(int layer, Int8Tensor inputWeights, Int8Tensor outputWeights);

    /** Declares arrays that no other graph has. */
    final void own(Object... arrays) {
        graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, arrays);
    }

    /** Declares arrays that are on the device before this graph's tasks; the tasks write some of them. */
    final void there(Object... arrays) {
        if (shared == null) {
            own(arrays);
        } else {
            graph.consumeFromDevice(shared.name, arrays);
        }
    }

    /** Sets a task's number of work-groups for M tokens. */
    final void grid(String task, IntUnaryOperator groups) {
        grid(task, WorkGroup.ITEMS, groups);
    }

    private void grid(String task, int items, IntUnaryOperator groups) {
        WorkerGrid1D worker = new WorkerGrid1D(groups.applyAsInt(maxTokens) * items);
        worker.setLocalWork(items, 1, 1);
        scheduler.addWorkerGrid(name + "." + task, worker);
        firstTask = firstTask == null ? name + "." + task : firstTask;
        grids.add(new Grid(worker, items, groups));
    }

    /** The full name of the first task that has a grid. */
    final String firstTask() {
        return firstTask;
    }

    final void setTokens(int tokens) {
        moe.setTokens(tokens);
        grids.forEach(grid -> grid.worker.setGlobalWork((long) grid.groups.applyAsInt(tokens) * grid.items, 1, 1));
    }

    /** Appends the embedding of the step's tokens. */
    final void embed() {
        there(on.embedding.values, on.embedding.scales);
        int ints = on.embedding.cols / 4;
        graph.task(
                "embed",
                TokenKernels::embed,
                kernel,
                moe.header(),
                on.step,
                on.embedding.values,
                on.embedding.scales,
                on.hidden,
                on.output,
                on.embedding.cols,
                ints);
        grid("embed", tokens -> Math.ceilDiv(tokens * ints, WorkGroup.ITEMS));
    }

    /** Appends a layer. */
    final void layer(int layer, Int8Tensor inputWeights, Int8Tensor outputWeights, Int8Experts experts) {
        there(on.keys.get(layer), on.values.get(layer));
        attend(layer, inputWeights, outputWeights);
        norm("moeNorm_" + layer, 1, on.gains.moe[layer]);
        if (shared == null) {
            moe.append("moe_" + layer, experts, on.normed, on.output);
        } else {
            moe.appendAgain("moe_" + layer, layers, experts, on.normed, on.output);
        }
        layers++;
    }

    /** Appends a norm; see {@link NormKernels#rmsNorm}. */
    final void norm(String task, int adds, int gainsFrom) {
        graph.task(
                task,
                NormKernels::rmsNorm,
                kernel,
                moe.header(),
                on.hidden,
                on.output,
                on.projected,
                adds,
                on.gains.values,
                gainsFrom,
                on.normed,
                sizes.hidden(),
                sizes.epsilon());
        grid(task, NormKernels.WIDE, tokens -> tokens);
    }

    /** Appends norms of queries and keys over all heads, if the model has them. */
    final void normHeads(int layer) {
        if (on.gains.width > sizes.headDim()) {
            int queries = sizes.heads() * sizes.headDim();
            int gainsFrom = on.gains.heads[layer];
            normHeads("queryNorm_" + layer, gainsFrom, 0, queries);
            normHeads("keyNorm_" + layer, gainsFrom + queries, queries, sizes.kvHeads() * sizes.headDim());
        }
    }

    private void normHeads(String task, int gainsFrom, int from, int width) {
        graph.task(
                task,
                NormKernels::normHeads,
                kernel,
                moe.header(),
                on.qkv,
                on.gains.values,
                gainsFrom,
                sizes.qkv(),
                from,
                width,
                sizes.epsilon());
        grid(task, tokens -> tokens);
    }

    /** Whether attention norms each head: 1 or 0. */
    final int normsEachHead() {
        return on.gains.width == sizes.headDim() ? 1 : 0;
    }

    /** Appends a projection of the last token's x, or of the norm of its hidden states if x is those. */
    final void project(
            String task,
            FloatArray x,
            int gainsFrom,
            IntArray weights,
            int weightsFrom,
            FloatArray weightScales,
            int weightScalesFrom,
            FloatArray y,
            int rows,
            int ints) {
        boolean dp4a = moe.device().lacksDp4a() == null;
        graph.task(
                task,
                dp4a ? ProductKernels::project : ProductKernels::projectPortable,
                kernel,
                moe.header(),
                x,
                on.output,
                on.gains.values,
                gainsFrom,
                weights,
                weightsFrom,
                weightScales,
                weightScalesFrom,
                y,
                rows,
                ints,
                x == on.hidden ? 1 : 0,
                sizes.epsilon());
        int groups = Math.ceilDiv(rows, ProductKernels.ROWS);
        grid(task, tokens -> dp4a ? Math.min(groups, ProductKernels.GROUPS) : groups);
    }

    /** Leaves the hidden states and the pending addition on the device for the next graph. */
    final void leave() {
        graph.persistOnDevice(on.hidden, on.output);
    }

    /** Appends the last norm, the head and the choice of the next token. */
    final void head() {
        own(on.places);
        there(on.head.values, on.head.scales, on.logits, on.next);
        project(
                "head",
                on.hidden,
                on.gains.last,
                on.head.values,
                0,
                on.head.scales,
                0,
                on.logits,
                on.head.rows,
                on.head.cols / 4);
        graph.task("chooseParts", TokenKernels::chooseParts, kernel, on.logits, on.places, on.head.rows)
                .task("choose", TokenKernels::choose, kernel, on.logits, on.places, on.next);
        grid("chooseParts", tokens -> TokenKernels.CHOICES);
        grid("choose", tokens -> 1);
        graph.transferToHost(DataTransferMode.UNDER_DEMAND, on.logits)
                .transferToHost(DataTransferMode.EVERY_EXECUTION, on.next);
    }
}
