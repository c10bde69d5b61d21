package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.function.IntToLongFunction;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.PrepareAndFinalize;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.WorkspaceShapes;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * The arrays of one layer: weights, and every activation for up to the configuration's {@code maxNumTokens} tokens. Each
 * exists twice, here off the heap and on the device, where only {@link #header}, {@link #hidden} and {@link #output} cross
 * in every call.
 *
 * <p>Shape letters: M tokens, E experts, shared ones included, C choices of the router and L logits, H hidden, I intermediate, K
 * top-k and shared experts, P = M·K pairs, R rows of the experts: P in the
 * standard format, a row a pair; in the batched one {@code maxNumTokens} slots for each local expert. Not thread-safe.
 */
final class LayerArrays implements AutoCloseable {
    /** What helps where a layer is too large. */
    static final String MORE_MEMORY =
            "fewer tokens a call, a part of the layer (expert or tensor parallelism), or, if the"
                    + " device has more, -Dtornado.device.memory";

    /** What is a layer's own: weights, and what comes with them; what goes in and comes out. */
    private static final Set<String> OF_LAYER = Set.of(
            "hidden",
            "output",
            "router",
            "routerBias",
            "correctionBias",
            "expertMap",
            "replicas",
            "w13",
            "w13Scales",
            "w13ZeroPoints",
            "w13Bias",
            "w13Sizes",
            "w2",
            "w2Scales",
            "w2ZeroPoints",
            "w2Bias",
            "w2Sizes",
            "tokenScale",
            "pairScale",
            "w13LoraA",
            "w13LoraB",
            "w2LoraA",
            "w2LoraB");

    /** Ints that a prebuilt kernel is told. */
    private static final long PREBUILT_SIZES = 8;

    /** Elements of {@link #header}. */
    static final int HEADER = 3;

    /** Whatever blocks the GEMMs take, there is room for an alignment to blocks of so many pairs as well. */
    static final int MAX_BLOCK = 16;

    final FusedMoeConfig config;
    final Int8Quantization quantization;

    final Int8Scheme scheme;

    /** Scales of a row of {@link #tokens}: 1, or with blocks one for every group of columns. */
    final int hiddenGroups;

    /** Scales of a row of {@link #pairs}. */
    final int intermediateGroups;

    private final HostMemory memory;

    /** What {@link #elements} says of this layer. */
    private final Map<String, Long> sizes;

    /** What the arrays that weren't given take on the device. */
    final long ownBytes;

    /** All of them by those names. */
    private final Map<String, TornadoNativeArray> arrays;

    /** What the GEMMs are launched with. */
    final LaunchConfigs launches;

    /** Experts whose weights are here. */
    final int localExperts;

    final FusedMoeActivationFormat format;

    final Gemm gemm;

    /** Whether the layer's first expert is here; zero experts live with it. */
    final boolean hasExpert0;

    /** Whether {@link #tokenScale} and {@link #pairScale} are known beforehand. */
    final boolean staticScales;

    /** Ints of a row of {@link #tokens} and of {@link #w13}: ⌈H / 4⌉. */
    final int hiddenInts;

    /** Ints of a row of {@link #pairs} and of {@link #w2}: ⌈I / 4⌉. */
    final int intermediateInts;

    /** [0] = M, [1] = pairs of a block, [2] = number of the launch configuration; {@link #setTokens} sets all. */
    final IntArray header;

    /** [M, H]. */
    final FloatArray hidden;

    /** Hidden states of 16 bits: [⌈M·H / 2⌉], two to an int. */
    final IntArray hiddenHalves;

    /** Hidden states of 16 bits: what they mean and what they are made from, as {@code HalfKernels} has it. */
    final FloatArray widened;

    final FloatArray least;

    /** [L, H]: a row a choice, then the shared expert gate. */
    final FloatArray router;

    /** [L], zeros where the router has none. */
    final FloatArray routerBias;

    /** [C] where the router has one. */
    final FloatArray correctionBias;

    /** [M, L]. */
    final FloatArray logits;

    /** [P]. */
    final IntArray topkIds;

    /** [P]. */
    final FloatArray topkWeights;

    /** [E]: the local number of an expert, −1 if it lives elsewhere. */
    final IntArray expertMap;

    /** Whether experts move by load. */
    final boolean balanced;

    /** Where experts move by load, [E + 1, 3], as {@link Replicas} has it; elsewhere any array. */
    final IntArray replicas;

    /** [P]: {@link #topkIds}; where experts move by load, those of this device's pairs, and −1 for the others. */
    final IntArray placedIds;

    /** Where experts move by load, [local E]: the pairs of each; elsewhere any array. */
    final IntArray loads;

    /** [P]: the expert a pair is sorted by, −1 if it is left out. */
    final IntArray keys;

    /** [P]: a pair's rank among its chunk's pairs of the same expert. */
    final IntArray ranks;

    /** [chunks, E]: counts, then places. */
    final IntArray counts;

    /** Pairs in expert order, each expert's run padded to whole blocks with P. */
    final IntArray sortedIds;

    /** [blocks]. */
    final IntArray expertIds;

    /** [0] = places of {@link #sortedIds} in use. */
    final IntArray padded;

    /** The hidden states in int8, [M, hiddenInts], or [P, hiddenInts] where each pair has its router weight on them. */
    final IntArray tokens;

    /** [M, hiddenGroups] or [P, hiddenGroups]. */
    final FloatArray tokenScales;

    /** [1]: the one scale of the tokens in int8, where there is one. */
    final FloatArray tokenScale;

    /** Batched: [0] = R, [1] = pairs of a block. */
    final IntArray rows;

    /** Batched: [E], the pairs of each local expert. */
    final IntArray expertNumTokens;

    /** Batched: [R], the pair in a slot; −1 in an empty one. */
    final IntArray pairOfRow;

    /** Batched: [P], the slot of a pair; −1 if it was left out. */
    final IntArray rowOfPair;

    /** Batched: [E], where in {@link #sortedIds} an expert's run starts. */
    final IntArray firstPlaces;

    /** Batched, int8: [R, hiddenInts]. */
    final IntArray slots;

    /** Batched, int8: [R, hiddenGroups]. */
    final FloatArray slotScales;

    /** Batched, float: [R, H]. */
    final FloatArray slotFloats;

    /** Which experts' weights are in which arrays. */
    final ExpertParts parts;

    /** With several parts, of each: {@link #sortedIds} with P for the pairs of other parts' experts. */
    final List<IntArray> partSortedIds;

    /** With several parts, of each: {@link #expertIds} by the number within the part, -1 for other parts' experts. */
    final List<IntArray> partExpertIds;

    /** Of an expert [hiddenInts, 2I]. */
    final ExpertParts.Weights w13;

    /** Eight zeros: what a prebuilt kernel is told that has nothing to do. */
    final IntArray noSizes;

    /** What a prebuilt kernel is told of {@link #w13}; see {@code expert-gemm.cu}. */
    final IntArray w13Sizes;

    /** What the first GEMM gives, [R, 2I]. Has room for {@link #down}, too. */
    final FloatArray gateUp;

    /** [R, I]. */
    final FloatArray activated;

    /** With {@link Gemm#HOPPER}: [P], the bits of the greatest magnitude of {@link #activated}'s rows while they are made; else 0. */
    final IntArray amax;

    /** The activated rows in int8, [R, intermediateInts]. */
    final IntArray pairs;

    /** [R, intermediateGroups]. */
    final FloatArray pairScales;

    /** [1]: the one scale of the pairs in int8, where there is one. */
    final FloatArray pairScale;

    /** Of an expert [intermediateInts, H]. */
    final ExpertParts.Weights w2;

    /** What a prebuilt kernel is told of {@link #w2}. */
    final IntArray w2Sizes;

    /**
     * What the second GEMM gives, [R, H]; in the standard format times the router's weight. The same array as {@link #gateUp},
     * which the activation has read by then.
     */
    final FloatArray down;

    /** With adapters: [M], the slot of each token's adapter, −1 for none. L slots, S and R as {@link LoraAdapter} has them. */
    final IntArray adapters;

    /** With adapters: [L, E, S·R, H]. */
    final FloatArray w13LoraA;

    /** With adapters: [L, E, R, 2I]. */
    final FloatArray w13LoraB;

    /** With adapters: [L, E, R, I]. */
    final FloatArray w2LoraA;

    /** With adapters: [L, E, R, H]. */
    final FloatArray w2LoraB;

    /** With adapters: what is between A and B, [P, S·R]. */
    final FloatArray shrunk;

    /** [M, H]. */
    final FloatArray output;

    /** Hidden states of 16 bits: [⌈M·H / 2⌉], two to an int. */
    final IntArray outputHalves;

    /**
     * Elements in front of what is in {@link #tokens}, {@link #gateUp}, {@link #activated}, {@link #pairs} and {@link #down}: none, or as
     * many as make it begin where CUDA's kernels read and write fastest. Kernels in Java know nothing of them.
     */
    final int lead;

    /** Whether the next call is to bring back {@link #topkIds} and {@link #topkWeights}, where that is CUDA's to do. */
    boolean answersChoice;

    /** For {@link Gemm#PORTABLE} in the standard format. */
    LayerArrays(FusedMoeConfig config, Int8Experts experts, long available, HostMemory memory) {
        this(config, experts, available, memory, Gemm.PORTABLE, FusedMoeActivationFormat.STANDARD, false);
    }

    /** With all its arrays its own, launched by the rule. */
    LayerArrays(
            FusedMoeConfig config,
            Int8Experts experts,
            long available,
            HostMemory memory,
            Gemm gemm,
            FusedMoeActivationFormat format,
            boolean aligned) {
        this(config, experts, available, memory, gemm, format, aligned, gemm.byRule(config), Map.of());
    }

    /**
     * Allocates everything and packs the weights. An array that the scheme, the format or the layer has no use for has one
     * element.
     *
     * @param config the layer's, with the most tokens of a call
     * @param available bytes that the arrays may take on the device
     * @param memory where they live here; belongs to them from now on
     * @param aligned whether nothing but CUDA's kernels touches what there is a {@link #lead} for
     * @param launches what the GEMMs are launched with, some of {@link Gemm#launches}
     * @param given arrays to take instead of new ones, such as {@link #sharedWith} of another layer, or {@link #named all} of it, filled
     * @throws InsufficientMemoryException before anything is allocated, if they would take more
     */
    LayerArrays(
            FusedMoeConfig config,
            Int8Experts experts,
            long available,
            HostMemory memory,
            Gemm gemm,
            FusedMoeActivationFormat format,
            boolean aligned,
            LaunchConfigs launches,
            Map<String, TornadoNativeArray> given) {
        this.config = config;
        this.launches = launches;
        lead = aligned ? gemm.lead() : 0;
        this.memory = memory;
        this.gemm = gemm;
        this.format = format;
        quantization = experts.quantization();
        scheme = experts.scheme();
        hiddenGroups = activationGroups(quantization, config.hiddenDim());
        intermediateGroups = activationGroups(quantization, config.intermediateSizePerPartition());
        sizes = elements(config, quantization, experts.w13().experts(), gemm, format);
        arrays = new LinkedHashMap<>(given);
        Map<String, Long> own = new LinkedHashMap<>(sizes);
        own.keySet().removeAll(given.keySet());
        requireMemory(own, available);
        ownBytes = bytes(own);
        localExperts = experts.w13().experts();
        hiddenInts = gemm.rowInts(config.hiddenDim());
        intermediateInts = gemm.rowInts(config.intermediateSizePerPartition());
        header = ints("header");
        hidden = floats("hidden");
        hiddenHalves = ints("hiddenHalves");
        widened = floats("widened");
        least = floats("least");
        router = floats("router");
        routerBias = floats("routerBias");
        correctionBias = floats("correctionBias");
        logits = floats("logits");
        topkIds = ints("topkIds");
        topkWeights = floats("topkWeights");
        expertMap = ints("expertMap");
        balanced = config.moeParallelConfig().enableEplb();
        replicas = balanced ? ints("replicas") : expertMap;
        placedIds = balanced ? ints("placedIds") : topkIds;
        keys = ints("keys");
        ranks = ints("ranks");
        counts = ints("counts");
        sortedIds = ints("sortedIds");
        expertIds = ints("expertIds");
        padded = ints("padded");
        loads = balanced ? ints("loads") : padded;
        tokens = ints("tokens");
        tokenScales = floats("tokenScales");
        tokenScale = floats("tokenScale");
        rows = ints("rows");
        expertNumTokens = ints("expertNumTokens");
        pairOfRow = ints("pairOfRow");
        rowOfPair = ints("rowOfPair");
        firstPlaces = ints("firstPlaces");
        slots = ints("slots");
        slotScales = floats("slotScales");
        slotFloats = floats("slotFloats");
        parts = ExpertParts.of(config, localExperts, gemm);
        partSortedIds = allInts("partSortedIds");
        partExpertIds = allInts("partExpertIds");
        // Most of the memory, which it takes as long to fill with zeros as with weights: on as many cores as there are
        // arrays.
        Stream.of("w13", "w2")
                .flatMap(this::parts)
                .filter(name -> !given.containsKey(name))
                .parallel()
                .map(name -> Map.entry(name, memory.ints(count(sizes, name))))
                .toList()
                .forEach(made -> arrays.put(made.getKey(), made.getValue()));
        w13 = weights("w13");
        noSizes = ints("noSizes");
        w13Sizes = ints("w13Sizes");
        gateUp = floats("gateUp");
        activated = floats("activated");
        amax = ints("amax");
        pairs = ints("pairs");
        pairScales = floats("pairScales");
        pairScale = floats("pairScale");
        w2 = weights("w2");
        w2Sizes = ints("w2Sizes");
        down = gateUp;
        adapters = ints("adapters");
        w13LoraA = floats("w13LoraA");
        w13LoraB = floats("w13LoraB");
        w2LoraA = floats("w2LoraA");
        w2LoraB = floats("w2LoraB");
        shrunk = floats("shrunk");
        output = floats("output");
        outputHalves = ints("outputHalves");
        if (hasHalves(config)) {
            fillTables(config.inDtype());
        }
        adapters.init(-1);
        for (FloatArray lora : List.of(w13LoraA, w13LoraB, w2LoraA, w2LoraB)) {
            lora.init(0);
        }
        rows.set(0, localExperts * config.maxNumTokens());
        rows.set(1, GemmKernels.BLOCK);
        Float a1Scale = experts.a1Scale();
        Float a2Scale = experts.a2Scale();
        staticScales = a1Scale != null && a2Scale != null;
        hasExpert0 = experts.expertMap(0) >= 0;
        amax.init(0);
        if (given.keySet().stream().noneMatch(name -> withoutPart(name).equals("w13"))) {
            fill(experts, a1Scale, a2Scale);
        }
    }

    /** What is the layer's own. */
    private void fill(Int8Experts experts, @Nullable Float a1Scale, @Nullable Float a2Scale) {
        for (int expert = 0; expert < config.globalNumExperts(); expert++) {
            expertMap.set(expert, experts.expertMap(expert));
        }
        if (balanced) {
            setReplicas(Replicas.allHere(config.globalNumExperts(), experts::expertMap));
        }
        int layout = LayerStages.Activation.of(config).layout();
        pack(experts.w13(), experts.w13Bias(), layout, w13);
        pack(experts.w2(), experts.w2Bias(), ActivationKernels.NO_GATE, w2);
        tokenScale.set(0, a1Scale == null ? 0 : a1Scale);
        pairScale.set(0, a2Scale == null ? 0 : a2Scale);
        copy(experts.router());
    }

    void setReplicas(Replicas given) {
        MemorySegment.copy(given.table(), 0, replicas.getSegment(), ValueLayout.JAVA_INT, 0, given.table().length);
    }

    Map<String, Long> sizes() {
        return sizes;
    }

    Map<String, TornadoNativeArray> named() {
        return arrays;
    }

    /**
     * By their names those arrays that another layer of the same configuration may have in common with this one, when they run one after the
     * other: the workspace, and of the layer's own what is the same in both.
     */
    Map<String, TornadoNativeArray> sharedWith(Int8Experts other) {
        Map<String, TornadoNativeArray> shared = new LinkedHashMap<>(arrays);
        shared.keySet().removeIf(name -> OF_LAYER.contains(withoutPart(name)) && !isTheSame(name, other));
        return shared;
    }

    private boolean isTheSame(String name, Int8Experts other) {
        return switch (name) {
            case "hidden", "output", "tokenScale", "pairScale" -> false;
            case "expertMap" ->
                IntStream.range(0, expertMap.getSize()).allMatch(e -> expertMap.get(e) == other.expertMap(e));
            case "routerBias" ->
                other.router().bias() == null
                        && IntStream.range(0, routerBias.getSize()).allMatch(i -> routerBias.get(i) == 0);
            // Made for what the layers don't have.
            default -> Objects.requireNonNull(sizes.get(name)) == 1;
        };
    }

    /** Only what the configuration has a use for: a router may have more. */
    private void copy(RouterWeights weights) {
        routerBias.init(0);
        if (config.router().isHandedIn()) {
            return;
        }
        copy(weights.weight(), router);
        if (weights.bias() != null) {
            copy(weights.bias(), routerBias);
        }
        if (weights.correctionBias() != null) {
            copy(weights.correctionBias(), correctionBias);
        }
        float[] gate = weights.sharedExpertGate();
        if (gate != null && weights.hasWeight()) {
            MemorySegment.copy(
                    gate, 0, router.getSegment(), ValueLayout.JAVA_FLOAT, 4L * weights.weight().length, gate.length);
        }
    }

    /** Whether hidden states come and go in 16 bits. */
    static boolean hasHalves(FusedMoeConfig config) {
        return config.inDtype().bytes() == 2;
    }

    /** What is brought to the device in a call: {@link #hidden}, or what it is made from there. */
    TornadoNativeArray incoming() {
        return hasHalves(config) ? hiddenHalves : hidden;
    }

    /** What is fetched from the device. */
    TornadoNativeArray outgoing() {
        return hasHalves(config) ? outputHalves : output;
    }

    /** The bits of infinity, of types of 16 bits. */
    static int infinity(ScalarType type) {
        return type == ScalarType.F16 ? 0x7c00 : 0x7f80;
    }

    private void fillTables(ScalarType type) {
        for (int bits = 0; bits < 1 << 16; bits++) {
            widened.set(bits, HiddenStates.widen(type, (short) bits));
        }
        least.set(0, 0);
        for (int bits = 1; bits <= infinity(type); bits++) {
            // In double, in which the middle of two neighbours is exact, and infinity the next power of two.
            double below = widened.get(bits - 1);
            double above = bits < infinity(type) ? widened.get(bits) : 2 * below - widened.get(bits - 2);
            float middle = (float) ((below + above) / 2);
            least.set(bits, bits % 2 == 0 ? middle : Math.nextUp(middle));
        }
    }

    /** Tells the kernels of a call of M tokens. */
    void setTokens(int tokens) {
        header.set(0, tokens);
        LaunchConfig launch = launch(tokens);
        header.set(1, launch.blockSizeM());
        header.set(2, gemm.launches().indexOf(launch));
    }

    /** What the GEMMs are launched with for M tokens. */
    LaunchConfig launch(int tokens) {
        return launches.forTokens(tokens);
    }

    /** Pairs of one expert that a work-group takes together in a call of M tokens. */
    int blockSize(int tokens) {
        return launch(tokens).blockSizeM();
    }

    /** Blocks of these that the pairs can come to. */
    int blocks(int tokens) {
        return Gemm.blocks(config, tokens, blockSize(tokens));
    }

    /** Gives the memory back; no plan may use the arrays any more. */
    @Override
    public void close() {
        memory.close();
    }

    /** Every array once. */
    List<TornadoNativeArray> all() {
        return List.copyOf(arrays.values());
    }

    /** The arrays that go by a name, one or one a part. */
    private IntArray ints(String name) {
        return (IntArray) arrays.computeIfAbsent(name, n -> memory.ints(count(sizes, n)));
    }

    private FloatArray floats(String name) {
        return (FloatArray) arrays.computeIfAbsent(name, n -> memory.floats(count(sizes, n)));
    }

    private List<IntArray> allInts(String name) {
        return parts(name).map(this::ints).toList();
    }

    private ExpertParts.Weights weights(String name) {
        return new ExpertParts.Weights(
                allInts(name),
                parts(name + "Scales").map(this::floats).toList(),
                parts(name + "ZeroPoints").map(this::floats).toList(),
                parts(name + "Bias").map(this::floats).toList());
    }

    private Stream<String> parts(String name) {
        return sizes.keySet().stream().filter(part -> withoutPart(part).equals(name));
    }

    private static String withoutPart(String name) {
        return name.replaceFirst("\\[.*", "");
    }

    /** Sizes of a projection's arrays, {@code name[0]} and so on where there are several parts. */
    private static void putWeights(
            Map<String, Long> sizes,
            String name,
            FusedMoeConfig config,
            Int8Quantization quantization,
            ExpertParts parts,
            Gemm gemm,
            boolean first) {
        int rows = first ? config.gateUpRows() : config.hiddenDim();
        int cols = first ? config.hiddenDim() : config.intermediateSizePerPartition();
        int layout = first ? LayerStages.Activation.of(config).layout() : ActivationKernels.NO_GATE;
        int packedRows = gemm.packedRows(rows, layout);
        put(sizes, name, parts, experts -> gemm.lead() + gemm.weightInts(experts, rows, cols, layout));
        ExpertParts scaled = gemm == Gemm.HOPPER ? new ExpertParts(parts.experts(), parts.experts()) : parts;
        put(sizes, name + "Scales", scaled, experts -> scales(quantization, experts, packedRows, cols));
        put(
                sizes,
                name + "ZeroPoints",
                scaled,
                experts -> quantization.zeroPoints() ? scales(quantization, experts, packedRows, cols) : 1);
        put(sizes, name + "Bias", scaled, experts -> config.hasBias() ? (long) experts * packedRows : 1);
    }

    private static void put(Map<String, Long> sizes, String name, ExpertParts parts, IntToLongFunction ofExperts) {
        for (int part = 0; part < parts.count(); part++) {
            sizes.put(parts.count() == 1 ? name : name + "[" + part + "]", ofExperts.applyAsLong(parts.experts(part)));
        }
    }

    /** An adapter into its slot, its B transposed; or zeros. */
    void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        int rank = adapter == null ? 0 : adapter.rank();
        float[] none = new float[0];
        for (int expert = 0; expert < config.globalNumExperts(); expert++) {
            if (expertMap.get(expert) >= 0) {
                int at = slot * localExperts + expertMap.get(expert);
                int slices = LoraAdapter.slices(config);
                int h = config.hiddenDim();
                int i = config.intermediateSizePerPartition();
                copyA(adapter == null ? none : adapter.w13A(), rank, expert, slices, h, w13LoraA, at);
                copyB(adapter == null ? none : adapter.w13B(), rank, expert, config.gateUpRows(), w13LoraB, at);
                copyA(adapter == null ? none : adapter.w2A(), rank, expert, 1, i, w2LoraA, at);
                copyB(adapter == null ? none : adapter.w2B(), rank, expert, h, w2LoraB, at);
            }
        }
    }

    /** An expert's [slices, rank, cols] into [slices, R, cols]. */
    private void copyA(float[] from, int rank, int expert, int slices, int cols, FloatArray into, int at) {
        int most = config.maxLoraRank();
        int first = LoraAdapter.offset(from, expert, slices * rank * cols);
        for (int row = 0; row < slices * most; row++) {
            int j = row % most;
            for (int c = 0; c < cols; c++) {
                float value = j < rank ? from[first + (row / most * rank + j) * cols + c] : 0;
                into.set((at * slices * most + row) * cols + c, value);
            }
        }
    }

    /** An expert's [rows, rank] into [R, rows]. */
    private void copyB(float[] from, int rank, int expert, int rows, FloatArray into, int at) {
        int most = config.maxLoraRank();
        int first = LoraAdapter.offset(from, expert, rows * rank);
        for (int j = 0; j < most; j++) {
            for (int row = 0; row < rows; row++) {
                into.set((at * most + j) * rows + row, j < rank ? from[first + row * rank + j] : 0);
            }
        }
    }

    /** Every array's element count (all elements have four bytes), in the order of a forward pass. */
    static Map<String, Long> elements(
            FusedMoeConfig config,
            Int8Quantization quantization,
            long localExperts,
            Gemm gemm,
            FusedMoeActivationFormat format) {
        Int8Scheme scheme = quantization.scheme();
        long m = config.maxNumTokens();
        long e = config.globalNumExperts();
        long h = config.hiddenDim();
        long gateUpRows = config.gateUpRows();
        long p = m * config.pairsPerToken();
        int most = config.maxNumTokens();
        long blocks = gemm.mostBlocks(config, most);
        boolean int8 = scheme.quantizesActivations();
        boolean batched = format == FusedMoeActivationFormat.BATCHED_EXPERTS;
        long r = batched ? localExperts * m : p;
        long rows = m * config.inputRowsPerToken();
        WorkspaceShapes shapes = WorkspaceShapes.of(
                format,
                config.maxNumTokens(),
                config.gateUpRows(),
                config.intermediateSizePerPartition(),
                config.hiddenDim(),
                Math.toIntExact(p / m),
                Math.toIntExact(localExperts),
                batched ? config.maxNumTokens() : null,
                batched ? PrepareAndFinalize.BATCHED.numDispatchers() : null);
        Map<String, Long> sizes = new LinkedHashMap<>();
        sizes.put("header", (long) HEADER);
        sizes.put("hidden", m * h);
        boolean halves = hasHalves(config);
        sizes.put("hiddenHalves", halves ? Math.ceilDiv(m * h, 2) : 1);
        sizes.put("widened", halves ? 1L << 16 : 1);
        sizes.put("least", halves ? infinity(config.inDtype()) + 1L : 1);
        // Where ids and weights are handed in, there is no router here.
        boolean routed = !config.router().isHandedIn();
        long l = config.numRouterLogits();
        sizes.put("router", routed ? l * h : 1);
        sizes.put("routerBias", routed ? l : 1);
        sizes.put("correctionBias", config.router().hasCorrectionBias() ? config.numChoices() : 1L);
        sizes.put("logits", routed ? m * l : 1);
        sizes.put("topkIds", p);
        sizes.put("topkWeights", p);
        sizes.put("expertMap", e);
        if (config.moeParallelConfig().enableEplb()) {
            sizes.put("replicas", Replicas.ROW * (e + 1));
            sizes.put("placedIds", p);
            sizes.put("loads", localExperts);
        }
        sizes.put("keys", p);
        sizes.put("ranks", p);
        sizes.put("counts", (p + AlignKernels.CHUNK - 1) / AlignKernels.CHUNK * e);
        sizes.put(
                "sortedIds",
                Math.max(
                        (long) gemm.mostPlaces(config, most), (long) MAX_BLOCK * Gemm.blocks(config, most, MAX_BLOCK)));
        sizes.put("expertIds", Math.max(blocks, Gemm.blocks(config, most, MAX_BLOCK)));
        sizes.put("padded", 1L);
        sizes.put("tokens", int8 ? gemm.lead() + rows * gemm.rowInts(config.hiddenDim()) : 1);
        int hiddenGroups = activationGroups(quantization, config.hiddenDim());
        int intermediateGroups = activationGroups(quantization, config.intermediateSizePerPartition());
        sizes.put("tokenScales", int8 ? rows * hiddenGroups : 1);
        sizes.put("tokenScale", 1L);
        sizes.put("rows", 2L);
        sizes.put("expertNumTokens", batched ? localExperts : 1);
        sizes.put("pairOfRow", batched ? r : 1);
        sizes.put("rowOfPair", batched ? p : 1);
        sizes.put("firstPlaces", batched ? localExperts : 1);
        sizes.put("slots", batched && int8 ? r * gemm.rowInts(config.hiddenDim()) : 1);
        sizes.put("slotScales", batched && int8 ? r * hiddenGroups : 1);
        sizes.put("slotFloats", batched && !int8 ? r * h : 1);
        ExpertParts parts = ExpertParts.of(config, Math.toIntExact(localExperts), gemm);
        if (parts.count() > 1 && gemm != Gemm.HOPPER) {
            long places = Objects.requireNonNull(sizes.get("sortedIds"));
            long mostBlocks = Objects.requireNonNull(sizes.get("expertIds"));
            put(sizes, "partSortedIds", parts, experts -> places);
            put(sizes, "partExpertIds", parts, experts -> mostBlocks);
        }
        long prebuiltSizes = gemm == Gemm.TENSOR_CORES ? PREBUILT_SIZES : 1;
        putWeights(sizes, "w13", config, quantization, parts, gemm, true);
        sizes.put("noSizes", prebuiltSizes);
        sizes.put("w13Sizes", prebuiltSizes);
        sizes.put("gateUp", gemm.lead() + WorkspaceShapes.elements(shapes.gemms()));
        sizes.put("activated", gemm.lead() + WorkspaceShapes.elements(shapes.activated()));
        sizes.put("amax", gemm == Gemm.HOPPER ? p : 1);
        sizes.put("pairs", int8 ? gemm.lead() + r * gemm.rowInts(config.intermediateSizePerPartition()) : 1);
        sizes.put("pairScales", int8 ? r * intermediateGroups : 1);
        sizes.put("pairScale", 1L);
        putWeights(sizes, "w2", config, quantization, parts, gemm, false);
        sizes.put("w2Sizes", prebuiltSizes);
        boolean lora = config.isLoraEnabled();
        long slices = LoraAdapter.slices(config);
        long r1 = localExperts * config.maxLoras() * config.maxLoraRank();
        sizes.put("adapters", lora ? m : 1);
        sizes.put("w13LoraA", lora ? r1 * slices * h : 1);
        sizes.put("w13LoraB", lora ? r1 * gateUpRows : 1);
        sizes.put("w2LoraA", lora ? r1 * config.intermediateSizePerPartition() : 1);
        sizes.put("w2LoraB", lora ? r1 * h : 1);
        sizes.put("shrunk", lora ? p * slices * config.maxLoraRank() : 1);
        sizes.put("output", WorkspaceShapes.elements(shapes.output()));
        sizes.put("outputHalves", halves ? Math.ceilDiv(m * h, 2) : 1);
        return sizes;
    }

    /** Bytes of device memory that a layer takes. */
    static long deviceBytes(
            FusedMoeConfig config,
            Int8Quantization quantization,
            int localExperts,
            Gemm gemm,
            FusedMoeActivationFormat format) {
        return bytes(elements(config, quantization, localExperts, gemm, format));
    }

    /** The same, told apart. */
    static DeviceMemory memory(
            FusedMoeConfig config,
            Int8Quantization quantization,
            int localExperts,
            Gemm gemm,
            FusedMoeActivationFormat format) {
        Map<String, Long> sizes = elements(config, quantization, localExperts, gemm, format);
        Map<String, Long> weights = new LinkedHashMap<>(sizes);
        weights.keySet().removeIf(name -> !withoutPart(name).matches("(w13|w2)(Scales|ZeroPoints|Bias)?"));
        long rowsTimesColumns = (long) config.gateUpRows() * config.hiddenDim()
                + (long) config.hiddenDim() * config.intermediateSizePerPartition();
        long int8 = localExperts * rowsTimesColumns;
        return new DeviceMemory(int8, bytes(weights), bytes(sizes) - bytes(weights));
    }

    static long bytes(Map<String, Long> sizes) {
        return sizes.values().stream()
                .mapToLong(count -> 4 * count + TornadoNativeArray.ARRAY_HEADER)
                .sum();
    }

    /** Says by how much arrays of such sizes are too large for who has {@code available} bytes, and which is the largest. */
    static String shortage(Map<String, Long> sizes, String owner, long available) {
        Map<String, Long> whole = new LinkedHashMap<>();
        sizes.forEach((name, count) -> whole.merge(withoutPart(name), count, Long::sum));
        Map.Entry<String, Long> largest =
                whole.entrySet().stream().max(Map.Entry.comparingByValue()).orElseThrow();
        return String.format(
                "the layer needs %,d bytes of memory and %s has %,d; the largest part is %s with %,d",
                bytes(sizes), owner, available, largest.getKey(), 4 * largest.getValue());
    }

    private static void requireMemory(Map<String, Long> sizes, long available) {
        long needed = bytes(sizes);
        if (needed > available) {
            throw new InsufficientMemoryException(
                    shortage(sizes, "the device", available) + ". What helps: " + MORE_MEMORY, needed, available);
        }
        sizes.forEach((name, count) -> {
            if (count > Integer.MAX_VALUE) {
                throw new IllegalArgumentException(
                        name + ": expected fewer than 2^31 elements (a TornadoVM array's limit), got " + count);
            }
        });
    }

    /** A projection in the GEMM's order, part by part. */
    private void pack(Int8Tensor from, float @Nullable [] bias, int layout, ExpertParts.Weights into) {
        for (int p = 0; p < parts.count(); p++) {
            Int8Tensor part = from.experts(parts.first(p), parts.experts(p));
            IntArray values = into.values().get(p);
            switch (gemm) {
                case HOPPER ->
                    HopperWeights.pack(part, layout, values.getSegment().asSlice(4L * gemm.lead()));
                case TENSOR_CORES -> TiledWeights.pack(part, values);
                case PANELS -> PanelWeights.pack(part, values);
                case DP4A, PORTABLE -> pack(part, values);
            }
            if (gemm != Gemm.HOPPER) {
                fillScales(part, into.scales().get(p), into.zeroPoints().get(p));
                FloatArray biasOfPart = into.bias().get(p);
                biasOfPart.init(0);
                if (bias != null) {
                    int first = parts.first(p) * from.rows();
                    MemorySegment.copy(
                            bias,
                            first,
                            biasOfPart.getSegment(),
                            ValueLayout.JAVA_FLOAT,
                            0,
                            parts.experts(p) * from.rows());
                }
            }
        }
        if (gemm == Gemm.HOPPER) {
            HopperWeights.pack(
                    from.scales(),
                    from.experts(),
                    from.rows(),
                    layout,
                    into.scales().getFirst());
            into.bias().getFirst().init(0);
            if (bias != null) {
                HopperWeights.pack(
                        bias, from.experts(), from.rows(), layout, into.bias().getFirst());
            }
        }
    }

    /**
     * From rows of bytes [E, rows, cols] to {@code [E, kInts, rows]} ints, so that neighbouring work-items, which have
     * neighbouring rows, read neighbouring ints. On all cores, in blocks that lie in the cache: a row's length is mostly a power of two,
     * and what is that far apart is in each other's way there.
     */
    private static void pack(Int8Tensor from, IntArray into) {
        int rows = from.rows();
        int kInts = ints(from.cols());
        MemorySegment values = from.values();
        MemorySegment packed = into.getSegment();
        long rowBytes = from.rowBytes();
        int high = 128;
        int wide = 64;
        int stripsPerExpert = Math.ceilDiv(rows, high);
        IntStream.range(0, Math.multiplyExact(from.experts(), stripsPerExpert))
                .parallel()
                .forEach(t -> {
                    int expert = t / stripsPerExpert;
                    int first = t % stripsPerExpert * high;
                    int count = Math.min(high, rows - first);
                    long source = ((long) expert * rows + first) * rowBytes;
                    long target = 4 * ((long) expert * kInts * rows + first);
                    int[] block = new int[high * wide];
                    int[] column = new int[high];
                    for (int k0 = 0; k0 < kInts; k0 += wide) {
                        int ks = Math.min(wide, kInts - k0);
                        for (int r = 0; r < count; r++) {
                            // A row's bytes past its columns are zero, up to the 16 that it is rounded to.
                            long at = source + r * rowBytes + 4L * k0;
                            MemorySegment.copy(values, ValueLayout.JAVA_INT, at, block, r * wide, ks);
                        }
                        for (int k = 0; k < ks; k++) {
                            for (int r = 0; r < count; r++) {
                                column[r] = block[r * wide + k];
                            }
                            long at = target + 4L * (k0 + k) * rows;
                            MemorySegment.copy(column, 0, packed, ValueLayout.JAVA_INT, at, count);
                        }
                    }
                });
    }

    /** Where scales change along a row: [E, groups of columns, scale rows]; else one a row, repeated where rows share it. */
    private static void fillScales(Int8Tensor from, FloatArray scales, FloatArray zeroPoints) {
        boolean perRow = scales.getSize() == from.experts() * from.rows() && from.scaleCols() == 1;
        int rows = perRow ? from.rows() : from.scaleRows();
        int rowsPerScale = perRow ? 1 : from.rowsPerScale();
        int groups = from.scaleCols();
        byte[] zeros = from.zeroPoints();
        for (int i = 0; i < from.experts() * groups * rows; i++) {
            int expert = i / (groups * rows);
            int row = i % rows * rowsPerScale;
            int source = from.scaleIndex(expert, row, i / rows % groups * from.colsPerScale());
            scales.set(i, from.scales()[source]);
            if (zeros != null) {
                zeroPoints.set(i, zeros[source]);
            }
        }
    }

    /** Groups of columns that activations of so many columns have scales of their own for. */
    private static int activationGroups(Int8Quantization quantization, int cols) {
        return quantization.scheme() == Int8Scheme.W8A8_BLOCK ? Math.ceilDiv(cols, quantization.colsPerScale(cols)) : 1;
    }

    /** Scales of a weight on the device. */
    private static long scales(Int8Quantization quantization, long experts, int rows, int cols) {
        return switch (quantization.scheme()) {
            case W8A8_CHANNEL, W8A8_TENSOR, W8A16_CHANNEL -> experts * rows;
            case W8A8_BLOCK, W8A16_GROUP ->
                experts
                        * Math.ceilDiv(rows, quantization.rowsPerScale(rows))
                        * Math.ceilDiv(cols, quantization.colsPerScale(cols));
        };
    }

    private static void copy(float[] from, FloatArray into) {
        MemorySegment.copy(from, 0, into.getSegment(), ValueLayout.JAVA_FLOAT, 0, from.length);
    }

    private static int ints(int bytes) {
        return (bytes + 3) / 4;
    }

    private static int count(Map<String, Long> sizes, String name) {
        return Math.toIntExact(Objects.requireNonNull(sizes.get(name), name));
    }
}
