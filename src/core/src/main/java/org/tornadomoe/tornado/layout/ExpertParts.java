package org.tornadomoe.tornado.layout;

import java.util.List;
import java.util.function.IntFunction;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.tornado.kernels.ActivationKernels;

/**
 * The partition of a layer's experts into arrays: TornadoVM's arrays have at most 2^31 - 1 elements, devices may
 * allocate less at once, and DeepSeek-V3's first projections are 7.5 GB. Both projections of an expert are in the same
 * part; all parts but the last have the same number of experts. Usually there is one part.
 *
 * @param experts of the layer that are here
 * @param expertsOfPart of every part but the last
 */
public record ExpertParts(int experts, int expertsOfPart) {
    /**
     * The property that says how many bytes of a projection's int8 weights one array may have; by default 2^31 - 1,
     * which is what OpenCL devices of 8 GB give at once.
     */
    public static final String BYTES_PROPERTY = "tornadomoe.partBytes";

    /** The most that {@code hopper-gemm.cu} accepts. */
    public static final int MAX_PARTS = 8;

    /**
     * Those of a layer: as few as the bytes of an array allow, but at most {@link #MAX_PARTS}, whatever that makes
     * their arrays.
     */
    public static ExpertParts of(FusedMoeConfig config, int localExperts, WeightLayout layout) {
        int gate = ActivationCode.of(config).layout();
        int i = config.intermediateSizePerPartition();
        long bytesOfExpert = 4
                * Math.max(
                        layout.ints(1, config.gateUpRows(), config.hiddenDim(), gate),
                        layout.ints(1, config.hiddenDim(), i, ActivationKernels.NO_GATE));
        long fit = Math.max(1, Long.getLong(BYTES_PROPERTY, Integer.MAX_VALUE) / bytesOfExpert);
        int parts = (int) Math.min(Math.ceilDiv(localExperts, fit), MAX_PARTS);
        return new ExpertParts(localExperts, Math.ceilDiv(localExperts, parts));
    }

    public int count() {
        return Math.ceilDiv(experts, expertsOfPart);
    }

    /** The part's first expert. */
    public int first(int part) {
        return part * expertsOfPart;
    }

    /** Experts of the part. */
    public int experts(int part) {
        return Math.min(expertsOfPart, experts - first(part));
    }

    /** One value per part. */
    public <T> List<T> each(IntFunction<T> make) {
        return IntStream.range(0, count()).mapToObj(make).toList();
    }

    /** The suffix of a part's name; empty if there is one part. */
    public String suffix(int part) {
        return count() == 1 ? "" : Integer.toString(part);
    }

    /** The name of a part's array, with the part's number if there are several. */
    public String name(String whole, int part) {
        return count() == 1 ? whole : whole + "[" + part + "]";
    }

    /** All experts in one part. */
    public ExpertParts together() {
        return new ExpertParts(experts, experts);
    }
}
