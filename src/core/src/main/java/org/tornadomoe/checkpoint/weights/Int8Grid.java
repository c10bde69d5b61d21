package org.tornadomoe.checkpoint.weights;

import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * What all int8 matrices of a layer can be held in without a change: blocks so small that each lies within one block of
 * every matrix. Matrices that are meant for different activations are run with floats, which are as exact as any.
 *
 * @param quantization the scheme, its blocks or groups, and whether there are zero points
 * @param gateUpRows rows of w13 that share a scale
 * @param downRows rows of w2 that share a scale
 */
public record Int8Grid(Int8Quantization quantization, int gateUpRows, int downRows) {

    /**
     * The grid of a layer.
     *
     * @param interleaved whether the rows of gates and ups alternate
     * @return null if all its matrices are floats
     * @throws CheckpointException if one is meant for activations that are not run, in vLLM's words, or two can't be
     *     run together
     */
    public static @Nullable Int8Grid of(FusedMoeConfig config, boolean interleaved, Iterable<Projections> experts) {
        Finder finder = new Finder(config, interleaved);
        experts.forEach(finder::add);
        return finder.grid();
    }

    /**
     * What a layer without int8 matrices is best run as: what its matrices suit if that is the same for all that say,
     * else with activations in floats and the least group of all.
     *
     * @param interleaved whether the rows of gates and ups alternate
     */
    public static Int8Quantization suiting(FusedMoeConfig config, boolean interleaved, Iterable<Projections> experts) {
        Int8Quantization all = null;
        for (Projections expert : experts) {
            for (Matrix matrix : expert.matrices()) {
                Int8Quantization its = matrix.suits();
                all = its == null ? all : all == null ? its : both(all, its);
            }
        }
        if (all == null) {
            return Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
        }
        // Blocks that lie within gate or up.
        GroupShape grid = all.grid();
        return all.scheme() != Int8Scheme.W8A8_BLOCK
                ? all
                : all.withGrid(new GroupShape(
                        interleaved ? 1 : Matrix.gcd(config.intermediateSize(), grid.row()), grid.col()));
    }

    private static Int8Quantization both(Int8Quantization a, Int8Quantization b) {
        if (a.equals(b)) {
            return a;
        }
        int cols = Matrix.gcd(groupOf(a), groupOf(b));
        return cols == 0
                ? Int8Quantization.of(Int8Scheme.W8A16_CHANNEL)
                : Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                        .withGrid(new GroupShape(1, cols))
                        .withZeroPoints(a.zeroPoints() || b.zeroPoints());
    }

    /** Columns that share a scale; 0 for all. */
    private static int groupOf(Int8Quantization quantization) {
        boolean some =
                quantization.scheme() == Int8Scheme.W8A8_BLOCK || quantization.scheme() == Int8Scheme.W8A16_GROUP;
        return some ? Math.max(0, quantization.grid().col()) : 0;
    }

    /** Looks at one expert after the other. */
    private static final class Finder {
        private final FusedMoeConfig config;
        private final boolean interleaved;

        /** The first matrices that are int8, and that are floats. */
        private Matrix.@Nullable Int8 first;

        private @Nullable Matrix floats;

        /** What the groups of floats suit. */
        private @Nullable Int8Quantization suits;

        /** The scheme of all that is int8, and a matrix of another. */
        private @Nullable Int8Scheme scheme;

        private boolean mixed;

        /** Rows and columns of a block; 0 as long as nothing is split. */
        private int rows;

        private int cols;

        /** The least size of groups and blocks, whether or not a matrix has more columns than that. */
        private int group = Integer.MAX_VALUE;

        private boolean zeros;

        /** Whether an expert has one scale for w13, or for w2. */
        private boolean oneOfGateUp = true;

        private boolean oneOfDown = true;

        Finder(FusedMoeConfig config, boolean interleaved) {
            this.config = config;
            this.interleaved = interleaved;
        }

        void add(Projections expert) {
            expert.matrices().forEach(matrix -> add(matrix, matrix == expert.down()));
            Matrix.Int8 gate = expert.gate().int8();
            Matrix.Int8 up = expert.up().int8();
            if (gate != null
                    && up != null
                    && !Objects.equals(gate.stored().inputScale(), up.stored().inputScale())) {
                throw new CheckpointException(
                        up.file(),
                        "tensors '" + gate.stored().module() + ".input_scale' and '"
                                + up.stored().module()
                                + ".input_scale': gate and up have one input, expected one scale for it, got "
                                + gate.stored().inputScale() + " and "
                                + up.stored().inputScale());
            }
            oneOfGateUp &= gate != null && up != null && gate.scale(0, 0) == up.scale(0, 0);
        }

        private void add(Matrix matrix, boolean down) {
            Matrix.Int8 int8 = matrix.int8();
            if (int8 == null) {
                floats = floats == null ? matrix : floats;
                Int8Quantization its = matrix.suits();
                if (its != null && its.scheme() == Int8Scheme.W8A16_GROUP) {
                    suits = suits == null ? its : both(suits, its);
                }
                oneOfDown &= !down;
                return;
            }
            Int8Scheme its =
                    scheme(int8.file(), int8.stored().module(), int8.stored().scheme());
            if (first == null) {
                first = int8;
                scheme = its;
            } else if (its != scheme || !sameActivations(first, int8)) {
                requireNoStaticScales(first, int8);
                mixed = true;
            }
            boolean wholeRows = int8.rowsPerScale() >= int8.rows();
            boolean wholeCols = int8.colsPerScale() >= int8.cols();
            if (!wholeRows) {
                rows = Matrix.gcd(int8.rowsPerScale(), rows);
            }
            if (!wholeCols) {
                cols = Matrix.gcd(int8.colsPerScale(), cols);
            }
            WeightQuantization.Arguments stored = int8.stored().scheme().weights();
            if (stored.groupSize() > 0) {
                group = Math.min(group, stored.groupSize());
            }
            if (!stored.block().isEmpty()) {
                group = Math.min(group, stored.block().get(1));
            }
            zeros |= int8.zeros() != null;
            oneOfGateUp &= down || (wholeRows && wholeCols);
            oneOfDown &= !down || (wholeRows && wholeCols);
        }

        private static boolean sameActivations(Matrix.Int8 a, Matrix.Int8 b) {
            WeightQuantization.Arguments of = a.stored().scheme().activations();
            return Objects.equals(of, b.stored().scheme().activations());
        }

        private static void requireNoStaticScales(Matrix a, Matrix.Int8 b) {
            Matrix.Int8 other = a.int8();
            if (isStatic(b) || (other != null && isStatic(other))) {
                throw new CheckpointException(
                        b.file(),
                        "tensors '" + a.tensorName() + "' and '" + b.tensorName()
                                + "': activations with static input scales beside others (" + activations(a) + " and "
                                + activations(b) + ") are not run");
            }
        }

        private static boolean isStatic(Matrix.Int8 matrix) {
            WeightQuantization.Arguments activations = matrix.stored().scheme().activations();
            return activations != null
                    && !activations.dynamic()
                    && matrix.stored().scheme().weights().isInt8();
        }

        private static String activations(Matrix matrix) {
            Matrix.Int8 int8 = matrix.int8();
            WeightQuantization.Arguments activations =
                    int8 == null ? null : int8.stored().scheme().activations();
            return activations == null ? "floats" : activations.toString();
        }

        @Nullable
        Int8Grid grid() {
            if (first == null || scheme == null) {
                return null;
            }
            if (floats != null) {
                requireNoStaticScales(floats, first);
            }
            int i = config.intermediateSize();
            int rowsPerScale = interleaved ? 1 : Matrix.gcd(i, rows);
            if (!mixed && scheme == Int8Scheme.W8A8_CHANNEL) {
                return perRow(Int8Quantization.of(scheme));
            }
            if (!mixed && scheme == Int8Scheme.W8A8_TENSOR) {
                return new Int8Grid(
                        Int8Quantization.of(scheme),
                        oneOfGateUp ? config.gateUpRows() : 1,
                        oneOfDown ? config.hiddenDim() : 1);
            }
            if (!mixed && scheme == Int8Scheme.W8A8_BLOCK && (cols == 0 || cols == group)) {
                return new Int8Grid(
                        Int8Quantization.of(scheme).withGrid(new GroupShape(rowsPerScale, group)),
                        rowsPerScale,
                        rowsPerScale);
            }
            if (suits != null) {
                cols = Matrix.gcd(groupOf(suits), cols);
                zeros |= suits.zeroPoints();
            }
            boolean grouped = cols != 0 || group != Integer.MAX_VALUE;
            return perRow(
                    grouped || zeros
                            ? Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                                    .withGrid(new GroupShape(1, cols != 0 ? cols : grouped ? group : -1))
                                    .withZeroPoints(zeros)
                            : Int8Quantization.of(Int8Scheme.W8A16_CHANNEL));
        }

        private static Int8Grid perRow(Int8Quantization quantization) {
            return new Int8Grid(quantization, 1, 1);
        }
    }

    /**
     * The scheme that a matrix is stored for.
     *
     * @param module the matrix, for messages
     * @throws CheckpointException if it is none that is run
     */
    static Int8Scheme scheme(Path file, String module, WeightQuantization.Group stored) {
        WeightQuantization.Arguments weights = stored.weights();
        WeightQuantization.Arguments activations = stored.activations();
        boolean whole = List.of("channel", "tensor").contains(weights.strategy());
        boolean known = whole || List.of("group", "block").contains(weights.strategy());
        if (!weights.fitsInt8() || !known || (activations != null && weights.isInt8() && !activations.isInt8())) {
            throw new CheckpointException(file, "'" + module + "': Unsupported FusedMoe scheme: " + stored);
        }
        if (activations == null) {
            return whole ? Int8Scheme.W8A16_CHANNEL : Int8Scheme.W8A16_GROUP;
        }
        if (weights.symmetric() && activations.symmetric() && activations.isInt8() && weights.isInt8()) {
            if (whole && activations.strategy().equals("token") && activations.dynamic()) {
                return Int8Scheme.W8A8_CHANNEL;
            }
            boolean oneScale = activations.strategy().equals("tensor");
            if (oneScale && whole && (weights.strategy().equals("tensor") || !activations.dynamic())) {
                return Int8Scheme.W8A8_TENSOR;
            }
            if (weights.strategy().equals("block")
                    && activations.dynamic()
                    && activations.groupSize() == weights.block().get(1)) {
                return Int8Scheme.W8A8_BLOCK;
            }
        }
        if (!weights.isInt8()) { // no int8 checkpoint, so none that is to be run as vLLM would
            return whole ? Int8Scheme.W8A16_CHANNEL : Int8Scheme.W8A16_GROUP;
        }
        throw new CheckpointException(
                file,
                "'" + module + "': For INT8 Fused MoE layers, we require channelwise, dynamic per token quantization. "
                        + (activations.dynamic() ? "Found " + stored : "Found static input scales."));
    }
}
