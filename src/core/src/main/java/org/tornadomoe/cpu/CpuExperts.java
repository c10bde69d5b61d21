package org.tornadomoe.cpu;

import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.Team;
import org.tornadomoe.kernel.GeneralExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.Int8Experts;

/**
 * The layer on this machine's cores: integers in float lanes, where they stay exact, and everything between the GEMMs
 * in float64, so that int8 activations are the definition's. Runs on the calling thread and the common pool.
 */
public final class CpuExperts implements GeneralExperts {
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
        return config.device() == null || supportsCurrentDevice(config)
                ? CpuMoeKernel.device(Arithmetic.best(), Team.shared())
                : config.device();
    }

    @Override
    public boolean supportsCurrentDevice(FusedMoeConfig config) {
        return config.device() == null || config.device().equals("cpu");
    }

    @Override
    public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
        return new CpuMoeKernel(config, experts, Arithmetic.best(), Team.shared());
    }

    @Override
    public StageValues stages(
            FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
        Arithmetic arithmetic = Arithmetic.best().java();
        try (CpuWeights layer = new CpuWeights(config.withMaxNumTokens(tokens), experts, arithmetic)) {
            return new CpuStageCheck(layer, arithmetic).stages(hidden, tokens, given);
        }
    }
}
