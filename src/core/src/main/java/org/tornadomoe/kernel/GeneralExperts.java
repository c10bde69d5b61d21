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
 * A kernel class that serves whatever a configuration may have, but for what it says itself. {@link FusedMoeExperts}
 * alone claims nothing that vLLM's base class doesn't.
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
     * A rank's part, by experts or by columns, gives its part of the sum. What is left out is what vLLM's class leaves
     * out.
     */
    @Override
    default boolean supportsParallelConfig(FusedMoeParallelConfig parallel) {
        return !parallel.useFiNvlTwoSidedKernels() && !parallel.useFiNvlOneSidedKernels();
    }

    /**
     * Both: within a process a slot of the batched format is its pair's place among its expert's pairs, and nothing is
     * copied to it.
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

    /** All that a configuration may have: its alignment has no limit of its own. */
    @Override
    default boolean supportsExperts(int numExperts) {
        return true;
    }

    @Override
    default boolean supportsBias() {
        return true;
    }

    /** Those of batch invariance: one scale for all tokens, and experts that move by the load that all tokens make. */
    @Override
    default List<Support> obstacles(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        List<Support> obstacles = new ArrayList<>();
        if (config.batchInvariant() && QuantKey.INT8_DYNAMIC_TENSOR_SYM.equals(activationKey)) {
            obstacles.add(Support.no(
                    "one scale of all tokens, found at run time, makes them depend on each other",
                    "activations: scales known beforehand"));
        }
        if (config.batchInvariant() && config.moeParallelConfig().enableEplb()) {
            obstacles.add(Support.no(
                    "experts that move, and copies that are chosen by a token's place in the call, change the order of"
                            + " its sum",
                    "no load balancing"));
        }
        return obstacles;
    }
}
