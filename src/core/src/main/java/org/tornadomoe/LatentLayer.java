package org.tornadomoe;

import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LatentSpace;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;

/**
 * What loading a layer whose experts compute in a {@link LatentSpace} yields.
 *
 * @param sharding of the routed experts
 * @param scheme of the routed experts
 * @param lanes of the whole layer
 */
record LatentLayer(Sharding sharding, Int8Scheme scheme, List<MoeKernel> lanes) {
    /** Loads the routed experts and the shared ones, each as a layer that is handed its routing. */
    static LatentLayer load(
            ExpertWeights weights, LatentSpace latent, Int8Quantization quantization, MoeOptions options) {
        if (options.maxLoras() > 0 || options.loadBalancing() != null) {
            throw new UnsupportedOperationException(
                    "a layer whose experts compute in a narrower space has neither adapters nor load balancing");
        }
        MoeOptions inside = options.withHiddenType(ScalarType.F32).withRouter(null);
        List<MoeKernel> all = new ArrayList<>();
        try {
            Part routed = load(weights, quantization, inside, options.progress(), all);
            ExpertWeights shared = latent.shared();
            Part beside = null;
            if (shared != null) {
                boolean ownScheme = options.quantization() == null && shared instanceof QuantizedWeights;
                Int8Quantization own = ownScheme ? shared.quantization() : quantization;
                // By columns, as there may be fewer shared experts than devices.
                beside = load(shared, own, inside.withExpertParallel(false), Progress.NONE, all);
            }
            return new LatentLayer(routed.sharding, routed.scheme, lanes(latent, options.hiddenType(), routed, beside));
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, () -> Cleanup.each(all.reversed(), MoeKernel::close));
            throw failure;
        }
    }

    private record Part(Sharding sharding, Int8Scheme scheme, List<MoeKernel> lanes) {}

    private static Part load(
            ExpertWeights weights,
            Int8Quantization quantization,
            MoeOptions options,
            Progress progress,
            List<MoeKernel> all) {
        Sharding sharding =
                LayerLoader.select(weights.config(), quantization.weightKey(), quantization.activationKey(), options);
        try (Int8Experts experts = QuantizedWeights.int8(weights, quantization, progress)) {
            List<MoeKernel> lanes = LayerLoader.lanes(sharding, experts, options);
            all.addAll(lanes);
            return new Part(sharding, experts.scheme(), lanes);
        }
    }

    /** As many as both parts have; what one has more is closed. */
    private static List<MoeKernel> lanes(LatentSpace latent, ScalarType type, Part routed, @Nullable Part shared) {
        List<MoeKernel> ofShared = shared == null ? List.of() : shared.lanes;
        int count = shared == null ? routed.lanes.size() : Math.min(routed.lanes.size(), ofShared.size());
        LatentKernel.Projections projections = LatentKernel.Projections.of(latent);
        List<MoeKernel> lanes = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            lanes.add(
                    new LatentKernel(projections, type, routed.lanes.get(i), shared == null ? null : ofShared.get(i)));
        }
        for (List<MoeKernel> part : List.of(routed.lanes, ofShared)) {
            List<MoeKernel> more = part.subList(Math.min(count, part.size()), part.size());
            Cleanup.each(more.reversed(), MoeKernel::close);
        }
        return List.copyOf(lanes);
    }
}
