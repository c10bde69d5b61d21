package org.tornadomoe.checkpoint;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
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
     * @throws CheckpointException if a tensor is missing, has the wrong shape or dtype, or is stored in a way that is
     *     not read
     */
    static Matrix.Int8 read(
            BlockTensors tensors,
            WeightQuantization.Method method,
            WeightQuantization.Group scheme,
            String module,
            int rows,
            int cols) {
        Int8Grid.scheme(tensors.path(), module, scheme); // its complaints come before those about tensors
        WeightQuantization.Arguments weights = scheme.weights();
        int rowsPerScale = switch (weights.strategy()) {
            case "tensor" -> rows;
            case "block" -> Math.min(rows, weights.block().get(0));
            default -> 1;
        };
        int colsPerScale = switch (weights.strategy()) {
            case "group" -> Math.min(cols, weights.groupSize());
            case "block" -> Math.min(cols, weights.block().get(1));
            default -> cols;
        };
        // The last block may be short, as in vLLM's; groups have to end with the row.
        if (cols % colsPerScale != 0 && !weights.strategy().equals("block")) {
            throw new CheckpointException(
                    tensors.path(),
                    "'" + module + "': its " + cols + " columns are not divisible by group_size (" + colsPerScale
                            + ")");
        }
        Reader reader = new Reader(tensors, scheme, module, rows, cols, rowsPerScale, colsPerScale);
        return method == WeightQuantization.Method.COMPRESSED_TENSORS
                ? reader.compressedTensors()
                : reader.gptq(method);
    }

    /** Reads one matrix. */
    private record Reader(
            BlockTensors tensors,
            WeightQuantization.Group scheme,
            String module,
            int rows,
            int cols,
            int rowsPerScale,
            int colsPerScale) {
        int scaleRows() {
            return Math.ceilDiv(rows, rowsPerScale);
        }

        int scaleCols() {
            return Math.ceilDiv(cols, colsPerScale);
        }

        Matrix.Int8 compressedTensors() {
            requireNoReordering(module + ".weight_g_idx");
            int scaleRows = scaleRows();
            int scaleCols = scaleCols();
            Tensor scale = tensors.tensor(module + ".weight_scale").requireFloat();
            if (scale.elements() != (long) scaleRows * scaleCols) {
                throw scale.problem("expected " + scaleRows + " x " + scaleCols + " scales, got " + scale);
            }
            Tensor shape = tensors.find(module + ".weight_shape");
            if (shape != null
                    && !Arrays.equals(shape.requireDType(DType.I32, DType.I64).toInts(), new int[] {rows, cols})) {
                throw shape.problem("expected [" + rows + ", " + cols + "], got " + Arrays.toString(shape.toInts()));
            }
            Matrix.Int8.RowReader values;
            if (tensors.has(module + ".weight_packed")) {
                // Four values + 128 a word along the columns, the first in the lowest byte: bytes in order.
                int words = Math.ceilDiv(cols, 4);
                MemorySegment data = tensors.tensor(module + ".weight_packed")
                        .requireDType(DType.I32)
                        .requireShape(rows, words)
                        .data();
                values = (row, into) -> unsignedRow(data, row * 4L * words, into, cols);
            } else {
                MemorySegment data = tensors.tensor(module + ".weight")
                        .requireDType(DType.I8)
                        .requireShape(rows, cols)
                        .data();
                values = (row, into) ->
                        MemorySegment.copy(data, ValueLayout.JAVA_BYTE, (long) row * cols, into, 0, cols);
            }
            return new Matrix.Int8(
                    rows,
                    cols,
                    rowsPerScale,
                    colsPerScale,
                    values,
                    (r, c) -> scale.getFloat((long) r * scaleCols + c),
                    zeros(scaleRows, scaleCols),
                    stored(scale, inputScale()));
        }

        private Matrix.Stored stored(Tensor scale, @Nullable Float inputScale) {
            return new Matrix.Stored(scale.file(), module, scale.name(), scheme, inputScale);
        }

        /** Null if all are 0, as those of a symmetric scheme are, if they are there. */
        private Matrix.Int8.@Nullable IntAt zeros(int scaleRows, int scaleCols) {
            String name = module + ".weight_zero_point";
            boolean symmetric = scheme.weights().symmetric();
            if (symmetric && !tensors.has(name)) {
                return null;
            }
            Tensor zero = tensors.tensor(name);
            MemorySegment data = zero.data();
            boolean packed = zero.dtype() == DType.I32; // along the rows
            if (packed) {
                zero.requireShape(Math.ceilDiv(scaleRows, 4), scaleCols);
            } else if (zero.requireDType(DType.I8).elements() != (long) scaleRows * scaleCols) {
                throw zero.problem("expected " + scaleRows + " x " + scaleCols + " zero points, got " + zero);
            }
            Matrix.Int8.IntAt zeros = packed
                    ? (r, c) -> (data.get(ValueLayout.JAVA_BYTE, (r / 4L * scaleCols + c) * 4 + r % 4) & 0xff) - 128
                    : (r, c) -> data.get(ValueLayout.JAVA_BYTE, (long) r * scaleCols + c);
            if (!symmetric) {
                return zeros;
            }
            for (int r = 0; r < scaleRows; r++) {
                for (int c = 0; c < scaleCols; c++) {
                    if (zeros.get(r, c) != 0) {
                        throw zero.problem("expected zeros, since the configuration says that the weights are"
                                + " symmetric, got " + zeros.get(r, c));
                    }
                }
            }
            return null;
        }

        /** Null unless activations are quantised with a scale known beforehand. */
        private @Nullable Float inputScale() {
            WeightQuantization.Arguments activations = scheme.activations();
            if (activations == null || activations.dynamic()) {
                return null;
            }
            Tensor scale = tensors.tensor(module + ".input_scale").requireFloat();
            if (scale.elements() != 1) {
                throw scale.problem("expected one scale, got " + scale);
            }
            float value = scale.getFloat(0);
            if (!(value > 0 && value <= Float.MAX_VALUE)) {
                throw scale.problem("expected a positive finite scale, got " + value);
            }
            Tensor zero = tensors.find(module + ".input_zero_point");
            if (zero != null && activations.symmetric()) {
                for (int z : zero.toInts()) {
                    if (z != 0) {
                        throw zero.problem("expected 0, since the configuration says that the activations are"
                                + " symmetric, got " + z);
                    }
                }
            }
            return value;
        }

        Matrix.Int8 gptq(WeightQuantization.Method method) {
            requireNoReordering(module + ".g_idx");
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
            Tensor scale = tensors.tensor(module + ".scales").requireFloat().requireShape(scaleCols(), rows);
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
                    gptqZeros(method),
                    stored(scale, null));
        }

        private Matrix.Int8.@Nullable IntAt gptqZeros(WeightQuantization.Method method) {
            boolean symmetric = scheme.weights().symmetric();
            String name = module + ".qzeros";
            if (symmetric && !tensors.has(name)) {
                return null;
            }
            Tensor zero = tensors.tensor(name).requireDType(DType.I32).requireShape(scaleCols(), rows / 4);
            MemorySegment data = zero.data();
            if (!symmetric) {
                int added = method == WeightQuantization.Method.GPTQ ? 1 : 0;
                return (r, c) -> (data.get(ValueLayout.JAVA_BYTE, (long) c * rows + r) + added & 0xff) - 128;
            }
            // 128, which the first version of the format writes as 127: some files of the second are called the first.
            int first = data.get(ValueLayout.JAVA_BYTE, 0) & 0xff;
            for (long i = 0; i < data.byteSize(); i++) {
                int value = data.get(ValueLayout.JAVA_BYTE, i) & 0xff;
                if (value != first || (value != 127 && value != 128)) {
                    throw zero.problem("expected zero points of 127 or of 128 throughout, since the configuration says"
                            + " that the weights are symmetric, got " + first + " and " + value);
                }
            }
            return null;
        }

        /** Columns whose groups are not in order ("act order") would need their activations reordered. */
        private void requireNoReordering(String name) {
            Tensor groups = tensors.find(name);
            if (groups == null) {
                return;
            }
            int[] group =
                    groups.requireDType(DType.I32, DType.I64).requireShape(cols).toInts();
            for (int c = 0; c < group.length; c++) {
                if (group[c] != c / colsPerScale) {
                    throw groups.problem(
                            "columns quantised out of order (desc_act, actorder) are not read: expected group "
                                    + c / colsPerScale + " for column " + c + ", got " + group[c]);
                }
            }
        }
    }

    private static void unsignedRow(MemorySegment data, long from, byte[] into, int length) {
        MemorySegment.copy(data, ValueLayout.JAVA_BYTE, from, into, 0, length);
        for (int i = 0; i < length; i++) {
            into[i] ^= (byte) 0x80;
        }
    }
}
