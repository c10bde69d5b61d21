package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;

/**
 * A rank's part of a layer's int8 weights: some of its experts, or some columns of every expert's intermediate size I.
 * E is the number of the layer's experts, shared ones included.
 */
public final class RankWeights {
    private RankWeights() {}

    /**
     * Some of a layer's experts, each with weights, scales, zero points and biases. Consecutive experts are not copied,
     * so the layer must stay open as long as the part.
     *
     * @param config the rank's
     * @param experts the experts, by their numbers in {@code whole}, in any order; the local expert i is {@code
     *     experts[i]}
     * @param expertMap [E of config]: the local number of each expert of the configuration, -1 if it is on another rank
     * @throws IllegalArgumentException if {@code whole} has no such experts, or they don't fit the configuration
     */
    public static Int8Experts experts(Int8Experts whole, FusedMoeConfig config, int[] experts, int[] expertMap) {
        int all = whole.w13().experts();
        if (experts.length == 0 || Arrays.stream(experts).anyMatch(e -> e < 0 || e >= all)) {
            throw new IllegalArgumentException("experts: expected numbers from 0 to " + (all - 1)
                    + ", at least one, got " + Arrays.toString(experts));
        }
        Arena arena = Arena.ofShared();
        try {
            return whole.with(config, experts(arena, whole.w13(), experts), experts(arena, whole.w2(), experts), arena)
                    .expertMap(expertMap)
                    .biases(experts(whole, whole.w13Bias(), experts), experts(whole, whole.w2Bias(), experts))
                    .activationScales(
                            experts(whole, whole.a1Scales(), experts), experts(whole, whole.a2Scales(), experts))
                    .build();
        } catch (RuntimeException | Error failure) {
            arena.close();
            throw failure;
        }
    }

    private static Int8Tensor experts(Arena arena, Int8Tensor from, int[] experts) {
        int first = experts[0];
        if (Arrays.equals(
                experts, IntStream.range(first, first + experts.length).toArray())) {
            return from.experts(first, experts.length);
        }
        Int8Tensor into = like(arena, from, experts.length, from.rows(), from.cols());
        long bytes = (long) from.rows() * from.rowBytes();
        int scales = from.scaleRows() * from.scaleCols();
        IntStream.range(0, experts.length).parallel().forEach(e -> {
            MemorySegment.copy(from.values(), experts[e] * bytes, into.values(), e * bytes, bytes);
            System.arraycopy(from.scales(), experts[e] * scales, into.scales(), e * scales, scales);
            byte[] zeroPoints = from.zeroPoints();
            if (zeroPoints != null && into.zeroPoints() != null) {
                System.arraycopy(zeroPoints, experts[e] * scales, into.zeroPoints(), e * scales, scales);
            }
        });
        return into;
    }

    /** Those experts' part of an array with the same number of values per expert. */
    private static float @Nullable [] experts(Int8Experts whole, float @Nullable [] all, int[] experts) {
        if (all == null) {
            return null;
        }
        int rows = all.length / whole.w13().experts();
        float[] part = new float[experts.length * rows];
        for (int e = 0; e < experts.length; e++) {
            System.arraycopy(all, experts[e] * rows, part, e * rows, rows);
        }
        return part;
    }

    /**
     * A rank's columns of every expert's intermediate size: the gate and up rows of w13 that compute these columns, and
     * the columns of w2 that read them. Only the first rank has w2's bias, because the ranks' outputs are added up.
     *
     * @param config the rank's; its tensor-parallel size and rank determine the columns
     * @throws IllegalArgumentException as {@link #requireColumns}, or if the configuration belongs to another layer
     */
    public static Int8Experts columns(Int8Experts whole, FusedMoeConfig config) {
        requireColumns(config, whole.quantization());
        if (whole.w2().cols() != config.intermediateSize() || whole.w2().rows() != config.hiddenDim()) {
            throw new IllegalArgumentException("config: expected the whole layer's intermediate size "
                    + whole.w2().cols() + " and hidden size " + whole.w2().rows() + ", got " + config.intermediateSize()
                    + " and " + config.hiddenDim());
        }
        int[] rows = rowsOf(config);
        int first = firstColumn(config);
        Arena arena = Arena.ofShared();
        try {
            Int8Tensor w13 = slice(arena, whole.w13(), rows, 0, config.hiddenDim());
            Int8Tensor w2 = slice(
                    arena,
                    whole.w2(),
                    IntStream.range(0, config.hiddenDim()).toArray(),
                    first,
                    config.intermediateSizePerPartition());
            float[] bias = whole.w13Bias();
            boolean isFirst = config.moeParallelConfig().tpRank() == 0;
            return whole.with(config, w13, w2, arena)
                    .biases(
                            bias == null ? null : rows(bias, whole.w13().rows(), rows, 1),
                            isFirst ? whole.w2Bias() : null)
                    .build();
        } catch (RuntimeException | Error failure) {
            arena.close();
            throw failure;
        }
    }

    /**
     * A rank's columns of an adapter: the rows of w13's B that compute them, and the columns of w2's A that read them.
     */
    public static LoraAdapter columns(LoraAdapter whole, FusedMoeConfig config) {
        int rank = whole.rank();
        int i = config.intermediateSize();
        int width = config.intermediateSizePerPartition();
        int allRows = config.gateUpRows() / width * i;
        int first = firstColumn(config);
        float[] w2A = new float[whole.w2A().length / i * width];
        for (int row = 0; row < w2A.length / width; row++) {
            System.arraycopy(whole.w2A(), row * i + first, w2A, row * width, width);
        }
        return new LoraAdapter(rank, whole.w13A(), rows(whole.w13B(), allRows, rowsOf(config), rank), w2A, whole.w2B());
    }

    /**
     * Checks that a rank's columns are whole blocks or groups, so that no scale is split.
     *
     * @throws IllegalArgumentException naming the sizes, if they aren't
     */
    public static void requireColumns(FusedMoeConfig config, Int8Quantization quantization) {
        int ranks = config.moeParallelConfig().tpSize();
        int width = config.intermediateSizePerPartition();
        int i = config.intermediateSize();
        int rows = config.gateUpRows() / width * i;
        int adjacent = config.activation().isInterleaved() ? 2 * width : width;
        int rowsPerScale = quantization.rowsPerScale(rows);
        int colsPerScale = quantization.colsPerScale(i);
        boolean rowsFit = rowsPerScale >= rows || adjacent % rowsPerScale == 0;
        boolean colsFit = colsPerScale >= i || width % colsPerScale == 0;
        if (ranks > 1 && !(rowsFit && colsFit)) {
            throw new IllegalArgumentException("tensor parallelism over " + ranks + ": expected parts of whole "
                    + (colsFit ? rowsPerScale + " rows of w13" : colsPerScale + " columns of w2")
                    + " that share a scale, got " + width + " of the intermediate size " + i
                    + " (expert parallelism splits no expert)");
        }
    }

    private static int firstColumn(FusedMoeConfig config) {
        return config.moeParallelConfig().tpRank() * config.intermediateSizePerPartition();
    }

    /** The rows of the layer's w13 that belong to a rank, in the rank's order. */
    private static int[] rowsOf(FusedMoeConfig config) {
        int first = firstColumn(config);
        int width = config.intermediateSizePerPartition();
        if (config.activation().isInterleaved()) {
            return IntStream.range(2 * first, 2 * (first + width)).toArray();
        }
        IntStream gate = IntStream.range(first, first + width);
        int up = config.intermediateSize() + first;
        return config.activation().isGated()
                ? IntStream.concat(gate, IntStream.range(up, up + width)).toArray()
                : gate.toArray();
    }

    /** Some rows of each expert: [E, all, width] to [E, rows.length, width]. */
    private static float[] rows(float[] from, int all, int[] rows, int width) {
        int experts = from.length / (all * width);
        float[] into = new float[experts * rows.length * width];
        for (int r = 0; r < experts * rows.length; r++) {
            int row = r / rows.length * all + rows[r % rows.length];
            System.arraycopy(from, row * width, into, r * width, width);
        }
        return into;
    }

    /** Some rows and columns of each expert, which are whole scale blocks. */
    private static Int8Tensor slice(Arena arena, Int8Tensor from, int[] rows, int firstCol, int cols) {
        Int8Tensor into = like(arena, from, from.experts(), rows.length, cols);
        IntStream.range(0, from.experts()).parallel().forEach(e -> {
            for (int r = 0; r < rows.length; r++) {
                long source = ((long) e * from.rows() + rows[r]) * from.rowBytes() + firstCol;
                long target = ((long) e * rows.length + r) * into.rowBytes();
                MemorySegment.copy(from.values(), source, into.values(), target, cols);
            }
            for (int row = 0; row < into.scaleRows(); row++) {
                for (int col = 0; col < into.scaleCols(); col++) {
                    int sourceRow = rows[row * into.rowsPerScale()];
                    int source = from.scaleIndex(e, sourceRow, firstCol + col * into.colsPerScale());
                    int target = (e * into.scaleRows() + row) * into.scaleCols() + col;
                    into.scales()[target] = from.scales()[source];
                    byte[] zeroPoints = into.zeroPoints();
                    if (zeroPoints != null && from.zeroPoints() != null) {
                        zeroPoints[target] = from.zeroPoints()[source];
                    }
                }
            }
        });
        return into;
    }

    private static Int8Tensor like(Arena arena, Int8Tensor tensor, int experts, int rows, int cols) {
        return Int8Tensor.allocate(
                arena, experts, rows, cols, tensor.rowsPerScale(), tensor.colsPerScale(), tensor.zeroPoints() != null);
    }
}
