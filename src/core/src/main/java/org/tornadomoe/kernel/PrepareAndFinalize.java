package org.tornadomoe.kernel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.QuantKey;

/**
 * The two stages around a layer's experts: one quantises the tokens and brings them to the experts, the other combines
 * the experts' outputs (vLLM: {@code FusedMoEPrepareAndFinalize}). Both are stages of the kernel from {@link
 * FusedMoeExperts#load}; the configuration determines which. The caller moves data between ranks, before and after.
 * Every kernel routes by itself, so vLLM's rule that both halves be monolithic or both modular always holds.
 */
public enum PrepareAndFinalize {
    /** Tokens in their original order, each quantised once. */
    NO_DP_EP("MoEPrepareAndFinalizeNoDPEPModular", FusedMoeActivationFormat.STANDARD),
    /**
     * The same, with the tokens of all ranks, which the caller has gathered; the caller reduces and scatters the
     * outputs. Each token has its own scale; if all tokens share one, the caller's gathering must not mix different
     * scales.
     */
    NAIVE_DP_EP("MoEPrepareAndFinalizeNaiveDPEPModular", FusedMoeActivationFormat.STANDARD),
    /** Each token in a slot of each of its experts, which the alignment assigns. */
    BATCHED("BatchedPrepareAndFinalize", FusedMoeActivationFormat.BATCHED_EXPERTS);

    private final String className;
    private final FusedMoeActivationFormat activationFormat;

    PrepareAndFinalize(String className, FusedMoeActivationFormat activationFormat) {
        this.className = className;
        this.activationFormat = activationFormat;
    }

    /**
     * The kind that a configuration uses (vLLM: {@code maybe_make_prepare_finalize}).
     *
     * @param activationKey how activations are quantised; null if they aren't
     * @throws IllegalArgumentException if the all-to-all backend can't carry activations quantised in this way
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

    /** The format in which it passes tokens to the experts. */
    public FusedMoeActivationFormat activationFormat() {
        return activationFormat;
    }
}
