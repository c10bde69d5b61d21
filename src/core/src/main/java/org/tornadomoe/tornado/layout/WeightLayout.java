package org.tornadomoe.tornado.layout;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * The order of a projection's int8 weights [E, rows, cols] on a device, and of their scales, zero points and biases. A
 * {@code gate} parameter is the position of gates in the rows, as {@link ActivationKernels} defines it. Implementations
 * have no state.
 */
public interface WeightLayout {
    /** A line of a GPU's cache, in bytes. */
    int CACHE_LINE = 128;

    /** Ints of a row of int8 activations: four values per int. */
    default int rowInts(int cols) {
        return Math.ceilDiv(cols, 4);
    }

    /** The position of the k-th value in a row of int8 activations, unless the family overrides it. */
    default int placeOf(int k) {
        return k;
    }

    /** Scales of so many experts, a row's after {@link #packedRows}, or zero points. */
    default long scales(Int8Quantization quantization, long experts, int packedRows, int cols) {
        return switch (quantization.scheme()) {
            case W8A8_CHANNEL, W8A8_TENSOR, W8A16_CHANNEL -> experts * packedRows;
            case W8A8_BLOCK, W8A16_GROUP ->
                experts
                        * Math.ceilDiv(packedRows, quantization.rowsPerScale(packedRows))
                        * Math.ceilDiv(cols, quantization.colsPerScale(cols));
        };
    }

    /** Ints of the weights, without {@link #weightPad}. */
    long ints(long experts, int rows, int cols, int gate);

    /** Ints in front of the weights. */
    default int weightPad() {
        return 0;
    }

    /** Elements in front of activations between kernels, where no kernel in Java is among these. */
    default int activationPad() {
        return 0;
    }

    /** Rows of an expert that have a scale and a bias. */
    default int packedRows(int rows, int gate) {
        return rows;
    }

    /** Whether the GEMM numbers experts across all parts; then one array holds all scales or biases. */
    default boolean numbersAllExperts() {
        return false;
    }

    /**
     * Puts weights in that order, on all cores.
     *
     * @param into the ints behind {@link #weightPad}, zeros so far
     */
    void pack(Int8Tensor from, int gate, MemorySegment into);

    /**
     * Puts weights in that order, on all cores; of weights that are still unread an expert at a time, so that they need
     * no memory of their own besides.
     */
    default void pack(Int8Tensor from, int gate, IntArray into) {
        MemorySegment packed = into.getSegment().asSlice(4L * weightPad());
        if (!from.isUnread()) {
            pack(from, gate, packed);
            return;
        }
        long bytes = 4 * ints(1, from.rows(), from.cols(), gate);
        from.eachExpert((one, expert) -> pack(one, gate, packed.asSlice(expert * bytes, bytes)));
    }

    /**
     * Puts scales and zero points in the order {@code [E, groups of columns, scale rows]}, on all cores; where they
     * don't change along a row, one a row, repeated where rows share it.
     */
    default void packScales(Int8Tensor from, int gate, FloatArray scales, FloatArray zeroPoints) {
        boolean perRow = scales.getSize() == from.experts() * from.rows() && from.scaleCols() == 1;
        int rows = perRow ? from.rows() : from.scaleRows();
        int rowsPerScale = perRow ? 1 : from.rowsPerScale();
        int groups = from.scaleCols();
        byte[] zeros = from.zeroPoints();
        IntStream.range(0, Math.multiplyExact(from.experts(), groups))
                .parallel()
                .forEach(g -> {
                    float[] ofGroup = new float[rows];
                    float[] zerosOfGroup = new float[zeros == null ? 0 : rows];
                    for (int row = 0; row < rows; row++) {
                        int source = from.scaleIndex(g / groups, row * rowsPerScale, g % groups * from.colsPerScale());
                        ofGroup[row] = from.scales()[source];
                        if (zeros != null) {
                            zerosOfGroup[row] = zeros[source];
                        }
                    }
                    long at = 4L * g * rows;
                    MemorySegment.copy(ofGroup, 0, scales.getSegment(), ValueLayout.JAVA_FLOAT, at, rows);
                    if (zeros != null) {
                        MemorySegment.copy(zerosOfGroup, 0, zeroPoints.getSegment(), ValueLayout.JAVA_FLOAT, at, rows);
                    }
                });
    }

    /**
     * Puts the biases of some experts in the order of their scales.
     *
     * @param from of all experts, [E, rows]
     * @param first the first expert to put there
     */
    default void packBias(float[] from, int first, int experts, int rows, int gate, FloatArray into) {
        MemorySegment.copy(from, first * rows, into.getSegment(), ValueLayout.JAVA_FLOAT, 0, experts * rows);
    }

    /**
     * Elements in front of an array's others that make these begin at a cache line, where TornadoVM's header begins at
     * one.
     */
    static int padToCacheLine() {
        return Math.floorMod(-(int) TornadoNativeArray.ARRAY_HEADER, CACHE_LINE) / 4;
    }
}
