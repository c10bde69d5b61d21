package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.BlockTensors;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.MatrixReader;
import org.tornadomoe.checkpoint.weights.MatrixView;
import org.tornadomoe.checkpoint.weights.Mlx;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.checkpoint.weights.ScaledFloats;
import org.tornadomoe.config.GroupShape;

/**
 * Reads the experts of tensors that hold those of all, or gate and up of one: in one tensor of gate and up, in one for
 * each projection, or one below the other. What is there is taken, as {@link LayerReader} does.
 */
final class FusedExperts {
    private static final List<Fused> FUSED = List.of(
            new Fused("experts.gate_up_proj", "experts.down_proj", "_bias"),
            new Fused("experts.gate_up_proj.weight", "experts.down_proj.weight", ".bias"),
            new Fused("experts.w13", "experts.w2", "_bias"),
            new Fused("mlp1_weight", "mlp2_weight", "_bias"),
            new Fused("experts.fc1.weight", "experts.fc2.weight", ".bias"),
            new Fused("fc1.weight", "fc2.weight", ".bias"),
            new Fused("input_linear.weight", "output_linear.weight", ".bias"));

    /** An expert's gate and up in one module. */
    private static final List<Both> BOTH = List.of(
            new Both("experts.%d.gate_up_proj", "experts.%d.down_proj", false),
            new Both("experts.%d." + ExpertNames.UP_AND_GATE, "experts.%d.down_proj", true),
            new Both("experts.gate_up_projs.%d", "experts.down_projs.%d", false),
            new Both("experts.w1.%d", "experts.w2.%d", false),
            new Both("experts.%d.w1", "experts.%d.w2", false));

    /** What the tensors of gpt-oss's experts in MXFP4 end with, two values a byte; their scales end with scales. */
    private static final List<String> BLOCKS_OF_4_BITS = List.of("_blocks", ".blocks");

    /** Names of the tensors of all experts, under the block, and what a bias's name ends with. */
    private record Fused(String gateUp, String down, String bias) {
        String biasOf(String weight) {
            return weight.replaceFirst("[._]weight$", "") + bias;
        }
    }

    /** Names of an expert's two modules, under the block, with its number in them; and which half comes first. */
    private record Both(String gateUp, String down, boolean upFirst) {}

    private final BlockReader layer;
    private final BlockTensors tensors;
    private final LayerShape shape;
    private final String block;

    /** @param block what the names of the block's tensors begin with */
    FusedExperts(BlockReader layer, String block) {
        this.layer = layer;
        tensors = layer.tensors();
        shape = layer.shape();
        this.block = block;
    }

    /** The experts of tensors of all. */
    List<Projections> read(int inner) {
        for (Fused names : FUSED) {
            if (tensors.has(block + names.gateUp) || blocksOf4Bits(block + names.gateUp) != null) {
                return fused(names, inner);
            }
        }
        for (Both names : BOTH) {
            if (shape.gated() && layer.hasAny(block + names.gateUp.formatted(0) + ".")) {
                return both(names, inner);
            }
        }
        if (!shape.gated() && tensors.has(block + "experts.up_proj")) {
            return fusedWithoutGate(inner);
        }
        if (tensors.has(block + "experts.mlp." + (shape.gated() ? "v1" : "w1"))) {
            return stackedRows();
        }
        for (String each : List.of("", "switch_mlp.", "experts.")) {
            for (ExpertNames names : ExpertNames.KNOWN) {
                String first = block + each + names.gated(shape.gated()).gate() + ".weight";
                if (tensors.has(first) && tensors.shape(first).length == 3) {
                    return stackedEach(each, names.gated(shape.gated()), inner);
                }
            }
        }
        for (ExpertNames names : ExpertNames.KNOWN) {
            String first = block + "experts." + names.gate();
            if (shape.gated() && tensors.has(first) && tensors.shape(first).length == 3) {
                return apart(names, inner);
            }
        }
        List<String> looked = new ArrayList<>();
        ExpertNames.KNOWN.stream()
                .map(names -> names.gated(shape.gated()).gate())
                .filter(name -> !name.isEmpty())
                .forEach(name -> looked.add(block + "experts.0." + name + ".weight"));
        FUSED.forEach(names -> looked.add(block + names.gateUp));
        throw layer.missing(List.of("every expert"), looked);
    }

    private List<Projections> both(Both names, int inner) {
        int i = shape.intermediate();
        List<Projections> experts = new ArrayList<>();
        for (int e = 0; e < shape.experts(); e++) {
            String gateUp = block + names.gateUp.formatted(e);
            String down = block + names.down.formatted(e);
            for (String module : List.of(gateUp, down)) {
                if (!layer.hasAny(module + ".")) {
                    throw layer.missing(List.of(module + ".weight"), List.of());
                }
            }
            Matrix all = layer.matrix(gateUp, 2 * i, inner);
            float[] bias = layer.bias(gateUp + ".bias", 2L * i);
            int gate = names.upFirst ? 1 : 0;
            experts.add(new Projections(
                    ExpertNames.KNOWN.getFirst().under(block + "experts." + e + "."),
                    shape.interleaved()
                            ? new MatrixView.EveryRow(all, i, gate, 2)
                            : new MatrixView.Window(all, i, inner, gate * i, 0),
                    shape.interleaved()
                            ? new MatrixView.EveryRow(all, i, 1 - gate, 2)
                            : new MatrixView.Window(all, i, inner, (1 - gate) * i, 0),
                    layer.matrix(down, inner, i),
                    bias == null ? null : half(bias, 0, gate),
                    bias == null ? null : half(bias, 0, 1 - gate),
                    layer.bias(down + ".bias", shape.hidden())));
        }
        return experts;
    }

    /** A tensor of all experts for each projection, {@code experts.gate_proj} [E, I, H] and so on, or transposed. */
    private List<Projections> apart(ExpertNames names, int inner) {
        int i = shape.intermediate();
        List<String> all = names.under(block + "experts.");
        List<Experts> each =
                List.of(experts(all.get(0), i, inner), experts(all.get(1), i, inner), experts(all.get(2), inner, i));
        boolean transposed = each.getFirst().isTransposed() && !each.getFirst().isSquare();
        float[] gateBias = layer.bias(all.get(0) + "_bias", shape.experts(), i);
        float[] upBias = layer.bias(all.get(1) + "_bias", shape.experts(), i);
        float[] downBias = layer.bias(all.get(2) + "_bias", shape.experts(), shape.hidden());
        List<Projections> experts = new ArrayList<>();
        for (int e = 0; e < shape.experts(); e++) {
            experts.add(new Projections(
                    ExpertNames.KNOWN.getFirst().under(block + "experts." + e + "."),
                    each.get(0).matrix(new ScaledFloats.Place(e, i, i, inner, 0, 1, transposed)),
                    each.get(1).matrix(new ScaledFloats.Place(e, i, i, inner, 0, 1, transposed)),
                    each.get(2).matrix(new ScaledFloats.Place(e, inner, inner, i, 0, 1, transposed)),
                    part(gateBias, e, i),
                    part(upBias, e, i),
                    part(downBias, e, shape.hidden())));
        }
        return experts;
    }

    private @Nullable String blocksOf4Bits(String name) {
        return BLOCKS_OF_4_BITS.stream()
                .map(end -> name + end)
                .filter(tensors::has)
                .findFirst()
                .orElse(null);
    }

    private List<Projections> fused(Fused names, int h) {
        int i = shape.intermediate();
        Experts gateUp = experts(block + names.gateUp, 2 * i, h);
        Experts down = experts(block + names.down, h, i);
        // Each [E, rows, cols], or both transposed; where 2I = H the second tensor tells.
        boolean transposed = (gateUp.isSquare() ? down : gateUp).isTransposed();
        float[] gateUpBias = layer.bias(block + names.biasOf(names.gateUp), shape.experts(), 2L * i);
        float[] downBias = layer.bias(block + names.biasOf(names.down), shape.experts(), h);
        int step = shape.interleaved() ? 2 : 1;
        List<Projections> experts = new ArrayList<>();
        for (int e = 0; e < shape.experts(); e++) {
            experts.add(new Projections(
                    ExpertNames.KNOWN.getFirst().under(block + "experts." + e + "."),
                    gateUp.matrix(new ScaledFloats.Place(e, 2 * i, i, h, 0, step, transposed)),
                    gateUp.matrix(
                            new ScaledFloats.Place(e, 2 * i, i, h, shape.interleaved() ? 1 : i, step, transposed)),
                    down.matrix(new ScaledFloats.Place(e, h, h, i, 0, 1, transposed)),
                    gateUpBias == null ? null : half(gateUpBias, e, 0),
                    gateUpBias == null ? null : half(gateUpBias, e, 1),
                    downBias == null ? null : Arrays.copyOfRange(downBias, e * h, (e + 1) * h)));
        }
        return experts;
    }

    /** The gate's (0) or the up projection's (1) part of an expert's bias. */
    private float[] half(float[] gateUp, int expert, int which) {
        int i = shape.intermediate();
        float[] half = new float[i];
        for (int r = 0; r < i; r++) {
            half[r] = gateUp[2 * i * expert + (shape.interleaved() ? 2 * r + which : which * i + r)];
        }
        return half;
    }

    /** One matrix [rows, cols] of each expert in a tensor of all: floats, 8-bit floats, MXFP4 or NVFP4. */
    private Experts experts(String name, int rows, int cols) {
        MatrixReader reader = new MatrixReader(tensors, layer.quantization());
        String blocks = blocksOf4Bits(name);
        if (blocks != null) {
            Tensor values = tensors.tensor(blocks).requireDType(DType.U8);
            Tensor exponents = reader.scaleOf(name).requireDType(DType.U8, DType.F8_E8M0);
            return new Experts(values, exponents, null, reader.block(name), shape.experts(), rows, cols);
        }
        DType dtype = tensors.dtype(name);
        if (dtype == DType.U8) {
            Tensor scale = reader.scaleOf(name).requireDType(DType.F8_E4M3, DType.F8_E8M0, DType.U8);
            float[] factors = reader.factors(name + "_", scale, shape.experts());
            return new Experts(tensors.tensor(name), scale, factors, null, shape.experts(), rows, cols / 2);
        }
        boolean scaled = dtype != null && dtype.isFloat8();
        Tensor values = scaled ? tensors.tensor(name) : tensors.tensor(name).requireFloat();
        return new Experts(
                values, scaled ? reader.scaleOf(name) : null, null, reader.block(name), shape.experts(), rows, cols);
    }

    /**
     * @param scale null where the values are floats of at least 16 bits
     * @param factors what each expert's scales are multiplied by; null for 1
     * @param cols elements of the tensor, of which one may hold two values
     */
    private record Experts(
            Tensor values,
            @Nullable Tensor scale,
            float @Nullable [] factors,
            @Nullable GroupShape block,
            int count,
            int rows,
            int cols) {
        boolean isSquare() {
            return rows == cols;
        }

        boolean isTransposed() {
            return Arrays.equals(values.shape(), new long[] {count, cols, rows});
        }

        Matrix matrix(ScaledFloats.Place place) {
            if (values.dtype() == DType.U8) {
                return ScaledFloats.fourBits(
                        values.name(),
                        values,
                        Objects.requireNonNull(scale),
                        factors == null ? place.straight() : place,
                        factors == null ? 1 : factors[place.index()]);
            }
            values.requireShape(count, place.transposed() ? cols : rows, place.transposed() ? rows : cols);
            return scale == null ? place.floats(values) : ScaledFloats.eightBits(values, scale, place, block);
        }
    }

    /** {@code experts.up_proj} [E, I, H] and {@code experts.down_proj} [E, H, I]. */
    private List<Projections> fusedWithoutGate(int inner) {
        int i = shape.intermediate();
        Tensor up = stacked(block + "experts.up_proj", shape.experts(), i, inner);
        Tensor down = stacked(block + "experts.down_proj", shape.experts(), inner, i);
        return stacked(inner, null, up, down, false);
    }

    /** A tensor of all experts for each projection, [E, I, H] or [E, H, I] (Step, MLX). */
    private List<Projections> stackedEach(String under, ExpertNames names, int inner) {
        int i = shape.intermediate();
        String prefix = block + under;
        float[] gateBias = layer.bias(prefix + names.gate() + ".bias", shape.experts(), i);
        float[] upBias = layer.bias(prefix + names.up() + ".bias", shape.experts(), i);
        float[] downBias = layer.bias(prefix + names.down() + ".bias", shape.experts(), shape.hidden());
        List<Projections> experts = new ArrayList<>();
        for (int e = 0; e < shape.experts(); e++) {
            Matrix gate = ofAll(prefix + names.gate(), e, i, inner);
            experts.add(new Projections(
                    ExpertNames.KNOWN.getFirst().gated(shape.gated()).under(block + "experts." + e + "."),
                    gate,
                    shape.gated() ? ofAll(prefix + names.up(), e, i, inner) : gate,
                    ofAll(prefix + names.down(), e, inner, i),
                    part(gateBias, e, i),
                    part(upBias, e, i),
                    part(downBias, e, shape.hidden())));
        }
        return experts;
    }

    /** An expert's matrix in a tensor of all. */
    private Matrix ofAll(String module, int expert, int rows, int cols) {
        return Mlx.has(tensors, module)
                ? Mlx.read(tensors, module, expert, shape.experts(), rows, cols)
                : new ScaledFloats.Place(expert, rows, rows, cols, 0, 1, false)
                        .floats(stacked(module + ".weight", shape.experts(), rows, cols));
    }

    private static float @Nullable [] part(float @Nullable [] all, int expert, int length) {
        return all == null ? null : Arrays.copyOfRange(all, expert * length, (expert + 1) * length);
    }

    /**
     * DBRX's: all experts' rows one below the other in three tensors [E * I, H], the third's being columns; without
     * a gate in two, as Nomic's, whose bias of the sum has to be nothing.
     */
    private List<Projections> stackedRows() {
        long rows = (long) shape.experts() * shape.intermediate();
        int h = shape.hidden();
        Tensor first = stacked(block + "experts.mlp.w1", rows, h);
        Tensor down = stacked(block + "experts.mlp.w2", rows, h);
        if (shape.gated()) {
            return stacked(h, first, stacked(block + "experts.mlp.v1", rows, h), down, true);
        }
        String bias = block + "experts.bias";
        float[] added = layer.vector(bias, h);
        for (int i = 0; added != null && i < h; i++) {
            if (added[i] != 0) {
                throw new CheckpointException(
                        tensors.path(), "tensor '" + bias + "': expected zeros, got " + added[i] + " at " + i);
            }
        }
        return stacked(h, null, first, down, true);
    }

    /**
     * The experts of tensors that hold their matrices one after the other.
     *
     * @param gate null where there is none
     * @param transposed whether the matrices of the down projection are
     */
    private List<Projections> stacked(int inner, @Nullable Tensor gate, Tensor up, Tensor down, boolean transposed) {
        int i = shape.intermediate();
        List<Projections> experts = new ArrayList<>();
        for (int e = 0; e < shape.experts(); e++) {
            ScaledFloats.Place place = new ScaledFloats.Place(e, i, i, inner, 0, 1, false);
            Matrix ups = place.floats(up);
            experts.add(new Projections(
                    ExpertNames.KNOWN.getFirst().gated(gate != null).under(block + "experts." + e + "."),
                    gate == null ? ups : place.floats(gate),
                    ups,
                    new ScaledFloats.Place(e, inner, inner, i, 0, 1, transposed).floats(down),
                    null,
                    null,
                    null));
        }
        return experts;
    }

    private Tensor stacked(String name, long... expected) {
        return tensors.tensor(name).requireFloat().requireShape(expected);
    }
}
