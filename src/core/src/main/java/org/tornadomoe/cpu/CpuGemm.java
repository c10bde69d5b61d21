package org.tornadomoe.cpu;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.Int8Products;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.quant.LoraAdapter;

/**
 * The GEMMs: blocks of an expert's rows times some of its pairs, in float lanes where int8 products stay exact, and in
 * double from there on.
 */
final class CpuGemm {
    /**
     * From here on so many products with int8 weights may not add up in float; a row with such a value is summed in
     * double.
     */
    static final float LARGE = 0x1p112f;

    private static final int ROWS = PackedWeights.ROWS;

    /** Columns whose int8 products add up to at most 2^24, up to which float has every integer. */
    private static final int EXACT_COLUMNS = 1024;

    /** Columns that are summed in float before the sum goes on in double, where activations are float. */
    private static final int FLOAT_COLUMNS = 256;

    private final Arithmetic arithmetic;
    private final CpuWeights layer;
    private final CpuBuffers call;
    private final CpuAdapters adapters;
    private final boolean int8;

    CpuGemm(Arithmetic arithmetic, CpuWeights layer, CpuBuffers call, CpuAdapters adapters) {
        this.arithmetic = arithmetic;
        this.layer = layer;
        this.call = call;
        this.adapters = adapters;
        int8 = layer.int8;
    }

    /**
     * A block of gates and ups of some pairs of an expert, from {@code first} on in their order, adapters included,
     * into {@code s.total}.
     */
    void multiplyGateUp(int e, int block, int first, int some, Scratch s) {
        int pairsPerRow = layer.pairsPerToken / layer.rowsPerToken;
        if (layer.products1 != null) {
            multiply(
                    layer.products1,
                    layer.w13,
                    e,
                    block,
                    call.bytes1,
                    call.a1Scales,
                    pairsPerRow,
                    call.gateUpAtOnce,
                    first,
                    some,
                    s);
        } else {
            multiply(
                    layer.w13,
                    layer.w13.block(e, block),
                    call.a1,
                    call.a1Scales,
                    call.sums1,
                    call.large1,
                    pairsPerRow,
                    first,
                    some,
                    s);
        }
        for (int t = 0; t < some && adapters.isOn(); t++) {
            int pair = call.order[first + t];
            LoraAdapter adapter = adapters.adapter(pair);
            if (adapter != null) {
                adapters.expandGateUp(adapter, pair, block, s.total, t * ROWS);
            }
        }
    }

    /** A block of some pairs' outputs, weighed, likewise. */
    void multiplyDown(int e, int block, int first, int some, Scratch s) {
        int column = block * ROWS;
        int count = Math.min(ROWS, layer.h - column);
        if (layer.products2 != null) {
            multiply(
                    layer.products2,
                    layer.w2,
                    e,
                    block,
                    call.bytes2,
                    call.a2Scales,
                    1,
                    call.downAtOnce,
                    first,
                    some,
                    s);
        } else {
            multiply(
                    layer.w2,
                    layer.w2.block(e, block),
                    call.a2,
                    call.a2Scales,
                    call.sums2,
                    call.large2,
                    1,
                    first,
                    some,
                    s);
        }
        for (int t = 0; t < some; t++) {
            int pair = call.order[first + t];
            double weight = layer.weighsInput ? 1 : call.weights[pair];
            for (int r = t * ROWS; r < t * ROWS + count; r++) {
                s.total[r] *= weight;
            }
            LoraAdapter adapter = adapters.adapter(pair);
            if (adapter != null) {
                adapters.expandDown(adapter, pair, column, count, weight, s.total, t * ROWS);
            }
        }
    }

    /** Lays out a pair's row of the first GEMM's input for native products. */
    void gatherGateUp(int place) {
        int row = call.order[place] / (layer.pairsPerToken / layer.rowsPerToken);
        gather(layer.w13, call.a1, row, call.bytes1, place);
    }

    /** That of the second's. */
    void gatherDown(int place) {
        gather(layer.w2, call.a2, call.order[place], call.bytes2, place);
    }

    private static void gather(PackedWeights w, float[] a, int row, MemorySegment into, int place) {
        for (int g = 0; g < w.groups(); g++) {
            int column = g * w.colsPerGroup();
            int count = Math.min(w.colsPerGroup(), w.cols() - column);
            long to = (long) place * w.stride() + (long) g * w.groupStride();
            int from = row * w.cols() + column;
            for (int c = 0; c < count; c++) {
                into.set(ValueLayout.JAVA_BYTE, to + c, (byte) ((int) a[from + c] + Int8Products.SHIFT));
            }
        }
    }

    /**
     * As the other, by native products.
     *
     * @param atOnce blocks whose products are found together, by the first of them, for the others as well
     */
    private void multiply(
            Int8Products products,
            PackedWeights w,
            int e,
            int block,
            MemorySegment a,
            float[] scales,
            int pairsPerRow,
            int atOnce,
            int first,
            int count,
            Scratch s) {
        s.requireTokens(Int8Products.TOKENS);
        double[] total = s.total;
        Arrays.fill(total, 0, count * ROWS, 0);
        int[] shifts = Objects.requireNonNull(w.shifts(), "shifts");
        int of = w.block(e, block);
        for (int g = 0; g < w.groups(); g++) {
            long column = (long) g * w.groupStride();
            long weights = ((long) of * w.stride() + column) * ROWS;
            long row = (long) first * w.stride() + column;
            if (atOnce == 1) {
                products.multiply(w.values(), weights, a, row, count, s);
            } else if (block % atOnce == 0) {
                products.multiplyWide(w.values(), weights, a, row, count, s);
            }
            int from = block % atOnce * count * ROWS;
            int at = (of * w.groups() + g) * ROWS;
            for (int t = 0; t < count; t++) {
                double factor = scales[call.order[first + t] / pairsPerRow * w.groups() + g];
                addScaled(s.products, from + t * ROWS, shifts, factor, w.scales(), at, total, t * ROWS);
            }
        }
        addBias(w, of, count, total);
    }

    private static void addScaled(
            int[] products, int from, int[] shifts, double factor, float[] scales, int at, double[] total, int to) {
        for (int r = 0; r < ROWS; r++) {
            total[to + r] += (products[from + r] - shifts[at + r]) * factor * scales[at + r];
        }
    }

    private static void addBias(PackedWeights w, int block, int count, double[] total) {
        for (int t = 0; t < count && w.bias() != null; t++) {
            for (int r = 0; r < ROWS; r++) {
                total[t * ROWS + r] += w.bias()[block * ROWS + r];
            }
        }
    }

    /**
     * A block of an expert times some of its pairs, with scales and biases, into {@code s.total}: the definition's sums
     * in the definition's order, exactly so where activations are int8.
     */
    private void multiply(
            PackedWeights w,
            int block,
            float[] a,
            float[] scales,
            double[] sums,
            boolean[] large,
            int pairsPerRow,
            int first,
            int count,
            Scratch s) {
        int values = count * ROWS;
        double[] sum = s.sum;
        double[] total = s.total;
        float[] tile = s.tile;
        int[] order = call.order;
        Arrays.fill(total, 0, values, 0);
        int most = int8 ? EXACT_COLUMNS : FLOAT_COLUMNS;
        for (int g = 0; g < w.groups(); g++) {
            int begin = g * w.colsPerGroup();
            int end = Math.min(begin + w.colsPerGroup(), w.cols());
            int at = (block * w.groups() + g) * ROWS;
            boolean once = end - begin <= most; // and then the tile has the sums
            for (int c = begin; c < end; c += most) {
                for (int t = 0; t < count; t++) {
                    s.from[t] = order[first + t] / pairsPerRow * w.cols() + c;
                }
                arithmetic.dot(
                        w.values(),
                        ((long) block * w.cols() + c) * ROWS,
                        Math.min(most, end - c),
                        a,
                        s.from,
                        count,
                        tile);
                if (!once && c == begin) {
                    for (int v = 0; v < values; v++) {
                        sum[v] = tile[v];
                    }
                } else if (!once) {
                    for (int v = 0; v < values; v++) {
                        sum[v] += tile[v];
                    }
                }
            }
            for (int t = 0; t < count; t++) {
                int ofToken = order[first + t] / pairsPerRow;
                int row = ofToken * w.groups() + g;
                float factor = int8 ? scales[row] : 1;
                boolean inDouble = !int8 && large[ofToken];
                if (once && !inDouble && w.zeroPoints() == null) {
                    arithmetic.addScaled(tile, t * ROWS, factor, w.scales(), at, total);
                    continue;
                }
                if (inDouble) {
                    sumInDouble(w, block, begin, end, a, ofToken * w.cols(), sum, t * ROWS);
                } else if (once) {
                    for (int v = t * ROWS; v < (t + 1) * ROWS; v++) {
                        sum[v] = tile[v];
                    }
                }
                if (w.zeroPoints() != null) {
                    subtract(w.zeroPoints(), at, sums[row], sum, t * ROWS);
                }
                scale(w.scales(), at, factor, sum, total, t * ROWS);
            }
        }
        addBias(w, block, count, total);
    }

    /** The sums of a block's rows over some columns, products and all in double. */
    private static void sumInDouble(
            PackedWeights w, int block, int from, int end, float[] a, int row, double[] sum, int to) {
        Arrays.fill(sum, to, to + ROWS, 0);
        for (int c = from; c < end; c++) {
            long at = ((long) block * w.cols() + c) * ROWS;
            for (int r = 0; r < ROWS; r++) {
                sum[to + r] += (double) a[row + c] * w.values().get(ValueLayout.JAVA_BYTE, at + r);
            }
        }
    }

    private static void subtract(float[] zeroPoints, int at, double activations, double[] sum, int to) {
        for (int r = 0; r < ROWS; r++) {
            sum[to + r] -= zeroPoints[at + r] * activations;
        }
    }

    private static void scale(float[] scales, int at, float activationScale, double[] sum, double[] total, int to) {
        for (int r = 0; r < ROWS; r++) {
            total[to + r] += sum[to + r] * activationScale * scales[at + r];
        }
    }
}
