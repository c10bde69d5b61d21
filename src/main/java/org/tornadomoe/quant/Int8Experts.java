package org.tornadomoe.quant;

import java.lang.foreign.Arena;
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
    private final float[] router;
    private final Arena arena;

    private Int8Experts(
            FusedMoeConfig config, Int8Scheme scheme, Int8Tensor w13, Int8Tensor w2, float[] router, Arena arena) {
        this.config = config;
        this.scheme = scheme;
        this.w13 = w13;
        this.w2 = w2;
        this.router = router;
        this.arena = arena;
    }

    /**
     * Weights that are int8 already.
     *
     * @param w13 [E, 2I, H], gate rows then up rows
     * @param w2 [E, H, I]
     * @param router [E, H] row-major, or empty for a layer that is only ever handed router logits
     * @param arena where both tensors were allocated; from here on it belongs to the result, unless this throws. It
     *     must be closeable from any thread ({@link Arena#ofShared})
     * @throws IllegalArgumentException if a shape does not fit the configuration
     */
    public static Int8Experts of(
            FusedMoeConfig config, Int8Scheme scheme, Int8Tensor w13, Int8Tensor w2, float[] router, Arena arena) {
        requireShape("w13", w13, config.numExperts(), config.gateUpRows(), config.hiddenDim());
        requireShape("w2", w2, config.numExperts(), config.hiddenDim(), config.intermediateSize());
        long routerLength = (long) config.numExperts() * config.hiddenDim();
        if (router.length != 0 && router.length != routerLength) {
            throw new IllegalArgumentException("router: expected [" + config.numExperts() + ", " + config.hiddenDim()
                    + "] = " + routerLength + " values or none, got " + router.length);
        }
        return new Int8Experts(config, scheme, w13, w2, router.clone(), arena);
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

    /** Whether there is a router weight, so that logits can be computed from hidden states. */
    public boolean hasRouter() {
        return router.length != 0;
    }

    /**
     * The router's weight [E, H], row-major; the array itself, not to be written to.
     *
     * @throws IllegalStateException if this layer has none and must be handed logits
     */
    public float[] router() {
        if (!hasRouter()) {
            throw new IllegalStateException("this layer was made without a router weight: hand it router logits");
        }
        return router;
    }

    /** Bytes of memory held: values, scales and router. */
    public long bytes() {
        return w13.storage().byteSize()
                + w2.storage().byteSize()
                + 4L * w13.scales().length
                + 4L * w2.scales().length
                + 4L * router.length;
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
