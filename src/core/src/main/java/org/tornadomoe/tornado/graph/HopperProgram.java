package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntPredicate;
import java.util.stream.Stream;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.layout.ActivationCode;
import org.tornadomoe.tornado.layout.HopperWeights;

/** A layer with {@link HopperGemm}: for few tokens what is quantised is in one kernel with the router's logits. */
final class HopperProgram extends CudaProgram {
    /** The longest rows, in chunks, that the second GEMM packs itself. */
    private static final int PACKED_CHUNKS = 24;

    private static final HopperGemm GEMM = new HopperGemm();

    HopperProgram(LayerArrays arrays) {
        super(GEMM, arrays);
    }

    @Override
    public List<Stage> all() {
        boolean weighted = a.shape.weightsOnInput;
        boolean routes = a.shape.routes;
        return Stream.of(
                        routes ? prepare("prepare", !weighted) : List.<Stage>of(),
                        routes ? List.of(route()) : List.<Stage>of(),
                        routes ? List.of(topK(m -> m > ROUTED_TOGETHER)) : List.<Stage>of(),
                        place(m -> !routes || m > ROUTED_TOGETHER),
                        List.of(sort(m -> !routes || m > ROUTED_TOGETHER)),
                        List.of(quantize(m -> weighted || !routes || isTiled(m), weighted ? 0 : 1)),
                        activated(),
                        List.of(GEMM.stage(
                                a, rows, downProduct(), ActivationCode.none(ActivationKernels.NO_GATE), packedOften())),
                        loraDown(),
                        combine(),
                        zeroExperts())
                .flatMap(List::stream)
                .toList();
    }

    @Override
    List<Stage> quantizeTokens() {
        return List.of(quantize(m -> true, 0));
    }

    /**
     * hidden → int8 tokens.
     *
     * @param beside 1 behind a kernel that has nothing to do with it
     */
    private Stage quantize(IntPredicate when, int beside) {
        int rowsPerToken = a.shape.config.inputRowsPerToken();
        return prepare(
                "quantizeTokens",
                m -> when.test(m) ? new Launch("prepare", 128, m * rowsPerToken, 1, 0) : Launch.NONE,
                0,
                rowsPerToken,
                beside);
    }

    /**
     * tokens → activated, its int8 and its scales. The activation is in the first GEMM's last step, or, where adapters
     * come between, in a kernel that gives the same bits.
     */
    private List<Stage> activated() {
        int i = a.shape.intermediate;
        Stage quantize = GEMM.kernel(
                a,
                "quantizePairs",
                ActivationCode.none(ActivationKernels.NO_GATE),
                i,
                m -> {
                    if (HopperGemm.isSkinny(a, m) && rows.of(m) <= packedOften()) {
                        return Launch.NONE;
                    }
                    return m >= MANY
                            ? new Launch("quantizePairs", 128, Math.ceilDiv(rows.of(m), 4), 1, 0)
                            : new Launch("quantizePairs", 128, rows.of(m), Math.ceilDiv(i, 2048), 0);
                },
                afterHeader(List.of(a.work.keys, a.work.activated, a.work.amax)),
                List.of(a.work.activatedQ, a.work.activatedScales),
                List.of(),
                List.of(a.shape.topK, i, HopperWeights.chunks(i), MANY));
        if (!a.shape.adapted) {
            return List.of(GEMM.stage(a, rows, gateUpProduct(a.work.activated), a.shape.activation, 0), quantize);
        }
        return Stream.of(gateUp(), loraGateUp(), List.of(activatePairs(GEMM), quantize))
                .flatMap(List::stream)
                .toList();
    }

    /** Up to how many pairs the second GEMM of {@link #all} quantises them, if it is the one for few. */
    private int packedOften() {
        return HopperWeights.chunks(a.shape.intermediate) <= PACKED_CHUNKS ? PACKED_OFTEN : 0;
    }
}
