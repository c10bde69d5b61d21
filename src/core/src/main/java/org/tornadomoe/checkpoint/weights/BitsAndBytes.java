package org.tornadomoe.checkpoint.weights;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Matrices as bitsandbytes stores them: int8 with a row's greatest value beside it (LLM.int8()), or four bits that look
 * up one of sixteen floats, with the greatest value of each block (NF4, FP4).
 *
 * <p>Source: {@code bitsandbytes.functional} 0.45, {@code QuantState} and {@code int8_vectorwise_quant}.
 */
final class BitsAndBytes {
    private static final String ROW_MAXIMA = ".SCB";
    private static final String STATE = ".weight.quant_state.bitsandbytes__";
    private static final List<String> KINDS = List.of("nf4", "fp4");

    private BitsAndBytes() {}

    /** Whether a module is stored so. */
    static boolean has(BlockTensors tensors, String module) {
        return tensors.has(module + ROW_MAXIMA) || KINDS.stream().anyMatch(kind -> tensors.has(module + STATE + kind));
    }

    /** Rows and columns of a module that is stored so. */
    static int[] shape(BlockTensors tensors, String module) {
        if (tensors.has(module + ROW_MAXIMA)) {
            long[] shape = tensors.shape(module + ".weight");
            return new int[] {Math.toIntExact(shape[0]), Math.toIntExact(shape[1])};
        }
        Tensor stored = state(tensors, module);
        List<Integer> shape = JsonFile.of(stored).integers("shape");
        if (shape.size() != 2 || shape.get(0) < 1 || shape.get(1) < 1) {
            throw stored.problem("'shape': expected rows and columns, got " + JsonFile.shown(shape));
        }
        return new int[] {shape.get(0), shape.get(1)};
    }

    /**
     * A module that is stored so.
     *
     * @throws CheckpointException if a tensor is missing or has the wrong shape or dtype, or a field of the state is
     *     not one that is read
     */
    static Matrix read(BlockTensors tensors, String module, int rows, int cols) {
        return tensors.has(module + ROW_MAXIMA)
                ? int8(tensors, module, rows, cols)
                : fourBits(tensors, module, rows, cols);
    }

    private static Matrix int8(BlockTensors tensors, String module, int rows, int cols) {
        Tensor format = tensors.find(module + ".weight_format");
        if (format != null && format.toInts()[0] != 0) {
            throw format.problem("expected 0 (row), got " + format.toInts()[0] + ", an order of one kind of GPU");
        }
        MemorySegment data = tensors.tensor(module + ".weight")
                .requireDType(DType.I8)
                .requireShape(rows, cols)
                .data();
        Tensor maxima = tensors.tensor(module + ROW_MAXIMA).requireFloat().requireShape(rows);
        return new Matrix.Int8(
                rows,
                cols,
                1,
                cols,
                (row, into, at) -> MemorySegment.copy(data, ValueLayout.JAVA_BYTE, (long) row * cols, into, at, cols),
                (row, col) -> maxima.getFloat(row) / 127,
                null,
                new Matrix.Stored(
                        maxima.file(),
                        module,
                        maxima.name(),
                        new WeightQuantization.Group(
                                new WeightQuantization.Arguments(8, "int", true, "channel", false, 0, List.of()), null),
                        null));
    }

    /** Values lie row by row, two a byte, the first in the upper half, blocks of them across the ends of rows. */
    private static Matrix fourBits(BlockTensors tensors, String module, int rows, int cols) {
        Tensor stored = state(tensors, module);
        JsonFile state = JsonFile.of(stored);
        int block = state.positive("blocksize", 64);
        int[] shape = shape(tensors, module);
        if (shape[0] != rows || shape[1] != cols) {
            throw stored.problem(
                    "'shape': expected [" + rows + ", " + cols + "], got [" + shape[0] + ", " + shape[1] + "]");
        }
        long count = (long) rows * cols;
        Tensor values = tensors.tensor(module + ".weight");
        if (values.data().byteSize() != Math.ceilDiv(count, 2)) {
            throw values.problem("expected two values a byte of " + rows + " x " + cols + ", got " + values);
        }
        float[] book = tensors.tensor(module + ".weight.quant_map")
                .requireFloat()
                .requireShape(16)
                .requireFinite()
                .toFloats();
        float[] maxima = maxima(tensors, module, state, Math.toIntExact(Math.ceilDiv(count, block)));
        MemorySegment data = values.data();
        int group = Matrix.gcd(cols, block);
        return new Matrix.Decoded(
                rows,
                cols,
                values.file(),
                values.name(),
                (row, into) -> {
                    long first = (long) row * cols;
                    for (int c = 0; c < cols; c++) {
                        long i = first + c;
                        int two = data.get(ValueLayout.JAVA_BYTE, i >> 1);
                        into[c] = book[(i & 1) == 0 ? two >> 4 & 15 : two & 15] * maxima[(int) (i / block)];
                    }
                },
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, group)),
                Matrix.CodeRow.NONE,
                Matrix.NumberRow.NONE);
    }

    /** The greatest values of blocks, which may be stored in 8 bits themselves, less their mean. */
    private static float[] maxima(BlockTensors tensors, String module, JsonFile state, int blocks) {
        Tensor stored = tensors.tensor(module + ".weight.absmax").requireShape(blocks);
        if (!state.has("nested_blocksize")) {
            return stored.requireFloat().requireFinite().toFloats();
        }
        int block = state.positive("nested_blocksize", 256);
        int[] codes = stored.requireDType(DType.U8).toInts();
        float[] book = tensors.tensor(module + ".weight.nested_quant_map")
                .requireFloat()
                .requireShape(256)
                .requireFinite()
                .toFloats();
        float[] outer = tensors.tensor(module + ".weight.nested_absmax")
                .requireFloat()
                .requireShape(Math.ceilDiv(blocks, block))
                .requireFinite()
                .toFloats();
        float mean = (float) state.finite("nested_offset", 0);
        float[] maxima = new float[blocks];
        for (int i = 0; i < blocks; i++) {
            maxima[i] = book[codes[i]] * outer[i / block] + mean;
        }
        return maxima;
    }

    private static Tensor state(BlockTensors tensors, String module) {
        String kind = KINDS.stream()
                .filter(one -> tensors.has(module + STATE + one))
                .findFirst()
                .orElseThrow();
        return tensors.tensor(module + STATE + kind).requireDType(DType.U8);
    }
}
