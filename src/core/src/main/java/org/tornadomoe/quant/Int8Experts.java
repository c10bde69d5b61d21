package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.Objects;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;

/**
 * A layer's weights, ready to run: int8 experts and the float router. Owns its memory and frees it on {@link #close}.
 * Read-only and thread-safe; close it only after other threads have stopped reading it.
 */
public final class Int8Experts implements AutoCloseable {
    private final FusedMoeConfig config;
    private final Int8Quantization quantization;
    private final Int8Tensor w13;
    private final Int8Tensor w2;
    private final RouterWeights router;
    private final int @Nullable [] expertMap;
    private final float @Nullable [] w13Bias;
    private final float @Nullable [] w2Bias;
    private final float @Nullable [] a1Scales;
    private final float @Nullable [] a2Scales;
    private final Arena arena;
    private final Runnable unchanged;

    private Int8Experts(Builder b, Int8Quantization quantization) {
        this.config = b.config;
        this.quantization = quantization;
        this.w13 = b.w13;
        this.w2 = b.w2;
        this.router = b.router;
        this.expertMap = b.expertMap == null ? null : b.expertMap.clone();
        this.w13Bias = b.w13Bias == null ? null : b.w13Bias.clone();
        this.w2Bias = b.w2Bias == null ? null : b.w2Bias.clone();
        this.a1Scales = each(b.a1Scales, b.w13.experts());
        this.a2Scales = each(b.a2Scales, b.w13.experts());
        this.arena = b.arena;
        this.unchanged = b.unchanged;
    }

    private static float @Nullable [] each(float @Nullable [] scales, int experts) {
        if (scales == null) {
            return null;
        }
        float[] each = new float[experts];
        for (int e = 0; e < experts; e++) {
            each[e] = scales[scales.length == 1 ? 0 : e];
        }
        return each;
    }

    /** Int8 weights and a router only: {@link #builder} then {@link Builder#router} and {@link Builder#build}. */
    public static Int8Experts of(
            FusedMoeConfig config,
            Int8Scheme scheme,
            Int8Tensor w13,
            Int8Tensor w2,
            RouterWeights router,
            Arena arena) {
        return builder(config, scheme, w13, w2, arena).router(router).build();
    }

    /** A rank's part of a layer: the same with {@link Builder#expertMap}. */
    public static Int8Experts of(
            FusedMoeConfig config,
            Int8Scheme scheme,
            Int8Tensor w13,
            Int8Tensor w2,
            RouterWeights router,
            int @Nullable [] expertMap,
            Arena arena) {
        return builder(config, scheme, w13, w2, arena)
                .router(router)
                .expertMap(expertMap)
                .build();
    }

    /**
     * A builder for int8 weights.
     *
     * @param w13 [E, 2I, H], gate rows then up rows; E includes shared experts, which come after the routed ones
     * @param w2 [E, H, I]
     * @param arena the arena of both tensors. {@link Builder#build} passes it to the result, unless it throws. It must
     *     be closeable from any thread ({@link Arena#ofShared})
     */
    public static Builder builder(
            FusedMoeConfig config, Int8Scheme scheme, Int8Tensor w13, Int8Tensor w2, Arena arena) {
        return new Builder(config, scheme, w13, w2, arena);
    }

    /** A builder with the same settings and other tensors from another arena, to copy a layer or a part of it. */
    public Builder with(FusedMoeConfig config, Int8Tensor w13, Int8Tensor w2, Arena arena) {
        Builder builder = new Builder(config, scheme(), w13, w2, arena);
        builder.router = router;
        builder.expertMap = expertMap;
        builder.w13Bias = w13Bias;
        builder.w2Bias = w2Bias;
        builder.a1Scales = a1Scales;
        builder.a2Scales = a2Scales;
        builder.roundToNearest = quantization.roundToNearest();
        return builder;
    }

    /** Collects a layer's optional parts. {@link #build} copies arrays. */
    public static final class Builder {
        private final FusedMoeConfig config;
        private final Int8Scheme scheme;
        private Int8Tensor w13;
        private Int8Tensor w2;
        private final Arena arena;
        private boolean roundToNearest;
        private RouterWeights router = RouterWeights.NONE;
        private int @Nullable [] expertMap;
        private float @Nullable [] w13Bias;
        private float @Nullable [] w2Bias;
        private float @Nullable [] a1Scales;
        private float @Nullable [] a2Scales;
        private Runnable unchanged = () -> {};

        private Builder(FusedMoeConfig config, Int8Scheme scheme, Int8Tensor w13, Int8Tensor w2, Arena arena) {
            this.config = config;
            this.scheme = scheme;
            this.w13 = w13;
            this.w2 = w2;
            this.arena = arena;
        }

        /** The router's tensors; without a weight for a layer that always gets router logits from its caller. */
        public Builder router(RouterWeights router) {
            this.router = router;
            return this;
        }

        /**
         * Says that the tensors are a rank's part, [local experts, …].
         *
         * @param expertMap [E]: the local number of each expert of the layer, shared ones included, -1 if it is on
         *     another rank; null if all are local
         */
        public Builder expertMap(int @Nullable [] expertMap) {
            this.expertMap = expertMap;
            return this;
        }

        /**
         * Biases, which are added to a GEMM's output after the scales and before the router's weight; only if the
         * configuration's {@code hasBias} is set. If ranks share I, only one of them has w2's bias, because their
         * outputs are added up.
         *
         * @param w13 [E, 2I]; null for none
         * @param w2 [E, H]; null for none
         */
        public Builder biases(float @Nullable [] w13, float @Nullable [] w2) {
            this.w13Bias = w13;
            this.w2Bias = w2;
            return this;
        }

        /**
         * Given scales of activations, for {@code w8a8_tensor}; null for both to find them at run time.
         *
         * @param a1 the scale of the hidden states, positive
         * @param a2 the scale of the activations between the GEMMs, positive
         */
        public Builder activationScales(@Nullable Float a1, @Nullable Float a2) {
            return activationScales(a1 == null ? null : new float[] {a1}, a2 == null ? null : new float[] {a2});
        }

        /**
         * The same, with one scale per expert.
         *
         * @param a1 [local experts], or one for all
         * @param a2 [local experts], or one for all
         */
        public Builder activationScales(float @Nullable [] a1, float @Nullable [] a2) {
            this.a1Scales = a1;
            this.a2Scales = a2;
            return this;
        }

        /**
         * Says that values are read from files when they are needed.
         *
         * @param w13 reads the values of w13, which are zeros so far
         * @param w2 likewise
         * @param unchanged throws if the files were changed: {@link #requireUnchanged}
         */
        public Builder unread(UnreadValues.Source w13, UnreadValues.Source w2, Runnable unchanged) {
            this.w13 = this.w13.unread(w13);
            this.w2 = this.w2.unread(w2);
            this.unchanged = unchanged;
            return this;
        }

        /** {@link Int8Quantization#roundToNearest}. */
        public Builder roundToNearest(boolean roundToNearest) {
            this.roundToNearest = roundToNearest;
            return this;
        }

        /**
         * Builds the weights, which own the arena from then on.
         *
         * @throws IllegalArgumentException if a shape, a scale grid or a scale does not fit
         */
        public Int8Experts build() {
            int local = config.globalNumExperts();
            if (expertMap != null) {
                if (expertMap.length != config.globalNumExperts()) {
                    throw new IllegalArgumentException("expertMap: expected an entry for each of the "
                            + config.globalNumExperts() + " experts, got " + expertMap.length);
                }
                int[] here =
                        Arrays.stream(expertMap).filter(e -> e != -1).sorted().toArray();
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
            requireBias("w13Bias", w13Bias, local, config.gateUpRows());
            requireBias("w2Bias", w2Bias, local, config.hiddenDim());
            Int8Quantization quantization = quantization();
            requireGrid("w13", w13, quantization);
            requireGrid("w2", w2, quantization);
            if ((a1Scales == null) != (a2Scales == null)) {
                throw new IllegalArgumentException("a1_scale and a2_scale must both be provided or both be None");
            }
            requireScales("a1Scale", a1Scales, local);
            requireScales("a2Scale", a2Scales, local);
            return new Int8Experts(this, quantization);
        }

        private void requireBias(String name, float @Nullable [] values, int rows, int cols) {
            if (values == null) {
                return;
            }
            if (!config.hasBias()) {
                throw new IllegalArgumentException(name + ": expected none, the configuration's hasBias is false");
            }
            if (values.length != (long) rows * cols) {
                throw new IllegalArgumentException(name + ": expected [" + rows + ", " + cols + "] = "
                        + (long) rows * cols + " values, got " + values.length);
            }
            for (int i = 0; i < values.length; i++) {
                if (!Float.isFinite(values[i])) {
                    throw new IllegalArgumentException(name + ": expected finite values, got " + values[i]
                            + " at expert " + i / cols + ", row " + i % cols);
                }
            }
        }

        private Int8Quantization quantization() {
            GroupShape grid = switch (scheme) {
                case W8A8_BLOCK -> new GroupShape(w13.rowsPerScale(), w13.colsPerScale());
                // A weight with fewer columns than a group is one group.
                case W8A16_GROUP -> new GroupShape(1, Math.max(w13.colsPerScale(), w2.colsPerScale()));
                default -> Int8Quantization.of(scheme).grid();
            };
            boolean zeroPoints = w13.zeroPoints() != null || w2.zeroPoints() != null;
            return new Int8Quantization(scheme, grid, zeroPoints, roundToNearest);
        }

        private static void requireGrid(String name, Int8Tensor tensor, Int8Quantization quantization) {
            int rows = quantization.rowsPerScale(tensor.rows());
            int cols = quantization.colsPerScale(tensor.cols());
            // One scale for all activations doesn't fix the rows' scales: gate and up may have their own.
            boolean anyRows = quantization.scheme() == Int8Scheme.W8A8_TENSOR && tensor.rowsPerScale() == 1;
            boolean fits = (anyRows || scale(tensor.rowsPerScale(), tensor.rows()) == scale(rows, tensor.rows()))
                    && scale(tensor.colsPerScale(), tensor.cols()) == scale(cols, tensor.cols());
            if (!fits) {
                throw new IllegalArgumentException(name + ": expected a scale for " + rows + " x " + cols
                        + " values, as " + quantization + " has it, got one for " + tensor.rowsPerScale() + " x "
                        + tensor.colsPerScale());
            }
        }

        private static int scale(int perScale, int size) {
            return Math.min(perScale, size);
        }

        private void requireScales(String name, float @Nullable [] scales, int local) {
            if (scales == null) {
                return;
            }
            if (scales.length != 1 && scales.length != local) {
                throw new IllegalArgumentException(
                        name + ": expected one, or one for each of " + local + " experts, got " + scales.length);
            }
            if (scheme != Int8Scheme.W8A8_TENSOR) {
                throw new IllegalArgumentException(
                        name + ": expected none, " + scheme + " has no scales of activations known beforehand");
            }
            for (float scale : scales) {
                if (!(scale > 0 && scale <= Float.MAX_VALUE)) {
                    throw new IllegalArgumentException(name + ": expected a positive finite scale, got " + scale);
                }
            }
        }
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
        return quantization.scheme();
    }

    /** The scheme, with the tensors' block or group. */
    public Int8Quantization quantization() {
        return quantization;
    }

    /** How weights are quantised. */
    public QuantKey weightKey() {
        return quantization.weightKey();
    }

    /** How activations are quantised; null if they aren't. */
    public @Nullable QuantKey activationKey() {
        return a1Scales == null
                ? quantization.activationKey()
                : areEqual(a1Scales) && areEqual(a2Scales)
                        ? QuantKey.INT8_STATIC_TENSOR_SYM
                        : QuantKey.INT8_STATIC_TOKEN_SYM;
    }

    /** The bias of the first GEMM, [E, 2I], added after the scales; null for none. Read only. */
    public float @Nullable [] w13Bias() {
        return w13Bias;
    }

    /**
     * The bias of the second GEMM, [E, H], added after the scales and before the router's weight; null for none. Read
     * only.
     */
    public float @Nullable [] w2Bias() {
        return w2Bias;
    }

    /**
     * The given scale of the hidden states; null if it is found at run time.
     *
     * @throws IllegalStateException if each expert has its own ({@link #activationKey})
     */
    public @Nullable Float a1Scale() {
        return one(a1Scales);
    }

    /** The given scale of the activations between the GEMMs; otherwise like {@link #a1Scale}. */
    public @Nullable Float a2Scale() {
        return one(a2Scales);
    }

    /** {@link #a1Scale} of each local expert; null if they are found at run time. Read only. */
    public float @Nullable [] a1Scales() {
        return a1Scales;
    }

    /** {@link #a2Scale} of each local expert; null if they are found at run time. Read only. */
    public float @Nullable [] a2Scales() {
        return a2Scales;
    }

    /** Whether experts get their own quantised rows, because their scales of hidden states differ. */
    public boolean hasInputsOfTheirOwn() {
        return !areEqual(a1Scales);
    }

    private static @Nullable Float one(float @Nullable [] scales) {
        if (!areEqual(scales)) {
            throw new IllegalStateException("each expert has a scale of its own for its activations");
        }
        return scales == null ? null : scales[0];
    }

    private static boolean areEqual(float @Nullable [] scales) {
        for (int e = 1; scales != null && e < scales.length; e++) {
            if (scales[e] != scales[0]) {
                return false;
            }
        }
        return true;
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

    /**
     * The local number of an expert of the layer, an index into {@link #w13} and {@link #w2}; -1 if it is on another
     * rank.
     */
    public int expertMap(int expert) {
        return expertMap == null ? Objects.checkIndex(expert, config.globalNumExperts()) : expertMap[expert];
    }

    /** Whether some of the layer's experts are on other ranks. */
    public boolean isPart() {
        return expertMap != null && w13.experts() < config.globalNumExperts();
    }

    /** Whether there is a router, so that experts can be chosen from hidden states. */
    public boolean hasRouter() {
        return router.hasWeight() || router.network() != null;
    }

    /** The router's tensors. */
    public RouterWeights router() {
        return router;
    }

    /** Bytes of memory: values, scales, zero points, biases and router. */
    public long bytes() {
        return bytes(w13) + bytes(w2) + router.bytes() + 4 * ((long) length(w13Bias) + length(w2Bias));
    }

    private static long bytes(Int8Tensor tensor) {
        byte[] zeroPoints = tensor.zeroPoints();
        return Int8Tensor.bytes(tensor.experts(), tensor.rows(), tensor.cols())
                + 4L * tensor.scales().length
                + (zeroPoints == null ? 0 : zeroPoints.length);
    }

    private static int length(float @Nullable [] values) {
        return values == null ? 0 : values.length;
    }

    /**
     * The quantisation error: the relative L2 distance of w13 and w2 from the original weights, over all experts.
     * Computed on all cores, in double; the same weights give the same bits.
     *
     * @param weights the original weights, of the same shape, with all experts
     * @return 0 if all weights are zero
     * @throws IllegalStateException after {@link #close}
     */
    public double relativeL2(ExpertWeights weights) {
        int experts = w13().experts();
        double[][] sums = new double[experts][2]; // squared error and square
        IntStream.range(0, experts).parallel().forEach(e -> {
            w13.addError(e, (row, into) -> weights.gateUpRow(e, row, into), sums[e]);
            w2.addError(e, (row, into) -> weights.downRow(e, row, into), sums[e]);
        });
        weights.requireUnchanged();
        double error = Arrays.stream(sums).mapToDouble(sum -> sum[0]).sum();
        double square = Arrays.stream(sums).mapToDouble(sum -> sum[1]).sum();
        return square == 0 ? 0 : Math.sqrt(error / square);
    }

    /**
     * Throws if values were read from files that were changed since they were opened: then what was read may be wrong.
     * To be called when everything has been read from experts of {@link QuantizedWeights#open}; of others it does
     * nothing.
     *
     * @throws RuntimeException that names the file
     */
    public void requireUnchanged() {
        unchanged.run();
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
