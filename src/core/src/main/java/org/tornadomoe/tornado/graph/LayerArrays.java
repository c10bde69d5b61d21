package org.tornadomoe.tornado.graph;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * The arrays of one layer: weights, adapters, and every activation for up to the configuration's {@code maxNumTokens}
 * tokens. Each exists twice, here off the heap and on the device, where only the header, the hidden states and the
 * output cross in every call. They are the same for the layer's life, since plans know them by their addresses. Not
 * thread-safe.
 */
public final class LayerArrays implements AutoCloseable {
    /** The arrays of the second projection that are as large as it; given, they are left as they are. */
    public static final List<String> SECOND = List.of("w2", "w2Scales", "w2ZeroPoints", "w2Bias");

    public final LayerShape shape;
    public final Workspace work;
    public final AdapterArrays adapters;
    final LayerWeights weights;
    final HalfTables halves;

    /** What the GEMMs are launched with. */
    final LaunchConfigs launches;

    /** Whether the layer's first expert is here; zero experts live with it. */
    final boolean hasExpert0;

    /** Whether scales of activations are known beforehand. */
    public final boolean staticScales;

    /** What the arrays that weren't given take on the device. */
    public final long ownBytes;

    /**
     * Elements in front of what is in arrays of int8 and between the GEMMs: none, or as many as make it begin where
     * CUDA's kernels read and write fastest. Kernels in Java know nothing of them.
     */
    final int alignmentPad;

    /** Whether the next call is to bring back ids and weights of the routing, where that is CUDA's to do. */
    public boolean returnsRouting;

    private final HostMemory memory;
    private final ArrayTable table;

    /** Allocates arrays that no other layer shares, for launches by the family's rule. */
    public LayerArrays(
            FusedMoeConfig config,
            Int8Experts experts,
            long available,
            HostMemory memory,
            GemmFamily gemm,
            boolean aligned) {
        this(config, experts, available, memory, gemm, aligned, gemm.byRule(config), Map.of());
    }

    /**
     * Allocates everything and packs the weights.
     *
     * @param config the layer's, with the most tokens of a call
     * @param available bytes that the arrays may take on the device
     * @param memory where they live here; belongs to them from now on
     * @param aligned whether nothing but CUDA's kernels touches what there is an {@link #alignmentPad} for
     * @param launches what the GEMMs are launched with, some of {@link GemmFamily#launches}
     * @param given arrays to take instead of new ones, such as {@link #sharedWith} of another layer, or
     *     {@link #named all} of it, filled
     * @throws InsufficientMemoryException before anything is allocated, if they would take more
     */
    public LayerArrays(
            FusedMoeConfig config,
            Int8Experts experts,
            long available,
            HostMemory memory,
            GemmFamily gemm,
            boolean aligned,
            LaunchConfigs launches,
            Map<String, TornadoNativeArray> given) {
        shape = new LayerShape(config, experts.quantization(), experts.w13().experts(), gemm);
        this.launches = launches;
        this.memory = memory;
        alignmentPad = aligned ? gemm.layout().activationPad() : 0;
        ArrayTable counted = declare(shape);
        MemoryReport own = MemoryReport.of(
                shape,
                counted.declared().values().stream()
                        .filter(array -> !given.containsKey(array.name()))
                        .toList());
        own.require(available);
        ownBytes = own.bytes();
        table = counted.allocate(memory, given);
        weights = new LayerWeights(shape, table);
        work = new Workspace(shape, table, weights.expertMap);
        halves = new HalfTables(shape, table);
        adapters = new AdapterArrays(shape, table);
        hasExpert0 = experts.expertMap(0) >= 0;
        Float a1Scale = experts.a1Scale();
        Float a2Scale = experts.a2Scale();
        staticScales = a1Scale != null && a2Scale != null;
        work.amax.init(0);
        adapters.clear();
        if (shape.halves) {
            halves.fill(config.inDtype());
        }
        if (table.declared().values().stream()
                .noneMatch(array -> array.whole().equals("w13") && given.containsKey(array.name()))) {
            weights.fill(shape, experts, !given.containsKey("w2"));
            if (shape.balanced) {
                setReplicas(Replicas.allHere(shape.experts, experts::expertMap));
            }
            work.hiddenScale.set(0, a1Scale == null ? 0 : a1Scale);
            work.activatedScale.set(0, a2Scale == null ? 0 : a2Scale);
        }
    }

    /** Counts every array of such a layer. */
    static ArrayTable declare(LayerShape shape) {
        ArrayTable table = new ArrayTable();
        new Workspace(shape, table, new LayerWeights(shape, table).expertMap);
        new HalfTables(shape, table);
        new AdapterArrays(shape, table);
        return table;
    }

    public void setReplicas(Replicas given) {
        MemorySegment.copy(given.table(), 0, work.replicas.getSegment(), ValueLayout.JAVA_INT, 0, given.table().length);
    }

    public void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        adapters.set(slot, adapter, weights.expertMap);
    }

    /** Every array once, by its name. */
    public Map<String, TornadoNativeArray> named() {
        return table.arrays();
    }

    /**
     * By their names those arrays that another layer of the same configuration may have in common with this one, when
     * they run one after the other: the workspace, and of the layer's own what is the same in both.
     */
    public Map<String, TornadoNativeArray> sharedWith(Int8Experts other) {
        Map<String, TornadoNativeArray> shared = new LinkedHashMap<>();
        table.declared().values().stream()
                .filter(array -> array.owner() == ArrayTable.Owner.WORKSPACE || isTheSame(array, other))
                .forEach(array -> shared.put(array.name(), Objects.requireNonNull(named().get(array.name()))));
        return shared;
    }

    private boolean isTheSame(ArrayTable.Declared array, Int8Experts other) {
        return switch (array.name()) {
            case "hidden", "output" -> false;
            // Known beforehand, or found by each layer's tasks before they read it.
            case "hiddenScale", "activatedScale" ->
                staticScales
                        ? Objects.equals(other.a1Scale(), work.hiddenScale.get(0))
                                && Objects.equals(other.a2Scale(), work.activatedScale.get(0))
                        : other.a1Scale() == null || other.a2Scale() == null;
            case "expertMap" ->
                IntStream.range(0, shape.experts).allMatch(e -> weights.expertMap.get(e) == other.expertMap(e));
            case "routerBias" ->
                other.router().bias() == null
                        && IntStream.range(0, weights.routerBias.getSize())
                                .allMatch(i -> weights.routerBias.get(i) == 0);
            // Made for what the layers don't have.
            default -> array.elements() == 1;
        };
    }

    /** Tells the kernels of a call of M tokens. */
    public void setTokens(int tokens) {
        LaunchConfig launch = launch(tokens);
        work.header.set(0, tokens);
        work.header.set(1, launch.blockSizeM());
        work.header.set(2, shape.gemm.launches().indexOf(launch));
    }

    /** What the GEMMs are launched with for M tokens. */
    LaunchConfig launch(int tokens) {
        return launches.forTokens(tokens);
    }

    /** Whether calls of some tokens and of others are launched with the same. */
    public boolean isLaunchedAlike(int tokens, int others) {
        return tokens > 0 && others > 0 && launch(tokens).equals(launch(others));
    }

    /** Bytes of the experts' weights. */
    public long expertBytes() {
        return (long) shape.localExperts * shape.hidden * (shape.gateUpRows + shape.intermediate);
    }

    /** Rows of one expert that a work-group takes together in a call of M tokens. */
    int blockSize(int tokens) {
        return launch(tokens).blockSizeM();
    }

    /** Blocks of these that the pairs can come to. */
    int blocks(int tokens) {
        return Math.toIntExact(shape.blocks(tokens, blockSize(tokens)));
    }

    /** The bytes that all of them take on the device. */
    public long deviceBytes() {
        return MemoryReport.of(shape).bytes();
    }

    /** Gives the memory back; no plan may use the arrays any more. */
    @Override
    public void close() {
        memory.close();
    }

    /** Every array once. */
    List<TornadoNativeArray> all() {
        return List.copyOf(named().values());
    }
}
