package org.tornadomoe.kernel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.QuantKey;

/**
 * The two stages around a layer's experts: how tokens, quantised, come to them, and how their outputs become the
 * layer's (vLLM: {@code FusedMoEPrepareAndFinalize}). Both are stages of the kernel that {@link FusedMoeExperts#load}
 * gives; which they are follows from the configuration. What moves between ranks is moved by the caller, before and
 * after. There is one kind of kernel, which routes for itself, so that vLLM's rule that both halves be monolithic or
 * both modular always holds.
 */
public enum PrepareAndFinalize {
    /** Tokens as they came, quantised once each. */
    NO_DP_EP("MoEPrepareAndFinalizeNoDPEPModular", FusedMoeActivationFormat.STANDARD),
    /**
     * The same, with the tokens of all ranks, which the caller has gathered; the caller reduces and scatters the
     * outputs. Each token has its own scale, or all have one that the caller's gathering must not mix.
     */
    NAIVE_DP_EP("MoEPrepareAndFinalizeNaiveDPEPModular", FusedMoeActivationFormat.STANDARD),
    /** Each token in a slot of each of its experts, which the alignment gives it. */
    BATCHED("BatchedPrepareAndFinalize", FusedMoeActivationFormat.BATCHED_EXPERTS);

    private final String className;
    private final FusedMoeActivationFormat activationFormat;

    PrepareAndFinalize(String className, FusedMoeActivationFormat activationFormat) {
        this.className = className;
        this.activationFormat = activationFormat;
    }

    /**
     * The one that a configuration takes (vLLM: {@code maybe_make_prepare_finalize}).
     *
     * @param activationKey how activations are quantised; null if they aren't
     * @throws IllegalArgumentException if the all-to-all backend can't carry activations that are quantised so
     */
    public static PrepareAndFinalize of(FusedMoeConfig config, @Nullable QuantKey activationKey) {
        FusedMoeParallelConfig parallel = config.moeParallelConfig();
        if (parallel.useFiNvlOneSidedKernels() && activationKey != null) {
            throw new IllegalArgumentException(
                    "flashinfer_nvlink_one_sided dispatch supports nvfp4, mxfp8, and bf16 (quant_dtype=None) today; got"
                            + " quant_dtype=" + activationKey.dtype());
        }
        if (parallel.useBatchedActivationFormat()) {
            return BATCHED;
        }
        return parallel.useAll2allKernels() || parallel.dpSize() > 1 ? NAIVE_DP_EP : NO_DP_EP;
    }

    /** vLLM's class of this kind. */
    public String className() {
        return className;
    }

    /** What it hands to the experts. */
    public FusedMoeActivationFormat activationFormat() {
        return activationFormat;
    }
}
