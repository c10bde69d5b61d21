package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.weights.Int8Grid;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.MatrixView;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.LatentSpace;
import org.tornadomoe.quant.RouterWeights;

/** A layer of a checkpoint, read from the mapped files row by row. */
final class LayerWeights implements ExpertWeights {
    private final FusedMoeConfig config;
    private final RouterWeights router;

    /** The routed experts, then the shared ones, all of width I. */
    private final List<Projections> experts;

    private final Runnable unchanged;

    private final Int8Quantization quantization;

    private final @Nullable LatentSpace latent;

    /**
     * @param config as the model's configuration says; biases and shared experts are the tensors'
     * @param unchanged throws if the tensors' files were changed
     * @throws IllegalArgumentException if they don't fit
     */
    LayerWeights(FusedMoeConfig config, LayerTensors tensors, Runnable unchanged) {
        boolean biased = Stream.concat(tensors.experts().stream(), Stream.ofNullable(tensors.shared()))
                .anyMatch(e -> e.gateBias() != null || e.upBias() != null || e.downBias() != null);
        RouterConfig routing = config.router();
        this.config = config.toBuilder()
                .hasBias(biased)
                .router(routing.withRoutedScalingFactor(routing.routedScalingFactor() * tensors.routerFactor()))
                .build();
        this.router = tensors.router();
        router.requireFits(config);
        List<Projections> all = new ArrayList<>(tensors.experts());
        Projections shared = tensors.shared();
        for (int n = 0; n < config.numFusedSharedExperts() && shared != null; n++) {
            all.add(part(shared, n, config));
        }
        this.experts = List.copyOf(all);
        this.unchanged = unchanged;
        quantization = Int8Grid.suiting(this.config, isInterleaved(), experts);
        latent = null;
    }

    /**
     * A layer whose routed experts compute in a narrower space.
     *
     * @param config as the model's configuration says
     * @param shape what the layer holds
     * @throws IllegalArgumentException if they don't fit
     */
    static LayerWeights inLatentSpace(
            FusedMoeConfig config, LayerShape.Latent shape, LayerTensors tensors, Runnable unchanged) {
        LayerTensors.Latent found = Objects.requireNonNull(tensors.latent());
        FusedMoeConfig whole = config.toBuilder().numFusedSharedExperts(0).build();
        tensors.router().requireFits(whole);
        Projections shared = tensors.shared();
        ExpertWeights beside = null;
        if (shared != null) {
            int n = config.numFusedSharedExperts();
            FusedMoeConfig own = handedIn(config, n, n);
            List<Projections> parts =
                    IntStream.range(0, n).mapToObj(i -> part(shared, i, config)).toList();
            LayerWeights floats = new LayerWeights(own, parts, unchanged, Int8Grid.suiting(own, false, parts), null);
            beside = floats.asStored();
        }
        LatentSpace space = new LatentSpace(
                whole, tensors.router(), found.into(), found.norm(), shape.epsilon(), found.back(), beside);
        FusedMoeConfig inner = handedIn(config, config.numExperts(), config.expertsPerToken()).toBuilder()
                .hiddenDim(shape.width())
                .build();
        List<Projections> experts = tensors.experts();
        return new LayerWeights(inner, experts, unchanged, Int8Grid.suiting(inner, false, experts), space);
    }

    private static FusedMoeConfig handedIn(FusedMoeConfig config, int experts, int topK) {
        return config.toBuilder()
                .numExperts(experts)
                .numFusedSharedExperts(0)
                .expertsPerToken(topK)
                .router(RouterConfig.of(ScoringFunction.CUSTOM, false))
                .build();
    }

    /** The same as int8 if that is how its matrices, or some of them, are stored. */
    ExpertWeights asStored() {
        Int8Grid grid = Int8Grid.of(config, isInterleaved(), experts);
        return grid == null ? this : new StoredInt8(this, grid);
    }

    /** The matrices of one expert as a layer, without router or biases: for quantising them by themselves. */
    static LayerWeights ofOne(Projections expert) {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(1)
                .expertsPerToken(1)
                .hiddenDim(expert.down().rows())
                .intermediateSize(expert.gate().rows())
                .maxNumTokens(1)
                .build();
        Int8Quantization suiting = Int8Grid.suiting(config, false, List.of(expert));
        return new LayerWeights(config, List.of(expert), () -> {}, suiting, null);
    }

    private LayerWeights(
            FusedMoeConfig config,
            List<Projections> experts,
            Runnable unchanged,
            Int8Quantization quantization,
            @Nullable LatentSpace latent) {
        this.config = config;
        this.latent = latent;
        router = RouterWeights.NONE;
        this.experts = experts;
        this.unchanged = unchanged;
        this.quantization = quantization;
    }

    /** See {@link MoeCheckpoint#experts}. */
    LayerWeights only(int[] ids) {
        int k = config.applyRouterWeightOnInput() ? 1 : Math.min(ids.length, config.pairsPerToken());
        List<Projections> some = Arrays.stream(ids).mapToObj(experts::get).toList();
        return new LayerWeights(handedIn(config, ids.length, k), some, unchanged, quantization, null);
    }

    /** The n-th part of a shared expert, as wide as a routed one; the biases of the down projection go to the first. */
    private static Projections part(Projections shared, int n, FusedMoeConfig config) {
        int h = config.hiddenDim();
        int i = config.intermediateSize();
        float[] downBias = shared.downBias();
        Matrix gate = new MatrixView.Window(shared.gate(), i, h, n * i, 0);
        return new Projections(
                shared.modules(),
                gate,
                shared.isGated() ? new MatrixView.Window(shared.up(), i, h, n * i, 0) : gate,
                new MatrixView.Window(shared.down(), h, i, 0, n * i),
                part(shared.gateBias(), n, i),
                part(shared.upBias(), n, i),
                downBias == null || n == 0 ? downBias : new float[h]);
    }

    private static float @Nullable [] part(float @Nullable [] bias, int n, int length) {
        if (bias == null) {
            return null;
        }
        float[] part = new float[length];
        System.arraycopy(bias, n * length, part, 0, Math.min(length, bias.length - n * length));
        return part;
    }

    /** The routed experts, then the shared ones, all of width I. */
    List<Projections> experts() {
        return experts;
    }

    @Override
    public FusedMoeConfig config() {
        return config;
    }

    @Override
    public Int8Quantization quantization() {
        return quantization;
    }

    @Override
    public RouterWeights router() {
        return router;
    }

    @Override
    public @Nullable LatentSpace latent() {
        return latent;
    }

    @Override
    public void requireUnchanged() {
        unchanged.run();
    }

    @Override
    public void gateUpRow(int expert, int row, float[] into) {
        read(gateUp(expert, row), projectionRow(row), into);
    }

    @Override
    public void downRow(int expert, int row, float[] into) {
        read(experts.get(expert).down(), row, into);
    }

    @Override
    public float @Nullable [] gateUpCodes(int expert, int row, int colsPerScale, byte[] codes, float[] scales) {
        return gateUp(expert, row).codes(projectionRow(row), colsPerScale, codes, scales);
    }

    @Override
    public float @Nullable [] downCodes(int expert, int row, int colsPerScale, byte[] codes, float[] scales) {
        return experts.get(expert).down().codes(row, colsPerScale, codes, scales);
    }

    @Override
    public boolean gateUpNumbers(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        return gateUp(expert, row).numbers(projectionRow(row), colsPerScale, numbers, scales, mins);
    }

    @Override
    public boolean downNumbers(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins) {
        return experts.get(expert).down().numbers(row, colsPerScale, numbers, scales, mins);
    }

    private void read(Matrix matrix, int row, float[] into) {
        try {
            matrix.row(row, into);
        } catch (InternalError e) {
            unchanged.run(); // a page of the file is gone
            throw e;
        }
    }

    @Override
    public String gateUpSource(int expert, int row) {
        return gateUp(expert, row).source();
    }

    @Override
    public String downSource(int expert) {
        return experts.get(expert).down().source();
    }

    @Override
    public float @Nullable [] w13Bias() {
        if (!config.hasBias()) {
            return null;
        }
        int rows = config.gateUpRows();
        float[] all = new float[experts.size() * rows];
        for (int e = 0; e < experts.size(); e++) {
            float[] gate = experts.get(e).gateBias();
            float[] up = experts.get(e).upBias();
            for (int row = 0; row < rows; row++) {
                float[] bias = isUp(row) ? up : gate;
                all[e * rows + row] = bias == null ? 0 : bias[projectionRow(row)];
            }
        }
        return all;
    }

    @Override
    public float @Nullable [] w2Bias() {
        if (!config.hasBias()) {
            return null;
        }
        int rows = config.hiddenDim();
        float[] all = new float[experts.size() * rows];
        for (int e = 0; e < experts.size(); e++) {
            float[] bias = experts.get(e).downBias();
            if (bias != null) {
                System.arraycopy(bias, 0, all, e * rows, rows);
            }
        }
        return all;
    }

    private Matrix gateUp(int expert, int row) {
        Objects.checkIndex(row, config.gateUpRows());
        Projections projections = experts.get(expert);
        return isUp(row) ? projections.up() : projections.gate();
    }

    /** Whether a row of w13 is one of the up projection's, and not the gate's. */
    boolean isUp(int row) {
        return isInterleaved() ? row % 2 == 1 : row >= config.intermediateSize();
    }

    /** That activation takes gate and up rows in turns. */
    boolean isInterleaved() {
        return config.activation() == MoeActivation.SWIGLUOAI;
    }

    /** The row of that projection. */
    int projectionRow(int row) {
        return isInterleaved() ? row / 2 : row % config.intermediateSize();
    }
}
