package org.tornadomoe.cpu;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.modular.FusedMoeExperts;
import org.tornadomoe.modular.MoeKernel;
import org.tornadomoe.modular.StageValues;
import org.tornadomoe.modular.Support;
import org.tornadomoe.quant.Int8Experts;

/**
 * The layer on this machine's cores: integers in float lanes, where they stay exact, and everything between the GEMMs in float64,
 * so that int8 activations are the definition's. Runs on the calling thread and the common pool.
 */
public sealed class CpuExperts implements FusedMoeExperts permits CpuBatchedExperts {
    @Override
    public Int8MoeBackend backend() {
        return Int8MoeBackend.CPU;
    }

    @Override
    public int order() {
        return 10;
    }

    @Override
    public List<String> devices() {
        return List.of("cpu");
    }

    @Override
    public String device(FusedMoeConfig config) {
        return config.device() == null || supportsCurrentDevice(config) ? CpuMoeKernel.DEVICE : config.device();
    }

    @Override
    public boolean supportsCurrentDevice(FusedMoeConfig config) {
        return config.device() == null || config.device().equals("cpu");
    }

    @Override
    public boolean supportsNoActAndMul() {
        return true;
    }

    @Override
    public boolean supportsLora() {
        return true;
    }

    @Override
    public boolean supportsBias() {
        return true;
    }

    @Override
    public boolean supportsActivation(MoeActivation activation) {
        return true;
    }

    @Override
    public boolean supportsQuantScheme(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return Int8Scheme.of(weightKey, activationKey) != null;
    }

    /** A rank's part, by experts or by columns, gives its part of the sum. Left out is what can't carry int8 activations. */
    @Override
    public boolean supportsParallelConfig(FusedMoeParallelConfig parallel) {
        return !parallel.useFiNvlTwoSidedKernels() && !parallel.useFiNvlOneSidedKernels();
    }

    @Override
    public boolean supportsBatchInvariance() {
        return true;
    }

    @Override
    public boolean supportsExperts(int numExperts) {
        return true;
    }

    @Override
    public List<Support> obstacles(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return config.batchInvariant() && QuantKey.INT8_DYNAMIC_TENSOR_SYM.equals(activationKey)
                ? List.of(Support.no(
                        "one scale of all tokens, found at run time, makes them depend on each other",
                        "activations: scales known beforehand"))
                : List.of();
    }

    @Override
    public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
        return new CpuMoeKernel(config, experts, Arithmetic.best(), Team.shared());
    }

    @Override
    public StageValues stages(
            FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
        try (CpuMoeKernel kernel =
                new CpuMoeKernel(config.withMaxNumTokens(tokens), experts, Arithmetic.best(), Team.shared())) {
            return kernel.stages(hidden, tokens, given);
        }
    }
}
