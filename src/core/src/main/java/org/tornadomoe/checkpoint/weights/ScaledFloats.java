package org.tornadomoe.checkpoint.weights;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.SmallFloats;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Matrices of 8-bit and 4-bit floats with scales. The tensors may hold several matrices, and may hold them transposed.
 */
public final class ScaledFloats {
    private static final VarHandle CHARS = MethodHandles.byteArrayViewVarHandle(char[].class, ByteOrder.LITTLE_ENDIAN);
    private static final VarHandle INTS = MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
    private static final VarHandle LONGS = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

    private ScaledFloats() {}

    /**
     * Where a matrix lies in a tensor of several: rows {@code first}, {@code first + step}, ... of the {@code index}-th
     * of matrices [allRows, cols], each of which may be transposed.
     */
    public record Place(int index, int allRows, int rows, int cols, int first, int step, boolean transposed) {
        /** All of a tensor. */
        public static Place whole(int rows, int cols) {
            return new Place(0, rows, rows, cols, 0, 1, false);
        }

        /** The row of the tensor's matrix that is the matrix's. */
        int row(int row) {
            return first + step * row;
        }

        /** The same place in matrices that are not transposed. */
        public Place straight() {
            return new Place(index, allRows, rows, cols, first, step, false);
        }

        long start() {
            return (long) index * allRows * cols;
        }

        public Matrix.Floats floats(Tensor tensor) {
            long next = transposed ? 1 : cols;
            return new Matrix.Floats(tensor, rows, cols, start() + first * next, step * next, transposed ? allRows : 1);
        }
    }

    /**
     * The scales of one of a tensor's matrices, one for {@code rowsPerScale x colsPerScale} values.
     *
     * @param first the tensor's element that is the first scale
     */
    private record Scales(
            Tensor tensor, int rowsPerScale, int colsPerScale, long first, long rowStride, long colStride) {
        float get(int row, int col) {
            return scale(tensor, first + row / rowsPerScale * rowStride + col / colsPerScale * colStride);
        }
    }

    /** One scale; U8 holds exponents, as F8_E8M0 does. */
    private static float scale(Tensor tensor, long index) {
        return tensor.dtype() == DType.U8
                ? SmallFloats.E8M0[tensor.data().get(ValueLayout.JAVA_BYTE, index) & 0xff]
                : tensor.getFloat(index);
    }

    /**
     * 8-bit floats, each times the scale of its block. What shares one is what the scales' shape says: all values, the
     * gate's or the up projection's, a row, a group of a row's columns, or else a block.
     *
     * @param scale of as many matrices as the values, or one scale for all
     * @param said rows and columns of a block, if the configuration says that there are blocks; else they have 128 of
     *     each
     * @throws CheckpointException if the scales have none of these shapes
     */
    public static Matrix eightBits(Tensor values, Tensor scale, Place place, @Nullable GroupShape said) {
        GroupShape block =
                said == null ? new GroupShape(Int8Quantization.DEFAULT_BLOCK, Int8Quantization.DEFAULT_BLOCK) : said;
        boolean ofBlocks = said != null;
        int rows = place.allRows;
        int cols = place.cols;
        long[] shape = scale.shape();
        if (shape.length == 4 && shape[1] == 1 && shape[3] == 1) { // as ModelOpt writes those of blocks
            shape = new long[] {shape[0], shape[2]};
            ofBlocks = true;
        }
        long count = scale.elements();
        long matrices = values.elements() / ((long) rows * cols);
        long each = count / matrices;
        long last = shape.length == 0 ? 1 : shape[shape.length - 1];
        long scaleRows = Math.ceilDiv(rows, block.row());
        long scaleCols = Math.ceilDiv(cols, block.col());
        if (matrices > 1 && Arrays.equals(shape, new long[] {matrices, 2}) && rows % 2 == 0) { // gate's and up's
            boolean inTurns = place.step == 2;
            long first = 2L * place.index + (inTurns ? place.first : 0);
            return scaled(values, place, new Scales(scale, inTurns ? rows : rows / 2, cols, first, 1, 0));
        }
        if (place.transposed && last > 1 && count != matrices) { // the scales are transposed as well
            long down = each / last;
            return last == rows && down > 0 && cols % down == 0 && count == matrices * last * down
                    ? scaled(
                            values,
                            place,
                            new Scales(scale, 1, Math.toIntExact(cols / down), place.index * each, 1, rows))
                    : scaled(values, place, blocks(scale, place, block, scaleRows, scaleCols, matrices));
        }
        boolean blocked = count == matrices * scaleRows * scaleCols && last == scaleCols;
        Scales scales;
        if (ofBlocks && shape.length > 1 && blocked) {
            scales = blocks(scale, place, block, scaleRows, scaleCols, matrices);
        } else if (count == 1 || count == matrices) {
            scales = new Scales(scale, rows, cols, count == 1 ? 0 : place.index, 0, 0);
        } else if (count == matrices * rows && last == rows) {
            scales = new Scales(scale, 1, cols, place.index * each, 1, 0);
        } else if (blocked) {
            scales = blocks(scale, place, block, scaleRows, scaleCols, matrices);
        } else if (last > 0 && cols % last == 0 && count == matrices * rows * last) {
            scales = new Scales(scale, 1, Math.toIntExact(cols / last), place.index * each, last, 1);
        } else {
            throw scale.problem("expected one scale, a scale for each of " + rows + " rows, for each group of their "
                    + cols + " columns, or " + scaleRows + " x " + scaleCols + " for blocks of " + block.row() + " x "
                    + block.col() + (matrices == 1 ? "" : ", of " + matrices + " matrices") + ", got " + scale);
        }
        return scaled(values, place, scales);
    }

    private static Scales blocks(
            Tensor scale, Place place, GroupShape block, long scaleRows, long scaleCols, long matrices) {
        long each = scaleRows * scaleCols;
        if (scale.elements() != matrices * each) {
            throw scale.problem("expected " + matrices + " x " + each + " scales for blocks of " + block.row() + " x "
                    + block.col() + ", got " + scale);
        }
        return new Scales(
                scale,
                block.row(),
                block.col(),
                place.index * each,
                place.transposed ? 1 : scaleCols,
                place.transposed ? scaleRows : 1);
    }

    private static Matrix scaled(Tensor values, Place place, Scales scales) {
        Matrix.Floats unscaled = place.floats(values);
        int cols = place.cols;
        int per = scales.colsPerScale;
        return new Matrix.Decoded(
                place.rows,
                cols,
                values.file(),
                values.name(),
                (row, into) -> {
                    unscaled.row(row, into);
                    for (int from = 0; from < cols; from += per) {
                        float scale = scales.get(place.row(row), from);
                        int to = Math.min(cols, from + per);
                        for (int c = from; c < to; c++) {
                            into[c] *= scale;
                        }
                    }
                },
                suits(place, scales),
                (row, colsPerScale, codes, into) -> {
                    boolean within = per >= cols || per % colsPerScale == 0;
                    if (place.transposed || !within) {
                        return null;
                    }
                    long from = unscaled.start() + row * unscaled.rowStride();
                    MemorySegment.copy(values.data(), ValueLayout.JAVA_BYTE, from, codes, 0, cols);
                    for (int n = 0; n < Math.ceilDiv(cols, colsPerScale); n++) {
                        into[n] = scales.get(place.row(row), n * colsPerScale);
                    }
                    return values.dtype() == DType.F8_E4M3 ? SmallFloats.E4M3 : SmallFloats.E5M2;
                },
                Matrix.NumberRow.NONE);
    }

    private static Int8Quantization suits(Place place, Scales scales) {
        if (scales.colsPerScale == place.cols) {
            return Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
        }
        return scales.rowsPerScale == 1
                ? Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, scales.colsPerScale))
                : Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                        .withGrid(new GroupShape(scales.rowsPerScale, scales.colsPerScale))
                        .withRoundToNearest(true);
    }

    /**
     * 4-bit floats, two a byte, the first in the lower half, with a scale for each group of a row's columns: E8M0 of 32
     * (MXFP4) or E4M3 of 16 (NVFP4).
     *
     * @param module what its tensors' names begin with
     * @param values [n, allRows, cols / 2], which may be split into more dimensions; [n, cols / 2, allRows] where the
     *     place is transposed
     * @param scale [n, allRows, cols / group], likewise
     * @param factor what all scales are multiplied by
     * @throws CheckpointException if the tensors have other sizes
     */
    public static Matrix fourBits(String module, Tensor values, Tensor scale, Place place, float factor) {
        return fourBits(module, values, scale, place, factor / 2, SmallFloats.TWO_HALF_STEPS);
    }

    /** Whole numbers of -8 to 7, two a byte likewise, with a scale for each group of a row's columns. */
    static Matrix fourBitInts(String module, Tensor values, Tensor scale, int rows, int cols) {
        return fourBits(module, values, scale, Place.whole(rows, cols), 1, SmallFloats.TWO_INTS);
    }

    /**
     * @param unit what a step is, times the scale
     * @param pairs the steps of two values, by their bits
     */
    private static Matrix fourBits(String module, Tensor values, Tensor scale, Place place, float unit, char[] pairs) {
        int rows = place.allRows;
        int cols = place.cols;
        boolean transposed = place.transposed;
        long matrices = 2 * values.data().byteSize() / Math.max(1, (long) rows * cols);
        long groups = scale.elements() / Math.max(1, matrices * rows);
        int perElement = 2 * values.dtype().bytes();
        boolean holds = transposed
                ? values.holds(matrices * (cols / 2), rows)
                : values.holds(matrices * rows, cols / perElement);
        if (cols % 2 != 0 || matrices <= place.index || !holds) {
            throw values.problem(
                    "expected two values a byte of matrices of " + rows + " x " + cols + ", got " + values);
        }
        boolean scales = transposed ? scale.holds(matrices * groups, rows) : scale.holds(matrices * rows, groups);
        if (groups < 1 || !scales || cols % groups != 0) {
            throw scale.problem("expected a scale for each group of the " + cols + " columns of " + matrices * rows
                    + " rows, got " + scale);
        }
        int group = Math.toIntExact(cols / groups);
        return new Matrix.Int8(
                place.rows,
                cols,
                1,
                group,
                transposed ? columnsOfFourBits(values, place, pairs) : rowsOfFourBits(values, place, pairs),
                new Matrix.Int8.FloatAt() {
                    @Override
                    public float get(int row, int g) {
                        return scale(scale, first(row) + g * step()) * unit;
                    }

                    @Override
                    public void read(int row, int count, float[] into) {
                        if (scale.dtype() == DType.U8) {
                            for (int g = 0; g < count; g++) {
                                into[g] = scale(scale, first(row) + g * step());
                            }
                        } else {
                            scale.readFloats(first(row), step(), into, 0, count);
                        }
                        for (int g = 0; g < count; g++) {
                            into[g] *= unit;
                        }
                    }

                    private long first(int row) {
                        long at = place.row(row);
                        return (long) place.index * rows * groups + (transposed ? at : at * groups);
                    }

                    private long step() {
                        return transposed ? rows : 1;
                    }
                },
                null,
                new Matrix.Stored(
                        scale.file(), module, scale.name(), WeightQuantization.Group.of(4, group, true), null));
    }

    private static Matrix.Int8.RowReader rowsOfFourBits(Tensor values, Place place, char[] pairs) {
        MemorySegment data = values.data();
        int bytes = place.cols / 2;
        long firstRow = (long) place.index * place.allRows;
        return (row, into, to) -> {
            byte[] twos = new byte[bytes];
            MemorySegment.copy(data, ValueLayout.JAVA_BYTE, (firstRow + place.row(row)) * bytes, twos, 0, bytes);
            int b = 0;
            for (; b + 4 <= bytes; b += 4) {
                int four = (int) INTS.get(twos, b);
                LONGS.set(into, to + 2 * b, SmallFloats.lookUp(pairs, four, four >> 8, four >> 16, four >> 24));
            }
            for (; b < bytes; b++) {
                CHARS.set(into, to + 2 * b, pairs[twos[b] & 0xff]);
            }
        };
    }

    /** Of a transposed matrix: bytes of a row lie as far apart as there are rows. */
    private static Matrix.Int8.RowReader columnsOfFourBits(Tensor values, Place place, char[] pairs) {
        MemorySegment data = values.data();
        int bytes = place.cols / 2;
        long first = (long) place.index * bytes * place.allRows;
        return (row, into, to) -> {
            long at = first + place.row(row);
            for (int b = 0; b < bytes; b++, at += place.allRows) {
                CHARS.set(into, to + 2 * b, pairs[data.get(ValueLayout.JAVA_BYTE, at) & 0xff]);
            }
        };
    }
}
