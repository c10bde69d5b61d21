package org.tornadomoe;

import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.parallel.ShardedLayer;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.Int8Experts;

/** What loading a {@link MoeLayer} takes: its kernel classes are selected, then its lanes loaded. */
final class LayerLoader {
    private LayerLoader() {}

    /** Selects each device's kernel class for a layer with the options' adapters, router, sizes and types. */
    static Sharding select(
            FusedMoeConfig config, QuantKey weightKey, @Nullable QuantKey activationKey, MoeOptions options) {
        return Sharding.of(
                Int8MoeOracle.installed(),
                withOptions(config, options),
                weightKey,
                activationKey,
                options.kernelClass(),
                options.devices(),
                options.expertParallel(),
                options.loadBalancing());
    }

    /** A layer's configuration with the options' adapters, router, sizes and types. */
    static FusedMoeConfig withOptions(FusedMoeConfig config, MoeOptions options) {
        FusedMoeConfig.Builder layer = config.toBuilder();
        if (options.maxLoras() > 0) {
            layer.lora(options.maxLoras(), options.maxLoraRank());
        }
        return layer.router(
                        options.router() == null
                                ? config.router()
                                : config.router().handedIn())
                .maxNumTokens(options.maxTokens())
                .inDtype(options.hiddenType())
                .routerLogitsDtype(ScalarType.F32)
                .moeBackend(options.backend())
                .build();
    }

    /** Loads the layer's weights, and as many lanes as the options ask for and the kernel class supports. */
    static List<MoeKernel> lanes(Sharding sharding, Int8Experts experts, MoeOptions options) {
        List<MoeKernel> lanes = new ArrayList<>();
        try {
            MoeKernel kernel = ShardedLayer.load(sharding, Int8MoeOracle.installed(), experts, SelfCheck::run);
            lanes.add(kernel);
            experts.requireUnchanged();
            for (MoeKernel next = kernel; lanes.size() < options.lanes(); lanes.add(next)) {
                next = kernel.lane();
                if (next == null) {
                    break;
                }
            }
            if (options.listener() != null && options.listener().wantsStages()) {
                lanes.forEach(Profiled::timeStages);
            }
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, () -> Cleanup.each(lanes.reversed(), MoeKernel::close));
            try {
                experts.requireUnchanged();
            } catch (RuntimeException changed) { // then what failed is not to blame
                if (changed != failure) {
                    changed.addSuppressed(failure);
                }
                throw changed;
            }
            throw failure;
        }
        return lanes;
    }
}
