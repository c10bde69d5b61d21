package org.tornadomoe.cpu;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.quant.LoraAdapter;

/** Adapters (LoRA) of a lane: what they add to both GEMMs, in double. Letters as in {@link CpuWeights}. */
final class CpuAdapters {
    private final CpuWeights layer;
    private final CpuBuffers call;
    private int @Nullable [] slotOfToken;

    CpuAdapters(CpuWeights layer, CpuBuffers call) {
        this.layer = layer;
        this.call = call;
    }

    /** The slots of the call's tokens, -1 for none; null for no adapters at all. */
    void begin(int @Nullable [] slotOfToken) {
        this.slotOfToken = slotOfToken;
    }

    /** Whether the call has adapters. */
    boolean isOn() {
        return slotOfToken != null;
    }

    /** A pair's; null for none. */
    @Nullable
    LoraAdapter adapter(int pair) {
        int[] slots = slotOfToken;
        if (slots == null) {
            return null;
        }
        int slot = slots[pair / layer.pairsPerToken];
        return slot < 0 ? null : layer.adapters[slot];
    }

    /** A x for w13, x the token without router weight. */
    void shrinkTokens(int pair, Scratch s) {
        LoraAdapter adapter = layer.local(call.own[pair]) < 0 ? null : adapter(pair);
        if (adapter != null) {
            int rows = LoraAdapter.slices(layer.config) * adapter.rank();
            int a = LoraAdapter.offset(adapter.w13A(), call.ids[pair], rows * layer.h);
            int into = pair * LoraAdapter.slices(layer.config) * layer.config.maxLoraRank();
            product(
                    adapter.w13A(),
                    a,
                    rows,
                    call.hidden,
                    pair / layer.pairsPerToken * layer.h,
                    layer.h,
                    call.shrunk1,
                    into);
        }
    }

    void expandGateUp(LoraAdapter adapter, int pair, int block, double[] total, int at) {
        int rank = adapter.rank();
        int b = LoraAdapter.offset(adapter.w13B(), call.ids[pair], layer.config.gateUpRows() * rank);
        int shrunk = pair * LoraAdapter.slices(layer.config) * layer.config.maxLoraRank();
        double weight = layer.weighsInput ? call.weights[pair] : 1;
        for (int r = 0; r < PackedWeights.ROWS; r++) {
            int row = layer.w13.rowOf()[block * PackedWeights.ROWS + r];
            if (row >= 0) {
                int from = shrunk + LoraAdapter.slice(layer.config, row) * rank;
                total[at + r] += dot(adapter.w13B(), b + row * rank, call.shrunk1, from, rank) * weight;
            }
        }
    }

    void shrinkPairs(int pair, Scratch s) {
        LoraAdapter adapter = layer.local(call.own[pair]) < 0 ? null : adapter(pair);
        if (adapter != null) {
            int a = LoraAdapter.offset(adapter.w2A(), call.ids[pair], adapter.rank() * layer.i);
            product(
                    adapter.w2A(),
                    a,
                    adapter.rank(),
                    call.act,
                    pair * layer.i,
                    layer.i,
                    call.shrunk2,
                    pair * layer.config.maxLoraRank());
        }
    }

    void expandDown(LoraAdapter adapter, int pair, int column, int count, double weight, double[] total, int at) {
        int rank = adapter.rank();
        int b = LoraAdapter.offset(adapter.w2B(), call.ids[pair], layer.h * rank) + column * rank;
        for (int r = 0; r < count; r++) {
            total[at + r] +=
                    dot(adapter.w2B(), b + r * rank, call.shrunk2, pair * layer.config.maxLoraRank(), rank) * weight;
        }
    }

    private static void product(float[] a, int from, int rows, float[] x, int at, int cols, double[] into, int to) {
        for (int row = 0; row < rows; row++) {
            double sum = 0;
            for (int c = 0; c < cols; c++) {
                sum += (double) a[from + row * cols + c] * x[at + c];
            }
            into[to + row] = sum;
        }
    }

    private static double dot(float[] b, int from, double[] x, int at, int length) {
        double sum = 0;
        for (int j = 0; j < length; j++) {
            sum += b[from + j] * x[at + j];
        }
        return sum;
    }
}
