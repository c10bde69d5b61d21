package org.tornadomoe.tornado;

import java.util.List;
import java.util.function.IntFunction;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * How a layer's experts are dealt out over arrays: TornadoVM's have at most 2^31 - 1 elements, devices may take less at once, and
 * DeepSeek-V3's first projections are 7.5 GB. Both projections of an expert are in the same part; all parts but the last have the same
 * number of experts. Usually there is one.
 *
 * @param experts of the layer that are here
 * @param expertsOfPart of every part but the last
 */
record ExpertParts(int experts, int expertsOfPart) {
    /**
     * The property that says how many bytes of a projection's int8 weights one array may have; by default 2^31 - 1, which is what OpenCL
     * devices of 8 GB give at once.
     */
    static final String BYTES_PROPERTY = "tornadomoe.partBytes";

    /** As many as {@code hopper-gemm.cu} takes. */
    static final int MOST = 8;

    /** Those of a layer: as few as the bytes of an array allow, but at most {@link #MOST}, whatever that makes their arrays. */
    static ExpertParts of(FusedMoeConfig config, int localExperts, Gemm gemm) {
        int layout = LayerStages.Activation.of(config).layout();
        int i = config.intermediateSizePerPartition();
        long bytesOfExpert = 4
                * Math.max(
                        gemm.weightInts(1, config.gateUpRows(), config.hiddenDim(), layout),
                        gemm.weightInts(1, config.hiddenDim(), i, ActivationKernels.NO_GATE));
        long fit = Math.max(1, Long.getLong(BYTES_PROPERTY, Integer.MAX_VALUE) / bytesOfExpert);
        int parts = (int) Math.min(Math.ceilDiv(localExperts, fit), MOST);
        return new ExpertParts(localExperts, Math.ceilDiv(localExperts, parts));
    }

    int count() {
        return Math.ceilDiv(experts, expertsOfPart);
    }

    /** The part's first expert. */
    int first(int part) {
        return part * expertsOfPart;
    }

    /** Experts of the part. */
    int experts(int part) {
        return Math.min(expertsOfPart, experts - first(part));
    }

    /** Something for each part. */
    <T> List<T> each(IntFunction<T> make) {
        return IntStream.range(0, count()).mapToObj(make).toList();
    }

    /** What distinguishes a part's name: nothing where there is one. */
    String suffix(int part) {
        return count() == 1 ? "" : Integer.toString(part);
    }

    /**
     * A projection's weights, a part each; scales, zero points and biases in as many arrays, or, where the GEMM numbers experts through
     * all parts, in one.
     *
     * @param values {@code [experts of the part, kInts, rows]}, or as {@link TiledWeights} or {@link HopperWeights} have them
     * @param scales {@code [experts, rows]}; with blocks and groups {@code [experts, groups of columns, scale rows]}
     * @param zeroPoints with zero points as scales
     * @param bias with biases {@code [experts, rows]}
     */
    record Weights(
            List<IntArray> values, List<FloatArray> scales, List<FloatArray> zeroPoints, List<FloatArray> bias) {}
}
