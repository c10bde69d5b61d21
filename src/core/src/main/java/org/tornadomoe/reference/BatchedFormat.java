package org.tornadomoe.reference;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;

/** The definition in the batched format, where each expert has as many rows as a call may bring tokens. */
public final class BatchedFormat {
    private BatchedFormat() {}

    /**
     * Align for the batched format, where expert e has the rows e * maxTokens to (e + 1) * maxTokens - 1 and the first
     * of them in use: the rows in use, every expert's run filled up to whole blocks with E * maxTokens. (vLLM: {@code
     * batched_moe_align_block_size}, without the unused capacity at the end.)
     *
     * @param expertNumTokens the rows in use of each expert, 0 to maxTokens
     */
    public static Alignment align(int maxTokens, int blockSize, int[] expertNumTokens) {
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
     * How many pairs each local expert has; ids outside [0, E) and those of experts elsewhere count nowhere. (vLLM:
     * {@code count_expert_num_tokens}.)
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
     * Permute: the pairs of local experts sorted by local number, ascending within an expert. (vLLM: {@code
     * moe_permute}, which puts the other pairs behind them.)
     *
     * @param expertMap the local number of each expert, -1 if it lives elsewhere
     */
    public static Permutation permute(int[] topkIds, int[] expertMap) {
        Alignment dense = Alignments.align(topkIds, expertMap, false, 1);
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
    public static int[] rows(int[] topkIds, int[] expertMap, int maxTokens) {
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
     * A pass in the batched format: hidden [M, H], quantised, goes to the slots of its experts, [E_local, maxTokens,
     * H]; GEMMs, activation and the second quantisation run on every slot, and the output [M, H] is gathered from them.
     * The same as {@link Reference#forward(Int8Experts, float[], int)}'s.
     *
     * @throws IllegalArgumentException if an expert gets more than {@code maxTokens} tokens
     */
    public static double[] forward(Int8Experts experts, float[] hidden, int tokens, int maxTokens) {
        FusedMoeConfig config = experts.config();
        int h = config.hiddenDim();
        int i = config.intermediateSizePerPartition();
        Numerics.requireLength("hidden", hidden.length, tokens, h);
        double[] logits = Router.logits(config, experts.router(), Numerics.widen(hidden), tokens);
        Routing routing = Router.route(config, experts.router(), logits, tokens);
        int[] map = IntStream.range(0, config.globalNumExperts())
                .map(experts::expertMap)
                .toArray();
        int[] rowOfPair = rows(routing.ids(), map, maxTokens);

        int rows = experts.w13().experts() * maxTokens;
        double[] x = Reference.onInput(config, Numerics.widen(hidden), routing.weights());
        QuantizedTokens a1 = Reference.quantize(experts, experts.a1Scale(), x, x.length / h, h);
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
        double[] gemm1 = ReferenceGemm.multiply(a1Slots, slots, 1, expertOf, experts.w13(), experts.w13Bias());
        double[] act = Activations.apply(
                config,
                gemm1,
                rows,
                row -> IntStream.range(config.numExperts(), config.globalNumExperts())
                        .anyMatch(id -> experts.expertMap(id) == expertOf[row]));
        QuantizedTokens a2 = Reference.quantize(experts, experts.a2Scale(), act, rows, i);
        double[] gemm2 = ReferenceGemm.multiply(a2, act, 1, expertOf, experts.w2(), experts.w2Bias());
        double[] weights = routing.weights().clone();
        if (config.applyRouterWeightOnInput()) {
            Arrays.fill(weights, 1);
        }
        double[] output = unpermute(gemm2, rowOfPair, weights, config.pairsPerToken(), h);
        Reference.addZeroExperts(config, map[0], hidden, routing, output);
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
     * Unpermute: [M, width], the sum over a token's slots in order of weight times row; a pair without a row adds
     * nothing. (vLLM: {@code moe_unpermute}.)
     *
     * @param rows [rows, width]
     * @param rowOfPair [M * K], -1 for a pair without a row
     * @param weights [M * K]
     */
    public static double[] unpermute(double[] rows, int[] rowOfPair, double[] weights, int topK, int width) {
        Numerics.requireLength("weights", weights.length, rowOfPair.length, 1);
        double[] output = new double[rowOfPair.length / topK * width];
        for (int p = 0; p < rowOfPair.length; p++) {
            for (int i = 0; i < width && rowOfPair[p] >= 0; i++) {
                output[p / topK * width + i] += weights[p] * rows[rowOfPair[p] * width + i];
            }
        }
        return output;
    }
}
