package org.tornadomoe.checkpoint;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Objects;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.weights.Int8Grid;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LatentSpace;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.quant.UnreadValues;

/** A layer of a checkpoint that has int8 matrices; what else it has is floats. */
final class StoredInt8 implements QuantizedWeights {
    /** Rows that are read together: as many words as a line of the cache has lie side by side in some formats. */
    private static final int AT_ONCE = 16;

    private final LayerWeights weights;
    private final Int8Grid grid;

    StoredInt8(LayerWeights weights, Int8Grid grid) {
        this.weights = weights;
        this.grid = grid;
    }

    /** See {@link MoeCheckpoint#experts}. They are run as the whole layer is. */
    StoredInt8 only(int[] ids) {
        return new StoredInt8(weights.only(ids), grid);
    }

    @Override
    public Int8Quantization quantization() {
        return grid.quantization();
    }

    @Override
    public boolean serves(Int8Scheme scheme) {
        return scheme == quantization().scheme()
                || (isPerChannel(scheme) && isPerChannel(quantization().scheme()));
    }

    private static boolean isPerChannel(Int8Scheme scheme) {
        return scheme == Int8Scheme.W8A8_CHANNEL || scheme == Int8Scheme.W8A16_CHANNEL;
    }

    @Override
    public @Nullable LatentSpace latent() {
        return weights.latent();
    }

    @Override
    public boolean isExact() {
        return weights.experts().stream()
                .flatMap(expert -> expert.matrices().stream())
                .allMatch(matrix -> matrix.int8() != null);
    }

    @Override
    public Int8Experts load(Int8Scheme scheme, Progress progress) {
        return load(scheme, progress, false);
    }

    /** Weights of which some are floats are loaded. */
    @Override
    public Int8Experts open(Int8Scheme scheme, Progress progress) {
        return load(scheme, progress, isExact());
    }

    private Int8Experts load(Int8Scheme scheme, Progress progress, boolean later) {
        if (!serves(scheme)) {
            throw new IllegalArgumentException(
                    "scheme: expected what the checkpoint is stored in, " + quantization() + ", got " + scheme);
        }
        FusedMoeConfig config = config();
        int experts = config.globalNumExperts();
        Arena arena = Arena.ofShared();
        try {
            Int8Tensor w13 = allocate(arena, experts, config.gateUpRows(), config.hiddenDim(), grid.gateUpRows());
            Int8Tensor w2 = allocate(arena, experts, config.hiddenDim(), config.intermediateSize(), grid.downRows());
            Rows read = new Rows(progress, experts * ((long) w13.rows() + w2.rows()));
            IntStream.range(0, experts).parallel().forEach(e -> {
                copy(e, w13, w2, !later);
                if (!later) {
                    read.add(w13.rows() + w2.rows());
                }
            });
            Int8Experts.Builder loaded = Int8Experts.builder(config, scheme, w13, w2, arena)
                    .router(router())
                    .biases(w13Bias(), w2Bias())
                    .activationScales(inputScales(Projections::gate), inputScales(Projections::down));
            if (later) {
                loaded.unread(new Values(true, read), new Values(false, read), weights::requireUnchanged);
            }
            Int8Experts built = loaded.build();
            weights.requireUnchanged();
            return built;
        } catch (InternalError e) {
            arena.close();
            weights.requireUnchanged();
            throw e;
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    /** Counts rows and tells of them, from one thread at a time; of no more than all, should some be read again. */
    private static final class Rows {
        private final Progress progress;
        private final long all;
        private long done;

        Rows(Progress progress, long all) {
            this.progress = progress;
            this.all = all;
        }

        synchronized void add(int rows) {
            if (done < all) {
                done = Math.min(all, done + rows);
                progress.advanced(done, all);
            }
        }
    }

    /** A projection's values, all of which are int8, in the files. */
    private final class Values implements UnreadValues.Source {
        private final boolean first;
        private final Rows counted;

        Values(boolean first, Rows counted) {
            this.first = first;
            this.counted = counted;
        }

        @Override
        public void read(int expert, Int8Tensor into) {
            Projections projections = weights.experts().get(expert);
            if (first) {
                int step = weights.isInterleaved() ? 2 : 1;
                copyValues(int8(projections.gate()), into, 0, 0, step);
                if (projections.isGated()) {
                    Matrix.Int8 up = int8(projections.up());
                    copyValues(up, into, 0, step == 2 ? 1 : up.rows(), step);
                }
            } else {
                copyValues(int8(projections.down()), into, 0, 0, 1);
            }
            counted.add(into.rows());
        }

        @Override
        public void row(int expert, int row, byte[] into, int at) {
            Projections projections = weights.experts().get(expert);
            if (first) {
                Matrix half = weights.isUp(row) ? projections.up() : projections.gate();
                int8(half).values().read(weights.projectionRow(row), into, at);
            } else {
                int8(projections.down()).values().read(row, into, at);
            }
        }

        private static Matrix.Int8 int8(Matrix matrix) {
            return Objects.requireNonNull(matrix.int8());
        }
    }

    /** The static scale of each expert's input of that projection; null if they are found at run time. */
    private float @Nullable [] inputScales(Function<Projections, Matrix> projection) {
        List<Projections> experts = weights.experts();
        float[] scales = new float[experts.size()];
        for (int e = 0; e < scales.length; e++) {
            Matrix.Int8 matrix = projection.apply(experts.get(e)).int8();
            Float scale = matrix == null ? null : matrix.stored().inputScale();
            if (scale == null) {
                return null;
            }
            scales[e] = scale;
        }
        return scales;
    }

    private Int8Tensor allocate(Arena arena, int experts, int rows, int cols, int rowsPerScale) {
        return Int8Tensor.allocate(
                arena,
                experts,
                rows,
                cols,
                rowsPerScale,
                quantization().colsPerScale(cols),
                quantization().zeroPoints());
    }

    /** @param values whether to copy values, too, not only scales */
    private void copy(int expert, Int8Tensor w13, Int8Tensor w2, boolean values) {
        Projections projections = weights.experts().get(expert);
        Matrix.Int8 gate = projections.gate().int8();
        Matrix.Int8 up = projections.up().int8();
        Matrix.Int8 down = projections.down().int8();
        int step = weights.isInterleaved() ? 2 : 1;
        if (gate != null) {
            copy(gate, w13, expert, 0, step, values);
        }
        if (up != null && projections.isGated()) {
            copy(up, w13, expert, step == 2 ? 1 : up.rows(), step, values);
        }
        if (down != null) {
            copy(down, w2, expert, 0, 1, values);
        }
        if (gate == null || up == null || down == null) {
            quantize(projections, expert, w13, w2);
        }
    }

    /**
     * All rows of a matrix.
     *
     * @param first the row of the tensor that the matrix's first is
     * @param step from a row to the next there
     * @param values whether to copy values, too, not only scales
     */
    private static void copy(Matrix.Int8 from, Int8Tensor into, int expert, int first, int step, boolean values) {
        int cols = into.cols();
        float[] scales = new float[Math.ceilDiv(cols, Math.min(from.colsPerScale(), into.colsPerScale()))];
        for (int row = 0; row < from.rows(); row++) {
            copyScales(from, row, into, expert, first + step * row, scales);
        }
        if (values) {
            copyValues(from, into, expert, first, step);
        }
    }

    /** Their values, some rows at a time. */
    private static void copyValues(Matrix.Int8 from, Int8Tensor into, int expert, int first, int step) {
        int cols = into.cols();
        byte[] values = new byte[Math.multiplyExact(AT_ONCE, cols)];
        for (int row = 0; row < from.rows(); row += AT_ONCE) {
            int count = Math.min(AT_ONCE, from.rows() - row);
            MemorySegment stored = from.values().stored(row, count);
            if (stored == null) {
                from.values().read(row, count, cols, values);
                stored = MemorySegment.ofArray(values);
            }
            for (int i = 0; i < count; i++) {
                into.setRow(expert, first + step * (row + i), stored, (long) i * cols);
            }
        }
    }

    private static void copyScales(
            Matrix.Int8 from, int row, Int8Tensor into, int expert, int intoRow, float[] scales) {
        int fromRow = row / from.rowsPerScale();
        byte[] zeroPoints = into.zeroPoints();
        Matrix.Int8.IntAt zeros = from.zeros();
        boolean alike = into.colsPerScale() == from.colsPerScale();
        int count = into.scaleCols();
        if (alike) {
            from.scales().read(fromRow, count, scales);
        } else {
            for (int n = 0; n < count; n++) {
                scales[n] = from.scales().get(fromRow, n * into.colsPerScale() / from.colsPerScale());
            }
        }
        for (int n = 0; !Matrix.areFinite(scales, count); n++) {
            if (!Float.isFinite(scales[n])) {
                throw new CheckpointException(
                        from.file(),
                        "tensor '" + from.tensorName() + "': expected finite scales, got " + scales[n] + " for row "
                                + row + ", column " + n * into.colsPerScale());
            }
        }
        int index = into.scaleIndex(expert, intoRow, 0);
        System.arraycopy(scales, 0, into.scales(), index, count);
        for (int n = 0; zeroPoints != null && n < count; n++) {
            int fromCol = alike ? n : n * into.colsPerScale() / from.colsPerScale();
            zeroPoints[index + n] = zeros == null ? 0 : (byte) zeros.get(fromRow, fromCol);
        }
    }

    /** Matrices that are floats become int8 with as many scales as the others have. */
    private void quantize(Projections projections, int e, Int8Tensor w13, Int8Tensor w2) {
        try (Int8Experts one = Int8Quantizer.quantize(LayerWeights.ofOne(projections), quantization(), Progress.NONE)) {
            for (int row = 0; row < w13.rows(); row++) {
                boolean isUp = weights.isUp(row);
                if ((isUp ? projections.up() : projections.gate()).int8() == null) {
                    int first = isUp ? config().intermediateSize() : 0;
                    copyRow(one.w13(), first + weights.projectionRow(row), w13, e, row);
                }
            }
            for (int row = 0; row < w2.rows() && projections.down().int8() == null; row++) {
                copyRow(one.w2(), row, w2, e, row);
            }
        }
    }

    private static void copyRow(Int8Tensor from, int row, Int8Tensor into, int expert, int intoRow) {
        byte[] values = new byte[into.cols()];
        from.row(0, row, values);
        into.setRow(expert, intoRow, values, 0);
        byte[] zeroPoints = into.zeroPoints();
        for (int c = 0; c < into.cols(); c += into.colsPerScale()) {
            int index = into.scaleIndex(expert, intoRow, c);
            into.scales()[index] = from.scale(0, row, c);
            if (zeroPoints != null) {
                zeroPoints[index] = from.zeroPoint(0, row, c);
            }
        }
    }

    @Override
    public FusedMoeConfig config() {
        return weights.config();
    }

    @Override
    public void gateUpRow(int expert, int row, float[] into) {
        weights.gateUpRow(expert, row, into);
    }

    @Override
    public void downRow(int expert, int row, float[] into) {
        weights.downRow(expert, row, into);
    }

    @Override
    public String gateUpSource(int expert, int row) {
        return weights.gateUpSource(expert, row);
    }

    @Override
    public String downSource(int expert) {
        return weights.downSource(expert);
    }

    @Override
    public float @Nullable [] w13Bias() {
        return weights.w13Bias();
    }

    @Override
    public float @Nullable [] w2Bias() {
        return weights.w2Bias();
    }

    @Override
    public RouterWeights router() {
        return weights.router();
    }

    @Override
    public void requireUnchanged() {
        weights.requireUnchanged();
    }
}
