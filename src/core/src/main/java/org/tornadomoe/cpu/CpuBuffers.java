package org.tornadomoe.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.Int8Products;
import org.tornadomoe.quant.LoraAdapter;

/**
 * What a lane has of the call under way: what lies between its stages, and the order of its pairs. Letters as in {@link
 * CpuWeights}.
 */
final class CpuBuffers implements AutoCloseable {
    final float[] hidden; // [M, H]
    final int[] ids; // [P]
    final int[] own; // [P]: ids, but -1 for pairs that are another device's, where experts move by load
    final double[] weights; // [P]
    final double[] logits; // [tokens of a call that has fewer than there are threads, L]
    final float[] a1; // [R, H] as the first GEMM reads it
    final float[] a1Scales; // [R, groups]
    final float[] act; // [P, I]
    final float[] a2; // [P, I] as the second GEMM reads it
    final float[] a2Scales; // [P, groups]
    final double[] sums1; // [R, groups] of a1, where zero points need them
    final double[] sums2; // [P, groups] of a2
    final boolean[] large1; // [R] where activations are float: whether a row of a1 has a value from CpuGemm.LARGE on
    final boolean[] large2; // [P] of a2
    final double[] output; // [M, H]
    final float[] result; // [M, H]
    final MemorySegment rows1; // [R, stride] for native products, instead of a1: int8, moved by SHIFT
    final MemorySegment bytes1; // [P, stride] the same of each pair in their order, where an expert has several
    final MemorySegment bytes2; // [P, stride] instead of a2, in that order
    final int[] start; // [local experts + 1] into order
    final int[] order; // pairs by local expert
    final int[] place; // [P] of each pair in it
    final int[] active; // local experts that have pairs
    final double[] shrunk1; // [P, slices, rank]
    final double[] shrunk2; // [P, rank]

    int tokens; // M of the call under way
    int numActive; // of active
    boolean laidOut; // whether bytes1 holds what the first GEMM reads, or rows1
    int gateUpAtOnce = 1; // blocks of a task of the first GEMM
    int downAtOnce = 1; // of the second
    private final CpuWeights layer;
    private final Arena arena = Arena.ofShared();

    CpuBuffers(CpuWeights layer, int threads) {
        this.layer = layer;
        FusedMoeConfig config = layer.config;
        PackedWeights w13 = layer.w13;
        PackedWeights w2 = layer.w2;
        int m = config.maxNumTokens();
        int rows = Math.multiplyExact(m, layer.rowsPerToken);
        int pairs = Math.multiplyExact(m, layer.pairsPerToken);
        hidden = new float[Math.multiplyExact(m, layer.h)];
        ids = new int[pairs];
        own = config.moeParallelConfig().enableEplb() ? new int[pairs] : ids;
        weights = new double[pairs];
        logits = new double[layer.handedIn ? 0 : Math.min(m, threads) * layer.router.paddedLogits()];
        boolean inFloat = layer.int8 && layer.products1 == null;
        a1 = inFloat || layer.ownRows ? new float[Math.multiplyExact(rows, layer.h)] : hidden;
        a1Scales = new float[layer.int8 ? Math.multiplyExact(rows, w13.groups()) : 0];
        act = new float[Math.multiplyExact(pairs, layer.i)];
        a2 = inFloat ? new float[act.length] : act;
        a2Scales = new float[layer.int8 ? Math.multiplyExact(pairs, w2.groups()) : 0];
        sums1 = new double[w13.zeroPoints() == null ? 0 : Math.multiplyExact(rows, w13.groups())];
        sums2 = new double[w2.zeroPoints() == null ? 0 : Math.multiplyExact(pairs, w2.groups())];
        large1 = new boolean[layer.int8 ? 0 : rows];
        large2 = new boolean[layer.int8 ? 0 : pairs];
        rows1 = layer.products1 == null ? MemorySegment.NULL : bytes(w13, rows);
        bytes1 = layer.products1 == null ? MemorySegment.NULL : bytes(w13, pairs);
        bytes2 = layer.products2 == null ? MemorySegment.NULL : bytes(w2, pairs);
        output = new double[hidden.length];
        result = new float[hidden.length];
        start = new int[w13.experts() + 1];
        order = new int[pairs];
        place = new int[pairs];
        active = new int[w13.experts()];
        int rank = config.isLoraEnabled() ? config.maxLoraRank() : 0;
        shrunk1 = new double[Math.multiplyExact(pairs, LoraAdapter.slices(config) * rank)];
        shrunk2 = new double[Math.multiplyExact(pairs, rank)];
    }

    private MemorySegment bytes(PackedWeights w, int rows) {
        return arena.allocate((rows + (long) Int8Products.TOKENS) * w.stride(), 64);
    }

    /** Pairs in the order of their local experts, ascending within one. */
    void group() {
        int pairs = tokens * layer.pairsPerToken;
        Arrays.fill(start, 0);
        for (int p = 0; p < pairs; p++) {
            int e = layer.local(own[p]);
            if (e >= 0) {
                start[e + 1]++;
            } else if (layer.dynamicTensor) {
                Arrays.fill(act, p * layer.i, (p + 1) * layer.i, 0);
            }
        }
        numActive = 0;
        for (int e = 0; e < active.length; e++) {
            if (start[e + 1] > 0) {
                active[numActive++] = e;
            }
            start[e + 1] += start[e];
        }
        for (int p = 0; p < pairs; p++) {
            int e = layer.local(own[p]);
            if (e >= 0) {
                place[p] = start[e];
                order[start[e]++] = p;
            }
        }
        System.arraycopy(start, 0, start, 1, active.length);
        start[0] = 0;
    }

    /** Whether an expert has several pairs. */
    boolean sharesExperts() {
        boolean shares = false;
        for (int a = 0; a < numActive; a++) {
            shares |= start[active[a] + 1] - start[active[a]] > 1;
        }
        return shares;
    }

    /**
     * Blocks of w that a task takes together: several where there are enough tasks for all threads. Native products of
     * one group are one call then, and few tokens read longer runs of memory.
     */
    int blocksAtOnce(PackedWeights w, @Nullable Int8Products products, int tasks, int threads) {
        int wide = Int8Products.WIDE;
        boolean together = tokens <= Arithmetic.TOKENS || (products != null && products.isWide());
        return together && w.blocks() % wide == 0 && tasks >= 2 * wide * threads ? wide : 1;
    }

    /** The token itself times the weights of its zero experts, on the rank that has expert 0. */
    void addZeroExperts(int column, int count) {
        if (!layer.hasZeroExperts()) {
            return;
        }
        for (int p = 0; p < tokens * layer.pairsPerToken; p++) {
            if (own[p] >= layer.expertMap.length) {
                int at = p / layer.pairsPerToken * layer.h + column;
                for (int c = at; c < at + count; c++) {
                    output[c] += weights[p] * hidden[c];
                }
            }
        }
    }

    long bytes() {
        return 4L * (hidden.length + act.length + result.length + a1Scales.length + a2Scales.length)
                + (a1 == hidden ? 0 : 4L * a1.length)
                + (a2 == act ? 0 : 4L * a2.length)
                + rows1.byteSize()
                + bytes1.byteSize()
                + bytes2.byteSize()
                + 8L * (output.length + logits.length + sums1.length + sums2.length + shrunk1.length + shrunk2.length);
    }

    @Override
    public void close() {
        arena.close();
    }
}
