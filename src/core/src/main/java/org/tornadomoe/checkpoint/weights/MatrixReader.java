package org.tornadomoe.checkpoint.weights;

import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.GroupShape;

/**
 * Finds out how a matrix is stored and reads it. Tensors tell first: what is there as floats is floats, whatever the
 * configuration says, and 8-bit and 4-bit floats have dtypes of their own. Whole numbers are what the configuration
 * says of their module.
 *
 * @param quantization null where the configuration says nothing
 */
public record MatrixReader(BlockTensors tensors, @Nullable WeightQuantization quantization) {
    /** What a matrix's tensors end with: as it is, packed by compressed-tensors, packed by GPTQ and AWQ. */
    public static final List<String> SUFFIXES = List.of("weight", "weight_packed", "qweight");

    /** What scales of 8-bit floats are called, beside {@code NAME.weight} or at the end of a fused tensor's name. */
    private static final List<String> SCALES =
            List.of("weight_scale_inv", "weight_scale", "scale_inv", "scales_inv", "scale", "scales", "qscale_weight");

    /** Scales of activations, which stay floats where weights are 8-bit or 4-bit floats. */
    private static final List<String> OF_ACTIVATIONS =
            List.of("input_scale", "input_global_scale", "activation_scale", "input_zero_point", "qscale_act");

    /**
     * A matrix [rows, cols] that has tensors of its own.
     *
     * @param module its name without {@code .weight}
     * @throws CheckpointException if a tensor is missing, has the wrong shape or dtype, or is stored in a way that is
     *     not read
     */
    public Matrix read(String module, int rows, int cols) {
        if (BitsAndBytes.has(tensors, module)) { // whose words may be called floats
            return BitsAndBytes.read(tensors, module, rows, cols);
        }
        if (tensors.hasFloats(module + ".weight")) {
            return Matrix.Floats.of(tensors.tensor(module + ".weight"), rows, cols);
        }
        WeightQuantization.Group scheme = scheme(module);
        if (scheme != null
                && quantization != null
                && isQuark(quantization)
                && scheme.weights().fitsInt8()) {
            takeScalesOfActivations(module + ".");
            return Int8Reader.read(tensors, quantization.method(), scheme, module, rows, cols);
        }
        ScaledFloats.Place whole = ScaledFloats.Place.whole(rows, cols);
        DType dtype = tensors.dtype(module + ".weight");
        if (dtype != null && dtype.isFloat8()) {
            takeScalesOfActivations(module + ".");
            requireZeros(module + ".weight_zero_point");
            Tensor values = tensors.tensor(module + ".weight").requireShape(rows, cols);
            return ScaledFloats.eightBits(values, scale(module + "."), whole, block(module));
        }
        if (Mlx.has(tensors, module)) {
            return Mlx.read(tensors, module, 0, 1, rows, cols);
        }
        String packed = module + (dtype == null ? ".weight_packed" : ".weight");
        if (tensors.dtype(packed) == DType.U8 || (dtype == DType.I8 && hasExponents(module))) {
            takeScalesOfActivations(module + ".");
            Tensor values = tensors.tensor(packed).requireShape(rows, cols / 2);
            Tensor scale = scale(module + ".").requireDType(DType.F8_E4M3, DType.F8_E8M0, DType.U8);
            return ScaledFloats.fourBits(module, values, scale, whole, factor(module, scale));
        }
        if (scheme == null || quantization == null) {
            return Matrix.Floats.of(tensors.tensor(module + ".weight"), rows, cols);
        }
        if (quantization.method() != WeightQuantization.Method.FLOATS && !isQuark(quantization)) {
            return Int8Reader.read(tensors, quantization.method(), scheme, module, rows, cols);
        }
        if (holdsFourBitInts(scheme, dtype)) {
            takeScalesOfActivations(module + ".");
            Tensor values = tensors.tensor(module + ".weight").requireShape(rows, cols / 2);
            return ScaledFloats.fourBitInts(module, values, scale(module + ".").requireFloat(), rows, cols);
        }
        return dtype == DType.I8
                ? wholeNumbers(module, rows, cols)
                : Matrix.Floats.of(tensors.tensor(module + ".weight"), rows, cols);
    }

    /** Whether bytes hold two whole numbers each, as the configuration says of experts (W4AFP8). */
    private static boolean holdsFourBitInts(WeightQuantization.Group scheme, @Nullable DType dtype) {
        return dtype == DType.I8
                && scheme.weights().bits() == 4
                && scheme.weights().type().equals("int");
    }

    private static boolean isQuark(WeightQuantization quantization) {
        return switch (quantization.method()) {
            case QUARK, QUARK_IN_ORDER -> true;
            case COMPRESSED_TENSORS, GPTQ, GPTQ_V2, AWQ, FLOATS -> false;
        };
    }

    /** Whole numbers of 8 bits, whose scales tell what shares one: all, a row, or a group of a row's columns. */
    private Matrix wholeNumbers(String module, int rows, int cols) {
        Tensor scale = scale(module + ".").requireFloat();
        takeScalesOfActivations(module + ".");
        long each = scale.elements() / rows;
        String strategy = scale.elements() == 1 ? "tensor" : each == 1 ? "channel" : "group";
        if (strategy.equals("group") && (each < 1 || cols % each != 0)) {
            throw scale.problem("expected one scale, or one or more for each of " + rows + " rows, got " + scale);
        }
        boolean zeros = tensors.has(module + ".weight_zero_point");
        var weights = new WeightQuantization.Arguments(
                8, "int", !zeros, strategy, false, strategy.equals("group") ? (int) (cols / each) : 0, List.of());
        return Int8Reader.read(
                tensors,
                WeightQuantization.Method.COMPRESSED_TENSORS,
                new WeightQuantization.Group(weights, null),
                module,
                rows,
                cols);
    }

    /**
     * Rows and columns of a matrix that has tensors of its own and is not stored as floats of 16 bits or more.
     *
     * @throws CheckpointException if it has not two dimensions, or one is 0
     */
    public int[] shape(String module) {
        Tensor known = tensors.find(module + ".weight_shape");
        if (known != null) {
            int[] told =
                    known.requireDType(DType.I32, DType.I64).requireShape(2).toInts();
            if (told[0] < 1 || told[1] < 1) {
                throw known.problem("expected rows and columns, got " + Arrays.toString(told));
            }
            return told;
        }
        if (BitsAndBytes.has(tensors, module)) {
            return BitsAndBytes.shape(tensors, module);
        }
        String name = SUFFIXES.stream()
                .map(suffix -> module + "." + suffix)
                .filter(tensors::has)
                .findFirst()
                .orElseThrow();
        long[] shape = tensors.shape(name);
        if (shape.length != 2 || shape[0] < 1 || shape[1] < 1) {
            Tensor stored = tensors.tensor(name);
            throw stored.problem("expected rows and columns, got " + stored);
        }
        int rows = Math.toIntExact(shape[0]);
        int cols = Math.toIntExact(shape[1]);
        WeightQuantization.Group scheme = scheme(module);
        int bits = scheme == null ? 32 : Math.max(1, scheme.weights().bits());
        if (scheme != null
                && quantization != null
                && isQuark(quantization)
                && scheme.weights().fitsInt8()) {
            int perElement = tensors.dtype(name) == DType.I32 ? 32 / bits : 1;
            return scheme.weights().groupSize() > 0
                    ? new int[] {cols * perElement, rows}
                    : new int[] {rows, cols * perElement};
        }
        boolean ofFloats = quantization != null && quantization.method() == WeightQuantization.Method.FLOATS;
        if (tensors.dtype(name) == DType.U8
                || (ofFloats && scheme != null && holdsFourBitInts(scheme, tensors.dtype(name)))) {
            return new int[] {rows, 2 * cols};
        }
        if (tensors.dtype(name) == DType.U32) {
            return new int[] {rows, cols * 32 / bits};
        }
        if (tensors.dtype(name) != DType.I32 || quantization == null) {
            return new int[] {rows, cols};
        }
        return switch (quantization.method()) {
            case GPTQ, GPTQ_V2 -> new int[] {cols, rows * 32 / bits};
            case AWQ -> new int[] {cols * 32 / bits, rows};
            case COMPRESSED_TENSORS, FLOATS, QUARK, QUARK_IN_ORDER -> new int[] {rows, cols * (32 / bits)};
        };
    }

    /** The scales of a tensor of all experts. */
    public Tensor scaleOf(String name) {
        takeScalesOfActivations(name + "_");
        takeScalesOfActivations(name + ".");
        return Stream.of(name + "_", name + ".")
                .filter(prefix -> SCALES.stream().anyMatch(scale -> tensors.has(prefix + scale)))
                .map(this::scale)
                .findFirst()
                .orElseGet(() -> scale(name + "_"));
    }

    private void takeScalesOfActivations(String prefix) {
        OF_ACTIVATIONS.forEach(name -> tensors.find(prefix + name));
    }

    /** Early files of compressed-tensors have zero points of floats, all 0. */
    private void requireZeros(String name) {
        Tensor zeros = tensors.find(name);
        if (zeros != null) {
            for (float zero : zeros.toFloats()) {
                if (zero != 0) {
                    throw zeros.problem("expected zeros, since floats have no zero points, got " + zero);
                }
            }
        }
    }

    private Tensor scale(String prefix) {
        String name = SCALES.stream()
                .filter(scale -> tensors.has(prefix + scale))
                .findFirst()
                .orElse(SCALES.getFirst());
        return tensors.tensor(prefix + name)
                .requireDType(DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E8M0, DType.U8);
    }

    private boolean hasExponents(String module) {
        return SCALES.stream().anyMatch(scale -> tensors.dtype(module + "." + scale) == DType.F8_E8M0);
    }

    /** What the scales of a module's groups are multiplied by: the one scale above them, or one over it. */
    private float factor(String module, Tensor scale) {
        return factors(module + ".", scale, 1)[0];
    }

    /** Likewise of so many matrices in one tensor, which have one scale above them or one each. */
    public float[] factors(String prefix, Tensor scale, int matrices) {
        Tensor factor = tensors.find(prefix + "weight_scale_2");
        Tensor divisor = tensors.find(prefix + "weight_global_scale");
        if (scale.dtype() == DType.F8_E4M3 && factor == null && divisor == null) {
            throw scale.problem("expected one scale above those of the groups, " + prefix + "weight_scale_2 or "
                    + "weight_global_scale, found neither");
        }
        if (factor != null && divisor != null) {
            throw divisor.problem("expected one scale above those of the groups, found " + factor.name() + ", too");
        }
        float[] all = new float[matrices];
        for (int i = 0; i < matrices; i++) {
            all[i] = above(factor, i, matrices) / above(divisor, i, matrices);
        }
        return all;
    }

    private static float above(@Nullable Tensor scales, int i, int matrices) {
        if (scales == null) {
            return 1;
        }
        return scales.elements() == 1
                ? scales.toScale()
                : scales.requireFloat().requireShape(matrices).requireFinite().getFloat(i);
    }

    /** What the configuration says of a module; null where it is floats. */
    private WeightQuantization.@Nullable Group scheme(String module) {
        return quantization == null ? null : quantization.groupOf(module);
    }

    /** Rows and columns of a block; null where the configuration says of none. */
    public @Nullable GroupShape block(String module) {
        WeightQuantization.Group scheme = scheme(module);
        List<Integer> block = scheme == null ? List.of() : scheme.weights().block();
        return block.isEmpty() ? null : new GroupShape(block.get(0), block.get(1));
    }
}
