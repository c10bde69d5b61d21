package org.tornadomoe.cpu;

import java.lang.foreign.Arena;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.HostRouter;
import org.tornadomoe.host.Int8Products;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LoraAdapter;

/**
 * What the lanes of a layer on the cores share: its packed weights, router and adapters, and what is known of it. M
 * tokens, P pairs of a token and an expert, R rows of the first GEMM's input (M, or P where each pair has its own), H
 * hidden, I intermediate.
 */
final class CpuWeights implements AutoCloseable {
    final FusedMoeConfig config;
    final Int8Scheme scheme;
    final boolean int8;
    final boolean roundToNearest;

    /** Scales of activations of each local expert; null if they are found at run time. */
    final float @Nullable [] knownA1;

    final float @Nullable [] knownA2;

    /** Whether one scale of all activations is found at run time. */
    final boolean dynamicTensor;

    /** Whether a pair has a row of its own in the first GEMM's input. */
    final boolean ownRows;

    /** Whether ids and weights are brought by the caller. */
    final boolean handedIn;

    final boolean weighsInput;
    final int h;
    final int i;
    final int pairsPerToken;
    final int rowsPerToken;
    final int[] expertMap;
    final HostRouter router;
    private final Activation activation;
    private final Activation sharedActivation;
    final PackedWeights w13;
    final PackedWeights w2;
    final @Nullable LoraAdapter[] adapters;

    /** Native products of the first GEMM and of the second; both or neither. */
    final @Nullable Int8Products products1;

    final @Nullable Int8Products products2;
    private final Arena arena = Arena.ofShared();

    /**
     * Packs the weights.
     *
     * @param experts are copied
     * @param arithmetic whose native products are taken, where it has any and activations are int8
     */
    CpuWeights(FusedMoeConfig config, Int8Experts experts, Arithmetic arithmetic) {
        this.config = config;
        scheme = experts.scheme();
        int8 = scheme.quantizesActivations();
        roundToNearest = experts.quantization().roundToNearest();
        knownA1 = experts.a1Scales();
        knownA2 = experts.a2Scales();
        dynamicTensor = scheme == Int8Scheme.W8A8_TENSOR && knownA1 == null;
        weighsInput = config.applyRouterWeightOnInput();
        ownRows = weighsInput || experts.hasInputsOfTheirOwn();
        handedIn = config.router().isHandedIn();
        h = config.hiddenDim();
        i = config.intermediateSizePerPartition();
        pairsPerToken = config.pairsPerToken();
        rowsPerToken = ownRows ? pairsPerToken : 1;
        expertMap = IntStream.range(0, config.globalNumExperts())
                .map(experts::expertMap)
                .toArray();
        router = new HostRouter(config, experts.router());
        activation = new Activation(config, config.activationConstants());
        sharedActivation = new Activation(config, config.sharedActivationConstants());
        adapters = new LoraAdapter[config.isLoraEnabled() ? config.maxLoras() : 0];
        Int8Products first = int8 ? products(arithmetic, experts.w13()) : null;
        Int8Products second = first == null ? null : products(arithmetic, experts.w2());
        if (first != null && second == null) {
            first.close();
            first = null;
        }
        products1 = first;
        products2 = second;
        try {
            int rows = Math.ceilDiv(i, half()) * PackedWeights.ROWS;
            w13 = PackedWeights.of(experts.w13(), rows, this::gateUpRow, experts.w13Bias(), first != null, arena);
            w2 = PackedWeights.of(experts.w2(), h, row -> row, experts.w2Bias(), first != null, arena);
        } catch (RuntimeException | Error failure) {
            close();
            throw failure;
        }
    }

    private static @Nullable Int8Products products(Arithmetic arithmetic, Int8Tensor w) {
        return arithmetic.products(PackedWeights.groupStride(w), w.scaleCols());
    }

    /** The most pairs that a block of weights is multiplied with at once. */
    int pairsAtOnce() {
        return products1 == null ? Arithmetic.TOKENS : Int8Products.TOKENS;
    }

    /**
     * Gates of a block of w13, which are followed by as many ups that belong to them, so that a task can activate what
     * it has.
     */
    int half() {
        return config.activation().isGated() ? PackedWeights.ROWS / 2 : PackedWeights.ROWS;
    }

    /** The tensor's row of a packed one, −1 if that fills up. */
    private int gateUpRow(int packed) {
        int column = packed / PackedWeights.ROWS * half() + packed % PackedWeights.ROWS % half();
        boolean up = packed % PackedWeights.ROWS >= half();
        if (column >= i) {
            return -1;
        }
        return config.activation().isInterleaved() ? 2 * column + (up ? 1 : 0) : column + (up ? i : 0);
    }

    /** The activation of a pair's expert. */
    Activation activation(int pair) {
        return pair % pairsPerToken < config.expertsPerToken() ? activation : sharedActivation;
    }

    /** Makes room in a thread's scratch. */
    void require(Scratch s) {
        s.require(Math.max(h, i), router.paddedLogits(), router.groups());
    }

    /** The local number of an expert; −1 if it lives elsewhere or has no weights. */
    int local(int id) {
        return id >= 0 && id < expertMap.length ? expertMap[id] : -1;
    }

    /** Whether zero experts are this rank's: it is the first of its tensor-parallel group that has expert 0. */
    boolean hasZeroExperts() {
        return config.router().numZeroExperts() != 0
                && expertMap[0] >= 0
                && config.moeParallelConfig().tpRank() == 0;
    }

    long bytes() {
        return w13.bytes() + w2.bytes() + router.bytes();
    }

    @Override
    public void close() {
        arena.close();
        if (products1 != null) {
            products1.close();
        }
        if (products2 != null) {
            products2.close();
        }
    }
}
