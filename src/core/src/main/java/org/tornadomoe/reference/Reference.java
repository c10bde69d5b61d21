package org.tornadomoe.reference;

import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Activations;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LoraAdapter;

/**
 * The layer, stage by stage, in float64 and without cleverness. All matrices are row-major; M tokens, E experts, K top-k,
 * H hidden, I intermediate. Sums run in index order, so a result is the same on every machine.
 */
public final class Reference {
    private Reference() {}

    /** A pass with the unquantised weights: hidden [M, H] in, every stage out. */
    public static Stages forward(ExpertWeights weights, float[] hidden, int tokens) {
        FusedMoeConfig config = weights.config();
        double[] logits = Router.logits(config, weights.router(), widen(hidden), tokens);
        return forward(weights, hidden, logits, Router.route(config, weights.router(), logits, tokens));
    }

    /** A pass with the unquantised weights on tokens that are routed already. */
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
            weights.requireUnchanged(); // a page of a file that is gone
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
        requireLength("hidden", hidden.length, tokens, config.hiddenDim());
        int[] ids = routing.ids();
        double[] x = onInput(config, widen(hidden), routing.weights());
        double[] gemm1 = gemm(x, config.pairsPerInputRow(), ids, Weights.gateUp(weights), weights.w13Bias());
        if (adapterOfToken != null) {
            gemm1 = Lora.addGateUp(config, gemm1, widen(hidden), ids, routing, adapterOfToken);
        }
        double[] act = Activations.apply(config, gemm1, ids.length);
        double[] gemm2 =
                onOutput(config, gemm(act, 1, ids, Weights.down(weights), weights.w2Bias()), routing.weights());
        if (adapterOfToken != null) {
            gemm2 = Lora.addDown(config, gemm2, act, ids, routing, adapterOfToken);
        }
        double[] output = combine(gemm2, tokens, config.pairsPerToken(), config.hiddenDim());
        addZeroExperts(config, 0, hidden, routing, output);
        return new Stages(logits, routing, null, gemm1, act, null, gemm2, output);
    }

    /** A pass with int8 experts and their router: hidden [M, H] in, every stage out. */
    public static Stages forward(Int8Experts experts, float[] hidden, int tokens) {
        FusedMoeConfig config = experts.config();
        requireLength("hidden", hidden.length, tokens, config.hiddenDim());
        return forward(experts, hidden, Router.logits(config, experts.router(), widen(hidden), tokens), tokens);
    }

    /** A pass with int8 experts: hidden [M, H] and router logits [M, L] in, every stage out. */
    public static Stages forward(Int8Experts experts, float[] hidden, double[] logits, int tokens) {
        return forward(experts, hidden, logits, Router.route(experts.config(), experts.router(), logits, tokens));
    }

    /**
     * A pass with int8 experts on tokens that are routed already. Experts that live elsewhere add nothing, so that the outputs of
     * all parts add up to the layer's; zero experts live with expert 0.
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
        requireLength("hidden", hidden.length, tokens, config.hiddenDim());
        int[] ids = Arrays.stream(routing.ids()).map(id -> local(experts, id)).toArray();
        double[] x = inputs(experts, widen(hidden), routing.weights());
        QuantizedTokens a1 = quantize(experts, experts.a1Scales(), ids, x, ids.length / shared, config.hiddenDim());
        double[] gemm1 = gemm(a1, x, shared, ids, experts.w13(), experts.w13Bias());
        if (adapterOfToken != null) {
            gemm1 = Lora.addGateUp(config, gemm1, widen(hidden), ids, routing, adapterOfToken);
        }
        double[] act = Activations.apply(config, gemm1, ids.length);
        QuantizedTokens a2 =
                quantize(experts, experts.a2Scales(), ids, act, ids.length, config.intermediateSizePerPartition());
        double[] gemm2 = gemm(a2, act, 1, ids, experts.w2(), experts.w2Bias());
        gemm2 = onOutput(config, gemm2, routing.weights());
        if (adapterOfToken != null) {
            gemm2 = Lora.addDown(config, gemm2, act, ids, routing, adapterOfToken);
        }
        double[] output = combine(gemm2, tokens, config.pairsPerToken(), config.hiddenDim());
        addZeroExperts(config, local(experts, 0), hidden, routing, output);
        return new Stages(logits, routing, a1, gemm1, act, a2, gemm2, output);
    }

    /** The local number of an expert; -1 if it lives elsewhere or has no weights. */
    static int local(Int8Experts experts, int id) {
        return id >= 0 && id < experts.config().globalNumExperts() ? experts.expertMap(id) : -1;
    }

    /**
     * Zero experts: the token itself times their weights is added to its output [M, H], by one of all ranks: the first of its
     * tensor-parallel group that has expert 0.
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

    /** The sum in index order. */
    static double sum(double[] x) {
        double sum = 0;
        for (double v : x) {
            sum += v;
        }
        return sum;
    }

    /**
     * Prepare: the per-token int8 rule of {@link Int8Activations}, on values rounded to float first.
     *
     * @param x [rows, width]
     */
    public static QuantizedTokens quantize(double[] x, int rows, int width) {
        requireLength("x", x.length, rows, width);
        QuantizedTokens quantized = new QuantizedTokens(new byte[x.length], new float[rows]);
        Int8Activations.quantize(narrow(x), rows, width, quantized.values(), quantized.scales());
        return quantized;
    }

    /**
     * Prepare: the scheme's rule of {@link Int8Activations}, on values rounded to float first; null if activations stay float.
     *
     * @param scale known beforehand; null if it is found here
     * @param x [rows, width]; a row that isn't there is zeros
     */
    public static @Nullable QuantizedTokens quantize(
            Int8Experts experts, @Nullable Float scale, double[] x, int rows, int width) {
        requireLength("x", x.length, rows, width);
        byte[] values = new byte[x.length];
        return switch (experts.scheme()) {
            case W8A16_CHANNEL, W8A16_GROUP -> null;
            case W8A8_CHANNEL -> quantize(x, rows, width);
            case W8A8_TENSOR -> {
                float[] narrow = narrow(x);
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
                Int8Activations.quantizeGroups(narrow(x), rows, width, group, nearest, values, scales);
                yield new QuantizedTokens(values, scales);
            }
        };
    }

    /**
     * The same where each expert has its own scale.
     *
     * @param known of each local expert; null if it is found here
     * @param expertOf the local number of each row's expert, -1 where it lives elsewhere; with one scale for all it isn't looked at
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

    private static float[] narrow(double[] x) {
        float[] narrow = new float[x.length];
        for (int i = 0; i < x.length; i++) {
            narrow[i] = (float) x[i];
        }
        return narrow;
    }

    /**
     * {@link #align} where some experts live elsewhere, in either of vLLM's ways.
     *
     * @param expertMap the local number of each expert, -1 if it lives elsewhere
     * @param keep whether pairs of experts elsewhere are kept, sorted by their global number, in blocks of expert -1; else
     *     they are left out, and pairs sorted by local number
     */
    public static Alignment align(int[] topkIds, int[] expertMap, boolean keep, int blockSize) {
        if (keep) {
            Alignment global = align(topkIds, expertMap.length, blockSize);
            int[] expertIds =
                    Arrays.stream(global.expertIds()).map(e -> expertMap[e]).toArray();
            return new Alignment(blockSize, global.sortedTokenIds(), expertIds);
        }
        int local = (int) Arrays.stream(expertMap).filter(e -> e >= 0).count();
        int[] keys = Arrays.stream(topkIds)
                .map(id -> id >= 0 && id < expertMap.length ? expertMap[id] : -1)
                .toArray();
        return align(keys, local, blockSize);
    }

    /**
     * Align: pairs sorted by expert, ascending within an expert, every expert's run filled up to whole blocks with the
     * number of pairs. Experts without pairs take no block; ids outside [0, E) are left out. (vLLM:
     * {@code moe_align_block_size}, without the unused capacity at the end.)
     *
     * @param topkIds the expert of each pair
     */
    public static Alignment align(int[] topkIds, int experts, int blockSize) {
        if (blockSize < 1) {
            throw new IllegalArgumentException("blockSize: expected a positive number, got " + blockSize);
        }
        int[] start = new int[experts + 1];
        for (int e = 0; e < experts; e++) {
            int expert = e;
            int count = (int) Arrays.stream(topkIds).filter(id -> id == expert).count();
            start[e + 1] = start[e] + (count + blockSize - 1) / blockSize * blockSize;
        }
        int[] sorted = new int[start[experts]];
        Arrays.fill(sorted, topkIds.length);
        int[] expertIds = new int[sorted.length / blockSize];
        for (int e = 0; e < experts; e++) {
            Arrays.fill(expertIds, start[e] / blockSize, start[e + 1] / blockSize, e);
            int next = start[e];
            for (int p = 0; p < topkIds.length; p++) {
                if (topkIds[p] == e) {
                    sorted[next++] = p;
                }
            }
        }
        return new Alignment(blockSize, sorted, expertIds);
    }

    /**
     * A block for every pair, in their order, for so few of them that hardly two have the same expert: nothing is sorted. A block's
     * first place has its pair, the others the number of pairs. (vLLM: naive block assignment, where 4·P is at most E and all
     * experts are here.)
     *
     * @param topkIds the expert of each pair; ids outside [0, E) are blocks of nobody, −1
     */
    public static Alignment naiveAlign(int[] topkIds, int experts, int blockSize) {
        if (blockSize < 1) {
            throw new IllegalArgumentException("blockSize: expected a positive number, got " + blockSize);
        }
        int[] sorted = new int[topkIds.length * blockSize];
        Arrays.fill(sorted, topkIds.length);
        int[] expertIds = new int[topkIds.length];
        for (int p = 0; p < topkIds.length; p++) {
            sorted[p * blockSize] = p;
            expertIds[p] = topkIds[p] >= 0 && topkIds[p] < experts ? topkIds[p] : -1;
        }
        return new Alignment(blockSize, sorted, expertIds);
    }

    /**
     * Align for the batched format, where expert e has the rows e * maxTokens to (e + 1) * maxTokens - 1 and the first of them
     * in use: the rows in use, every expert's run filled up to whole blocks with E * maxTokens. (vLLM: {@code
     * batched_moe_align_block_size}, without the unused capacity at the end.)
     *
     * @param expertNumTokens the rows in use of each expert, 0 to maxTokens
     */
    public static Alignment batchedAlign(int maxTokens, int blockSize, int[] expertNumTokens) {
        if (blockSize < 1) {
            throw new IllegalArgumentException("blockSize: expected a positive number, got " + blockSize);
        }
        int none = Math.multiplyExact(expertNumTokens.length, maxTokens);
        IntStream.Builder sorted = IntStream.builder();
        IntStream.Builder expertIds = IntStream.builder();
        for (int e = 0; e < expertNumTokens.length; e++) {
            requireSlots(e, expertNumTokens[e], maxTokens);
            for (int slot = 0; slot < Math.ceilDiv(expertNumTokens[e], blockSize) * blockSize; slot++) {
                sorted.add(slot < expertNumTokens[e] ? e * maxTokens + slot : none);
                if (slot % blockSize == 0) {
                    expertIds.add(e);
                }
            }
        }
        return new Alignment(
                blockSize, sorted.build().toArray(), expertIds.build().toArray());
    }

    private static void requireSlots(int expert, int tokens, int maxTokens) {
        if (tokens < 0 || tokens > maxTokens) {
            throw new IllegalArgumentException(
                    "expert " + expert + ": expected at most " + maxTokens + " tokens (its slots), got " + tokens);
        }
    }

    /**
     * How many pairs each local expert has; ids outside [0, E) and those of experts elsewhere count nowhere. (vLLM: {@code
     * count_expert_num_tokens}.)
     *
     * @param expertMap the local number of each expert, -1 if it lives elsewhere
     */
    public static int[] countExpertTokens(int[] topkIds, int[] expertMap) {
        int[] counts =
                new int[(int) Arrays.stream(expertMap).filter(e -> e >= 0).count()];
        for (int id : topkIds) {
            if (id >= 0 && id < expertMap.length && expertMap[id] >= 0) {
                counts[expertMap[id]]++;
            }
        }
        return counts;
    }

    /**
     * Permute: the pairs of local experts sorted by local number, ascending within an expert. (vLLM: {@code moe_permute}, which
     * puts the other pairs behind them.)
     *
     * @param expertMap the local number of each expert, -1 if it lives elsewhere
     */
    public static Permutation permute(int[] topkIds, int[] expertMap) {
        Alignment dense = align(topkIds, expertMap, false, 1);
        int[] counts = countExpertTokens(topkIds, expertMap);
        int[] first = new int[counts.length + 1];
        for (int e = 0; e < counts.length; e++) {
            first[e + 1] = first[e] + counts[e];
        }
        int[] pairs = new int[topkIds.length];
        Arrays.fill(pairs, topkIds.length);
        int[] rows = new int[topkIds.length];
        Arrays.fill(rows, -1);
        for (int row = 0; row < dense.numTokensPostPadded(); row++) {
            pairs[row] = dense.sortedTokenIds()[row];
            rows[pairs[row]] = row;
        }
        return new Permutation(first, pairs, rows);
    }

    /**
     * Prepare of the batched format: the row of each pair where local expert e has the rows e * maxTokens to (e + 1) *
     * maxTokens - 1, taken in the order of pairs; -1 for pairs of experts elsewhere.
     *
     * @throws IllegalArgumentException if an expert has more pairs than rows
     */
    public static int[] batchedRows(int[] topkIds, int[] expertMap, int maxTokens) {
        int[] used = countExpertTokens(topkIds, expertMap);
        for (int e = 0; e < used.length; e++) {
            requireSlots(e, used[e], maxTokens);
        }
        Permutation dense = permute(topkIds, expertMap);
        int[] rows = dense.rowOfPair().clone();
        for (int p = 0; p < rows.length; p++) {
            if (rows[p] >= 0) {
                int e = expertMap[topkIds[p]];
                rows[p] += e * maxTokens - dense.expertFirstTokenOffset()[e];
            }
        }
        return rows;
    }

    /**
     * A pass in the batched format: hidden [M, H], quantised, goes to the slots of its experts, [E_local, maxTokens, H]; GEMMs,
     * activation and the second quantisation run on every slot, and the output [M, H] is gathered from them. The same as {@link #forward(Int8Experts,
     * float[], int)}'s.
     *
     * @throws IllegalArgumentException if an expert gets more than {@code maxTokens} tokens
     */
    public static double[] forwardBatched(Int8Experts experts, float[] hidden, int tokens, int maxTokens) {
        FusedMoeConfig config = experts.config();
        int h = config.hiddenDim();
        int i = config.intermediateSizePerPartition();
        requireLength("hidden", hidden.length, tokens, h);
        double[] logits = Router.logits(config, experts.router(), widen(hidden), tokens);
        Routing routing = Router.route(config, experts.router(), logits, tokens);
        int[] map = IntStream.range(0, config.globalNumExperts())
                .map(experts::expertMap)
                .toArray();
        int[] rowOfPair = batchedRows(routing.ids(), map, maxTokens);

        int rows = experts.w13().experts() * maxTokens;
        double[] x = onInput(config, widen(hidden), routing.weights());
        QuantizedTokens a1 = quantize(experts, experts.a1Scale(), x, x.length / h, h);
        int groups = experts.scheme() == Int8Scheme.W8A8_BLOCK ? experts.w13().scaleCols() : 1;
        QuantizedTokens a1Slots = a1 == null ? null : new QuantizedTokens(new byte[rows * h], new float[rows * groups]);
        double[] slots = new double[rows * h];
        int[] expertOf = new int[rows];
        Arrays.fill(expertOf, -1);
        for (int p = 0; p < rowOfPair.length; p++) {
            int row = rowOfPair[p];
            if (row >= 0) {
                System.arraycopy(x, p / config.pairsPerInputRow() * h, slots, row * h, h);
                if (a1 != null && a1Slots != null) {
                    System.arraycopy(a1.values(), p / config.pairsPerInputRow() * h, a1Slots.values(), row * h, h);
                    System.arraycopy(
                            a1.scales(),
                            p / config.pairsPerInputRow() * groups,
                            a1Slots.scales(),
                            row * groups,
                            groups);
                }
                expertOf[row] = row / maxTokens;
            }
        }
        double[] gemm1 = gemm(a1Slots, slots, 1, expertOf, experts.w13(), experts.w13Bias());
        double[] act = Activations.apply(config, gemm1, rows);
        QuantizedTokens a2 = quantize(experts, experts.a2Scale(), act, rows, i);
        double[] gemm2 = gemm(a2, act, 1, expertOf, experts.w2(), experts.w2Bias());
        double[] weights = routing.weights().clone();
        if (config.applyRouterWeightOnInput()) {
            Arrays.fill(weights, 1);
        }
        double[] output = unpermute(gemm2, rowOfPair, weights, config.pairsPerToken(), h);
        addZeroExperts(config, map[0], hidden, routing, output);
        return output;
    }

    /** The rows of {@link #permute}: [rows, width], each its pair's token of x [M, width]. */
    public static double[] permuteRows(double[] x, int topK, int width, Permutation permutation) {
        double[] rows = new double[permutation.rows() * width];
        for (int row = 0; row < permutation.rows(); row++) {
            System.arraycopy(x, permutation.permutedIdx()[row] / topK * width, rows, row * width, width);
        }
        return rows;
    }

    /**
     * Unpermute: [M, width], the sum over a token's slots in order of weight times row; a pair without a row adds nothing.
     * (vLLM: {@code moe_unpermute}.)
     *
     * @param rows [rows, width]
     * @param rowOfPair [M * K], -1 for a pair without a row
     * @param weights [M * K]
     */
    public static double[] unpermute(double[] rows, int[] rowOfPair, double[] weights, int topK, int width) {
        requireLength("weights", weights.length, rowOfPair.length, 1);
        double[] output = new double[rowOfPair.length / topK * width];
        for (int p = 0; p < rowOfPair.length; p++) {
            for (int i = 0; i < width && rowOfPair[p] >= 0; i++) {
                output[p / topK * width + i] += weights[p] * rows[rowOfPair[p] * width + i];
            }
        }
        return output;
    }

    /**
     * GEMM of W8A8: out [P, N] with out[p, n] = sum over groups of columns of (sum of a[row, i] * w[e, n, i] in the group) * the group's
     * scale of the row * the group's scale of w[e, n], plus the bias of e and n; where row = p / pairsPerRow and e = expertOf[p]. What
     * has one scale a row is one group. The inner sum is exact. A pair whose expert is outside [0, E) gets zeros.
     *
     * @param pairsPerRow K for GEMM 1, whose input is a row a token; 1 for GEMM 2, whose input is a row a pair
     * @param expertOf the expert of each of the P pairs
     * @param bias [E, N]; null for none
     */
    public static double[] gemm(
            QuantizedTokens a, int pairsPerRow, int[] expertOf, Int8Tensor w, float @Nullable [] bias) {
        double[] values = new double[a.values().length];
        for (int i = 0; i < values.length; i++) {
            values[i] = a.values()[i];
        }
        return gemm(values, widen(a.scales()), pairsPerRow, expertOf, Weights.of(w), bias);
    }

    /** GEMM of W8A16: as that of W8A8, with activations that have no scale, and weights less their zero points. */
    public static double[] gemm(double[] a, int pairsPerRow, int[] expertOf, Int8Tensor w, float @Nullable [] bias) {
        return gemm(a, pairsPerRow, expertOf, Weights.of(w), bias);
    }

    /** The GEMM of the quantised activations, or of the float ones where there are no others. */
    static double[] gemm(
            @Nullable QuantizedTokens quantized,
            double[] a,
            int pairsPerRow,
            int[] expertOf,
            Int8Tensor w,
            float @Nullable [] bias) {
        return quantized == null
                ? gemm(a, pairsPerRow, expertOf, w, bias)
                : gemm(quantized, pairsPerRow, expertOf, w, bias);
    }

    private static double[] gemm(double[] a, int pairsPerRow, int[] expertOf, Weights w, float @Nullable [] bias) {
        double[] one = new double[expertOf.length / pairsPerRow];
        Arrays.fill(one, 1);
        return gemm(a, one, pairsPerRow, expertOf, w, bias);
    }

    private static double[] gemm(
            double[] a, double[] scales, int pairsPerRow, int[] expertOf, Weights w, float @Nullable [] bias) {
        int cols = w.cols();
        int rows = expertOf.length / pairsPerRow;
        int groups = w.groups();
        boolean grouped = scales.length != rows;
        requireLength("activations", a.length, rows, cols);
        requireLength("activation scales", scales.length, rows, grouped ? groups : 1);
        double[] out = new double[Math.multiplyExact(expertOf.length, w.rows())];
        IntStream.range(0, w.experts() * w.rows()).parallel().forEach(weightRow -> {
            int e = weightRow / w.rows();
            int n = weightRow % w.rows();
            double[] weights = new double[cols];
            double[] weightScales = new double[groups];
            w.read(e, n, weights, weightScales);
            for (int p = 0; p < expertOf.length; p++) {
                if (expertOf[p] == e) {
                    int row = p / pairsPerRow;
                    double total = 0;
                    for (int g = 0; g < groups; g++) {
                        double sum = 0;
                        for (int i = g * w.colsPerScale(); i < Math.min((g + 1L) * w.colsPerScale(), cols); i++) {
                            sum += a[row * cols + i] * weights[i];
                        }
                        total += sum * scales[grouped ? row * groups + g : row] * weightScales[g];
                    }
                    out[p * w.rows() + n] = total + (bias == null ? 0 : bias[weightRow]);
                }
            }
        });
        return out;
    }

    /**
     * The hidden states [M, H] as the experts get them: as they are or, if the layer applies router weights on the input, a row a
     * pair, [M * (K + n), H], times the pair's weight.
     */
    public static double[] onInput(FusedMoeConfig config, double[] hidden, double[] weights) {
        if (!config.applyRouterWeightOnInput()) {
            return hidden;
        }
        return weigh(ofPairs(config, hidden, weights.length), weights);
    }

    /** The same of int8 experts: a row a pair also where each quantises its input by itself. */
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

    /** The experts' outputs [P, H] as they are summed: times the router's weights unless the layer applies them on the input. */
    public static double[] onOutput(FusedMoeConfig config, double[] rows, double[] weights) {
        return config.applyRouterWeightOnInput() ? rows : weigh(rows, weights);
    }

    /** End of GEMM 2: every row [P, H] times the router weight of its pair [P]. */
    public static double[] weigh(double[] rows, double[] weights) {
        if (weights.length == 0) {
            return rows.clone();
        }
        int width = rows.length / weights.length;
        requireLength("rows", rows.length, weights.length, width);
        double[] weighed = new double[rows.length];
        for (int i = 0; i < rows.length; i++) {
            weighed[i] = rows[i] * weights[i / width];
        }
        return weighed;
    }

    /** Finalize: [M * K, H] to [M, H], the sum over a token's slots in order. */
    public static double[] combine(double[] gemm2, int tokens, int topK, int hiddenDim) {
        requireLength("gemm2", gemm2.length, (long) tokens * topK, hiddenDim);
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

    /** The same values as doubles. */
    public static double[] widen(float[] x) {
        double[] wide = new double[x.length];
        for (int i = 0; i < x.length; i++) {
            wide[i] = x[i];
        }
        return wide;
    }

    /** How far apart two results are: |actual - expected| / |expected| in the Euclidean norm; 0 if both are all zero. */
    public static double relativeL2(double[] actual, double[] expected) {
        if (actual.length != expected.length) {
            throw new IllegalArgumentException("actual: expected " + expected.length + " values, got " + actual.length);
        }
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < expected.length; i++) {
            difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
            norm += expected[i] * expected[i];
        }
        return difference == 0 ? 0 : Math.sqrt(difference / norm);
    }

    static void requireLength(String name, long length, long rows, long cols) {
        if (rows < 0 || length != rows * cols) {
            throw new IllegalArgumentException(
                    name + ": expected [" + rows + ", " + cols + "] = " + rows * cols + " values, got " + length);
        }
    }

    /** One projection of all experts, [E, rows, cols], row by row: weight = value * the scale of its group of columns. */
    private record Weights(int experts, int rows, int cols, int colsPerScale, RowReader reader) {
        /** Reads a row's values and its groups' scales. */
        interface RowReader {
            void read(int expert, int row, double[] values, double[] scales);
        }

        int groups() {
            return Math.ceilDiv(cols, colsPerScale);
        }

        void read(int expert, int row, double[] values, double[] scales) {
            reader.read(expert, row, values, scales);
        }

        static Weights of(Int8Tensor w) {
            return new Weights(w.experts(), w.rows(), w.cols(), w.colsPerScale(), (expert, row, values, scales) -> {
                byte[] bytes = new byte[w.cols()];
                w.row(expert, row, bytes);
                for (int i = 0; i < bytes.length; i++) {
                    values[i] = bytes[i] - w.zeroPoint(expert, row, i);
                }
                for (int g = 0; g < scales.length; g++) {
                    scales[g] = w.scale(expert, row, g * w.colsPerScale());
                }
            });
        }

        static Weights gateUp(ExpertWeights w) {
            FusedMoeConfig config = w.config();
            return floats(config.globalNumExperts(), config.gateUpRows(), config.hiddenDim(), w::gateUpRow);
        }

        static Weights down(ExpertWeights w) {
            FusedMoeConfig config = w.config();
            return floats(
                    config.globalNumExperts(), config.hiddenDim(), config.intermediateSizePerPartition(), w::downRow);
        }

        private interface FloatRow {
            void read(int expert, int row, float[] into);
        }

        private static Weights floats(int experts, int rows, int cols, FloatRow source) {
            return new Weights(experts, rows, cols, cols, (expert, row, values, scales) -> {
                float[] floats = new float[cols];
                source.read(expert, row, floats);
                for (int i = 0; i < cols; i++) {
                    values[i] = floats[i];
                }
                scales[0] = 1;
            });
        }
    }
}
