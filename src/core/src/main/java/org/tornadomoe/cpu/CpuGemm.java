package org.tornadomoe.cpu;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
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

    /**
     * Below here groups' sums that are scaled in float may lose bits; a row with no greater value is summed in double,
     * too.
     */
    static final float SMALL = 0x1p-60f;

    private static final int ROWS = PackedWeights.ROWS;

    /** Columns whose int8 products add up to at most 2^24, up to which float has every integer. */
    private static final int EXACT_COLUMNS = 1024;

    /** Columns that are summed in float before the sum goes on in double, where activations are float. */
    static final int FLOAT_COLUMNS = 256;

    /**
     * One of the GEMMs: its weights, and what the call multiplies them with.
     *
     * @param products native ones; null for none
     * @param a [rows, cols] of {@code w}; not with native products
     * @param rows for native products, by row of a, which pairs are multiplied with where none is beside another of its
     *     expert
     * @param bytes likewise by place, for all others; may be the same
     * @param scales [rows, groups] of a
     * @param sums [rows, groups] of a, where zero points need them
     * @param large [rows] where activations are float: whether one of a is from {@link #LARGE} on, or groups'
     *     sums are scaled in float and none is from {@link #SMALL} on, while some are not 0
     * @param pairsPerRow pairs that share a row of a
     */
    private record Operands(
            PackedWeights w,
            @Nullable Int8Products products,
            float[] a,
            MemorySegment rows,
            MemorySegment bytes,
            float[] scales,
            double[] sums,
            boolean[] large,
            int pairsPerRow) {}

    private final Arithmetic arithmetic;
    private final CpuWeights layer;
    private final CpuBuffers call;
    private final CpuAdapters adapters;
    private final Operands gateUp;
    private final Operands down;

    CpuGemm(Arithmetic arithmetic, CpuWeights layer, CpuBuffers call, CpuAdapters adapters) {
        this.arithmetic = arithmetic;
        this.layer = layer;
        this.call = call;
        this.adapters = adapters;
        gateUp = new Operands(
                layer.w13,
                layer.products1,
                call.a1,
                call.rows1,
                call.bytes1,
                call.a1Scales,
                call.sums1,
                call.large1,
                layer.pairsPerToken / layer.rowsPerToken);
        down = new Operands(
                layer.w2,
                layer.products2,
                call.a2,
                call.bytes2,
                call.bytes2,
                call.a2Scales,
                call.sums2,
                call.large2,
                1);
    }

    /**
     * A block of gates and ups of some pairs of an expert, from {@code first} on in their order, adapters included,
     * into {@code s.total}.
     */
    void multiplyGateUp(int e, int block, int first, int some, Scratch s) {
        multiply(gateUp, layer.w13.block(e, block), call.gateUpAtOnce, first, some, s);
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
        multiply(down, layer.w2.block(e, block), call.downAtOnce, first, some, s);
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
        long stride = gateUp.w().stride();
        long row = call.order[place] / gateUp.pairsPerRow() * stride;
        MemorySegment.copy(call.rows1, row, call.bytes1, place * stride, stride);
    }

    /**
     * A block of an expert times some of its pairs, with scales and biases, into {@code s.total}.
     *
     * @param block among those of all experts
     * @param atOnce blocks of a task; an expert has a multiple of them. Wide native products of the first are those of
     *     the others, too
     */
    private void multiply(Operands of, int block, int atOnce, int first, int count, Scratch s) {
        s.requireTokens(layer.pairsAtOnce());
        Arrays.fill(s.total, 0, count * ROWS, 0);
        if (of.products() != null) {
            addNativeProducts(of, of.products(), block, atOnce, first, count, s);
        } else if (!layer.int8 && of.w().scalesInFloat()) {
            addScaledProducts(of, block, first, count, s);
        } else {
            addProducts(of, block, first, count, s);
        }
        float[] bias = of.w().bias();
        for (int t = 0; t < count && bias != null; t++) {
            for (int r = 0; r < ROWS; r++) {
                s.total[t * ROWS + r] += bias[block * ROWS + r];
            }
        }
    }

    private void addNativeProducts(
            Operands of, Int8Products products, int block, int atOnce, int first, int count, Scratch s) {
        PackedWeights w = of.w();
        int[] shifts = Objects.requireNonNull(w.shifts(), "shifts");
        boolean inOrder = of.rows().equals(of.bytes()) || call.laidOut;
        MemorySegment bytes = inOrder ? of.bytes() : of.rows();
        long row = (long) (inOrder ? first : call.order[first] / of.pairsPerRow()) * w.stride();
        int wide = products.isWide() ? atOnce : 1;
        if (block % wide == 0) {
            long at = (long) block * w.stride() * ROWS;
            int shift = block * w.groups() * ROWS;
            products.multiply(w.values(), at, wide, shifts, shift, bytes, row, count, s);
        }
        int groups = w.groups();
        for (int t = 0; t < count; t++) {
            int scale = call.order[first + t] / of.pairsPerRow() * groups;
            int from = (t * wide + block % wide) * groups * ROWS;
            for (int g = 0; g < groups; g++) {
                double factor = of.scales()[scale + g];
                int at = (block * groups + g) * ROWS;
                arithmetic.addScaled(s.products, from + g * ROWS, shifts, factor, w.scales(), at, s.total, t * ROWS);
            }
        }
    }

    /** In float lanes: the definition's sums in the definition's order, exactly so where activations are int8. */
    private void addProducts(Operands of, int block, int first, int count, Scratch s) {
        PackedWeights w = of.w();
        boolean int8 = layer.int8;
        int pairsPerRow = of.pairsPerRow();
        int values = count * ROWS;
        double[] sum = s.sum;
        double[] total = s.total;
        float[] tile = s.tile;
        int[] order = call.order;
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
                        of.a(),
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
                float factor = int8 ? of.scales()[row] : 1;
                boolean inDouble = !int8 && of.large()[ofToken];
                if (once && !inDouble && w.zeroPoints() == null) {
                    arithmetic.addScaled(tile, t * ROWS, factor, w.scales(), at, total);
                    continue;
                }
                if (inDouble) {
                    sumInDouble(w, block, begin, end, of.a(), ofToken * w.cols(), sum, t * ROWS);
                } else if (once) {
                    for (int v = t * ROWS; v < (t + 1) * ROWS; v++) {
                        sum[v] = tile[v];
                    }
                }
                if (w.zeroPoints() != null) {
                    subtract(w.zeroPoints(), at, of.sums()[row], sum, t * ROWS);
                }
                scale(w.scales(), at, factor, sum, total, t * ROWS);
            }
        }
    }

    /** In float lanes where groups' sums are scaled in float, too. */
    private void addScaledProducts(Operands of, int block, int first, int count, Scratch s) {
        PackedWeights w = of.w();
        int width = w.colsPerGroup();
        int most = FLOAT_COLUMNS / width * width;
        for (int c = 0; c < w.cols(); c += most) {
            for (int t = 0; t < count; t++) {
                s.from[t] = call.order[first + t] / of.pairsPerRow() * w.cols() + c;
            }
            int at = (block * w.groups() + c / width) * ROWS;
            long values = ((long) block * w.cols() + c) * ROWS;
            int cols = Math.min(most, w.cols() - c);
            arithmetic.dotScaled(w.values(), values, cols, width, w.scales(), at, of.a(), s.from, count, s.tile);
            for (int v = 0; v < count * ROWS; v++) {
                s.total[v] += s.tile[v];
            }
        }
        for (int t = 0; t < count; t++) {
            int row = call.order[first + t] / of.pairsPerRow();
            if (of.large()[row]) {
                Arrays.fill(s.total, t * ROWS, (t + 1) * ROWS, 0);
            } else if (w.zeroPoints() == null) {
                continue;
            }
            for (int g = 0; g < w.groups(); g++) {
                int at = (block * w.groups() + g) * ROWS;
                Arrays.fill(s.sum, 0, ROWS, 0);
                if (of.large()[row]) {
                    int end = Math.min((g + 1) * width, w.cols());
                    sumInDouble(w, block, g * width, end, of.a(), row * w.cols(), s.sum, 0);
                }
                if (w.zeroPoints() != null) {
                    subtract(w.zeroPoints(), at, of.sums()[row * w.groups() + g], s.sum, 0);
                }
                for (int r = 0; r < ROWS; r++) {
                    s.total[t * ROWS + r] += s.sum[r] * w.scales()[at + r];
                }
            }
        }
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
