package org.tornadomoe.parallel;

import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.Int8Experts;

/** Checks a loaded part of a layer while its weights are still available. */
@FunctionalInterface
public interface PartCheck {
    /**
     * Checks a part. If it throws, nothing stays loaded.
     *
     * @param kernel the part's kernel
     * @param config the rank's configuration
     * @param experts the part's weights
     */
    void check(MoeKernel kernel, FusedMoeConfig config, Int8Experts experts);
}
