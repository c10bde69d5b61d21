package org.tornadomoe.tornado;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.modular.FusedMoeExperts;
import org.tornadomoe.modular.MoeKernel;
import org.tornadomoe.modular.StageValues;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.kernels.AlignKernels;

/**
 * The layer as a TornadoVM task graph on one device, with the int8 GEMMs in one of two forms: {@code dp4a}, where the device
 * has the instruction, and portable, everywhere.
 *
 * @param device where it would run
 * @param dp4a which form
 */
public record TornadoExperts(Device device, boolean dp4a) implements FusedMoeExperts {
    @Override
    public String name() {
        return dp4a ? "TornadoDp4aExperts" : "TornadoPortableExperts";
    }

    @Override
    public @Nullable String unsupported(FusedMoeConfig config, Int8Scheme scheme) {
        if (TornadoHome.current().kind() == TornadoHome.Kind.SDK && !TornadoHome.bailoutsAreErrors()) {
            return "TornadoVM would hide kernels that fail to compile: start the JVM with"
                    + " -Dtornado.recover.bailout=False";
        }
        if (dp4a && !device.dp4a()) {
            return device + " has no dp4a: TornadoVM compiles it for PTX and CUDA only";
        }
        if (dp4a && !scheme.quantizesActivations()) {
            return "dp4a multiplies int8 by int8, and " + scheme + " keeps activations in float";
        }
        if (device.maxGroup() > 0 && device.maxGroup() < AlignKernels.SCAN_GROUP) {
            return device + " takes work-groups of " + device.maxGroup() + " and the kernels need "
                    + AlignKernels.SCAN_GROUP;
        }
        return null;
    }

    @Override
    public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
        return TornadoMoeKernel.load(device, config, experts, dp4a);
    }

    @Override
    public StageValues stages(
            FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
        return StageRun.run(device, config, experts, dp4a, hidden, tokens, given);
    }
}
