package org.tornadomoe.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.quant.Int8Tensor;

/**
 * One projection of all experts, in the order in which it is read: E experts of blocks of {@value #ROWS} rows, each
 * column by column. The last block is filled up with rows of zeros.
 *
 * @param blocks of an expert
 * @param groups groups of columns with scales of their own, {@code colsPerGroup} wide, the last perhaps less
 * @param values [E, blocks, cols, {@value #ROWS}]
 * @param scales [E, blocks, groups, {@value #ROWS}]
 * @param zeroPoints likewise; null for none
 * @param bias [E, blocks, {@value #ROWS}]; null for none
 * @param rowOf the tensor's row of each of an expert's rows here, −1 for one that fills up
 */
record PackedWeights(
        int experts,
        int blocks,
        int cols,
        int groups,
        int colsPerGroup,
        MemorySegment values,
        float[] scales,
        float @Nullable [] zeroPoints,
        float @Nullable [] bias,
        int[] rowOf) {
    static final int ROWS = Arithmetic.ROWS;

    /** Past the last value, for vectors that are read whole. */
    private static final int PADDING = 64;

    /**
     * Packs.
     *
     * @param rows of an expert here, those that fill up included
     * @param rowOf the tensor's row of each, −1 for none
     * @param bias [E, tensor rows]; null for none
     */
    static PackedWeights of(Int8Tensor w, int rows, IntUnaryOperator rowOf, float @Nullable [] bias, Arena arena) {
        int blocks = Math.ceilDiv(rows, ROWS);
        int cols = w.cols();
        int[] sources = new int[blocks * ROWS];
        Arrays.fill(sources, -1);
        for (int r = 0; r < rows; r++) {
            sources[r] = rowOf.applyAsInt(r);
        }
        int groups = w.scaleCols();
        int all = Math.multiplyExact(w.experts(), blocks);
        float[] scales = new float[Math.multiplyExact(Math.multiplyExact(all, groups), ROWS)];
        float[] zeroPoints = w.zeroPoints() == null ? null : new float[scales.length];
        float[] biases = bias == null ? null : new float[all * ROWS];
        long bytes = (long) all * cols * ROWS;
        MemorySegment values = arena.allocate(bytes + PADDING, 64);
        IntStream.range(0, all).parallel().forEach(block -> {
            int expert = block / blocks;
            byte[] row = new byte[cols];
            byte[] packed = new byte[Math.multiplyExact(cols, ROWS)];
            for (int r = 0; r < ROWS; r++) {
                int source = sources[block % blocks * ROWS + r];
                if (source < 0) {
                    continue;
                }
                w.row(expert, source, row);
                for (int c = 0; c < cols; c++) {
                    packed[c * ROWS + r] = row[c];
                }
                for (int g = 0; g < groups; g++) {
                    int at = (block * groups + g) * ROWS + r;
                    scales[at] = w.scale(expert, source, g * w.colsPerScale());
                    if (zeroPoints != null) {
                        zeroPoints[at] = w.zeroPoint(expert, source, g * w.colsPerScale());
                    }
                }
                if (bias != null && biases != null) {
                    biases[block * ROWS + r] = bias[expert * w.rows() + source];
                }
            }
            MemorySegment.copy(packed, 0, values, ValueLayout.JAVA_BYTE, (long) block * packed.length, packed.length);
        });
        return new PackedWeights(
                w.experts(),
                blocks,
                cols,
                groups,
                Math.min(w.colsPerScale(), cols),
                values,
                scales,
                zeroPoints,
                biases,
                sources);
    }

    /** Where an expert's block is among all. */
    int block(int expert, int block) {
        return expert * blocks + block;
    }

    long bytes() {
        long floats = scales.length + (zeroPoints == null ? 0L : zeroPoints.length) + (bias == null ? 0L : bias.length);
        return values.byteSize() + 4 * floats;
    }
}
