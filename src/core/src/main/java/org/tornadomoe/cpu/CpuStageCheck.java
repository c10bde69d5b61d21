package org.tornadomoe.cpu;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.kernel.StageValues;

/** The stages of a layer on the cores, each by itself: see {@link org.tornadomoe.kernel.FusedMoeExperts#stages}. */
final class CpuStageCheck {
    private static final int ROWS = PackedWeights.ROWS;

    private final CpuWeights layer;
    private final CpuBuffers call;
    private final Arithmetic arithmetic;
    private final CpuQuantizer quantizer;
    private final CpuGemm gemm;
    private final Scratch scratch = new Scratch();

    CpuStageCheck(CpuWeights layer, Arithmetic arithmetic) {
        this.layer = layer;
        this.arithmetic = arithmetic;
        call = new CpuBuffers(layer, 1);
        quantizer = new CpuQuantizer(layer, call);
        gemm = new CpuGemm(arithmetic, layer, call, new CpuAdapters(layer, call));
    }

    StageValues stages(float[] hidden, int tokens, StageValues given) {
        int pairs = tokens * layer.pairsPerToken;
        int rows = tokens * layer.rowsPerToken;
        System.arraycopy(hidden, 0, call.hidden, 0, tokens * layer.h);
        call.tokens = tokens;
        layer.require(scratch);
        int[] topkIds = given.topkIds();
        float[] topkWeights = given.topkWeights();
        if (!layer.handedIn) {
            route(given.logits(), tokens);
            topkIds = Arrays.copyOf(call.ids, pairs);
            topkWeights = narrow(call.weights, pairs);
        }

        System.arraycopy(given.topkIds(), 0, call.ids, 0, pairs);
        System.arraycopy(given.topkIds(), 0, call.own, 0, pairs);
        for (int p = 0; p < pairs; p++) {
            call.weights[p] = given.topkWeights()[p];
        }
        for (int row = 0; row < rows; row++) {
            quantizer.fillOwnRow(row);
        }
        quantizer.scaleInput();
        for (int row = 0; row < rows; row++) {
            quantizer.quantizeInput(row, scratch);
        }
        byte[] a1 = layer.int8 ? bytes(call.a1, rows * layer.h) : new byte[0];
        float[] a1Scales = Arrays.copyOf(call.a1Scales, layer.int8 ? rows * layer.w13.groups() : 0);

        if (layer.int8) {
            floats(given.a1(), call.a1);
            System.arraycopy(given.a1Scales(), 0, call.a1Scales, 0, rows * layer.w13.groups());
        }
        float[] gemm1 = gemm1(pairs);
        float[] act = activate(given.gemm1(), pairs);

        System.arraycopy(given.act(), 0, call.act, 0, pairs * layer.i);
        quantizer.scaleActivations();
        for (int p = 0; p < pairs; p++) {
            quantizer.quantizeActivations(p, scratch);
        }
        byte[] a2 = layer.int8 ? bytes(call.a2, pairs * layer.i) : new byte[0];
        float[] a2Scales = Arrays.copyOf(call.a2Scales, layer.int8 ? pairs * layer.w2.groups() : 0);

        if (layer.int8) {
            floats(given.a2(), call.a2);
            System.arraycopy(given.a2Scales(), 0, call.a2Scales, 0, pairs * layer.w2.groups());
        }
        float[] gemm2 = gemm2(pairs);
        float[] output = combine(given.gemm2(), tokens);
        IntStream.Builder sorted = IntStream.builder();
        IntStream.Builder blocks = IntStream.builder();
        align(given, pairs, sorted, blocks);
        return new StageValues(
                given.logits(),
                topkIds,
                topkWeights,
                given.blockSize(),
                sorted.build().toArray(),
                blocks.build().toArray(),
                a1,
                a1Scales,
                gemm1,
                act,
                a2,
                a2Scales,
                gemm2,
                output);
    }

    private void route(float[] logits, int tokens) {
        int width = layer.config.numRouterLogits();
        for (int m = 0; m < tokens; m++) {
            for (int l = 0; l < width; l++) {
                scratch.logits[l] = logits[m * width + l];
            }
            layer.router.route(scratch, call.ids, call.weights, m * layer.pairsPerToken);
        }
    }

    /** The first GEMM, [P, 2I]; zeros where experts are elsewhere. */
    private float[] gemm1(int pairs) {
        call.group();
        int width = layer.config.gateUpRows();
        float[] gemm1 = new float[pairs * width];
        int[] rowOf = layer.w13.rowOf();
        eachTile(layer.w13.blocks(), gemm::multiplyGateUp, (pair, block, at) -> {
            for (int r = 0; r < ROWS; r++) {
                int row = rowOf[block * ROWS + r];
                if (row >= 0) {
                    gemm1[pair * width + row] = (float) scratch.total[at + r];
                }
            }
        });
        return gemm1;
    }

    /** The second GEMM, weighed, [P, H]; zeros where experts are elsewhere. */
    private float[] gemm2(int pairs) {
        int h = layer.h;
        float[] gemm2 = new float[pairs * h];
        eachTile(layer.w2.blocks(), gemm::multiplyDown, (pair, block, at) -> {
            int column = block * ROWS;
            for (int r = 0; r < Math.min(ROWS, h - column); r++) {
                gemm2[pair * h + column + r] = (float) scratch.total[at + r];
            }
        });
        return gemm2;
    }

    @FunctionalInterface
    private interface Multiply {
        void run(int expert, int block, int first, int some, Scratch s);
    }

    @FunctionalInterface
    private interface Tile {
        /** Takes a pair's part of a block, which is in the scratch's total from {@code at} on. */
        void take(int pair, int block, int at);
    }

    private void eachTile(int blocks, Multiply multiply, Tile tile) {
        for (int a = 0; a < call.numActive; a++) {
            int e = call.active[a];
            for (int block = 0; block < blocks; block++) {
                for (int first = call.start[e]; first < call.start[e + 1]; first += Arithmetic.TOKENS) {
                    int some = Math.min(Arithmetic.TOKENS, call.start[e + 1] - first);
                    multiply.run(e, block, first, some, scratch);
                    for (int t = 0; t < some; t++) {
                        tile.take(call.order[first + t], block, t * ROWS);
                    }
                }
            }
        }
    }

    /** The sum over each token's pairs, zero experts included: [M, H]. */
    private float[] combine(float[] gemm2, int tokens) {
        int h = layer.h;
        Arrays.fill(call.output, 0, tokens * h, 0);
        for (int v = 0; v < gemm2.length; v++) {
            call.output[v / h / layer.pairsPerToken * h + v % h] += gemm2[v];
        }
        call.addZeroExperts(0, h);
        return narrow(call.output, tokens * h);
    }

    private float[] activate(float[] gemm1, int pairs) {
        int i = layer.i;
        boolean gated = layer.config.activation().isGated();
        boolean alternating = layer.config.activation().isInterleaved();
        float[] act = new float[pairs * i];
        double[] gateUp = new double[2];
        for (int v = 0; v < act.length; v++) {
            int from = v / i * layer.config.gateUpRows();
            int c = v % i;
            gateUp[0] = gemm1[from + (alternating ? 2 * c : c)];
            gateUp[1] = gated ? gemm1[from + (alternating ? 2 * c + 1 : i + c)] : 1;
            layer.activation(v / i).apply(arithmetic, gateUp, 0, 1, 1, scratch.sum, act, v);
        }
        return act;
    }

    private void align(StageValues given, int pairs, IntStream.Builder sorted, IntStream.Builder blocks) {
        for (int e = 0; e < layer.expertMap.length; e++) {
            int places = 0;
            for (int p = 0; p < pairs; p++) {
                if (given.topkIds()[p] == e) {
                    if (places % given.blockSize() == 0) {
                        blocks.add(layer.expertMap[e]);
                    }
                    sorted.add(p);
                    places++;
                }
            }
            for (; places % given.blockSize() != 0; places++) {
                sorted.add(pairs);
            }
        }
    }

    private static float[] narrow(double[] values, int count) {
        float[] narrow = new float[count];
        for (int v = 0; v < count; v++) {
            narrow[v] = (float) values[v];
        }
        return narrow;
    }

    private static byte[] bytes(float[] values, int count) {
        byte[] bytes = new byte[count];
        for (int v = 0; v < count; v++) {
            bytes[v] = (byte) values[v];
        }
        return bytes;
    }

    private static void floats(byte[] values, float[] into) {
        for (int v = 0; v < values.length; v++) {
            into[v] = values[v];
        }
    }
}
