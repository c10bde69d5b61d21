package org.tornadomoe.checkpoint;

import java.lang.foreign.Arena;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.quant.RouterWeights;

/** A layer of a checkpoint whose routed experts are int8; its shared experts may be floats. */
final class StoredInt8 implements QuantizedWeights {
    private final LayerWeights weights;
    private final WeightQuantization.Group stored;
    private final Int8Quantization quantization;

    /** Whether the matrices fit together as w13 and w2. */
    private final boolean fits;

    /** @throws IllegalArgumentException if the checkpoint's scheme is none that is run, in vLLM's words */
    StoredInt8(LayerWeights weights, WeightQuantization.Group stored) {
        this.weights = weights;
        this.stored = stored;
        this.quantization = quantization(stored);
        int routed = weights.config().numExperts();
        this.fits =
                IntStream.range(0, routed).allMatch(e -> fits(weights.experts().get(e)));
    }

    private StoredInt8(LayerWeights weights, StoredInt8 whole) {
        this.weights = weights;
        this.stored = whole.stored;
        this.quantization = whole.quantization;
        this.fits = whole.fits;
    }

    /** See {@link MoeCheckpoint#experts}. They are run as they are stored if the whole layer can be. */
    StoredInt8 only(int[] ids) {
        return new StoredInt8(weights.only(ids), this);
    }

    private static Int8Quantization quantization(WeightQuantization.Group stored) {
        WeightQuantization.Arguments weights = stored.weights();
        WeightQuantization.Arguments activations = stored.activations();
        boolean symmetric = weights.symmetric();
        if (activations == null) {
            return switch (weights.strategy()) {
                case "channel" ->
                    symmetric
                            ? Int8Quantization.of(Int8Scheme.W8A16_CHANNEL)
                            : Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                                    .withGrid(new GroupShape(1, -1))
                                    .withZeroPoints(true);
                case "group" ->
                    Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                            .withGrid(new GroupShape(1, weights.groupSize()))
                            .withZeroPoints(!symmetric);
                default -> throw unsupported(stored);
            };
        }
        if (!activations.isInt8()) {
            throw unsupported(stored);
        }
        if (symmetric && activations.symmetric()) {
            String pair = weights.strategy() + " " + activations.strategy();
            if (pair.equals("channel token") && activations.dynamic()) {
                return Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
            }
            if (pair.equals("tensor tensor")) {
                return Int8Quantization.of(Int8Scheme.W8A8_TENSOR);
            }
            if (weights.strategy().equals("block")
                    && activations.dynamic()
                    && activations.groupSize() == weights.block().get(1)) {
                return Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                        .withGrid(new GroupShape(
                                weights.block().get(0), weights.block().get(1)));
            }
        }
        String found = activations.dynamic() ? "Found " + stored : "Found static input scales.";
        throw new IllegalArgumentException(
                "For INT8 Fused MoE layers, we require channelwise, dynamic per token quantization. " + found);
    }

    private static IllegalArgumentException unsupported(WeightQuantization.Group stored) {
        return new IllegalArgumentException("Unsupported FusedMoe scheme: " + stored);
    }

    private boolean fits(Projections expert) {
        Matrix.Int8 gate = expert.gate().int8();
        Matrix.Int8 up = expert.up().int8();
        Matrix.Int8 down = expert.down().int8();
        if (gate == null || up == null || down == null) {
            return false;
        }
        FusedMoeConfig config = weights.config();
        if (quantization.scheme() == Int8Scheme.W8A8_TENSOR) {
            // One scale for both is all there is room for.
            return gate.scales().get(0, 0) == up.scales().get(0, 0);
        }
        int block = quantization.rowsPerScale(config.gateUpRows());
        return block == 1 || (config.intermediateSize() % block == 0 && !weights.isInterleaved());
    }

    @Override
    public Int8Quantization quantization() {
        return quantization;
    }

    @Override
    public boolean serves(Int8Scheme scheme) {
        boolean channels =
                quantization.scheme() == Int8Scheme.W8A8_CHANNEL || quantization.scheme() == Int8Scheme.W8A16_CHANNEL;
        return fits
                && (scheme == quantization.scheme()
                        || (channels && (scheme == Int8Scheme.W8A8_CHANNEL || scheme == Int8Scheme.W8A16_CHANNEL)));
    }

    @Override
    public Int8Experts load(Int8Scheme scheme, Progress progress) {
        if (!serves(scheme)) {
            throw new IllegalArgumentException(
                    "scheme: expected what the checkpoint is stored in, " + quantization + ", got " + scheme);
        }
        FusedMoeConfig config = config();
        int experts = config.globalNumExperts();
        Arena arena = Arena.ofShared();
        try {
            Int8Tensor w13 = allocate(arena, experts, config.gateUpRows(), config.hiddenDim());
            Int8Tensor w2 = allocate(arena, experts, config.hiddenDim(), config.intermediateSize());
            AtomicLong done = new AtomicLong();
            List<Projections> all = weights.experts();
            IntStream.range(0, experts).parallel().filter(e -> fits(all.get(e))).forEach(e -> {
                copy(e, w13, w2);
                progress.advanced(done.incrementAndGet(), experts);
            });
            IntStream.range(0, experts).filter(e -> !fits(all.get(e))).forEach(e -> quantize(e, w13, w2));
            weights.requireUnchanged();
            requireFinite("w13", w13);
            requireFinite("w2", w2);
            return Int8Experts.builder(config, scheme, w13, w2, arena)
                    .router(router())
                    .biases(w13Bias(), w2Bias())
                    .activationScales(inputScale(Projections::gate, Projections::up), inputScale(Projections::down))
                    .build();
        } catch (InternalError e) {
            arena.close();
            weights.requireUnchanged();
            throw e;
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    /** The greatest static scale of these projections' inputs, as vLLM takes it; null if they are found at run time. */
    @SafeVarargs
    private @Nullable Float inputScale(Function<Projections, Matrix>... projections) {
        WeightQuantization.Arguments activations = stored.activations();
        if (activations == null || activations.dynamic()) {
            return null;
        }
        float greatest = 0;
        for (Projections expert : weights.experts()) {
            for (Function<Projections, Matrix> projection : projections) {
                Matrix.Int8 matrix = projection.apply(expert).int8();
                Float scale = matrix == null ? null : matrix.inputScale();
                greatest = scale == null ? greatest : Math.max(greatest, scale);
            }
        }
        return greatest;
    }

    private Int8Tensor allocate(Arena arena, int experts, int rows, int cols) {
        return Int8Tensor.allocate(
                arena,
                experts,
                rows,
                cols,
                quantization.rowsPerScale(rows),
                Math.min(cols, quantization.colsPerScale(cols)),
                quantization.zeroPoints());
    }

    private void copy(int expert, Int8Tensor w13, Int8Tensor w2) {
        Projections projections = weights.experts().get(expert);
        Matrix.Int8 gate = int8(projections.gate());
        Matrix.Int8 up = int8(projections.up());
        byte[] values = new byte[Math.max(w13.cols(), w2.cols())];
        for (int row = 0; row < w13.rows(); row++) {
            Matrix.Int8 from = weights.isUp(row) ? up : gate;
            copyRow(from, weights.projectionRow(row), w13, expert, row, values);
        }
        Matrix.Int8 down = int8(projections.down());
        for (int row = 0; row < w2.rows(); row++) {
            copyRow(down, row, w2, expert, row, values);
        }
    }

    private static void copyRow(Matrix.Int8 from, int row, Int8Tensor into, int expert, int intoRow, byte[] values) {
        from.values().read(row, values);
        into.setRow(expert, intoRow, values, 0);
        byte[] zeroPoints = into.zeroPoints();
        Matrix.Int8.IntAt zeros = from.zeros();
        for (int c = 0; c < into.scaleCols(); c++) {
            int index = into.scaleIndex(expert, intoRow, c * into.colsPerScale());
            int r = row / from.rowsPerScale();
            into.scales()[index] = from.scales().get(r, c);
            if (zeroPoints != null && zeros != null) {
                zeroPoints[index] = (byte) zeros.get(r, c);
            }
        }
    }

    private static Matrix.Int8 int8(Matrix matrix) {
        Matrix.Int8 int8 = matrix.int8();
        if (int8 == null) {
            throw new IllegalStateException("not int8: " + matrix);
        }
        return int8;
    }

    /** A shared expert that is floats becomes int8 the way the routed ones are. */
    private void quantize(int e, Int8Tensor w13, Int8Tensor w2) {
        try (Int8Experts one =
                Int8Quantizer.quantize(OneExpert.of(weights.experts().get(e)), quantization, Progress.NONE)) {
            for (int row = 0; row < w13.rows(); row++) {
                int up = weights.isUp(row) ? config().intermediateSize() : 0;
                copyRow(one.w13(), up + weights.projectionRow(row), w13, e, row);
            }
            for (int row = 0; row < w2.rows(); row++) {
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

    private static void requireFinite(String name, Int8Tensor tensor) {
        for (float scale : tensor.scales()) {
            if (!Float.isFinite(scale)) {
                throw new IllegalArgumentException(name + ": expected finite scales, got " + scale);
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
