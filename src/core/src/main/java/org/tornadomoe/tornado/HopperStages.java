package org.tornadomoe.tornado;

import java.util.List;
import java.util.function.IntFunction;
import java.util.function.IntPredicate;
import java.util.function.IntToLongFunction;
import java.util.stream.Stream;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.tornado.CudaKernel.Launch;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * The stages with the kernels of {@code hopper-gemm.cu} and {@code hopper-stages.cu}: fewer, since what is small is in one kernel with
 * what is next to it, and for TornadoVM a single task, as far as no other stage comes between.
 */
final class HopperStages extends LayerStages {
    /** Four stages of 128 k, scales and biases of five tiles, and what aligning them takes. */
    private static final int TILE_BYTES = 4 * (128 + 256) * 128 + 5 * 2 * 1024 + 1024;

    /** Tokens whose experts are chosen and sorted by one group. */
    private static final int ROUTED_TOGETHER = 32;

    /** Tokens whose logits are computed in tiles, and whose pairs are quantised by a warp each. */
    private static final int MANY = 768;

    /** Tokens of such a tile. */
    private static final int LOGIT_TOKENS = 32;

    /** Groups that keep most multiprocessors busy. */
    private static final int FULL = 100;

    /** Pairs up to which the second GEMM quantises what it multiplies, over and over for every 32 rows of weights. */
    private static final int QUANTIZED_OFTEN = 16;

    /** The longest rows, in chunks, with which it does. */
    private static final int QUANTIZED_CHUNKS = 24;

    static final String ARCHITECTURE = "--gpu-architecture=sm_90a";

    HopperStages(LayerArrays arrays) {
        super(arrays);
    }

    @Override
    List<Stage> all() {
        boolean weighted = config.applyRouterWeightOnInput();
        boolean routes = !config.router().isHandedIn();
        return Stream.of(
                        routes ? prepare("prepare", !weighted) : List.<Stage>of(),
                        routes ? List.of(route()) : List.<Stage>of(),
                        routes ? List.of(topK(m -> m > ROUTED_TOGETHER)) : List.<Stage>of(),
                        place(m -> !routes || m > ROUTED_TOGETHER),
                        List.of(sort(m -> !routes || m > ROUTED_TOGETHER)),
                        List.of(quantize(m -> weighted || !routes || isTiled(m), weighted ? 0 : 1)),
                        activated(),
                        List.of(gemm(
                                "down",
                                false,
                                a.down,
                                1,
                                Activation.none(ActivationKernels.NO_GATE),
                                weighted ? 0 : 1,
                                quantizedOften())),
                        loraDown(),
                        combine(),
                        zeroExperts())
                .flatMap(List::stream)
                .toList();
    }

    /** The header and as much of what comes and goes as there are tokens. */
    @Override
    List<Stage> call() {
        boolean halves = LayerArrays.hasHalves(config);
        long k = config.pairsPerToken();
        boolean handedIn = config.router().isHandedIn();
        IntToLongFunction ints = m -> halves ? halfInts(m) : (long) m * config.hiddenDim();
        return Stream.of(
                        copy("copyHeader", a.header, true, m -> a.header.getSize()),
                        copy("copyHidden", a.incoming(), true, ints),
                        a.balanced
                                ? copy("copyReplicas", a.replicas, true, m -> a.replicas.getSize())
                                : List.<Stage>of(),
                        handedIn ? copy("copyIds", a.topkIds, true, m -> m * k) : List.<Stage>of(),
                        handedIn ? copy("copyWeights", a.topkWeights, true, m -> m * k) : List.<Stage>of(),
                        halves ? List.of(widenHidden()) : List.<Stage>of(),
                        all(),
                        halves ? List.of(narrowOutput()) : List.<Stage>of(),
                        copy("copyOutput", a.outgoing(), false, ints),
                        a.balanced ? copy("copyLoads", a.loads, false, m -> a.localExperts) : List.<Stage>of(),
                        handedIn
                                ? List.<Stage>of()
                                : copy("copyIds", a.topkIds, false, m -> a.answersChoice ? m * k : 0),
                        handedIn
                                ? List.<Stage>of()
                                : copy("copyWeights", a.topkWeights, false, m -> a.answersChoice ? m * k : 0))
                .flatMap(List::stream)
                .toList();
    }

    /** Two values to an int. */
    private long halfInts(int m) {
        return Math.ceilDiv((long) m * config.hiddenDim(), 2);
    }

    @Override
    Stage widenHidden() {
        return halves("widenHidden", List.of(a.hiddenHalves), List.of(a.hidden));
    }

    @Override
    Stage narrowOutput() {
        return halves("narrowOutput", List.of(a.output), List.of(a.outputHalves));
    }

    private Stage halves(String kernel, List<Object> from, List<Object> to) {
        return stage(
                kernel,
                m -> new Launch(kernel, 256, Math.toIntExact(Math.ceilDiv(halfInts(m), 256)), 1, 0),
                from,
                to,
                List.of(config.hiddenDim(), config.inDtype() == ScalarType.BF16 ? 1 : 0));
    }

    private List<Stage> copy(String name, TornadoNativeArray array, boolean toDevice, IntToLongFunction elements) {
        return List.of(Stage.cuda(new CudaStep.Copy(name, a.header, array, toDevice, elements)));
    }

    @Override
    List<Stage> logits() {
        return config.router().isHandedIn() ? List.of() : prepare("routerLogits", false);
    }

    @Override
    List<Stage> topK() {
        return config.router().isHandedIn() ? List.of() : List.of(topK(m -> true));
    }

    @Override
    List<Stage> place() {
        return place(m -> true);
    }

    private List<Stage> place(IntPredicate when) {
        if (!a.balanced) {
            return List.of();
        }
        int k = config.pairsPerToken();
        return List.of(stage(
                "place",
                m -> when.test(m) ? new Launch("place", 128, Math.ceilDiv(m * k, 128), 1, 0) : Launch.NONE,
                List.of(a.topkIds, a.replicas),
                List.of(a.placedIds),
                List.of(k, config.globalNumExperts())));
    }

    /** Blocks of experts that live elsewhere are a thing of tests, and left to the kernels in Java. */
    @Override
    List<Stage> align(int keep) {
        return keep == 0 ? List.of(sort(m -> true)) : super.align(keep);
    }

    @Override
    List<Stage> quantizeTokens() {
        return List.of(quantize(m -> true, 0));
    }

    /** Whether logits are computed in tiles; a few rows of the router are none. */
    private boolean isTiled(int m) {
        return m >= MANY && config.numRouterLogits() >= 32 && config.hiddenDim() % 4 == 0;
    }

    /** hidden → logits, and for few tokens int8 tokens with them. */
    private List<Stage> prepare(String name, boolean tokens) {
        int rows = config.numRouterLogits();
        int rowsPerToken = tokens ? config.inputRowsPerToken() : 0;
        IntFunction<Launch> few = m -> {
            int tile = m <= 16 ? 1 : 4;
            int wide = Math.min(2, Math.ceilDiv(rows, tile));
            int groups = Math.ceilDiv(Math.ceilDiv(rows, tile), wide) * Math.ceilDiv(m, tile * (4 / wide));
            return isTiled(m) ? Launch.NONE : new Launch("prepare", 128, groups + m * rowsPerToken, 1, 0);
        };
        IntFunction<Launch> tiles = m -> {
            int down = Math.ceilDiv(m, LOGIT_TOKENS);
            int wide = down * Math.ceilDiv(rows, 128);
            if (!isTiled(m)) {
                return Launch.NONE;
            }
            return rows >= 128 && wide >= FULL
                    ? new Launch("logits128", 256, wide, 1, 8 * (LOGIT_TOKENS + 128) * 128)
                    : new Launch("logits32", 256, down * Math.ceilDiv(rows, 32), 1, 16 * (LOGIT_TOKENS + 32) * 128);
        };
        return List.of(
                prepare(name, few, rows, rowsPerToken, 0),
                stage(
                        "logits",
                        tiles,
                        List.of(a.hidden, a.router, a.routerBias),
                        List.of(a.logits),
                        List.of(config.hiddenDim(), rows)));
    }

    /**
     * hidden → int8 tokens.
     *
     * @param beside 1 behind a kernel that has nothing to do with it
     */
    private Stage quantize(IntPredicate when, int beside) {
        int rowsPerToken = config.inputRowsPerToken();
        return prepare(
                "quantizeTokens",
                m -> when.test(m) ? new Launch("prepare", 128, m * rowsPerToken, 1, 0) : Launch.NONE,
                0,
                rowsPerToken,
                beside);
    }

    private Stage prepare(String name, IntFunction<Launch> launch, int rows, int rowsPerToken, int beside) {
        return stage(
                name,
                launch,
                List.of(a.hidden, a.router, a.routerBias, a.topkWeights),
                List.of(a.logits, a.tokens, a.tokenScales, a.amax),
                List.of(
                        config.hiddenDim(),
                        rows,
                        HopperWeights.chunks(config.hiddenDim()),
                        rowsPerToken,
                        config.applyRouterWeightOnInput() ? 1 : 0,
                        config.pairsPerToken(),
                        beside));
    }

    /** logits → ids and weights and pairs in expert order, for few tokens. */
    private Stage route() {
        return stage(
                "route",
                m -> {
                    int warps = Math.max(4, m);
                    int shared = 4 * Math.max(warps * keys(), a.localExperts) + 8 * warps * config.pairsPerToken();
                    return m > ROUTED_TOGETHER
                            ? Launch.NONE
                            : new Launch("route", 32 * warps, a.localExperts, 1, shared);
                },
                List.of(a.logits, a.correctionBias, a.expertMap, a.replicas),
                List.of(a.topkIds, a.topkWeights, a.placedIds, a.keys, a.sortedIds, a.expertIds, a.padded, a.loads),
                Stream.concat(
                                choice().stream(),
                                Stream.of(config.globalNumExperts(), a.localExperts, a.balanced ? 1 : 0))
                        .toList());
    }

    private Stage topK(IntPredicate when) {
        return stage(
                "topK",
                m -> when.test(m) ? new Launch("topK", 128, Math.ceilDiv(m, 4), 1, 16 * keys()) : Launch.NONE,
                List.of(a.logits, a.correctionBias),
                List.of(a.topkIds, a.topkWeights),
                choice());
    }

    private Stage sort(IntPredicate when) {
        return stage(
                "align",
                m -> when.test(m) ? new Launch("align", 1024, a.localExperts, 1, 4 * a.localExperts) : Launch.NONE,
                List.of(a.placedIds, a.expertMap),
                List.of(a.keys, a.sortedIds, a.expertIds, a.padded, a.loads),
                List.of(config.pairsPerToken(), config.globalNumExperts(), a.localExperts, a.balanced ? 1 : 0));
    }

    /** Keys of a token's choices, and of their groups. */
    private int keys() {
        return config.numChoices() + config.router().numExpertGroup();
    }

    private List<Object> choice() {
        RouterConfig router = config.router();
        return List.of(
                config.numExperts(),
                config.numChoices(),
                config.numFusedSharedExperts(),
                config.expertsPerToken(),
                scoring(router),
                renormalize(router),
                router.hasCorrectionBias() ? 1 : 0,
                router.numExpertGroup(),
                router.topkGroup(),
                router.hasSharedExpertGate() ? 1 : 0,
                (float) router.routedScalingFactor());
    }

    private static Stage cuda(
            String name,
            String source,
            List<String> options,
            IntFunction<Launch> launch,
            List<Object> arguments,
            List<Object> writes,
            List<Object> updates,
            List<Object> scalars) {
        return Stage.cuda(new CudaKernel(name, source, options, launch, arguments, writes, updates, scalars));
    }

    /** A kernel of {@code hopper-stages.cu}. */
    private Stage stage(
            String name, IntFunction<Launch> launch, List<Object> reads, List<Object> writes, List<Object> scalars) {
        return cuda(
                name,
                "hopper-stages.cu",
                List.of(ARCHITECTURE, lead("LEAD", a.lead)),
                launch,
                afterHeader(reads),
                writes,
                List.of(),
                scalars);
    }

    private static String lead(String name, int elements) {
        return "-D" + name + "=" + 4 * elements;
    }

    private List<Object> afterHeader(List<Object> reads) {
        return Stream.concat(Stream.of(a.header), reads.stream()).toList();
    }

    /**
     * tokens → activated, its int8 and its scales. The activation is in the first GEMM's last step, or, where adapters come between,
     * in a kernel that gives the same bits.
     */
    private List<Stage> activated() {
        int i = config.intermediateSizePerPartition();
        int pairsOfToken = config.pairsPerToken();
        Activation activation = Activation.of(config);
        Stage quantize = cuda(
                "quantizePairs",
                "hopper-gemm.cu",
                options(Activation.none(ActivationKernels.NO_GATE)),
                m -> {
                    if (isSkinny(m) && rows(m) <= quantizedOften()) {
                        return Launch.NONE;
                    }
                    return m >= MANY
                            ? new Launch("quantizePairs", 128, Math.ceilDiv(rows(m), 4), 1, 0)
                            : new Launch("quantizePairs", 128, rows(m), Math.ceilDiv(i, 2048), 0);
                },
                afterHeader(List.of(a.keys, a.activated, a.amax)),
                List.of(a.pairs, a.pairScales),
                List.of(),
                List.of(pairsOfToken, i, HopperWeights.chunks(i), MANY));
        if (!config.isLoraEnabled()) {
            return List.of(gemm("gateUp", true, a.activated, config.pairsPerInputRow(), activation, 0, 0), quantize);
        }
        Stage activate = cuda(
                "activatePairs",
                "hopper-gemm.cu",
                options(activation),
                m -> new Launch("activatePairs", 128, rows(m), 1, 0),
                afterHeader(List.of(a.keys, a.gateUp)),
                List.of(a.activated),
                List.of(a.amax),
                List.of(
                        pairsOfToken,
                        i,
                        activation.limit(),
                        activation.alpha(),
                        activation.beta(),
                        activation.linearBeta()));
        return Stream.of(gateUp(), loraGateUp(), List.of(activate, quantize))
                .flatMap(List::stream)
                .toList();
    }

    @Override
    List<Stage> gemm(
            String name,
            IntArray quantized,
            FloatArray scales,
            FloatArray floats,
            ExpertParts.Weights weights,
            FloatArray out,
            int pairsPerRow,
            int rows,
            int kInts,
            int cols,
            int weighted) {
        boolean first = weights == a.w13;
        Activation raw = Activation.none(first ? Activation.of(config).layout() : ActivationKernels.NO_GATE);
        return List.of(gemm(name, first, out, pairsPerRow, raw, weighted, 0));
    }

    /** Many k are shared among more warps. */
    static int streamingWarps(int cols) {
        return HopperWeights.chunks(cols) >= 32 ? 8 : 4;
    }

    /** Up to how many pairs the second GEMM of {@link #all} quantises them, if it is the one for few. */
    private int quantizedOften() {
        return HopperWeights.chunks(config.intermediateSizePerPartition()) <= QUANTIZED_CHUNKS ? QUANTIZED_OFTEN : 0;
    }

    private boolean isSkinny(int m) {
        return a.launch(m).blockSizeM() < Gemm.TILE;
    }

    /**
     * One of the projections, with an activation in its last step or without; see {@code hopper-gemm.cu}.
     *
     * @param often up to how many pairs it quantises them
     */
    private Stage gemm(
            String name,
            boolean first,
            FloatArray out,
            int pairsPerRow,
            Activation activation,
            int weighted,
            int often) {
        int rows = first ? config.gateUpRows() : config.hiddenDim();
        int cols = first ? config.hiddenDim() : config.intermediateSizePerPartition();
        int groups = HopperWeights.groups(rows, activation.layout());
        int chunks = HopperWeights.chunks(cols);
        IntFunction<Launch> launch = m -> {
            int warps = a.launches.source() == null
                    ? streamingWarps(cols)
                    : a.launch(m).numWarps();
            int quantizedBytes = rows(m) <= often ? 8 * (chunks * HopperWeights.CHUNK + 64) : 0;
            return isSkinny(m)
                    ? new Launch("skinnyGemm", 32 * warps, groups / 4, a.blocks(m), quantizedBytes)
                    : new Launch("tileGemm", 384, CudaKernel.ALL_MULTIPROCESSORS, 1, TILE_BYTES);
        };
        ExpertParts.Weights weights = first ? a.w13 : a.w2;
        List<Object> reads = Stream.of(
                        List.of(
                                a.sortedIds,
                                a.expertIds,
                                a.padded,
                                first ? a.tokens : a.pairs,
                                first ? a.tokenScales : a.pairScales),
                        weights.values(),
                        List.of(
                                weights.scales().getFirst(),
                                weights.bias().getFirst(),
                                a.topkWeights,
                                often > 0 ? a.activated : a.topkWeights))
                .<Object>flatMap(List::stream)
                .toList();
        int columns = activation.function() < 0 ? rows : config.intermediateSizePerPartition();
        List<Object> scalars = List.of(
                config.pairsPerToken(),
                pairsPerRow,
                columns,
                groups,
                chunks,
                a.parts.expertsOfPart(),
                weighted,
                config.hasBias() ? 1 : 0,
                first ? 0 : 1,
                cols,
                often,
                activation.limit(),
                activation.alpha(),
                activation.beta(),
                activation.linearBeta());
        return cuda(
                name,
                "hopper-gemm.cu",
                options(activation),
                launch,
                afterHeader(reads),
                List.of(out),
                List.of(a.amax),
                scalars);
    }

    private List<String> options(Activation activation) {
        return List.of(
                ARCHITECTURE,
                lead("LEAD", a.lead),
                lead("WEIGHTS_LEAD", a.gemm.lead()),
                "-DACTIVATION=" + activation.function(),
                "-DLAYOUT=" + activation.layout(),
                "-DPARTS=" + a.parts.count());
    }

    /** down → output. */
    @Override
    List<Stage> combine() {
        int fours = Math.ceilDiv(config.hiddenDim(), 4);
        return List.of(stage(
                "combine",
                m -> new Launch("combine", 128, elementGroups(m, fours, 128), 1, 0),
                List.of(a.keys, a.down),
                List.of(a.output),
                List.of(config.pairsPerToken(), config.hiddenDim())));
    }
}
