package org.tornadomoe.kernel;

/**
 * The operations of a {@link MoeKernel} that computes a part of an expert's pairs, for load balancing ({@link
 * org.tornadomoe.config.FusedMoeParallelConfig#enableEplb}). Kernels of a class that {@linkplain
 * FusedMoeExperts#supportsEplb supports it} implement it.
 */
public interface Replicated {
    /**
     * Sets the pairs that this kernel computes from now on; initially all pairs of its experts. The caller makes sure
     * that no call runs meanwhile.
     *
     * @param replicas the replicas of all of the layer's experts, including those on other devices
     */
    void setReplicas(Replicas replicas);

    /**
     * [local experts]: the number of pairs of each local expert in the last call. The caller of that call must ask
     * before the next call; valid until then.
     */
    int[] expertLoads();

    /**
     * The kernel's operations.
     *
     * @throws UnsupportedOperationException if the kernel doesn't implement them
     */
    static Replicated of(MoeKernel kernel) {
        if (kernel instanceof Replicated replicated) {
            return replicated;
        }
        throw new UnsupportedOperationException("kernel does not support EPLB");
    }
}
