package org.tornadomoe.reference;

import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Activations;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LatentSpace;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RouterWeights;

/**
 * The layer, stage by stage, in simple float64 code. All matrices are row-major; M tokens, E experts, K top-k, H
 * hidden, I intermediate. Sums run in index order, so a result is the same on every machine.
 */
public final class Reference {
    private Reference() {}

    /** Computes all stages with the unquantised weights, from hidden [M, H]. */
    public static Stages forward(ExpertWeights weights, float[] hidden, int tokens) {
        return forward(weights, hidden, tokens, RouterInputs.NONE);
    }

    /** The same for a layer whose router may read more inputs. */
    public static Stages forward(ExpertWeights weights, float[] hidden, int tokens, RouterInputs inputs) {
        FusedMoeConfig config = weights.layerConfig();
        RouterWeights router = weights.layerRouter();
        float[] read = inputs.hidden(config.router(), hidden, tokens, config.hiddenDim());
        double[] x = Numerics.widen(Arrays.copyOf(read, tokens * config.hiddenDim()));
        double[] logits = Router.logits(config, router, x, tokens);
        Routing routing = Router.route(config, router, read, logits, tokens, inputs);
        LatentSpace latent = weights.latent();
        return latent == null
                ? forward(weights, hidden, logits, routing)
                : forward(weights, latent, Arrays.copyOf(hidden, x.length), logits, routing);
    }

    /** Of experts in a narrower space: the stages are those there, the output is the layer's. */
    private static Stages forward(
            ExpertWeights weights, LatentSpace latent, float[] hidden, double[] logits, Routing routing) {
        int tokens = routing.tokens();
        int h = latent.config().hiddenDim();
        int l = weights.config().hiddenDim();
        double[] into = project(latent.into(), l, h, Numerics.widen(hidden), tokens);
        Stages inside = forward(weights, Numerics.narrow(into), logits, routing);
        double[] sums = inside.output().clone();
        for (int t = 0; t < tokens; t++) {
            double[] sum = Arrays.copyOfRange(sums, t * l, (t + 1) * l);
            latent.normalize(sum);
            System.arraycopy(sum, 0, sums, t * l, l);
        }
        double[] output = project(latent.back(), h, l, sums, tokens);
        ExpertWeights shared = latent.shared();
        if (shared != null) {
            int n = shared.config().numExperts();
            int[] ids = new int[tokens * n];
            Arrays.setAll(ids, pair -> pair % n);
            double[] ones = new double[ids.length];
            Arrays.fill(ones, 1);
            double[] beside = forward(shared, hidden, new double[0], new Routing(tokens, n, ids, ones))
                    .output();
            Arrays.setAll(output, i -> output[i] + beside[i]);
        }
        return new Stages(logits, routing, null, inside.gemm1(), inside.act(), null, inside.gemm2(), output);
    }

    /** x [tokens, columns] times a matrix [rows, columns], transposed. */
    private static double[] project(float[] matrix, int rows, int columns, double[] x, int tokens) {
        double[] out = new double[tokens * rows];
        for (int i = 0; i < out.length; i++) {
            for (int c = 0; c < columns; c++) {
                out[i] += x[i / rows * columns + c] * matrix[i % rows * columns + c];
            }
        }
        return out;
    }

    /** Computes all stages with the unquantised weights, for tokens that are already routed. */
    public static Stages forward(ExpertWeights weights, float[] hidden, double[] logits, Routing routing) {
        return forward(weights, hidden, logits, routing, null);
    }

    /**
     * The same with adapters.
     *
     * @param adapterOfToken [M], null where a token has none; null for none at all
     */
    public static Stages forward(
            ExpertWeights weights,
            float[] hidden,
            double[] logits,
            Routing routing,
            @Nullable List<@Nullable LoraAdapter> adapterOfToken) {
        try {
            Stages stages = pass(weights, hidden, logits, routing, adapterOfToken);
            weights.requireUnchanged();
            return stages;
        } catch (InternalError e) {
            weights.requireUnchanged(); // a truncated file reads as zeros
            throw e;
        }
    }

    private static Stages pass(
            ExpertWeights weights,
            float[] hidden,
            double[] logits,
            Routing routing,
            @Nullable List<@Nullable LoraAdapter> adapterOfToken) {
        FusedMoeConfig config = weights.config();
        int tokens = routing.tokens();
        Numerics.requireLength("hidden", hidden.length, tokens, config.hiddenDim());
        int[] ids = routing.ids();
        double[] x = onInput(config, Numerics.widen(hidden), routing.weights());
        double[] gemm1 = ReferenceGemm.multiply(
                x, config.pairsPerInputRow(), ids, ReferenceGemm.Weights.gateUp(weights), weights.w13Bias());
        if (adapterOfToken != null) {
            gemm1 = Lora.addGateUp(config, gemm1, Numerics.widen(hidden), ids, routing, adapterOfToken);
        }
        double[] act = Activations.apply(config, gemm1, ids.length);
        double[] gemm2 = onOutput(
                config,
                ReferenceGemm.multiply(act, 1, ids, ReferenceGemm.Weights.down(weights), weights.w2Bias()),
                routing.weights());
        if (adapterOfToken != null) {
            gemm2 = Lora.addDown(config, gemm2, act, ids, routing, adapterOfToken);
        }
        double[] output = combine(gemm2, tokens, config.pairsPerToken(), config.hiddenDim());
        addZeroExperts(config, 0, hidden, routing, output);
        return new Stages(logits, routing, null, gemm1, act, null, gemm2, output);
    }

    /** Computes all stages with int8 experts and their router, from hidden [M, H]. */
    public static Stages forward(Int8Experts experts, float[] hidden, int tokens) {
        FusedMoeConfig config = experts.config();
        Numerics.requireLength("hidden", hidden.length, tokens, config.hiddenDim());
        float[] read = RouterInputs.NONE.hidden(config.router(), hidden, tokens, config.hiddenDim());
        return forward(experts, hidden, Router.logits(config, experts.router(), Numerics.widen(read), tokens), tokens);
    }

    /** Computes all stages with int8 experts, from hidden [M, H] and router logits [M, L]. */
    public static Stages forward(Int8Experts experts, float[] hidden, double[] logits, int tokens) {
        return forward(experts, hidden, logits, Router.route(experts.config(), experts.router(), logits, tokens));
    }

    /**
     * Computes all stages with int8 experts, for tokens that are already routed. Experts on other ranks add nothing, so
     * that the outputs of all parts add up to the layer's; zero experts are on expert 0's rank.
     */
    public static Stages forward(Int8Experts experts, float[] hidden, double[] logits, Routing routing) {
        return forward(experts, hidden, logits, routing, null);
    }

    /**
     * The same with adapters, whose part stays unquantised.
     *
     * @param adapterOfToken [M], null where a token has none; null for none at all
     */
    public static Stages forward(
            Int8Experts experts,
            float[] hidden,
            double[] logits,
            Routing routing,
            @Nullable List<@Nullable LoraAdapter> adapterOfToken) {
        FusedMoeConfig config = experts.config();
        int tokens = routing.tokens();
        boolean ownRows = experts.hasInputsOfTheirOwn() || config.applyRouterWeightOnInput();
        int shared = ownRows ? 1 : config.pairsPerToken();
        Numerics.requireLength("hidden", hidden.length, tokens, config.hiddenDim());
        int[] ids = Arrays.stream(routing.ids()).map(id -> local(experts, id)).toArray();
        double[] x = inputs(experts, Numerics.widen(hidden), routing.weights());
        QuantizedTokens a1 = quantize(experts, experts.a1Scales(), ids, x, ids.length / shared, config.hiddenDim());
        double[] gemm1 = ReferenceGemm.multiply(a1, x, shared, ids, experts.w13(), experts.w13Bias());
        if (adapterOfToken != null) {
            gemm1 = Lora.addGateUp(config, gemm1, Numerics.widen(hidden), ids, routing, adapterOfToken);
        }
        double[] act = Activations.apply(config, gemm1, ids.length);
        QuantizedTokens a2 =
                quantize(experts, experts.a2Scales(), ids, act, ids.length, config.intermediateSizePerPartition());
        double[] gemm2 = ReferenceGemm.multiply(a2, act, 1, ids, experts.w2(), experts.w2Bias());
        gemm2 = onOutput(config, gemm2, routing.weights());
        if (adapterOfToken != null) {
            gemm2 = Lora.addDown(config, gemm2, act, ids, routing, adapterOfToken);
        }
        double[] output = combine(gemm2, tokens, config.pairsPerToken(), config.hiddenDim());
        addZeroExperts(config, local(experts, 0), hidden, routing, output);
        return new Stages(logits, routing, a1, gemm1, act, a2, gemm2, output);
    }

    /** The local number of an expert; -1 if it is on another rank or has no weights. */
    static int local(Int8Experts experts, int id) {
        return id >= 0 && id < experts.config().globalNumExperts() ? experts.expertMap(id) : -1;
    }

    /**
     * Adds the zero experts: the token itself times their weights, to its output [M, H]. Only one rank does it, the
     * first of the tensor-parallel group that has expert 0.
     */
    static void addZeroExperts(
            FusedMoeConfig config, int localOfExpert0, float[] hidden, Routing routing, double[] output) {
        if (localOfExpert0 < 0 || config.moeParallelConfig().tpRank() != 0) {
            return;
        }
        int pairs = config.pairsPerToken();
        int h = config.hiddenDim();
        for (int p = 0; p < routing.ids().length; p++) {
            for (int i = 0; i < h && routing.ids()[p] >= config.globalNumExperts(); i++) {
                output[p / pairs * h + i] += routing.weights()[p] * hidden[p / pairs * h + i];
            }
        }
    }

    /**
     * The prepare stage: applies the per-token int8 rule of {@link Int8Activations}, on values rounded to float first.
     *
     * @param x [rows, width]
     */
    public static QuantizedTokens quantize(double[] x, int rows, int width) {
        Numerics.requireLength("x", x.length, rows, width);
        QuantizedTokens quantized = new QuantizedTokens(new byte[x.length], new float[rows]);
        Int8Activations.quantize(Numerics.narrow(x), rows, width, quantized.values(), quantized.scales());
        return quantized;
    }

    /**
     * The prepare stage: applies the scheme's rule of {@link Int8Activations}, on values rounded to float first; null
     * if activations stay float.
     *
     * @param scale a given scale; null to find it here
     * @param x [rows, width]; a missing row is zeros
     */
    public static @Nullable QuantizedTokens quantize(
            Int8Experts experts, @Nullable Float scale, double[] x, int rows, int width) {
        Numerics.requireLength("x", x.length, rows, width);
        byte[] values = new byte[x.length];
        return switch (experts.scheme()) {
            case W8A16_CHANNEL, W8A16_GROUP -> null;
            case W8A8_CHANNEL -> quantize(x, rows, width);
            case W8A8_TENSOR -> {
                float[] narrow = Numerics.narrow(x);
                float one = scale == null ? Int8Activations.tensorScale(narrow, narrow.length) : scale;
                Int8Activations.quantize(narrow, narrow.length, one, values);
                float[] scales = new float[rows];
                Arrays.fill(scales, one);
                yield new QuantizedTokens(values, scales);
            }
            case W8A8_BLOCK -> {
                int group = experts.quantization().grid().col();
                float[] scales = new float[rows * Math.ceilDiv(width, group)];
                boolean nearest = experts.quantization().roundToNearest();
                Int8Activations.quantizeGroups(Numerics.narrow(x), rows, width, group, nearest, values, scales);
                yield new QuantizedTokens(values, scales);
            }
        };
    }

    /**
     * The same with one scale per expert.
     *
     * @param known each local expert's given scale; null to find it here
     * @param expertOf the local number of each row's expert, -1 if it is on another rank; ignored with one scale for
     *     all
     */
    static @Nullable QuantizedTokens quantize(
            Int8Experts experts, float @Nullable [] known, int[] expertOf, double[] x, int rows, int width) {
        if (known == null || rows != expertOf.length) {
            return quantize(experts, known == null ? null : known[0], x, rows, width);
        }
        QuantizedTokens all = new QuantizedTokens(new byte[x.length], new float[rows]);
        for (int row = 0; row < rows; row++) {
            double[] one = Arrays.copyOfRange(x, row * width, (row + 1) * width);
            QuantizedTokens quantized = quantize(experts, known[Math.max(0, expertOf[row])], one, 1, width);
            if (quantized != null) {
                System.arraycopy(quantized.values(), 0, all.values(), row * width, width);
                all.scales()[row] = quantized.scales()[0];
            }
        }
        return all;
    }

    /**
     * The experts' input: the hidden states [M, H] or, if the layer applies router weights to the input, one row per
     * pair, [M * (K + n), H], times the pair's weight.
     */
    public static double[] onInput(FusedMoeConfig config, double[] hidden, double[] weights) {
        if (!config.applyRouterWeightOnInput()) {
            return hidden;
        }
        return weigh(ofPairs(config, hidden, weights.length), weights);
    }

    /** The same for int8 experts, with one row per pair also if each expert has its own input scale. */
    static double[] inputs(Int8Experts experts, double[] hidden, double[] weights) {
        FusedMoeConfig config = experts.config();
        return experts.hasInputsOfTheirOwn() && !config.applyRouterWeightOnInput()
                ? ofPairs(config, hidden, weights.length)
                : onInput(config, hidden, weights);
    }

    private static double[] ofPairs(FusedMoeConfig config, double[] hidden, int pairs) {
        int h = config.hiddenDim();
        double[] rows = new double[pairs * h];
        for (int p = 0; p < pairs; p++) {
            System.arraycopy(hidden, p / config.pairsPerToken() * h, rows, p * h, h);
        }
        return rows;
    }

    /**
     * The experts' outputs [P, H] before the sum: times the router's weights, unless the layer applies them to the
     * input.
     */
    public static double[] onOutput(FusedMoeConfig config, double[] rows, double[] weights) {
        return config.applyRouterWeightOnInput() ? rows : weigh(rows, weights);
    }

    /** The end of GEMM 2: multiplies every row of [P, H] by the router weight of its pair [P]. */
    public static double[] weigh(double[] rows, double[] weights) {
        if (weights.length == 0) {
            return rows.clone();
        }
        int width = rows.length / weights.length;
        Numerics.requireLength("rows", rows.length, weights.length, width);
        double[] weighed = new double[rows.length];
        for (int i = 0; i < rows.length; i++) {
            weighed[i] = rows[i] * weights[i / width];
        }
        return weighed;
    }

    /** The finalize stage: [M * K, H] to [M, H], the sum over a token's slots in order. */
    public static double[] combine(double[] gemm2, int tokens, int topK, int hiddenDim) {
        Numerics.requireLength("gemm2", gemm2.length, (long) tokens * topK, hiddenDim);
        double[] output = new double[tokens * hiddenDim];
        for (int m = 0; m < tokens; m++) {
            for (int slot = 0; slot < topK; slot++) {
                for (int i = 0; i < hiddenDim; i++) {
                    output[m * hiddenDim + i] += gemm2[(m * topK + slot) * hiddenDim + i];
                }
            }
        }
        return output;
    }
}
