package org.tornadomoe.checkpoint;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Reads matrices of whole numbers of at most 8 bits as they are: compressed-tensors', GPTQ's and AWQ's. They are
 * unsigned where they are packed, and held as value - 2^(bits - 1), zero points likewise.
 */
final class Int8Reader {
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    private static final VarHandle LONGS = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

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
            Tensor scale = tensors.tensor(module + ".weight_scale").requireFloat();
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
                        ? (row, into, at) -> unsignedRow(data, row * 4L * words, bits, into, at, cols)
                        : (row, into, at) -> {
                            for (int c = 0; c < cols; c++) {
                                into[at + c] = (byte) (across(data, (long) row * words, 1, c, bits) - middle);
                            }
                        };
            } else {
                MemorySegment data = tensors.tensor(module + ".weight")
                        .requireDType(DType.I8)
                        .requireShape(rows, cols)
                        .data();
                values = (row, into, at) ->
                        MemorySegment.copy(data, ValueLayout.JAVA_BYTE, (long) row * cols, into, at, cols);
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
                    ? (r, c) -> across(data, c, scaleCols, r, bits) - middle
                    : packed
                            ? (r, c) -> unsigned(data, (long) (r / perWord) * scaleCols + c, r % perWord, bits) - middle
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
                            ? wholeWords(data)
                            : (row, into, at) -> {
                                for (int c = 0; c < cols; c++) {
                                    into[at + c] = (byte) (across(data, row, rows, c, bits) - (1 << (bits - 1)));
                                }
                            },
                    new Scales(scale, 1, rows),
                    gptqZeros(method),
                    stored(scale, null),
                    module + ".g_idx");
        }

        private Matrix.Int8.RowReader wholeWords(MemorySegment data) {
            int bits = bits();
            int perWord = perWord();
            int mask = (1 << bits) - 1;
            int middle = 1 << (bits - 1);
            if (bits == 4) {
                return new GptqRows(data, rows, cols);
            }
            return (row, into, to) -> {
                long at = 4L * row;
                for (int c = to; c < to + cols; at += 4L * rows) {
                    int word = data.get(INT, at);
                    for (int i = 0; i < perWord; i++, word >>>= bits) {
                        into[c++] = (byte) ((word & mask) - middle);
                    }
                }
            };
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
                return (r, c) -> (across(data, (long) c * words, 1, r, bits) + added & mask) - middle;
            }
            // The middle, which the first version of the format writes less one: some files of the second are called
            // the first.
            int first = across(data, 0, 1, 0, bits);
            for (long i = 0; i < (long) scaleCols() * rows; i++) {
                int value = across(data, i / rows * words, 1, (int) (i % rows), bits);
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
                    new AwqRows(data, rows, cols, bits),
                    new Scales(scale, 1, rows),
                    hasZeros
                            ? (r, c) -> unsigned(
                                            zeros,
                                            ((long) c * rows + r) / perWord,
                                            awqPlace(r % perWord, perWord),
                                            bits)
                                    - middle
                            : null,
                    stored(scale, null),
                    module + ".g_idx");
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

    /** Words of eight columns of 4 bits, those of a row {@code rows} words apart. */
    private record GptqRows(MemorySegment data, int rows, int cols) implements Matrix.Int8.RowReader {
        @Override
        public void read(int row, byte[] into, int to) {
            long at = 4L * row;
            for (int c = 0; c < cols; c += 8, at += 4L * rows) {
                LONGS.set(into, to + c, eightOf4Bits(data.get(INT, at)));
            }
        }

        @Override
        public void read(int first, int count, int cols, byte[] into) {
            int[] words = new int[count];
            for (int c = 0; c < cols; c += 8) {
                MemorySegment.copy(data, INT, 4L * (c / 8 * (long) rows + first), words, 0, count);
                for (int i = 0; i < count; i++) {
                    LONGS.set(into, i * cols + c, eightOf4Bits(words[i]));
                }
            }
        }
    }

    /** Words of several rows, those of a column one behind the other. */
    private record AwqRows(MemorySegment data, int rows, int cols, int bits) implements Matrix.Int8.RowReader {
        @Override
        public void read(int row, byte[] into, int to) {
            int perWord = 32 / bits;
            int mask = (1 << bits) - 1;
            int middle = 1 << (bits - 1);
            int shift = bits * awqPlace(row % perWord, perWord);
            long at = 4L * (row / perWord);
            long next = 4L * (rows / perWord);
            for (int c = to; c < to + cols; c++, at += next) {
                into[c] = (byte) ((data.get(INT, at) >>> shift & mask) - middle);
            }
        }

        /** Eight rows of eight columns are turned at once. */
        @Override
        public void read(int first, int count, int cols, byte[] into) {
            if (bits != 4 || count % 8 != 0 || first % 8 != 0 || cols % 8 != 0) {
                Matrix.Int8.RowReader.super.read(first, count, cols, into);
                return;
            }
            for (int i = 0; i < count; i += 8) {
                turn(first + i, cols, into, i * cols);
            }
        }

        private void turn(int first, int cols, byte[] into, int to) {
            long at = 4L * (first / 8);
            long next = 4L * (rows / 8);
            for (int c = 0; c < cols; c += 8, at += 8 * next) {
                long c0 = eightOf4Bits(data.get(INT, at));
                long c1 = eightOf4Bits(data.get(INT, at + next));
                long c2 = eightOf4Bits(data.get(INT, at + 2 * next));
                long c3 = eightOf4Bits(data.get(INT, at + 3 * next));
                long c4 = eightOf4Bits(data.get(INT, at + 4 * next));
                long c5 = eightOf4Bits(data.get(INT, at + 5 * next));
                long c6 = eightOf4Bits(data.get(INT, at + 6 * next));
                long c7 = eightOf4Bits(data.get(INT, at + 7 * next));
                // Halves, quarters, then bytes are exchanged: what each is of four, two, one columns.
                long a0 = lower(c0, c4, HALVES, 32);
                long a1 = lower(c1, c5, HALVES, 32);
                long a2 = lower(c2, c6, HALVES, 32);
                long a3 = lower(c3, c7, HALVES, 32);
                long a4 = upper(c0, c4, HALVES, 32);
                long a5 = upper(c1, c5, HALVES, 32);
                long a6 = upper(c2, c6, HALVES, 32);
                long a7 = upper(c3, c7, HALVES, 32);
                long b0 = lower(a0, a2, QUARTERS, 16);
                long b1 = lower(a1, a3, QUARTERS, 16);
                long b2 = upper(a0, a2, QUARTERS, 16);
                long b3 = upper(a1, a3, QUARTERS, 16);
                long b4 = lower(a4, a6, QUARTERS, 16);
                long b5 = lower(a5, a7, QUARTERS, 16);
                long b6 = upper(a4, a6, QUARTERS, 16);
                long b7 = upper(a5, a7, QUARTERS, 16);
                // The even rows come first in a word.
                LONGS.set(into, to + c, lower(b0, b1, BYTES, 8));
                LONGS.set(into, to + c + 2 * cols, upper(b0, b1, BYTES, 8));
                LONGS.set(into, to + c + 4 * cols, lower(b2, b3, BYTES, 8));
                LONGS.set(into, to + c + 6 * cols, upper(b2, b3, BYTES, 8));
                LONGS.set(into, to + c + cols, lower(b4, b5, BYTES, 8));
                LONGS.set(into, to + c + 3 * cols, upper(b4, b5, BYTES, 8));
                LONGS.set(into, to + c + 5 * cols, lower(b6, b7, BYTES, 8));
                LONGS.set(into, to + c + 7 * cols, upper(b6, b7, BYTES, 8));
            }
        }

        /** The lower of each two parts, a's beside b's. */
        private static long lower(long a, long b, long mask, int bits) {
            return (a & mask) | (b & mask) << bits;
        }

        private static long upper(long a, long b, long mask, int bits) {
            return (a >>> bits & mask) | (b & ~mask);
        }

        private static final long HALVES = 0x0000_0000_ffff_ffffL;
        private static final long QUARTERS = 0x0000_ffff_0000_ffffL;
        private static final long BYTES = 0x00ff_00ff_00ff_00ffL;
    }

    /** Where in a word row i is: 0, 2, 4, 6 in its lower half, then 1, 3, 5, 7. */
    private static int awqPlace(int i, int perWord) {
        return i % 2 == 0 ? i / 2 : perWord / 2 + i / 2;
    }

    /**
     * The i-th value of words that hold one behind the other, some across two words.
     *
     * @param first the first word
     * @param step from a word to the next
     */
    static int across(MemorySegment data, long first, int step, int i, int bits) {
        long bit = (long) i * bits;
        long word = first + (bit >>> 5) * step;
        int shift = (int) bit & 31;
        int value = data.get(INT, 4 * word) >>> shift;
        if (shift + bits > 32) {
            value |= data.get(INT, 4 * (word + step)) << (32 - shift);
        }
        return value & ((1 << bits) - 1);
    }

    /** The i-th value of a word. */
    private static int unsigned(MemorySegment data, long word, int i, int bits) {
        return data.get(INT, 4 * word) >>> (i * bits) & ((1 << bits) - 1);
    }

    /** The eight values of 4 bits of a word, less 8, a byte each. */
    private static long eightOf4Bits(int word) {
        long apart = word & 0xffff_ffffL;
        apart = (apart | apart << 16) & 0x0000_ffff_0000_ffffL;
        apart = (apart | apart << 8) & 0x00ff_00ff_00ff_00ffL;
        apart = (apart | apart << 4) & 0x0f0f_0f0f_0f0f_0f0fL;
        return (apart + 0x7878_7878_7878_7878L) ^ 0x8080_8080_8080_8080L;
    }

    private static void unsignedRow(MemorySegment data, long from, int bits, byte[] into, int to, int length) {
        if (bits == 8) {
            MemorySegment.copy(data, ValueLayout.JAVA_BYTE, from, into, to, length);
            for (int i = to; i < to + length; i++) {
                into[i] ^= (byte) 0x80;
            }
            return;
        }
        int mask = (1 << bits) - 1;
        int middle = 1 << (bits - 1);
        if (8 % bits != 0) { // as many as fit into a word
            int perWord = 32 / bits;
            for (int i = 0; i < length; i++) {
                into[to + i] = (byte) (unsigned(data, from / 4 + i / perWord, i % perWord, bits) - middle);
            }
            return;
        }
        int done = 0;
        for (; bits == 4 && done + 8 <= length; done += 8) {
            LONGS.set(into, to + done, eightOf4Bits(data.get(INT, from + done / 2)));
        }
        int perByte = 8 / bits;
        for (int i = done; i < length; i += perByte) {
            int several = data.get(ValueLayout.JAVA_BYTE, from + i / perByte);
            for (int j = 0; j < perByte && i + j < length; j++) {
                into[to + i + j] = (byte) ((several >> (j * bits) & mask) - middle);
            }
        }
    }
}
