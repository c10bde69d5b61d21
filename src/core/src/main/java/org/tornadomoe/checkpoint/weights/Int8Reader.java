package org.tornadomoe.checkpoint.weights;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Tensor;

/**
 * Reads matrices of whole numbers of at most 8 bits as they are: compressed-tensors', GPTQ's and AWQ's. They are
 * unsigned where they are packed, and held as value - 2^(bits - 1), zero points likewise.
 */
final class Int8Reader {
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
        Reader reader = new Reader(tensors, scheme, module, rows, cols, rowsPerScale, colsPerScale);
        return switch (method) {
            case COMPRESSED_TENSORS -> reader.compressedTensors();
            case GPTQ, GPTQ_V2 -> reader.gptq(method);
            case AWQ -> reader.awq();
            case QUARK, QUARK_IN_ORDER ->
                reader.quark(weights.strategy().equals("group"), method == WeightQuantization.Method.QUARK_IN_ORDER);
            case FLOATS -> throw new IllegalStateException("not whole numbers: " + scheme);
        };
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

        int bits() {
            return scheme.weights().bits();
        }

        /** Values that a word holds as a whole. */
        int perWord() {
            return 32 / bits();
        }

        Matrix.Int8 compressedTensors() {
            int scaleRows = scaleRows();
            int scaleCols = scaleCols();
            boolean inverse = tensors.has(module + ".weight_scale_inv"); // as blocks' are called elsewhere
            Tensor scale = tensors.tensor(module + (inverse ? ".weight_scale_inv" : ".weight_scale"))
                    .requireFloat();
            if (!scale.holds(scaleRows, scaleCols)) {
                throw scale.problem("expected " + scaleRows + " x " + scaleCols + " scales, got " + scale);
            }
            Tensor shape = tensors.find(module + ".weight_shape");
            if (shape != null
                    && !Arrays.equals(shape.requireDType(DType.I32, DType.I64).toInts(), new int[] {rows, cols})) {
                throw shape.problem("expected [" + rows + ", " + cols + "], got " + Arrays.toString(shape.toInts()));
            }
            Matrix.Int8.RowReader values;
            if (tensors.has(module + ".weight_packed")) {
                // Words along the columns, the first value in the lowest bits: bytes in order.
                Tensor packed = tensors.tensor(module + ".weight_packed").requireDType(DType.I32);
                boolean dense = isDense(packed, cols, 1);
                int words = words(cols, dense);
                MemorySegment data = packed.requireShape(rows, words).data();
                int bits = bits();
                int middle = 1 << (bits - 1);
                values = !dense
                        ? (row, into, at) -> PackedInts.unsignedRow(data, row * 4L * words, bits, into, at, cols)
                        : (row, into, at) -> {
                            for (int c = 0; c < cols; c++) {
                                into[at + c] =
                                        (byte) (PackedInts.across(data, (long) row * words, 1, c, bits) - middle);
                            }
                        };
            } else {
                values = new StoredRows(
                        tensors.tensor(module + ".weight")
                                .requireDType(DType.I8)
                                .requireShape(rows, cols)
                                .data(),
                        cols);
            }
            return matrix(
                    values,
                    new Scales(scale, scaleCols, 1),
                    zeros(scaleRows, scaleCols),
                    stored(scale, inputScale()),
                    module + ".weight_g_idx");
        }

        /**
         * The matrix, whose columns may belong to groups in any order ("act order"), or the last group be short: then
         * the grid is as fine as the runs of columns of one group are, a column each at worst, and no value changes.
         *
         * @param scales of group c
         * @param zeros likewise
         * @param order the name of the tensor that has each column's group
         */
        private Matrix.Int8 matrix(
                Matrix.Int8.RowReader values,
                Matrix.Int8.FloatAt scales,
                Matrix.Int8.@Nullable IntAt zeros,
                Matrix.Stored stored,
                String order) {
            Tensor tensor = tensors.find(order);
            if (tensor == null && scheme.reordered() && colsPerScale < cols) {
                throw new CheckpointException(
                        tensors.path(),
                        "tensor '" + order + "' is missing: expected the group of each column, since the configuration"
                                + " says that they are in another order (desc_act, actorder)");
            }
            boolean isShort =
                    cols % colsPerScale != 0 && !scheme.weights().strategy().equals("block");
            int[] groups = tensor == null ? null : groups(tensor);
            if (groups == null && isShort) {
                groups = IntStream.range(0, cols).map(c -> c / colsPerScale).toArray();
            }
            if (groups == null) {
                return new Matrix.Int8(rows, cols, rowsPerScale, colsPerScale, values, scales, zeros, stored);
            }
            int run = cols;
            for (int c = 1; c < cols; c++) {
                run = groups[c] == groups[c - 1] ? run : Matrix.gcd(run, c);
            }
            int perScale = run;
            int[] groupOf = groups;
            return new Matrix.Int8(
                    rows,
                    cols,
                    rowsPerScale,
                    perScale,
                    values,
                    (r, c) -> scales.get(r, groupOf[c * perScale]),
                    zeros == null ? null : (r, c) -> zeros.get(r, groupOf[c * perScale]),
                    stored);
        }

        /** The group of each column; null if they are in order, or the tensor says nothing (-1 of all). */
        private int @Nullable [] groups(Tensor tensor) {
            int[] groups =
                    tensor.requireDType(DType.I32, DType.I64).requireShape(cols).toInts();
            boolean ordered = true;
            boolean said = false;
            for (int c = 0; c < cols; c++) {
                ordered &= groups[c] == c / colsPerScale;
                said |= groups[c] != -1;
            }
            if (ordered || !said) {
                return null;
            }
            for (int c = 0; c < cols; c++) {
                if (groups[c] < 0 || groups[c] >= scaleCols()) {
                    throw tensor.problem("expected groups from 0 to " + (scaleCols() - 1) + ", got " + groups[c]
                            + " for column " + c);
                }
            }
            return groups;
        }

        private Matrix.Stored stored(Tensor scale, @Nullable Float inputScale) {
            return new Matrix.Stored(scale.file(), module, scale.name(), scheme, inputScale);
        }

        /** Words that hold so many values. */
        private int words(int values, boolean dense) {
            return dense ? Math.toIntExact(Math.ceilDiv((long) values * bits(), 32)) : Math.ceilDiv(values, perWord());
        }

        /**
         * Whether values that don't fill words as a whole lie across two of them, as compressed-tensors writes them
         * since 0.17; before, the rest of a word was left out.
         *
         * @param dimension along which words lie
         */
        private boolean isDense(Tensor packed, int values, int dimension) {
            if (32 % bits() == 0 || values <= perWord()) {
                return false;
            }
            int words = words(values, true);
            if (words == words(values, false)) {
                throw packed.problem("expected more than " + values + " values of " + bits()
                        + " bits in a row, which versions of compressed-tensors pack in two ways");
            }
            long[] shape = packed.shape();
            return shape.length == 2 && shape[dimension] == words;
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
            boolean dense = packed && isDense(zero, scaleRows, 0);
            if (packed) {
                zero.requireShape(words(scaleRows, dense), scaleCols);
            } else if (!zero.requireDType(DType.I8).holds(scaleRows, scaleCols)) {
                throw zero.problem("expected " + scaleRows + " x " + scaleCols + " zero points, got " + zero);
            }
            int bits = bits();
            int perWord = perWord();
            int middle = 1 << (bits - 1);
            Matrix.Int8.IntAt zeros = dense
                    ? (r, c) -> PackedInts.across(data, c, scaleCols, r, bits) - middle
                    : packed
                            ? (r, c) ->
                                    PackedInts.unsigned(data, (long) (r / perWord) * scaleCols + c, r % perWord, bits)
                                            - middle
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
            if (!scheme.weights().isInt8()) { // run with activations in floats
                tensors.find(module + ".input_scale");
                return null;
            }
            float scale = tensors.tensor(module + ".input_scale").toScale();
            Tensor zero = tensors.find(module + ".input_zero_point");
            if (zero != null && activations.symmetric()) {
                for (int z : zero.toInts()) {
                    if (z != 0) {
                        throw zero.problem("expected 0, since the configuration says that the activations are"
                                + " symmetric, got " + z);
                    }
                }
            }
            return scale;
        }

        Matrix.Int8 gptq(WeightQuantization.Method method) {
            requireWholeWords("rows", rows);
            requireWholeWords("columns", cols);
            int bits = bits();
            // Words hold columns of one row (of the transposed matrix), the first in the lowest bits.
            MemorySegment data = tensors.tensor(module + ".qweight")
                    .requireDType(DType.I32)
                    .requireShape((long) cols * bits / 32, rows)
                    .data();
            Tensor scale = tensors.tensor(module + ".scales").requireFloat().requireShape(scaleCols(), rows);
            return matrix(
                    32 % bits == 0
                            ? PackedInts.gptqRows(data, rows, cols, bits)
                            : (row, into, at) -> {
                                for (int c = 0; c < cols; c++) {
                                    into[at + c] =
                                            (byte) (PackedInts.across(data, row, rows, c, bits) - (1 << (bits - 1)));
                                }
                            },
                    new Scales(scale, 1, rows),
                    gptqZeros(method),
                    stored(scale, null),
                    module + ".g_idx");
        }

        private Matrix.Int8.@Nullable IntAt gptqZeros(WeightQuantization.Method method) {
            boolean symmetric = scheme.weights().symmetric();
            String name = module + ".qzeros";
            if (symmetric && !tensors.has(name)) {
                return null;
            }
            int bits = bits();
            int words = (int) ((long) rows * bits / 32);
            Tensor zero = tensors.tensor(name).requireDType(DType.I32).requireShape(scaleCols(), words);
            MemorySegment data = zero.data();
            int mask = (1 << bits) - 1;
            int middle = 1 << (bits - 1);
            if (!symmetric) {
                int added = method == WeightQuantization.Method.GPTQ ? 1 : 0;
                return (r, c) -> (PackedInts.across(data, (long) c * words, 1, r, bits) + added & mask) - middle;
            }
            // The middle, which the first version of the format writes less one: some files of the second are called
            // the first.
            int first = PackedInts.across(data, 0, 1, 0, bits);
            for (long i = 0; i < (long) scaleCols() * rows; i++) {
                int value = PackedInts.across(data, i / rows * words, 1, (int) (i % rows), bits);
                if (value != first || (value != middle - 1 && value != middle)) {
                    throw zero.problem("expected zero points of " + (middle - 1) + " or of " + middle
                            + " throughout, since the configuration says that the weights are symmetric, got " + first
                            + " and " + value);
                }
            }
            return null;
        }

        /** AWQ's words hold rows (columns of the transposed matrix), of which the even ones come first. */
        Matrix.Int8 awq() {
            int perWord = perWord();
            requireWholeWords("rows", rows);
            MemorySegment data = tensors.tensor(module + ".qweight")
                    .requireDType(DType.I32)
                    .requireShape(cols, rows / perWord)
                    .data();
            Tensor scale = tensors.tensor(module + ".scales").requireFloat().requireShape(scaleCols(), rows);
            boolean hasZeros = !scheme.weights().symmetric() || tensors.has(module + ".qzeros");
            MemorySegment zeros = !hasZeros
                    ? MemorySegment.NULL
                    : tensors.tensor(module + ".qzeros")
                            .requireDType(DType.I32)
                            .requireShape(scaleCols(), rows / perWord)
                            .data();
            int bits = bits();
            int middle = 1 << (bits - 1);
            return matrix(
                    new PackedInts.AwqRows(data, rows, cols, bits, false, 0),
                    new Scales(scale, 1, rows),
                    hasZeros
                            ? (r, c) -> PackedInts.unsigned(
                                            zeros,
                                            ((long) c * rows + r) / perWord,
                                            PackedInts.awqPlace(r % perWord, perWord),
                                            bits)
                                    - middle
                            : null,
                    stored(scale, null),
                    module + ".g_idx");
        }

        /**
         * Quark's numbers, in bytes or eight to a word. Those of groups are transposed, and their scales but in files
         * of before its 1.0.
         */
        Matrix.Int8 quark(boolean transposed, boolean inOrder) {
            int bits = bits();
            int perWord = bits == 8 ? 1 : perWord();
            int flip = scheme.weights().isUnsigned() == (bits == 8) ? 1 << (bits - 1) : 0;
            DType dtype = bits == 4 ? DType.I32 : scheme.weights().isUnsigned() ? DType.U8 : DType.I8;
            int stored = transposed ? rows : cols;
            if (stored % perWord != 0) {
                throw new CheckpointException(
                        tensors.path(),
                        "'" + module + "': expected " + (transposed ? "rows" : "columns") + " in multiples of "
                                + perWord + ", got " + rows + " x " + cols);
            }
            int wide = stored / perWord;
            MemorySegment data = tensors.tensor(module + ".weight")
                    .requireDType(dtype)
                    .requireShape(transposed ? cols : rows, wide)
                    .data();
            Tensor scale = tensors.tensor(module + ".weight_scale").requireFloat();
            boolean scalesToo = transposed && scale.holds(scaleCols(), rows);
            if (!scalesToo && !scale.holds(scaleRows(), scaleCols())) {
                throw scale.problem("expected " + scaleRows() + " x " + scaleCols() + " scales, got " + scale);
            }
            if (transposed && scaleCols() == rows) {
                throw scale.problem("expected another number of groups of columns than of rows, which are " + rows
                        + " both: versions of Quark write them in two ways");
            }
            Matrix.Int8.RowReader values = bits == 4 && transposed
                    ? new PackedInts.AwqRows(data, rows, cols, bits, inOrder, 0x1111_1111 * flip)
                    : bits == 4
                            ? PackedInts.rowsInWords(data, cols, inOrder, 0x1111_1111 * flip)
                            : PackedInts.bytes(data, rows, cols, transposed, flip);
            return matrix(
                    values,
                    scalesToo ? new Scales(scale, 1, rows) : new Scales(scale, scaleCols(), 1),
                    quarkZeros(transposed, inOrder, dtype, flip),
                    stored(scale, null),
                    module + ".g_idx");
        }

        /** Zero points, packed as numbers are; null if all are the middle, or numbers are signed and none is there. */
        private Matrix.Int8.@Nullable IntAt quarkZeros(boolean transposed, boolean inOrder, DType dtype, int flip) {
            String name = module + ".weight_zero_point";
            if (!tensors.has(name) && !scheme.weights().isUnsigned()) {
                return null;
            }
            int bits = bits();
            Tensor zero = tensors.tensor(name).requireDType(dtype);
            MemorySegment data = zero.data();
            int down = transposed ? scaleCols() : 1;
            int across = scaleRows();
            int wide = bits == 8 ? across : Math.ceilDiv(across, perWord());
            if (!zero.holds(down, wide)) {
                throw zero.problem("expected " + down + " x " + wide + " elements of zero points, got " + zero);
            }
            int middle = 1 << (bits - 1);
            Matrix.Int8.IntAt zeros = (r, c) -> {
                long at = (long) (transposed ? c : 0) * wide;
                if (bits == 8) {
                    return (byte) (data.get(ValueLayout.JAVA_BYTE, at + r) ^ flip);
                }
                int place = inOrder ? r % 8 : PackedInts.awqPlace(r % 8, 8);
                return (PackedInts.unsigned(data, at + r / 8, place, bits) ^ flip) - middle;
            };
            for (int c = 0; c < down; c++) {
                for (int r = 0; r < across; r++) {
                    if (zeros.get(r, c) != 0) {
                        return zeros;
                    }
                }
            }
            return null;
        }

        private void requireWholeWords(String what, int count) {
            int multiple = 32 / Matrix.gcd(32, bits());
            if (count % multiple != 0) {
                throw new CheckpointException(
                        tensors.path(),
                        "'" + module + "': expected " + what + " in multiples of " + multiple + ", got " + rows + " x "
                                + cols);
            }
        }
    }

    /** Rows of bytes, one behind the other. */
    private record StoredRows(MemorySegment data, int cols) implements Matrix.Int8.RowReader {
        @Override
        public void read(int row, byte[] into, int at) {
            MemorySegment.copy(data, ValueLayout.JAVA_BYTE, (long) row * cols, into, at, cols);
        }

        @Override
        public MemorySegment stored(int first, int count) {
            return data.asSlice((long) first * cols, (long) count * cols);
        }
    }

    /** Scales that lie so far apart from row to row, and from column to column. */
    private record Scales(Tensor scale, int rowStride, int colStride) implements Matrix.Int8.FloatAt {
        @Override
        public float get(int row, int col) {
            return scale.getFloat((long) row * rowStride + (long) col * colStride);
        }

        @Override
        public void read(int row, int count, float[] into) {
            scale.readFloats((long) row * rowStride, colStride, into, 0, count);
        }
    }
}
