package org.tornadomoe.kernel;

import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;

/**
 * A kernel class that supports everything that a configuration may contain, except where it overrides a method. {@link
 * FusedMoeExperts} alone claims only what vLLM's base class does.
 */
public interface GeneralExperts extends FusedMoeExperts {
    @Override
    default boolean supportsNoActAndMul() {
        return true;
    }

    @Override
    default boolean supportsActivation(MoeActivation activation) {
        return true;
    }

    /** Every int8 scheme. */
    @Override
    default boolean supportsQuantScheme(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return Int8Scheme.of(weightKey, activationKey) != null;
    }

    /**
     * Supports a rank's part, by experts or by columns, which computes its part of the sum. It excludes what vLLM's
     * class excludes.
     */
    @Override
    default boolean supportsParallelConfig(FusedMoeParallelConfig parallel) {
        return !parallel.useFiNvlTwoSidedKernels() && !parallel.useFiNvlOneSidedKernels();
    }

    /**
     * Supports both formats: within a process, a slot of the batched format is a pair's position among its expert's
     * pairs, and nothing is copied into it.
     */
    @Override
    default boolean supportsActivationFormat(FusedMoeActivationFormat format) {
        return true;
    }

    @Override
    default boolean supportsBatchInvariance() {
        return true;
    }

    @Override
    default boolean supportsLora() {
        return true;
    }

    @Override
    default boolean supportsEplb() {
        return true;
    }

    /** Supports as many experts as a configuration may have: its alignment sets no limit. */
    @Override
    default boolean supportsExperts(int numExperts) {
        return true;
    }

    @Override
    default boolean supportsBias() {
        return true;
    }

    /** The obstacles to batch invariance: one scale for all tokens, and load balancing, which depends on all tokens. */
    @Override
    default List<Support> obstacles(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        List<Support> obstacles = new ArrayList<>();
        if (config.batchInvariant() && QuantKey.INT8_DYNAMIC_TENSOR_SYM.equals(activationKey)) {
            obstacles.add(Support.no(
                    "one scale for all tokens, computed at run time, makes them depend on each other",
                    "activations: static scales"));
        }
        if (config.batchInvariant() && config.moeParallelConfig().enableEplb()) {
            obstacles.add(Support.no(
                    "load balancing moves experts and chooses copies by a token's place in the call, which changes the"
                            + " order of its sum",
                    "no load balancing"));
        }
        return obstacles;
    }
}
