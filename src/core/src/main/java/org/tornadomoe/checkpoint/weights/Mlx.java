package org.tornadomoe.checkpoint.weights;

import java.lang.foreign.MemorySegment;
import java.util.Set;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Matrices as MLX stores them: whole numbers of a few bits, one behind the other in words, and for each group of a
 * row's columns a scale and an offset ({@code .scales}, {@code .biases}), or MXFP4, NVFP4 or MXFP8, whose scales are in
 * U8. A tensor may hold one matrix, or one for each expert.
 *
 * <p>Source: {@code mx.quantize} of MLX 0.30.
 */
public final class Mlx {
    private static final Set<Long> BITS = Set.of(2L, 3L, 4L, 5L, 6L, 8L);

    private Mlx() {}

    /** Whether a module is stored so. */
    public static boolean has(BlockTensors tensors, String module) {
        return tensors.dtype(module + ".weight") == DType.U32;
    }

    /**
     * One matrix of a module that is stored so.
     *
     * @param index of the matrix
     * @param count of the module's matrices
     * @throws CheckpointException if a tensor is missing or has the wrong shape or dtype
     */
    public static Matrix read(BlockTensors tensors, String module, int index, int count, int rows, int cols) {
        Tensor words = tensors.tensor(module + ".weight").requireDType(DType.U32);
        Tensor scales = tensors.tensor(module + ".scales");
        long matrices = (long) count * rows;
        long perRow = words.elements() / matrices;
        long bits = 32 * perRow / cols;
        if (!BITS.contains(bits) || 32 * perRow != bits * cols || !words.holds(matrices, perRow)) {
            throw words.problem("expected 2, 3, 4, 5, 6 or 8 bits for each of the " + cols + " columns of " + matrices
                    + " rows, got " + words);
        }
        if (!tensors.has(module + ".biases")) {
            return floats(
                    module, words, scales, new ScaledFloats.Place(index, rows, rows, cols, 0, 1, false), matrices);
        }
        Tensor offsets = tensors.tensor(module + ".biases").requireFloat().requireShape(scales.shape());
        long groups = scales.requireFloat().elements() / matrices;
        if (groups < 1 || cols % groups != 0 || !scales.holds(matrices, groups)) {
            throw scales.problem("expected a scale for each group of the " + cols + " columns of " + matrices
                    + " rows, got " + scales);
        }
        int group = Math.toIntExact(cols / groups);
        MemorySegment data = words.data();
        int width = (int) bits;
        return new Matrix.Decoded(
                rows,
                cols,
                words.file(),
                words.name(),
                (row, into) -> {
                    long at = (long) index * rows + row;
                    for (int c = 0; c < cols; c++) {
                        long g = at * groups + c / group;
                        into[c] = PackedInts.across(data, at * perRow, 1, c, width) * scales.getFloat(g)
                                + offsets.getFloat(g);
                    }
                },
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, group)),
                Matrix.CodeRow.NONE,
                Matrix.NumberRow.NONE);
    }

    /** Small floats: what they are is told by their bits and by how many share a scale. */
    private static Matrix floats(String module, Tensor words, Tensor scales, ScaledFloats.Place place, long matrices) {
        int cols = place.cols();
        long values = matrices * cols;
        boolean ofFourBits = 8 * words.data().byteSize() == 4 * values;
        boolean ofEightBits = 8 * words.data().byteSize() == 8 * values;
        boolean per32 = 32 * scales.elements() == values;
        boolean per16 = 16 * scales.elements() == values;
        if (scales.dtype() != DType.U8 || !(per32 ? ofFourBits || ofEightBits : per16 && ofFourBits)) {
            throw scales.problem(
                    "expected " + module + ".biases beside it, or scales (U8) of MXFP4, MXFP8 or NVFP4, got " + scales);
        }
        if (ofEightBits) {
            Tensor each = as(words, DType.F8_E4M3, matrices / place.allRows(), place.allRows(), cols);
            return ScaledFloats.eightBits(each, scales, place, new GroupShape(1, 32));
        }
        return ScaledFloats.fourBits(
                module, words, per32 ? scales : as(scales, DType.F8_E4M3, scales.shape()), place, 1);
    }

    private static Tensor as(Tensor tensor, DType dtype, long... shape) {
        return new Tensor(tensor.file(), tensor.name(), dtype, shape, tensor.data());
    }
}
