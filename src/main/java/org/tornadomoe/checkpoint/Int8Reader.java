package org.tornadomoe.checkpoint;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** Reads matrices that are int8 in the checkpoint, as they are. */
final class Int8Reader {
    /** What a matrix's tensors end with: as floats or int8, packed by compressed-tensors, packed by GPTQ. */
    static final List<String> SUFFIXES = List.of("weight", "weight_packed", "qweight");

    private Int8Reader() {}

    /**
     * A matrix [rows, cols].
     *
     * @param module its name without {@code .weight}
     * @throws CheckpointException if a tensor is missing, has the wrong shape or dtype, or is stored in a way that is not
     *     read
     */
    static Matrix.Int8 read(
            Safetensors tensors,
            WeightQuantization.Method method,
            WeightQuantization.Group scheme,
            String module,
            int rows,
            int cols) {
        WeightQuantization.Arguments weights = scheme.weights();
        if (!weights.isInt8()) {
            throw new CheckpointException(
                    tensors.path(),
                    "'" + module + "': Unsupported FusedMoe scheme: " + scheme + "; expected int8 weights");
        }
        int rowsPerScale;
        int colsPerScale;
        switch (weights.strategy()) {
            case "tensor" -> {
                rowsPerScale = rows;
                colsPerScale = cols;
            }
            case "channel" -> {
                rowsPerScale = 1;
                colsPerScale = cols;
            }
            case "group" -> {
                rowsPerScale = 1;
                colsPerScale = weights.groupSize();
            }
            case "block" -> {
                rowsPerScale = weights.block().get(0);
                colsPerScale = weights.block().get(1);
            }
            default ->
                throw new CheckpointException(
                        tensors.path(), "'" + module + "': Unsupported FusedMoe scheme: " + scheme);
        }
        // The last block may be short, as in vLLM's; groups have to end with the row.
        if (colsPerScale < cols
                && cols % colsPerScale != 0
                && !weights.strategy().equals("block")) {
            throw new CheckpointException(
                    tensors.path(),
                    "'" + module + "': its " + cols + " columns are not divisible by group_size (" + colsPerScale
                            + ")");
        }
        int scaleRows = (rows + rowsPerScale - 1) / rowsPerScale;
        int scaleCols = (cols + colsPerScale - 1) / colsPerScale;
        return method == WeightQuantization.Method.COMPRESSED_TENSORS
                ? compressedTensors(
                        tensors, weights, module, rows, cols, rowsPerScale, colsPerScale, scaleRows, scaleCols)
                : gptq(tensors, method, weights, module, rows, cols, colsPerScale, scaleCols);
    }

    private static Matrix.Int8 compressedTensors(
            Safetensors tensors,
            WeightQuantization.Arguments weights,
            String module,
            int rows,
            int cols,
            int rowsPerScale,
            int colsPerScale,
            int scaleRows,
            int scaleCols) {
        requireNoReordering(tensors, module + ".weight_g_idx", colsPerScale);
        Tensor scale = tensors.tensor(module + ".weight_scale").requireFloat();
        if (scale.elements() != (long) scaleRows * scaleCols) {
            throw scale.problem("expected " + scaleRows + " x " + scaleCols + " scales, got " + scale);
        }
        Tensor packed = tensors.find(module + ".weight_packed");
        Matrix.Int8.RowReader values;
        if (packed != null) {
            // Four values + 128 a word along the columns, the first in the lowest byte: bytes in order.
            int words = (cols + 3) / 4;
            MemorySegment data =
                    packed.requireDType(DType.I32).requireShape(rows, words).data();
            values = (row, into) -> unsignedRow(data, row * 4L * words, into, cols);
        } else {
            Tensor plain =
                    tensors.tensor(module + ".weight").requireDType(DType.I8).requireShape(rows, cols);
            MemorySegment data = plain.data();
            values = (row, into) -> MemorySegment.copy(data, ValueLayout.JAVA_BYTE, (long) row * cols, into, 0, cols);
        }
        return new Matrix.Int8(
                rows,
                cols,
                rowsPerScale,
                colsPerScale,
                values,
                (r, c) -> scale.getFloat((long) r * scaleCols + c),
                weights.symmetric() ? null : zeros(tensors, module + ".weight_zero_point", scaleRows, scaleCols),
                inputScale(tensors, module + ".input_scale"));
    }

    private static Matrix.Int8.IntAt zeros(Safetensors tensors, String name, int rows, int cols) {
        Tensor zero = tensors.tensor(name);
        MemorySegment data = zero.data();
        if (zero.dtype() == DType.I32) { // packed along the rows
            zero.requireShape((rows + 3) / 4, cols);
            return (r, c) -> (data.get(ValueLayout.JAVA_BYTE, (r / 4L * cols + c) * 4 + r % 4) & 0xff) - 128;
        }
        zero.requireDType(DType.I8);
        if (zero.elements() != (long) rows * cols) {
            throw zero.problem("expected " + rows + " x " + cols + " zero points, got " + zero);
        }
        return (r, c) -> data.get(ValueLayout.JAVA_BYTE, (long) r * cols + c);
    }

    private static Matrix.Int8 gptq(
            Safetensors tensors,
            WeightQuantization.Method method,
            WeightQuantization.Arguments weights,
            String module,
            int rows,
            int cols,
            int colsPerScale,
            int scaleCols) {
        requireNoReordering(tensors, module + ".g_idx", colsPerScale);
        if (rows % 4 != 0 || cols % 4 != 0) {
            throw new CheckpointException(
                    tensors.path(),
                    "'" + module + "': expected rows and columns in multiples of 4, got " + rows + " x " + cols);
        }
        // Words hold four columns of one row (of the transposed matrix), the first in the lowest byte.
        MemorySegment data = tensors.tensor(module + ".qweight")
                .requireDType(DType.I32)
                .requireShape(cols / 4, rows)
                .data();
        Tensor scale = tensors.tensor(module + ".scales").requireFloat().requireShape(scaleCols, rows);
        Tensor zero = tensors.find(module + ".qzeros");
        Matrix.Int8.IntAt zeros = null;
        if (zero != null) {
            MemorySegment zeroData = zero.requireDType(DType.I32)
                    .requireShape(scaleCols, rows / 4)
                    .data();
            int added = method == WeightQuantization.Method.GPTQ ? 1 : 0;
            if (!(weights.symmetric() && allBytes(zeroData, 128 - added))) {
                zeros = (r, c) -> (zeroData.get(ValueLayout.JAVA_BYTE, (long) c * rows + r) + added & 0xff) - 128;
            }
        }
        return new Matrix.Int8(
                rows,
                cols,
                1,
                colsPerScale,
                (row, into) -> {
                    for (int c = 0; c < cols; c++) {
                        byte value = data.get(ValueLayout.JAVA_BYTE, (c / 4 * (long) rows + row) * 4 + c % 4);
                        into[c] = (byte) (value ^ 0x80);
                    }
                },
                (r, c) -> scale.getFloat((long) c * rows + r),
                zeros,
                null);
    }

    private static @Nullable Float inputScale(Safetensors tensors, String name) {
        Tensor scale = tensors.find(name);
        if (scale == null) {
            return null;
        }
        if (scale.requireFloat().elements() != 1) {
            throw scale.problem("expected one scale, got " + scale);
        }
        return scale.getFloat(0);
    }

    private static boolean allBytes(MemorySegment data, int value) {
        for (long i = 0; i < data.byteSize(); i++) {
            if ((data.get(ValueLayout.JAVA_BYTE, i) & 0xff) != value) {
                return false;
            }
        }
        return true;
    }

    private static void unsignedRow(MemorySegment data, long from, byte[] into, int length) {
        MemorySegment.copy(data, ValueLayout.JAVA_BYTE, from, into, 0, length);
        for (int i = 0; i < length; i++) {
            into[i] ^= (byte) 0x80;
        }
    }

    /** Columns whose groups are not in order ("act order") would need their activations reordered. */
    private static void requireNoReordering(Safetensors tensors, String name, int colsPerScale) {
        @Nullable Tensor groups = tensors.find(name);
        if (groups == null) {
            return;
        }
        int[] group = groups.requireDType(DType.I32, DType.I64).toInts();
        for (int c = 0; c < group.length; c++) {
            if (group[c] != c / colsPerScale) {
                throw groups.problem("columns quantised out of order (desc_act, actorder) are not read: expected group "
                        + c / colsPerScale + " for column " + c + ", got " + group[c]);
            }
        }
    }
}
