package org.tornadomoe.tornado;

import java.util.List;
import java.util.function.IntPredicate;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.tornadomoe.config.ActivationConstants;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tornado.kernels.BlockGemmKernels;
import org.tornadomoe.tornado.kernels.CombineKernels;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tornado.kernels.HalfKernels;
import org.tornadomoe.tornado.kernels.LoraKernels;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;
import org.tornadomoe.tornado.kernels.QuantizeKernels;
import org.tornadomoe.tornado.kernels.RouterKernels;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The kernels of a layer, in the order of a forward pass: {@link #logits}, {@link #topK}, {@link #place}, {@link #align}, {@link #quantizeTokens}, {@link
 * #dispatch}, {@link #gateUp}, {@link #activateAndQuantize}, {@link #down}, {@link #combine}, {@link #zeroExperts}. Each is a list, empty
 * where the layer has no such step. Here they are in the standard format.
 */
sealed class LayerStages permits BatchedStages, HopperStages {
    private static final PrebuiltKernel EXPERT_GEMM = new PrebuiltKernel("expert-gemm", "expertGemm");
    private static final int EXPERT_GEMM_READS = 11;

    final LayerArrays a;
    final FusedMoeConfig config;
    final KernelContext context = new KernelContext();

    LayerStages(LayerArrays arrays) {
        this.a = arrays;
        this.config = arrays.config;
    }

    /** In the format that the arrays are made for. */
    static LayerStages of(LayerArrays arrays) {
        return arrays.gemm == Gemm.HOPPER
                ? new HopperStages(arrays)
                : arrays.format == FusedMoeActivationFormat.BATCHED_EXPERTS
                        ? new BatchedStages(arrays)
                        : new LayerStages(arrays);
    }

    /** The whole layer, from {@link LayerArrays#hidden} to {@link LayerArrays#output}. */
    List<Stage> all() {
        return Stream.of(
                        logits(),
                        topK(),
                        place(),
                        align(),
                        alignParts(),
                        quantizeTokens(),
                        dispatch(),
                        gateUp(),
                        loraGateUp(),
                        activateAndQuantize(),
                        down(),
                        loraDown(),
                        combine(),
                        zeroExperts())
                .flatMap(List::stream)
                .toList();
    }

    /** What a call takes: the layer, and what it brings to the device and back by itself, or makes of hidden states of 16 bits. */
    List<Stage> call() {
        boolean halves = LayerArrays.hasHalves(config);
        return Stream.of(
                        first(),
                        halves ? List.of(widenHidden()) : List.<Stage>of(),
                        all(),
                        halves ? List.of(narrowOutput()) : List.<Stage>of())
                .flatMap(List::stream)
                .toList();
    }

    /** hiddenHalves → hidden. */
    Stage widenHidden() {
        int h = config.hiddenDim();
        return new Stage(
                "widenHidden",
                HalfKernels.GROUP,
                this::halfGroups,
                m -> 1,
                (g, task) -> g.task(
                        task, HalfKernels::widenHalves, context, a.header, a.hiddenHalves, a.widened, a.hidden, h),
                List.of(a.header, a.hiddenHalves, a.widened),
                List.of(a.hidden));
    }

    /** output → outputHalves. */
    Stage narrowOutput() {
        int h = config.hiddenDim();
        int infinity = LayerArrays.infinity(config.inDtype());
        int nan = infinity | ((infinity >> 1) & ~infinity); // quiet
        return new Stage(
                "narrowOutput",
                HalfKernels.GROUP,
                this::halfGroups,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        HalfKernels::narrowToHalves,
                        context,
                        a.header,
                        a.output,
                        a.least,
                        a.outputHalves,
                        h,
                        infinity,
                        nan),
                List.of(a.header, a.output, a.least),
                List.of(a.outputHalves));
    }

    private int halfGroups(int tokens) {
        return Math.ceilDiv(Math.ceilDiv(tokens * config.hiddenDim(), 2), HalfKernels.GROUP);
    }

    /** hidden, router → logits; none where ids and weights are handed in. */
    List<Stage> logits() {
        if (config.router().isHandedIn()) {
            return List.of();
        }
        int rows = config.numRouterLogits();
        int h = config.hiddenDim();
        return List.of(new Stage(
                "routerLogits",
                RouterKernels.LOGIT_GROUP,
                m -> rows,
                m -> Math.ceilDiv(m, RouterKernels.LOGIT_TOKENS),
                (g, task) -> g.task(
                        task,
                        RouterKernels::routerLogits,
                        context,
                        a.header,
                        a.hidden,
                        a.router,
                        a.routerBias,
                        a.logits,
                        h,
                        rows),
                List.of(a.header, a.hidden, a.router, a.routerBias),
                List.of(a.logits)));
    }

    /** logits → ids and weights, those of shared experts included; none where they are handed in. */
    List<Stage> topK() {
        RouterConfig router = config.router();
        if (router.isHandedIn()) {
            return List.of();
        }
        int experts = config.numExperts();
        int choices = config.numChoices();
        int shared = config.numFusedSharedExperts();
        int k = config.expertsPerToken();
        int scoring = scoring(router);
        int renormalize = renormalize(router);
        int biased = router.hasCorrectionBias() ? 1 : 0;
        int groups = router.numExpertGroup();
        int topkGroup = router.topkGroup();
        int gate = router.hasSharedExpertGate() ? 1 : 0;
        float factor = (float) router.routedScalingFactor();
        return List.of(new Stage(
                "topK",
                RouterKernels.TOP_K_GROUP,
                m -> m,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        RouterKernels::topK,
                        context,
                        a.header,
                        a.logits,
                        a.correctionBias,
                        a.topkIds,
                        a.topkWeights,
                        experts,
                        choices,
                        shared,
                        k,
                        scoring,
                        renormalize,
                        biased,
                        groups,
                        topkGroup,
                        gate,
                        factor),
                List.of(a.header, a.logits, a.correctionBias),
                List.of(a.topkIds, a.topkWeights)));
    }

    /** A router's scores in the kernels' numbers. */
    static int scoring(RouterConfig router) {
        return switch (router.scoring()) {
            case SOFTMAX -> RouterKernels.SOFTMAX;
            case SIGMOID -> RouterKernels.SIGMOID;
            case SQRTSOFTPLUS -> RouterKernels.SQRTSOFTPLUS;
            case IDENTITY -> RouterKernels.IDENTITY;
            case SPARSE_MIXER, CUSTOM, SIMULATED ->
                throw new IllegalArgumentException("scoring: expected what a kernel computes, got " + router.scoring());
        };
    }

    /** 1 where weights are divided by their sum; a softmax of the chosen alone is the same. */
    static int renormalize(RouterConfig router) {
        boolean softmaxOfChosen = router.scoresChosenOnly() && router.scoring() == ScoringFunction.SOFTMAX;
        return router.renormalize() || softmaxOfChosen ? 1 : 0;
    }

    /** ids → ids of this device's pairs; none where experts stay where they are. */
    List<Stage> place() {
        if (!a.balanced) {
            return List.of();
        }
        int e = config.globalNumExperts();
        int k = config.pairsPerToken();
        return List.of(new Stage(
                "place",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(m * k, AlignKernels.SCATTER_GROUP),
                m -> 1,
                (g, task) ->
                        g.task(task, AlignKernels::place, context, a.header, a.topkIds, a.replicas, a.placedIds, k, e),
                List.of(a.header, a.topkIds, a.replicas),
                List.of(a.placedIds)));
    }

    /** The chunks' counts → loads; none where experts stay where they are. */
    final List<Stage> loads() {
        if (!a.balanced) {
            return List.of();
        }
        int local = a.localExperts;
        int k = config.pairsPerToken();
        return List.of(new Stage(
                "loads",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(local, AlignKernels.SCATTER_GROUP),
                m -> 1,
                (g, task) -> g.task(task, AlignKernels::loads, context, a.header, a.counts, a.loads, k, local),
                List.of(a.header, a.counts),
                List.of(a.loads)));
    }

    /**
     * ids → pairs sorted by expert; those of experts that live elsewhere are left out. A layer for so few tokens that their pairs
     * hardly share experts gives each pair a block of its own.
     */
    List<Stage> align() {
        long mostPairs = (long) config.maxNumTokens() * config.pairsPerToken();
        boolean allHere = a.localExperts == config.globalNumExperts() && !a.balanced;
        return allHere && 4 * mostPairs <= config.globalNumExperts() ? List.of(assignBlocks()) : align(0);
    }

    private Stage assignBlocks() {
        int e = config.globalNumExperts();
        int k = config.pairsPerToken();
        return new Stage(
                "assignBlocks",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(m * k * a.blockSize(m), AlignKernels.SCATTER_GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        AlignKernels::assignBlocks,
                        context,
                        a.header,
                        a.placedIds,
                        a.expertMap,
                        a.keys,
                        a.sortedIds,
                        a.expertIds,
                        a.padded,
                        k,
                        e),
                List.of(a.header, a.placedIds, a.expertMap),
                List.of(a.keys, a.sortedIds, a.expertIds, a.padded));
    }

    /**
     * ids → pairs sorted by expert, in blocks of the size in the header.
     *
     * @param keep 1 to keep the pairs of experts that live elsewhere, in blocks of expert −1
     */
    List<Stage> align(int keep) {
        int e = config.globalNumExperts();
        int k = config.pairsPerToken();
        int keyCount = keep == 1 ? e : a.localExperts;
        Stage count = alignCount(keyCount, keep);
        Stage offsets = new Stage(
                "alignOffsets",
                AlignKernels.SCAN_GROUP,
                m -> 1,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        AlignKernels::offsets,
                        context,
                        a.header,
                        a.expertMap,
                        a.counts,
                        a.sortedIds,
                        a.expertIds,
                        a.padded,
                        k,
                        keyCount,
                        keep),
                List.of(a.header, a.expertMap, a.counts),
                List.of(a.counts, a.sortedIds, a.expertIds, a.padded));
        Stage scatter = new Stage(
                "alignScatter",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(m * k, AlignKernels.SCATTER_GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        AlignKernels::scatter,
                        context,
                        a.header,
                        a.keys,
                        a.ranks,
                        a.counts,
                        a.sortedIds,
                        k,
                        keyCount),
                List.of(a.header, a.keys, a.ranks, a.counts, a.sortedIds),
                List.of(a.sortedIds));
        return Stream.of(List.of(count), keep == 0 ? loads() : List.<Stage>of(), List.of(offsets, scatter))
                .flatMap(List::stream)
                .toList();
    }

    /** Aligned pairs → those of each part's experts; none where there is one part, or a GEMM that takes all at once. */
    final List<Stage> alignParts() {
        return IntStream.range(0, a.partSortedIds.size())
                .mapToObj(this::alignPart)
                .toList();
    }

    private Stage alignPart(int part) {
        String name = "alignPart" + part;
        IntArray header = rowHeader();
        IntArray sortedIds = a.partSortedIds.get(part);
        IntArray expertIds = a.partExpertIds.get(part);
        int k = rowsPerHeader();
        return new Stage(
                name,
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(Math.multiplyExact(a.blocks(m), a.blockSize(m)), AlignKernels.SCATTER_GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        AlignKernels::part,
                        context,
                        header,
                        a.sortedIds,
                        a.expertIds,
                        a.padded,
                        sortedIds,
                        expertIds,
                        k,
                        a.parts.first(part),
                        a.parts.experts(part)),
                List.of(header, a.sortedIds, a.expertIds, a.padded),
                List.of(sortedIds, expertIds));
    }

    /** ids → keys, ranks and the chunks' counts. */
    final Stage alignCount(int keyCount, int keep) {
        int e = config.globalNumExperts();
        int k = config.pairsPerToken();
        return new Stage(
                "alignCount",
                AlignKernels.CHUNK,
                m -> Math.ceilDiv(m * k, AlignKernels.CHUNK),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        AlignKernels::count,
                        context,
                        a.header,
                        a.placedIds,
                        a.expertMap,
                        a.keys,
                        a.ranks,
                        a.counts,
                        k,
                        e,
                        keyCount,
                        keep),
                List.of(a.header, a.placedIds, a.expertMap),
                List.of(a.keys, a.ranks, a.counts));
    }

    /** hidden → int8 and scales; times the router's weights first where they are applied on the input. */
    List<Stage> quantizeTokens() {
        int rowsPerToken = config.inputRowsPerToken();
        return quantize(
                "quantizeTokens",
                m -> m * rowsPerToken,
                a.header,
                a.keys,
                a.hidden,
                a.tokens,
                a.tokenScales,
                a.tokenScale,
                rowsPerToken,
                config.hiddenDim(),
                a.hiddenInts,
                0,
                config.applyRouterWeightOnInput() ? 1 : 0);
    }

    /** tokens → the experts' rows, where those aren't the tokens themselves. */
    List<Stage> dispatch() {
        return List.of();
    }

    /** activated → int8 and scales, where that isn't done with the activation. */
    final List<Stage> quantizePairs() {
        return quantize(
                "quantizePairs",
                this::rows,
                rowHeader(),
                rowKeys(),
                a.activated,
                a.pairs,
                a.pairScales,
                a.pairScale,
                rowsPerHeader(),
                config.intermediateSizePerPartition(),
                a.intermediateInts,
                1,
                0);
    }

    /** [0] · {@link #rowsPerHeader} rows reach the experts. */
    IntArray rowHeader() {
        return a.header;
    }

    int rowsPerHeader() {
        return config.pairsPerToken();
    }

    /** The same on the host, for M tokens. */
    int rows(int tokens) {
        return tokens * config.pairsPerToken();
    }

    /** −1 for a row that isn't there. */
    IntArray rowKeys() {
        return a.keys;
    }

    private List<Stage> quantize(
            String name,
            IntUnaryOperator rowCount,
            IntArray header,
            IntArray keys,
            FloatArray from,
            IntArray into,
            FloatArray scales,
            FloatArray scale,
            int rowsPerToken,
            int cols,
            int rowInts,
            int keyed,
            int weighted) {
        List<Object> rows = List.of(header, keys, a.topkWeights, from);
        Stage perRow = new Stage(
                name,
                QuantizeKernels.GROUP,
                rowCount,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        QuantizeKernels::quantizeRows,
                        context,
                        header,
                        keys,
                        a.topkWeights,
                        from,
                        into,
                        scales,
                        rowsPerToken,
                        cols,
                        rowInts,
                        keyed,
                        weighted),
                rows,
                List.of(into, scales));
        // The rows' magnitudes are where their scales will be.
        Stage magnitudes = new Stage(
                name + "Magnitudes",
                QuantizeKernels.GROUP,
                rowCount,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        QuantizeKernels::rowMagnitudes,
                        context,
                        header,
                        keys,
                        a.topkWeights,
                        from,
                        scales,
                        rowsPerToken,
                        cols,
                        keyed,
                        weighted),
                rows,
                List.of(scales));
        Stage oneScale = new Stage(
                name + "Scale",
                QuantizeKernels.GROUP,
                m -> 1,
                m -> 1,
                (g, task) -> g.task(task, QuantizeKernels::tensorScale, context, header, scales, scale, rowsPerToken),
                List.of(header, scales),
                List.of(scale));
        Stage perTensor = new Stage(
                name,
                QuantizeKernels.GROUP,
                rowCount,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        QuantizeKernels::quantizeTensor,
                        context,
                        header,
                        keys,
                        a.topkWeights,
                        from,
                        scale,
                        into,
                        scales,
                        rowsPerToken,
                        cols,
                        rowInts,
                        keyed,
                        weighted),
                List.of(header, keys, a.topkWeights, from, scale),
                List.of(into, scales));
        int group = a.quantization.colsPerScale(cols);
        int nearest = a.quantization.roundToNearest() ? 1 : 0;
        Stage perGroup = new Stage(
                name,
                QuantizeKernels.GROUP,
                m -> Math.multiplyExact(rowCount.applyAsInt(m), Math.ceilDiv(cols, group)),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        QuantizeKernels::quantizeGroups,
                        context,
                        header,
                        keys,
                        a.topkWeights,
                        from,
                        into,
                        scales,
                        rowsPerToken,
                        cols,
                        rowInts,
                        group,
                        nearest,
                        keyed,
                        weighted),
                rows,
                List.of(into, scales));
        return switch (a.scheme) {
            case W8A16_CHANNEL, W8A16_GROUP -> List.of();
            case W8A8_CHANNEL -> List.of(perRow);
            case W8A8_TENSOR -> a.staticScales ? List.of(perTensor) : List.of(magnitudes, oneScale, perTensor);
            case W8A8_BLOCK -> List.of(perGroup);
        };
    }

    /**
     * The first GEMM. Router weights that are applied on the input are in the quantised tokens; float ones don't have them, and
     * as this is a sum of products it gets them itself.
     */
    List<Stage> gateUp() {
        boolean weighted = config.applyRouterWeightOnInput() && !a.scheme.quantizesActivations();
        return gemm(
                "gateUp",
                a.tokens,
                a.tokenScales,
                a.hidden,
                a.w13,
                a.gateUp,
                a.scheme.quantizesActivations() ? config.pairsPerInputRow() : config.pairsPerToken(),
                config.gateUpRows(),
                a.hiddenInts,
                config.hiddenDim(),
                weighted ? 2 : 0);
    }

    /** gateUp → activated, and its int8 and scales. */
    List<Stage> activateAndQuantize() {
        if (a.scheme != Int8Scheme.W8A8_CHANNEL) {
            // Nothing to quantise, or not by a scale a row.
            return Stream.of(activate(), quantizePairs()).flatMap(List::stream).toList();
        }
        IntArray header = rowHeader();
        IntArray keys = rowKeys();
        int rowsPerHeader = rowsPerHeader();
        int i = config.intermediateSizePerPartition();
        Activation f = Activation.of(config);
        return List.of(new Stage(
                "activateAndQuantize",
                ActivationKernels.ROW_GROUP,
                this::rows,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        ActivationKernels::activateAndQuantize,
                        context,
                        header,
                        keys,
                        a.gateUp,
                        a.activated,
                        a.pairs,
                        a.pairScales,
                        rowsPerHeader,
                        i,
                        a.intermediateInts,
                        f.function,
                        f.layout,
                        f.limit,
                        f.alpha,
                        f.beta,
                        f.linearBeta),
                List.of(header, keys, a.gateUp),
                List.of(a.activated, a.pairs, a.pairScales)));
    }

    /** gateUp → activated. */
    private List<Stage> activate() {
        IntArray header = rowHeader();
        IntArray keys = rowKeys();
        int rowsPerHeader = rowsPerHeader();
        int i = config.intermediateSizePerPartition();
        Activation f = Activation.of(config);
        return List.of(new Stage(
                "activate",
                ActivationKernels.GROUP,
                m -> elementGroups(rows(m), i, ActivationKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        ActivationKernels::activate,
                        context,
                        header,
                        keys,
                        a.gateUp,
                        a.activated,
                        rowsPerHeader,
                        i,
                        f.function,
                        f.layout,
                        f.limit,
                        f.alpha,
                        f.beta,
                        f.linearBeta),
                List.of(header, keys, a.gateUp),
                List.of(a.activated)));
    }

    /** A layer's activation in the kernels' numbers. */
    record Activation(int function, int layout, float limit, float alpha, float beta, float linearBeta) {
        /** The product as it is. */
        static Activation none(int layout) {
            return new Activation(-1, layout, Float.MAX_VALUE, 0, 0, 0);
        }

        static Activation of(FusedMoeConfig config) {
            MoeActivation activation = config.activation();
            ActivationConstants constants = config.activationConstants();
            int function = switch (activation) {
                case SILU, SILU_NO_MUL -> ActivationKernels.SILU;
                case GELU, GELU_NO_MUL -> ActivationKernels.GELU;
                case GELU_TANH, GELU_TANH_NO_MUL -> ActivationKernels.GELU_TANH;
                case RELU2, RELU2_NO_MUL -> ActivationKernels.RELU2;
                case SWIGLUOAI, SWIGLUOAI_UNINTERLEAVE -> ActivationKernels.SWIGLU_OAI;
                case SWIGLUSTEP -> ActivationKernels.SWIGLU_STEP;
                case SITU -> ActivationKernels.SITU;
            };
            int layout = activation.isInterleaved()
                    ? ActivationKernels.ALTERNATING
                    : activation.isGated() ? ActivationKernels.HALVES : ActivationKernels.NO_GATE;
            return new Activation(
                    function,
                    layout,
                    (float) Math.min(constants.limit(), Float.MAX_VALUE),
                    (float) constants.alpha(),
                    (float) constants.beta(),
                    (float) constants.linearBeta());
        }
    }

    /** The second GEMM, with the router's weights unless they are applied on the input. */
    List<Stage> down() {
        return gemm(
                "down",
                a.pairs,
                a.pairScales,
                a.activated,
                a.w2,
                a.down,
                1,
                config.hiddenDim(),
                a.intermediateInts,
                config.intermediateSizePerPartition(),
                config.applyRouterWeightOnInput() ? 0 : 1);
    }

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
        if (a.gemm == Gemm.PANELS) {
            return a
                    .parts
                    .each(part ->
                            panels(name, part, quantized, scales, weights, out, pairsPerRow, rows, kInts, weighted))
                    .stream()
                    .flatMap(List::stream)
                    .toList();
        }
        return a.parts.each(part -> gemmOfPart(
                name + a.parts.suffix(part),
                part,
                quantized,
                scales,
                floats,
                weights,
                out,
                pairsPerRow,
                rows,
                kInts,
                cols,
                weighted));
    }

    /** The pairs of a part's experts. */
    private Stage gemmOfPart(
            String name,
            int part,
            IntArray quantized,
            FloatArray scales,
            FloatArray floats,
            ExpertParts.Weights projection,
            FloatArray out,
            int pairsPerRow,
            int rows,
            int kInts,
            int cols,
            int weighted) {
        IntArray sortedIds = a.partSortedIds.isEmpty() ? a.sortedIds : a.partSortedIds.get(part);
        IntArray expertIds = a.partExpertIds.isEmpty() ? a.expertIds : a.partExpertIds.get(part);
        IntArray weights = projection.values().get(part);
        FloatArray weightScales = projection.scales().get(part);
        FloatArray zeroPoints = projection.zeroPoints().get(part);
        FloatArray bias = projection.bias().get(part);
        if (a.gemm == Gemm.TENSOR_CORES) {
            List<Object> blocks = List.of(sortedIds, expertIds, a.padded);
            List<Object> operands = List.of(quantized, scales, weights, weightScales, bias, a.topkWeights);
            IntArray sizes = projection == a.w13 ? a.w13Sizes : a.w2Sizes;
            return tensorCores(name, sizes, blocks, operands, out, pairsPerRow, rows, cols, weighted);
        }
        int k = rowsPerHeader();
        int biased = config.hasBias() ? 1 : 0;
        int zeroPointed = a.quantization.zeroPoints() ? 1 : 0;
        int groupInts = Math.ceilDiv(Math.min(a.quantization.colsPerScale(cols), cols), 4);
        int rowsPerScale = a.quantization.rowsPerScale(rows);
        IntArray header = rowHeader();
        boolean int8 = a.scheme.quantizesActivations();
        boolean dp4a = a.gemm == Gemm.DP4A;
        List<Object> operands = int8
                ? List.of(quantized, scales, weights, weightScales, bias)
                : List.of(floats, weights, weightScales, zeroPoints, bias);
        List<Object> aligned = List.of(header, sortedIds, expertIds, a.padded, a.topkWeights);
        return new Stage(
                name,
                GemmKernels.GROUP,
                m -> Math.ceilDiv(rows, GemmKernels.ROWS),
                m -> a.blocks(m),
                (g, task) -> {
                    if (a.scheme == Int8Scheme.W8A16_GROUP) {
                        g.task(
                                task,
                                BlockGemmKernels::w8a16,
                                context,
                                header,
                                sortedIds,
                                expertIds,
                                a.padded,
                                floats,
                                weights,
                                weightScales,
                                zeroPoints,
                                bias,
                                a.topkWeights,
                                out,
                                k,
                                pairsPerRow,
                                rows,
                                cols,
                                groupInts,
                                zeroPointed,
                                biased,
                                weighted);
                    } else if (a.scheme == Int8Scheme.W8A8_BLOCK) {
                        g.task(
                                task,
                                dp4a ? BlockGemmKernels::dp4a : BlockGemmKernels::portable,
                                context,
                                header,
                                sortedIds,
                                expertIds,
                                a.padded,
                                quantized,
                                scales,
                                weights,
                                weightScales,
                                bias,
                                a.topkWeights,
                                out,
                                k,
                                pairsPerRow,
                                rows,
                                kInts,
                                groupInts,
                                rowsPerScale,
                                biased,
                                weighted);
                    } else if (!int8) {
                        g.task(
                                task,
                                GemmKernels::w8a16,
                                context,
                                header,
                                sortedIds,
                                expertIds,
                                a.padded,
                                floats,
                                weights,
                                weightScales,
                                bias,
                                a.topkWeights,
                                out,
                                k,
                                pairsPerRow,
                                rows,
                                kInts,
                                cols,
                                biased,
                                weighted);
                    } else {
                        g.task(
                                task,
                                dp4a ? GemmKernels::dp4a : GemmKernels::portable,
                                context,
                                header,
                                sortedIds,
                                expertIds,
                                a.padded,
                                quantized,
                                scales,
                                weights,
                                weightScales,
                                bias,
                                a.topkWeights,
                                out,
                                k,
                                pairsPerRow,
                                rows,
                                kInts,
                                biased,
                                weighted);
                    }
                },
                Stream.concat(aligned.stream(), operands.stream()).toList(),
                List.of(out));
    }

    /** The pairs of a part's experts by {@link PanelGemmKernels}: two kernels, of which one has nothing to do in a call. */
    private List<Stage> panels(
            String name,
            int part,
            IntArray quantized,
            FloatArray scales,
            ExpertParts.Weights projection,
            FloatArray out,
            int pairsPerRow,
            int rows,
            int kInts,
            int weighted) {
        IntArray header = rowHeader();
        IntArray sortedIds = a.partSortedIds.isEmpty() ? a.sortedIds : a.partSortedIds.get(part);
        IntArray expertIds = a.partExpertIds.isEmpty() ? a.expertIds : a.partExpertIds.get(part);
        IntArray weights = projection.values().get(part);
        FloatArray weightScales = projection.scales().get(part);
        FloatArray bias = projection.bias().get(part);
        int k = rowsPerHeader();
        int lead = PanelWeights.lead();
        int biased = config.hasBias() ? 1 : 0;
        List<Object> reads = List.of(
                header, sortedIds, expertIds, a.padded, quantized, scales, weights, weightScales, bias, a.topkWeights);
        // By rule blocks only grow; whoever chooses them may choose any.
        int largest = a.launches.source() == null ? a.blockSize(config.maxNumTokens()) : PanelGemmKernels.MANY;
        return Stream.of(PanelGemmKernels.FEW, PanelGemmKernels.MANY)
                .filter(size -> size <= largest)
                .map(size -> {
                    boolean few = size == PanelGemmKernels.FEW;
                    String stage = name + (few ? "Few" : "Many") + a.parts.suffix(part);
                    int groups = Math.ceilDiv(rows, few ? PanelGemmKernels.STREAM_ROWS : PanelGemmKernels.TILE_ROWS);
                    IntPredicate works = m -> a.blockSize(m) == size;
                    return new Stage(
                            stage,
                            few ? PanelGemmKernels.STREAM_GROUP : PanelGemmKernels.TILE_GROUP,
                            m -> works.test(m) ? groups : 1,
                            m -> works.test(m) ? a.blocks(m) : 1,
                            (g, task) -> g.task(
                                    task,
                                    few ? PanelGemmKernels::stream : PanelGemmKernels::tile,
                                    context,
                                    header,
                                    sortedIds,
                                    expertIds,
                                    a.padded,
                                    quantized,
                                    scales,
                                    weights,
                                    weightScales,
                                    bias,
                                    a.topkWeights,
                                    out,
                                    k,
                                    pairsPerRow,
                                    rows,
                                    kInts,
                                    lead,
                                    biased,
                                    weighted),
                            reads,
                            List.of(out));
                })
                .toList();
    }

    /** hidden → added to gateUp, where the layer has adapters; times the router's weights where those are on the input. */
    final List<Stage> loraGateUp() {
        return lora(
                "loraGateUp",
                a.hidden,
                0,
                a.w13LoraA,
                a.w13LoraB,
                a.gateUp,
                config.hiddenDim(),
                config.gateUpRows(),
                Activation.of(config).layout,
                config.applyRouterWeightOnInput() ? 1 : 0);
    }

    /** activated → added to down, where the layer has adapters. */
    List<Stage> loraDown() {
        return loraDown(config.applyRouterWeightOnInput() ? 0 : 1);
    }

    final List<Stage> loraDown(int weighted) {
        return lora(
                "loraDown",
                a.activated,
                loraRows(),
                a.w2LoraA,
                a.w2LoraB,
                a.down,
                config.intermediateSizePerPartition(),
                config.hiddenDim(),
                ActivationKernels.NO_GATE,
                weighted);
    }

    /** Which row of the experts a pair has: 1 its own, 2 that of {@code rowOfPair}. */
    int loraRows() {
        return 1;
    }

    private List<Stage> lora(
            String name,
            FloatArray x,
            int rowsOfX,
            FloatArray loraA,
            FloatArray loraB,
            FloatArray out,
            int cols,
            int rows,
            int layout,
            int weighted) {
        if (!config.isLoraEnabled()) {
            return List.of();
        }
        int pairs = config.pairsPerToken();
        int rank = config.maxLoraRank();
        int ranks = layout == ActivationKernels.NO_GATE ? rank : 2 * rank;
        int rowsOfOut = loraRows();
        Stage shrink = new Stage(
                name + "A",
                LoraKernels.GROUP,
                m -> Math.multiplyExact(m * pairs, ranks),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        LoraKernels::shrink,
                        context,
                        a.header,
                        a.adapters,
                        a.keys,
                        a.rowOfPair,
                        x,
                        loraA,
                        a.shrunk,
                        pairs,
                        cols,
                        ranks,
                        a.localExperts,
                        rowsOfX),
                List.of(a.header, a.adapters, a.keys, a.rowOfPair, x, loraA),
                List.of(a.shrunk));
        Stage expand = new Stage(
                name + "B",
                LoraKernels.GROUP,
                m -> elementGroups(m * pairs, rows, LoraKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        LoraKernels::expand,
                        context,
                        a.header,
                        a.adapters,
                        a.keys,
                        a.rowOfPair,
                        a.topkWeights,
                        a.shrunk,
                        loraB,
                        out,
                        pairs,
                        rows,
                        rank,
                        layout,
                        a.localExperts,
                        rowsOfOut,
                        weighted),
                List.of(a.header, a.adapters, a.keys, a.rowOfPair, a.topkWeights, a.shrunk, loraB, out),
                List.of(out));
        return List.of(shrink, expand);
    }

    private Stage tensorCores(
            String name,
            IntArray sizes,
            List<Object> blocks,
            List<Object> operands,
            FloatArray out,
            int pairsPerRow,
            int rows,
            int cols,
            int weighted) {
        int tiles = TiledWeights.tiles(rows);
        int biased = config.hasBias() ? 1 : 0;
        int[] told = {rowsPerHeader(), pairsPerRow, rows, TiledWeights.chunks(cols), tiles, weighted, biased, 1};
        for (int i = 0; i < told.length; i++) {
            sizes.set(i, told[i]);
        }
        List<Object> reads = Stream.of(List.<Object>of(rowHeader(), sizes), blocks, operands)
                .flatMap(List::stream)
                .toList();
        IntPredicate streams = m -> a.blockSize(m) < Gemm.TILE;
        return new Stage(
                name,
                m -> streams.test(m) ? 128 : 256,
                m -> a.blocks(m),
                m -> streams.test(m) ? tiles : Math.ceilDiv(tiles, 8),
                (graph, device, task) -> EXPERT_GEMM.addTask(graph, device, task, reads, out),
                reads,
                List.of(out));
    }

    /**
     * Where the layer has prebuilt kernels, and TornadoVM {@linkplain Quirks#takesPrebuiltTasksForTheFirst takes each
     * for the graph's first task}, one that does nothing before everything else in a graph. Its arguments are ignored.
     */
    private List<Stage> first() {
        if (a.gemm != Gemm.TENSOR_CORES || !Quirks.HERE.takesPrebuiltTasksForTheFirst()) {
            return List.of();
        }
        List<Object> reads = Stream.concat(Stream.of(a.header), Stream.generate(() -> a.noSizes))
                .limit(EXPERT_GEMM_READS)
                .map(Object.class::cast)
                .toList();
        return List.of(new Stage(
                "first",
                m -> 128,
                m -> 1,
                m -> 1,
                (graph, device, task) -> EXPERT_GEMM.addTask(graph, device, task, reads, a.gateUp),
                List.of(a.header, a.noSizes),
                List.of(a.gateUp)));
    }

    /** down → output. */
    List<Stage> combine() {
        int k = config.pairsPerToken();
        int h = config.hiddenDim();
        return List.of(new Stage(
                "combine",
                CombineKernels.GROUP,
                m -> elementGroups(m, h, CombineKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(task, CombineKernels::combine, context, a.header, a.keys, a.down, a.output, k, h),
                List.of(a.header, a.keys, a.down),
                List.of(a.output)));
    }

    /** output → output and what zero experts add, where the layer has any and they are here. */
    final List<Stage> zeroExperts() {
        boolean here = a.hasExpert0 && config.moeParallelConfig().tpRank() == 0;
        if (config.router().numZeroExperts() == 0 || !here) {
            return List.of();
        }
        int pairs = config.pairsPerToken();
        int firstId = config.globalNumExperts();
        int h = config.hiddenDim();
        return List.of(new Stage(
                "zeroExperts",
                RouterKernels.GROUP,
                m -> elementGroups(m, h, RouterKernels.GROUP),
                m -> 1,
                (g, task) -> g.task(
                        task,
                        RouterKernels::addZeroExperts,
                        context,
                        a.header,
                        a.placedIds,
                        a.topkWeights,
                        a.hidden,
                        a.output,
                        pairs,
                        firstId,
                        h),
                List.of(a.header, a.placedIds, a.topkWeights, a.hidden, a.output),
                List.of(a.output)));
    }

    /** Groups of a grid that has a work-item for every element. */
    static int elementGroups(int rows, int cols, int group) {
        return Math.toIntExact(Math.ceilDiv((long) rows * cols, group));
    }
}
