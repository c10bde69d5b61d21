package org.tornadomoe.parallel;

import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.Int8Experts;

/** A look at a part of a layer that was loaded, while its weights are there. */
@FunctionalInterface
public interface PartCheck {
    /**
     * Looks at a part; may throw, and then nothing is loaded.
     *
     * @param kernel the part's
     * @param config the rank's
     * @param experts its weights
     */
    void check(MoeKernel kernel, FusedMoeConfig config, Int8Experts experts);
}
