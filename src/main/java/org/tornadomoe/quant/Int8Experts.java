package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.Objects;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;

/**
 * The weights of a layer ready to run: int8 experts and the float router. Owns its memory and frees it on
 * {@link #close}. Read-only and thread-safe; close it when no other thread reads it any more.
 */
public final class Int8Experts implements AutoCloseable {
    private final FusedMoeConfig config;
    private final Int8Scheme scheme;
    private final Int8Tensor w13;
    private final Int8Tensor w2;
    private final RouterWeights router;
    private final int @Nullable [] expertMap;
    private final Arena arena;

    private Int8Experts(
            FusedMoeConfig config,
            Int8Scheme scheme,
            Int8Tensor w13,
            Int8Tensor w2,
            RouterWeights router,
            int @Nullable [] expertMap,
            Arena arena) {
        this.config = config;
        this.scheme = scheme;
        this.w13 = w13;
        this.w2 = w2;
        this.router = router;
        this.expertMap = expertMap;
        this.arena = arena;
    }

    /**
     * Weights that are int8 already.
     *
     * @param w13 [E, 2I, H], gate rows then up rows; E counts shared experts, which come after the routed ones
     * @param w2 [E, H, I]
     * @param router the router's tensors; without a weight for a layer that is only ever handed router logits
     * @param arena where both tensors were allocated; from here on it belongs to the result, unless this throws. It
     *     must be closeable from any thread ({@link Arena#ofShared})
     * @throws IllegalArgumentException if a shape does not fit the configuration
     */
    public static Int8Experts of(
            FusedMoeConfig config,
            Int8Scheme scheme,
            Int8Tensor w13,
            Int8Tensor w2,
            RouterWeights router,
            Arena arena) {
        return of(config, scheme, w13, w2, router, null, arena);
    }

    /**
     * A rank's part of a layer whose experts are spread over ranks.
     *
     * @param w13 [local experts, 2I, H], shared ones included
     * @param w2 [local experts, H, I]
     * @param expertMap [E]: the local number of each expert of the layer, shared ones included, -1 if it lives elsewhere; null if all are here
     */
    public static Int8Experts of(
            FusedMoeConfig config,
            Int8Scheme scheme,
            Int8Tensor w13,
            Int8Tensor w2,
            RouterWeights router,
            int @Nullable [] expertMap,
            Arena arena) {
        int local = config.globalNumExperts();
        if (expertMap != null) {
            if (expertMap.length != config.globalNumExperts()) {
                throw new IllegalArgumentException("expertMap: expected an entry for each of the "
                        + config.globalNumExperts() + " experts, got " + expertMap.length);
            }
            int[] here = Arrays.stream(expertMap).filter(e -> e != -1).sorted().toArray();
            if (here.length == 0
                    || !Arrays.equals(here, IntStream.range(0, here.length).toArray())) {
                throw new IllegalArgumentException(
                        "expertMap: expected each local number from 0 once and -1 elsewhere, got "
                                + Arrays.toString(expertMap));
            }
            local = here.length;
        }
        requireShape("w13", w13, local, config.gateUpRows(), config.hiddenDim());
        requireShape("w2", w2, local, config.hiddenDim(), config.intermediateSizePerPartition());
        router.requireFits(config);
        return new Int8Experts(config, scheme, w13, w2, router, expertMap == null ? null : expertMap.clone(), arena);
    }

    private static void requireShape(String name, Int8Tensor tensor, int experts, int rows, int cols) {
        if (tensor.experts() != experts || tensor.rows() != rows || tensor.cols() != cols) {
            throw new IllegalArgumentException(
                    name + ": expected [" + experts + ", " + rows + ", " + cols + "], got " + tensor);
        }
    }

    public FusedMoeConfig config() {
        return config;
    }

    public Int8Scheme scheme() {
        return scheme;
    }

    /**
     * The first GEMM's weight [E, 2I, H], gate rows then up rows.
     *
     * @throws IllegalStateException after {@link #close}
     */
    public Int8Tensor w13() {
        requireOpen();
        return w13;
    }

    /**
     * The second GEMM's weight [E, H, I].
     *
     * @throws IllegalStateException after {@link #close}
     */
    public Int8Tensor w2() {
        requireOpen();
        return w2;
    }

    /** The local number of an expert of the layer, an index into {@link #w13} and {@link #w2}; -1 if it lives elsewhere. */
    public int expertMap(int expert) {
        return expertMap == null ? Objects.checkIndex(expert, config.globalNumExperts()) : expertMap[expert];
    }

    /** Whether some of the layer's experts live elsewhere. */
    public boolean isPart() {
        return expertMap != null && w13.experts() < config.globalNumExperts();
    }

    /** Whether there is a router weight, so that logits can be computed from hidden states. */
    public boolean hasRouter() {
        return router.hasWeight();
    }

    /** The router's tensors. */
    public RouterWeights router() {
        return router;
    }

    /**
     * The router's weight [L, H], row-major; the array itself, not to be written to.
     *
     * @throws IllegalStateException if this layer has none and must be handed logits
     */
    public float[] routerWeight() {
        if (!hasRouter()) {
            throw new IllegalStateException("this layer was made without a router weight: hand it router logits");
        }
        return router.weight();
    }

    /** Bytes of memory held: values, scales and router. */
    public long bytes() {
        return w13.values().byteSize()
                + w2.values().byteSize()
                + 4L * w13.scales().length
                + 4L * w2.scales().length
                + router.bytes();
    }

    /** Frees the weights. A second call does nothing. */
    @Override
    public void close() {
        if (arena.scope().isAlive()) {
            arena.close();
        }
    }

    private void requireOpen() {
        if (!arena.scope().isAlive()) {
            throw new IllegalStateException("the layer's int8 weights are closed");
        }
    }
}
