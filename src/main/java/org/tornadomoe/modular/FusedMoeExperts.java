package org.tornadomoe.modular;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;

/** A kernel class: what it can serve, and the way to a kernel for a layer. Stateless and thread-safe. */
public interface FusedMoeExperts {
    /** The kernel class's name, as reports show it. */
    String name();

    /** Why this class can't serve such a layer here, in one sentence that begins in lower case; null if it can. */
    @Nullable
    String unsupported(FusedMoeConfig config, Int8Scheme scheme);

    /**
     * Loads a layer. The weights are copied; they may be closed afterwards.
     *
     * @param config the layer's, with the most tokens of a call
     * @param experts the layer's weights
     * @throws InsufficientMemoryException before anything is allocated, if the layer doesn't fit
     * @throws MoeExecutionException if the device refused it
     */
    MoeKernel load(FusedMoeConfig config, Int8Experts experts);

    /**
     * Runs every stage by itself, each on its given inputs, and tells what each made of them: for checking a kernel class
     * against other implementations' numbers. Slow; the logits given are routed as they are.
     *
     * @param hidden [M, H]
     * @param tokens M
     * @param given inputs, and of the outputs nothing is looked at
     * @throws MoeExecutionException if the device failed
     */
    StageValues stages(FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given);
}
