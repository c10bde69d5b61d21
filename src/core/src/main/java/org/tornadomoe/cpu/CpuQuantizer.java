package org.tornadomoe.cpu;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.Int8Products;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.quant.Int8Activations;

/**
 * Makes the inputs of the GEMMs what they read: int8 values with scales or, where activations stay float, their sums
 * and marks.
 */
final class CpuQuantizer {
    private final CpuWeights layer;
    private final CpuBuffers call;
    private float dynamicScale;

    CpuQuantizer(CpuWeights layer, CpuBuffers call) {
        this.layer = layer;
        this.call = call;
    }

    /** Finds the one scale of the first GEMM's rows, where there is one to be found. */
    void scaleInput() {
        if (layer.dynamicTensor) {
            dynamicScale = Int8Activations.tensorScale(input(), call.tokens * layer.rowsPerToken * layer.h);
        }
    }

    /** Finds that of the second's. */
    void scaleActivations() {
        if (layer.dynamicTensor) {
            dynamicScale = Int8Activations.tensorScale(call.act, call.tokens * layer.pairsPerToken * layer.i);
        }
    }

    /** The first GEMM's input before it is int8: [R, H]. */
    private float[] input() {
        return layer.ownRows ? call.a1 : call.hidden;
    }

    /** A pair's row of the input, where it has one. */
    void fillOwnRow(int pair) {
        if (layer.ownRows) {
            int h = layer.h;
            double weight = layer.weighsInput ? call.weights[pair] : 1;
            for (int c = 0; c < h; c++) {
                call.a1[pair * h + c] = (float) (call.hidden[pair / layer.pairsPerToken * h + c] * weight);
            }
        }
    }

    /** A row of the first GEMM's input. */
    void quantizeInput(int row, Scratch s) {
        float known = known(layer.knownA1, layer.ownRows ? call.ids[row] : -1);
        quantize(input(), row, layer.h, layer.w13, known, call.a1Scales, call.sums1, call.large1, s);
        put(s.bytes, row, layer.h, layer.w13, call.a1, call.rows1, row);
    }

    /** The scale of an expert's activations; any, where they go to no expert here. */
    private float known(float @Nullable [] scales, int expert) {
        return scales == null ? dynamicScale : scales[Math.max(0, layer.local(expert))];
    }

    /** A pair's row of the second's. */
    void quantizeActivations(int pair, Scratch s) {
        float known = known(layer.knownA2, call.own[pair]);
        quantize(call.act, pair, layer.i, layer.w2, known, call.a2Scales, call.sums2, call.large2, s);
        put(s.bytes, pair, layer.i, layer.w2, call.a2, call.bytes2, call.place[pair]);
    }

    /**
     * A row as the scheme has it, into {@code s.bytes}; where activations stay float, whether they are large, and the
     * sums that zero points need.
     */
    private void quantize(
            float[] x,
            int row,
            int width,
            PackedWeights w,
            float known,
            float[] scales,
            double[] sums,
            boolean[] large,
            Scratch s) {
        int at = row * width;
        switch (layer.scheme) {
            case W8A8_CHANNEL -> scales[row] = Int8Activations.quantize(x, at, width, s.bytes, 0);
            case W8A8_TENSOR -> {
                scales[row] = known;
                Int8Activations.quantize(x, at, width, scales[row], s.bytes, 0);
            }
            case W8A8_BLOCK -> {
                for (int g = 0; g < w.groups(); g++) {
                    int column = g * w.colsPerGroup();
                    int count = Math.min(w.colsPerGroup(), width - column);
                    scales[row * w.groups() + g] =
                            Int8Activations.quantizeGroup(x, at + column, count, layer.roundToNearest, s.bytes, column);
                }
            }
            case W8A16_CHANNEL, W8A16_GROUP -> {
                float greatest = 0;
                for (int c = at; c < at + width; c++) {
                    greatest = Math.max(greatest, Math.abs(x[c]));
                }
                boolean small = w.scalesInFloat() && greatest > 0 && greatest < CpuGemm.SMALL;
                large[row] = greatest >= CpuGemm.LARGE || small;
                for (int g = 0; g < w.groups() && sums.length != 0; g++) {
                    double sum = 0;
                    for (int c = g * w.colsPerGroup(); c < Math.min((g + 1L) * w.colsPerGroup(), width); c++) {
                        sum += x[at + c];
                    }
                    sums[row * w.groups() + g] = sum;
                }
            }
        }
    }

    /** Puts a row in int8 where it is read: as floats, or moved, at a place of what native products read. */
    private void put(byte[] row, int of, int width, PackedWeights w, float[] floats, MemorySegment bytes, int place) {
        if (layer.products1 != null) {
            for (int c = 0; c < width; c++) {
                row[c] ^= (byte) Int8Products.SHIFT;
            }
            for (int g = 0; g < w.groups(); g++) {
                int column = g * w.colsPerGroup();
                int count = Math.min(w.colsPerGroup(), width - column);
                long to = (long) place * w.stride() + (long) g * w.groupStride();
                MemorySegment.copy(row, column, bytes, ValueLayout.JAVA_BYTE, to, count);
            }
        } else if (layer.int8) {
            for (int c = 0; c < width; c++) {
                floats[of * width + c] = row[c];
            }
        }
    }
}
