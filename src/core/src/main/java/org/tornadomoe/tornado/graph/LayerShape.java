package org.tornadomoe.tornado.graph;

import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.tornado.layout.ActivationCode;
import org.tornadomoe.tornado.layout.ExpertParts;
import org.tornadomoe.tuning.LaunchConfig;

/** What is fixed when a layer is loaded, answered once: its sizes, who routes, and what form its values have. */
public final class LayerShape {
    public final FusedMoeConfig config;
    public final Int8Quantization quantization;
    public final Int8Scheme scheme;
    public final GemmFamily gemm;

    /** Experts whose weights are here. */
    public final int localExperts;

    /** Whether the layer chooses experts itself, or is handed ids and weights in every call. */
    public final boolean routes;

    /** Whether experts move by load. */
    public final boolean balanced;

    /** Whether hidden states come and go in 16 bits. */
    public final boolean halves;

    /** Whether activations are quantised. */
    public final boolean int8;

    /** Whether activations reach the products in a form of their own: int8, or what the family makes of floats. */
    public final boolean packed;

    /** Whether every expert has a slot for each token: the batched format. */
    public final boolean batched;

    /** Whether router weights are applied on the input of experts; else on their output. */
    public final boolean weightsOnInput;

    public final boolean biased;

    /** Whether there may be adapters. */
    public final boolean adapted;

    /** The most tokens of a call. */
    public final int maxTokens;

    /** Experts of the whole layer. */
    public final int experts;

    /** Experts of a token, shared ones included. */
    public final int topK;

    public final int hidden;
    public final int intermediate;

    /** Rows of the first projection: 2I, or I without a gate. */
    public final int gateUpRows;

    /** Ints of a row of int8 hidden states. */
    public final int hiddenInts;

    /** Ints of a row of int8 activations between the projections. */
    public final int intermediateInts;

    /** Scales of a row of hidden states: 1, or with blocks one for every group of columns. */
    public final int hiddenGroups;

    public final int intermediateGroups;

    public final ActivationCode activation;

    /** Which experts' weights are in which arrays. */
    public final ExpertParts parts;

    /**
     * Answers everything.
     *
     * @param config the layer's, with the most tokens of a call
     */
    public LayerShape(FusedMoeConfig config, Int8Quantization quantization, int localExperts, GemmFamily gemm) {
        this.config = config;
        this.quantization = quantization;
        this.localExperts = localExperts;
        this.gemm = gemm;
        scheme = quantization.scheme();
        routes = !config.router().isHandedIn();
        balanced = config.moeParallelConfig().enableEplb();
        halves = config.inDtype().bytes() == 2;
        int8 = scheme.quantizesActivations();
        packed = int8 || gemm.packsFloats();
        batched = config.activationFormat() == FusedMoeActivationFormat.BATCHED_EXPERTS;
        weightsOnInput = config.applyRouterWeightOnInput();
        biased = config.hasBias();
        adapted = config.isLoraEnabled();
        maxTokens = config.maxNumTokens();
        experts = config.globalNumExperts();
        topK = config.pairsPerToken();
        hidden = config.hiddenDim();
        intermediate = config.intermediateSizePerPartition();
        gateUpRows = config.gateUpRows();
        hiddenInts = gemm.layout().rowInts(hidden);
        intermediateInts = gemm.layout().rowInts(intermediate);
        hiddenGroups = groups(hidden);
        intermediateGroups = groups(intermediate);
        activation = ActivationCode.of(config);
        parts = ExpertParts.of(config, localExperts, gemm.layout());
    }

    /** Groups of columns that activations of so many columns have scales of their own for. */
    private int groups(int cols) {
        return scheme == Int8Scheme.W8A8_BLOCK ? Math.ceilDiv(cols, quantization.colsPerScale(cols)) : 1;
    }

    /** Pairs of M tokens. */
    int pairs(int tokens) {
        return tokens * topK;
    }

    /**
     * Blocks that the pairs of M tokens can come to: every expert that has a pair may have one block that isn't full;
     * in the batched format an expert has blocks for a pair of each token, and those of pairs beyond that, which are
     * there if a caller's routing names it twice for a token.
     */
    long blocks(int tokens, int blockSize) {
        long p = pairs(tokens);
        long most = Math.min(p, (p + (long) experts * (blockSize - 1)) / blockSize);
        long slots = batched ? (long) localExperts * Math.ceilDiv(tokens, blockSize) : 0;
        return most + slots;
    }

    /** Blocks that the pairs of a call can come to, whatever it is launched with. */
    long mostBlocks() {
        return blockSizes().mapToLong(size -> blocks(maxTokens, size)).max().orElseThrow();
    }

    /** Places that the pairs of a call and what pads their blocks take, whatever it is launched with. */
    long mostPlaces() {
        return blockSizes()
                .mapToLong(size -> size * blocks(maxTokens, size))
                .max()
                .orElseThrow();
    }

    private IntStream blockSizes() {
        return IntStream.concat(
                IntStream.of(Workspace.MAX_BLOCK), gemm.launches().stream().mapToInt(LaunchConfig::blockSizeM));
    }
}
