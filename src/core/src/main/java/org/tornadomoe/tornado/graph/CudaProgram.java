package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntFunction;
import java.util.function.IntPredicate;
import java.util.function.IntToLongFunction;
import java.util.function.IntUnaryOperator;
import java.util.stream.Stream;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.cuda.CudaStep;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.layout.ActivationCode;
import org.tornadomoe.tornado.layout.HopperWeights;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * The stages around a family of GEMMs in CUDA C, with the kernels of {@code layer-stages.cu}: fewer than those in Java,
 * since what is small is in one kernel with what is next to it, and for TornadoVM a single task, as far as no other
 * stage comes between.
 */
abstract class CudaProgram extends LayerProgram {
    /** Tokens whose experts are chosen and sorted by one group. */
    private static final int ROUTED_TOGETHER = 32;

    /** Tokens whose logits are computed in tiles, and whose pairs are sorted in runs. */
    static final int MANY = 768;

    /** The same on Hopper. */
    private static final int MANY_ON_HOPPER = 384;

    /** Tokens of such a tile. */
    private static final int LOGIT_TOKENS = 32;

    /** Groups that share a tile of logits on Hopper. */
    private static final int CLUSTER = 8;

    /** Those of wide tiles that keep Hopper busy. */
    private static final int FULL_OF_CLUSTERS = 64;

    /** Pairs that a group sorts. */
    private static final int RUN = 1024;

    /** Groups that keep most multiprocessors busy. */
    private static final int FULL = 100;

    /**
     * Pairs, and bytes of packed rows in all, up to which the second GEMM packs what it multiplies, over and over for
     * every 32 rows of weights.
     */
    private static final int PACKED_OFTEN = 16, PACKED_BYTES = 128 << 10;

    private final CudaGemm products;

    private final boolean hasRoomForWideTiles;

    CudaProgram(CudaGemm gemm, LayerArrays arrays) {
        super(gemm, arrays);
        products = gemm;
        Device device = TornadoHome.current().find(arrays.shape.config.device());
        hasRoomForWideTiles =
                device == null || !device.backend().equals("cuda") || hasRoomForWideTiles(device.computeCapability());
    }

    /** hidden → logits, and maybe more. */
    abstract List<Stage> first();

    /**
     * ids → pairs in expert order, and hidden → hiddenQ and scales, behind what {@link #first} has done of it.
     *
     * @param sorts for how many tokens nobody has sorted them
     */
    abstract List<Stage> sortAndPack(IntPredicate sorts);

    /** activated → activatedQ and scales, unless the second product does it. */
    abstract List<Stage> packPairs();

    /** Up to how many pairs the second product packs them itself, if it is the one for few. */
    abstract int packedOften();

    /** The same where a packed row has so many bytes. */
    static int packedOften(int rowBytes) {
        return Math.min(PACKED_OFTEN, PACKED_BYTES / rowBytes);
    }

    @Override
    public final List<Stage> all() {
        boolean routes = a.shape.routes;
        return Stream.of(
                        routes ? first() : List.<Stage>of(),
                        routes ? List.of(route()) : List.<Stage>of(),
                        routes ? List.of(topK(m -> m > ROUTED_TOGETHER)) : List.<Stage>of(),
                        place(m -> !routes || m > ROUTED_TOGETHER),
                        sortAndPack(m -> !routes || m > ROUTED_TOGETHER),
                        activated(),
                        packPairs(),
                        List.of(products.stage(
                                a, downProduct(), ActivationCode.none(ActivationKernels.NO_GATE), packedOften())),
                        loraDown(),
                        combine(),
                        zeroExperts())
                .flatMap(List::stream)
                .toList();
    }

    /**
     * tokens → activated. The activation is in the first product's last step, or, where adapters come between, in a
     * kernel that gives the same bits.
     */
    private List<Stage> activated() {
        return a.shape.adapted
                ? inOrder(gateUp(), loraGateUp(), List.of(activatePairs()))
                : List.of(products.stage(a, gateUpProduct(a.work.activated), a.shape.activation, 0));
    }

    /** A kernel of the products' source that multiplies nothing, with a factor of so many columns. */
    final Stage pack(
            String name,
            int cols,
            IntFunction<Launch> launch,
            List<Object> reads,
            List<Object> writes,
            List<Object> updates,
            List<Object> scalars) {
        return products.kernel(
                a,
                name,
                ActivationCode.none(ActivationKernels.NO_GATE),
                cols,
                launch,
                afterHeader(reads),
                writes,
                updates,
                scalars);
    }

    /**
     * Rows into the form that a product takes, by the kernels of {@code packing.cu}; behind tokens amax is 0.
     *
     * @param chunks of 64 columns of a packed row
     * @param columnsOfGroup that have a scale in common, where it isn't one for all rows
     * @param ordersFrom rows of a block from which on they are in the order of k
     * @param count rows of M tokens, 0 where nothing is to be done
     */
    final List<Stage> packRows(
            QuantizedMatrix x, int chunks, int columnsOfGroup, int ordersFrom, IntUnaryOperator count) {
        boolean dynamic = a.shape.scheme == Int8Scheme.W8A8_TENSOR && !a.staticScales;
        Stage pack = pack(
                x.name(),
                x.cols(),
                launch("packRows", count),
                List.of(a.work.keys, a.work.topkWeights, x.from(), x.scale()),
                x.isPairs() ? List.of(x.into(), x.scales()) : List.of(x.into(), x.scales(), a.work.amax),
                x.isPairs() ? List.of(a.work.amax) : List.of(),
                List.of(
                        x.rowsPerToken(),
                        x.cols(),
                        chunks,
                        Math.ceilDiv(x.cols(), columnsOfGroup),
                        columnsOfGroup,
                        x.keyed(),
                        x.weighted(),
                        x.isPairs() ? 0 : a.shape.topK,
                        ordersFrom));
        if (!dynamic) {
            return List.of(pack);
        }
        Stage magnitudes = pack(
                x.name() + "Magnitudes",
                x.cols(),
                launch("rowMagnitudes", count),
                List.of(a.work.keys, a.work.topkWeights, x.from()),
                List.of(x.scales()),
                List.of(),
                List.of(x.rowsPerToken(), x.cols(), x.keyed(), x.weighted()));
        Stage scale = pack(
                x.name() + "Scale",
                x.cols(),
                m -> new Launch("tensorScale", 1024, 1, 1, 0),
                List.of(x.scales()),
                List.of(x.scale()),
                List.of(),
                List.of(x.rowsPerToken()));
        return List.of(magnitudes, scale, pack);
    }

    private static IntFunction<Launch> launch(String entryPoint, IntUnaryOperator count) {
        return m -> count.applyAsInt(m) == 0 ? Launch.NONE : new Launch(entryPoint, 128, count.applyAsInt(m), 1, 0);
    }

    /** The header and as much of what comes and goes as there are tokens. */
    @Override
    public List<Stage> call() {
        boolean halves = a.shape.halves;
        long k = a.shape.topK;
        boolean handedIn = !a.shape.routes;
        IntToLongFunction ints = m -> halves ? halfInts(m) : (long) m * a.shape.hidden;
        return Stream.of(
                        copy("copyHeader", a.work.header, true, m -> a.work.header.getSize()),
                        copy("copyHidden", a.work.incoming(), true, ints),
                        a.shape.balanced
                                ? copy("copyReplicas", a.work.replicas, true, m -> a.work.replicas.getSize())
                                : List.<Stage>of(),
                        handedIn ? copy("copyIds", a.work.topkIds, true, m -> m * k) : List.<Stage>of(),
                        handedIn ? copy("copyWeights", a.work.topkWeights, true, m -> m * k) : List.<Stage>of(),
                        halves ? List.of(widenHidden()) : List.<Stage>of(),
                        all(),
                        halves ? List.of(narrowOutput()) : List.<Stage>of(),
                        copy("copyOutput", a.work.outgoing(), false, ints),
                        a.shape.balanced
                                ? copy("copyLoads", a.work.loads, false, m -> a.shape.localExperts)
                                : List.<Stage>of(),
                        handedIn
                                ? List.<Stage>of()
                                : copy("copyIds", a.work.topkIds, false, m -> a.returnsRouting ? m * k : 0),
                        handedIn
                                ? List.<Stage>of()
                                : copy("copyWeights", a.work.topkWeights, false, m -> a.returnsRouting ? m * k : 0))
                .flatMap(List::stream)
                .toList();
    }

    /** Two values to an int. */
    private long halfInts(int m) {
        return Math.ceilDiv((long) m * a.shape.hidden, 2);
    }

    @Override
    Stage widenHidden() {
        return halves("widenHidden", List.of(a.work.hiddenHalves), List.of(a.work.hidden));
    }

    @Override
    Stage narrowOutput() {
        return halves("narrowOutput", List.of(a.work.output), List.of(a.work.outputHalves));
    }

    private Stage halves(String kernel, List<Object> from, List<Object> to) {
        return stage(
                kernel,
                m -> new Launch(kernel, 256, Math.toIntExact(Math.ceilDiv(halfInts(m), 256)), 1, 0),
                from,
                to,
                List.of(a.shape.hidden, a.shape.config.inDtype() == ScalarType.BF16 ? 1 : 0));
    }

    private List<Stage> copy(String name, TornadoNativeArray array, boolean toDevice, IntToLongFunction elements) {
        return List.of(Stage.cuda(new CudaStep.Copy(name, a.work.header, array, toDevice, elements)));
    }

    @Override
    List<Stage> logits() {
        return !a.shape.routes ? List.of() : prepare("routerLogits", false);
    }

    @Override
    List<Stage> topK() {
        return !a.shape.routes ? List.of() : List.of(topK(m -> true));
    }

    @Override
    List<Stage> place() {
        return place(m -> true);
    }

    private List<Stage> place(IntPredicate when) {
        if (!a.shape.balanced) {
            return List.of();
        }
        int k = a.shape.topK;
        return List.of(stage(
                "place",
                m -> when.test(m) ? new Launch("place", 128, Math.ceilDiv(m * k, 128), 1, 0) : Launch.NONE,
                List.of(a.work.topkIds, a.work.replicas),
                List.of(a.work.placedIds),
                List.of(k, a.shape.experts)));
    }

    /** Blocks of experts that live elsewhere are a thing of tests, and left to the kernels in Java. */
    @Override
    List<Stage> align(int keep) {
        return keep == 0 ? List.of(sort(m -> true)) : super.align(keep);
    }

    final int many() {
        return products.isForHopper() ? MANY_ON_HOPPER : MANY;
    }

    /**
     * Whether logits are computed in tiles, whose bits are others; a few rows of the router are none. Where batches are
     * to be invariant all are.
     */
    final boolean isTiled(int m) {
        return (m >= many() || a.shape.config.batchInvariant())
                && a.shape.config.numRouterLogits() >= 32
                && a.shape.hidden % 4 == 0;
    }

    /** Whether a device has the 160 KB of shared memory that tiles of 128 rows take; some have 99 KB. */
    static boolean hasRoomForWideTiles(int capability) {
        return capability != 86 && capability != 89 && capability / 10 != 12;
    }

    /** hidden → logits, and for few tokens int8 tokens with them. */
    final List<Stage> prepare(String name, boolean tokens) {
        int rows = a.shape.config.numRouterLogits();
        int rowsPerToken = tokens ? a.shape.config.inputRowsPerToken() : 0;
        IntFunction<Launch> few = m -> {
            int tile = m <= 16 ? 1 : 4;
            int wide = Math.min(2, Math.ceilDiv(rows, tile));
            int groups = Math.ceilDiv(Math.ceilDiv(rows, tile), wide) * Math.ceilDiv(m, tile * (4 / wide));
            return isTiled(m) ? Launch.NONE : new Launch("prepare", 128, groups + m * rowsPerToken, 1, 0);
        };
        IntFunction<Launch> tiles = m -> {
            if (!isTiled(m)) {
                return Launch.NONE;
            }
            if (products.isForHopper()) {
                int wide = CLUSTER * Math.ceilDiv(m, 128) * Math.ceilDiv(rows, 128);
                return wide >= FULL_OF_CLUSTERS
                        ? new Launch("hopperLogits128", 256, wide, 1, 768 * 128 + 99840)
                        : new Launch(
                                "hopperLogits64",
                                256,
                                CLUSTER * Math.ceilDiv(m, 64) * Math.ceilDiv(rows, 128),
                                1,
                                768 * 64 + 99840);
            }
            int down = Math.ceilDiv(m, LOGIT_TOKENS);
            int wide = down * Math.ceilDiv(rows, 128);
            return rows >= 128 && wide >= FULL && hasRoomForWideTiles
                    ? new Launch("logits128", 256, wide, 1, 8 * (LOGIT_TOKENS + 128) * 128)
                    : new Launch("logits32", 256, down * Math.ceilDiv(rows, 32), 1, 12 * (LOGIT_TOKENS + 32) * 128);
        };
        return List.of(
                prepare(name, few, rows, rowsPerToken),
                stage(
                        "logits",
                        tiles,
                        List.of(a.work.hidden, a.weights.router, a.weights.routerBias),
                        List.of(a.work.logits),
                        List.of(a.shape.hidden, rows)));
    }

    final Stage prepare(String name, IntFunction<Launch> launch, int rows, int rowsPerToken) {
        return stage(
                name,
                launch,
                List.of(a.work.hidden, a.weights.router, a.weights.routerBias, a.work.topkWeights),
                List.of(a.work.logits, a.work.hiddenQ, a.work.hiddenScales, a.work.amax),
                List.of(
                        a.shape.hidden,
                        rows,
                        HopperWeights.chunks(a.shape.hidden),
                        rowsPerToken,
                        a.shape.weightsOnInput ? 1 : 0,
                        a.shape.topK));
    }

    /** logits → ids and weights and pairs in expert order, for few tokens. */
    private Stage route() {
        return stage(
                "route",
                m -> {
                    int warps = Math.max(4, m);
                    int shared = 4 * Math.max(warps * keys(), a.shape.localExperts) + 8 * warps * a.shape.topK;
                    return m > ROUTED_TOGETHER
                            ? Launch.NONE
                            : new Launch("route", 32 * warps, a.shape.localExperts, 1, shared);
                },
                List.of(a.work.logits, a.weights.correctionBias, a.weights.expertMap, a.work.replicas),
                List.of(
                        a.work.topkIds,
                        a.work.topkWeights,
                        a.work.placedIds,
                        a.work.keys,
                        a.work.sortedIds,
                        a.work.expertIds,
                        a.work.numPostPadded,
                        a.work.loads),
                Stream.concat(
                                choice().stream(),
                                Stream.of(
                                        a.shape.experts,
                                        a.shape.localExperts,
                                        a.shape.balanced ? 1 : 0,
                                        a.shape.batched ? 1 : 0))
                        .toList());
    }

    private Stage topK(IntPredicate when) {
        return stage(
                "topK",
                m -> when.test(m) ? new Launch("topK", 128, Math.ceilDiv(m, 4), 1, 16 * keys()) : Launch.NONE,
                List.of(a.work.logits, a.weights.correctionBias),
                List.of(a.work.topkIds, a.work.topkWeights),
                choice());
    }

    /** ids → pairs in expert order. */
    final Stage sort(IntPredicate when) {
        int experts = a.shape.localExperts;
        return stage(
                "align",
                m -> !when.test(m)
                        ? Launch.NONE
                        : m < many()
                                ? new Launch("align", RUN, experts, 1, 4 * experts)
                                : sorting("alignRuns", runs(m)),
                List.of(a.work.placedIds, a.weights.expertMap),
                List.of(a.work.keys, a.work.sortedIds, a.work.expertIds, a.work.numPostPadded, a.work.loads),
                sorting());
    }

    /** The same, and hidden → hiddenQ and scales by other groups of the kernel, eight rows each. */
    final Stage sortAndQuantize(IntPredicate when) {
        int rowsPerToken = a.shape.config.inputRowsPerToken();
        return stage(
                "alignAndQuantize",
                m -> when.test(m)
                        ? sorting("alignAndQuantize", runs(m) + Math.ceilDiv(m * rowsPerToken, 8))
                        : Launch.NONE,
                List.of(a.work.placedIds, a.weights.expertMap, a.work.hidden, a.work.topkWeights),
                List.of(
                        a.work.keys,
                        a.work.sortedIds,
                        a.work.expertIds,
                        a.work.numPostPadded,
                        a.work.loads,
                        a.work.hiddenQ,
                        a.work.hiddenScales,
                        a.work.amax),
                Stream.concat(
                                sorting().stream(),
                                Stream.of(
                                        a.shape.hidden,
                                        HopperWeights.chunks(a.shape.hidden),
                                        rowsPerToken,
                                        a.shape.weightsOnInput ? 1 : 0))
                        .toList());
    }

    private int runs(int tokens) {
        return Math.max(1, Math.ceilDiv(a.shape.pairs(tokens), RUN));
    }

    private Launch sorting(String entryPoint, int groups) {
        return new Launch(entryPoint, RUN, groups, 1, 76 * a.shape.localExperts);
    }

    private List<Object> sorting() {
        return List.of(
                a.shape.topK, a.shape.experts, a.shape.localExperts, a.shape.balanced ? 1 : 0, a.shape.batched ? 1 : 0);
    }

    /** Keys of a token's choices, and of their groups. */
    private int keys() {
        return a.shape.config.numChoices() + a.shape.config.router().numExpertGroup();
    }

    private List<Object> choice() {
        RouterConfig router = a.shape.config.router();
        return List.of(
                a.shape.config.numExperts(),
                a.shape.config.numChoices(),
                a.shape.config.numFusedSharedExperts(),
                a.shape.config.expertsPerToken(),
                RouterStages.scoring(router),
                RouterStages.renormalize(router),
                router.hasCorrectionBias() ? 1 : 0,
                router.numExpertGroup(),
                router.topkGroup(),
                router.hasSharedExpertGate() ? 1 : 0,
                (float) router.routedScalingFactor());
    }

    /** A kernel of {@code layer-stages.cu}. */
    private Stage stage(
            String name, IntFunction<Launch> launch, List<Object> reads, List<Object> writes, List<Object> scalars) {
        return Stage.cuda(new CudaKernel(
                name,
                "layer-stages.cu",
                products.isForHopper()
                        ? List.of(HopperGemm.ARCHITECTURE, pad("LEAD", a.alignmentPad))
                        : List.of(pad("LEAD", a.alignmentPad)),
                launch,
                afterHeader(reads),
                writes,
                List.of(),
                scalars));
    }

    private List<Object> afterHeader(List<Object> reads) {
        return Stream.concat(Stream.of(a.work.header), reads.stream()).toList();
    }

    /** down → output. */
    @Override
    List<Stage> combine() {
        int fours = Math.ceilDiv(a.shape.hidden, 4);
        return List.of(stage(
                "combine",
                m -> new Launch("combine", 128, KernelTask.elementGroups(m, fours, 128), 1, 0),
                List.of(a.work.keys, a.work.down),
                List.of(a.work.output),
                List.of(a.shape.topK, a.shape.hidden)));
    }

    /** gateUp → activated where adapters come between, by a kernel that gives the same bits as the GEMM's last step. */
    private Stage activatePairs() {
        ActivationCode activation = a.shape.activation;
        return products.kernel(
                a,
                "activatePairs",
                activation,
                a.shape.intermediate,
                m -> new Launch("activatePairs", 128, a.shape.pairs(m), 1, 0),
                afterHeader(List.of(a.work.keys, a.work.gateUp)),
                List.of(a.work.activated),
                List.of(a.work.amax),
                List.of(
                        a.shape.topK,
                        a.shape.intermediate,
                        activation.limit(),
                        activation.alpha(),
                        activation.beta(),
                        activation.linearBeta()));
    }

    /** Bytes that kernels find in front of what is in an array. */
    static String pad(String name, int elements) {
        return "-D" + name + "=" + 4 * elements;
    }
}
