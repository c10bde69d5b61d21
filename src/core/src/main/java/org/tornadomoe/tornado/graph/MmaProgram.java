package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntFunction;
import java.util.function.IntUnaryOperator;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.layout.MmaWeights;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A layer with {@link MmaGemm}: activations are brought into the form that its products take by kernels of its own. */
final class MmaProgram extends CudaProgram {
    /** Bytes of the longest rows that the second GEMM packs itself. */
    private static final int PACKED_BYTES = 8 << 10;

    private final MmaGemm mma;

    MmaProgram(MmaGemm gemm, LayerArrays arrays) {
        super(gemm, arrays);
        mma = gemm;
    }

    @Override
    List<Stage> first() {
        return logits();
    }

    @Override
    List<Stage> packTokens() {
        return quantizeTokens();
    }

    @Override
    List<Stage> packPairs() {
        return packPairs(packedOften());
    }

    /**
     * A matrix whose rows are packed.
     *
     * @param isPairs whether rows are pairs, and those of key −1 aren't there; else they are tokens'
     */
    private record Matrix(
            String name,
            FloatArray from,
            FloatArray oneScale,
            IntArray into,
            FloatArray scales,
            int rowsPerToken,
            int cols,
            boolean isPairs,
            boolean isWeighted) {}

    /** hidden → hiddenQ and scales, and amax is 0. */
    @Override
    List<Stage> quantizeTokens() {
        int rowsPerToken = a.shape.config.inputRowsPerToken();
        return pack(
                new Matrix(
                        "quantizeTokens",
                        a.work.hidden,
                        a.work.hiddenScale,
                        a.work.hiddenQ,
                        a.work.hiddenScales,
                        rowsPerToken,
                        a.shape.hidden,
                        false,
                        a.shape.weightsOnInput),
                m -> m * rowsPerToken);
    }

    /** activated → activatedQ and scales. */
    @Override
    List<Stage> quantizePairs() {
        return packPairs(0);
    }

    /** @param often pairs up to which the GEMM does it */
    private List<Stage> packPairs(int often) {
        return pack(
                new Matrix(
                        "quantizePairs",
                        a.work.activated,
                        a.work.activatedScale,
                        a.work.activatedQ,
                        a.work.activatedScales,
                        a.shape.topK,
                        a.shape.intermediate,
                        true,
                        false),
                m -> MmaGemm.isSkinny(a.blockSize(m)) && a.shape.pairs(m) <= often ? 0 : a.shape.pairs(m));
    }

    private List<Stage> pack(Matrix x, IntUnaryOperator count) {
        boolean dynamic = a.shape.scheme == Int8Scheme.W8A8_TENSOR && !a.staticScales;
        int group = mma.columnsOfGroup(a, x.cols);
        Stage pack = pack(
                x.name,
                x.cols,
                launch("packRows", count),
                List.of(a.work.keys, a.work.topkWeights, x.from, x.oneScale),
                x.isPairs ? List.of(x.into, x.scales) : List.of(x.into, x.scales, a.work.amax),
                x.isPairs ? List.of(a.work.amax) : List.of(),
                List.of(
                        x.rowsPerToken,
                        x.cols,
                        MmaWeights.chunks(x.cols),
                        Math.ceilDiv(x.cols, group),
                        group,
                        x.isPairs ? 1 : 0,
                        x.isWeighted ? 1 : 0,
                        x.isPairs ? 0 : a.shape.topK,
                        mma.ordersFrom()));
        if (!dynamic) {
            return List.of(pack);
        }
        Stage magnitudes = pack(
                x.name + "Magnitudes",
                x.cols,
                launch("rowMagnitudes", count),
                List.of(a.work.keys, a.work.topkWeights, x.from),
                List.of(x.scales),
                List.of(),
                List.of(x.rowsPerToken, x.cols, x.isPairs ? 1 : 0, x.isWeighted ? 1 : 0));
        Stage scale = pack(
                x.name + "Scale",
                x.cols,
                m -> new Launch("tensorScale", 1024, 1, 1, 0),
                List.of(x.scales),
                List.of(x.oneScale),
                List.of(),
                List.of(x.rowsPerToken));
        return List.of(magnitudes, scale, pack);
    }

    private static IntFunction<Launch> launch(String entryPoint, IntUnaryOperator count) {
        return m -> count.applyAsInt(m) == 0 ? Launch.NONE : new Launch(entryPoint, 128, count.applyAsInt(m), 1, 0);
    }

    /** Where rows have one scale each, which is known from the first product. */
    @Override
    int packedOften() {
        boolean perRow = a.shape.scheme == Int8Scheme.W8A8_CHANNEL || !a.shape.int8;
        return perRow && mma.rowBytes(a.shape.intermediate) <= PACKED_BYTES ? PACKED_OFTEN : 0;
    }
}
