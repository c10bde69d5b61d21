package org.tornadomoe.kernel;

/**
 * What a {@link MoeKernel} can that has a part of the pairs of an expert, where experts move by load ({@link
 * org.tornadomoe.config.FusedMoeParallelConfig#enableEplb}): of a class that {@linkplain FusedMoeExperts#supportsEplb
 * says so}.
 */
public interface Replicated {
    /**
     * Says which pairs are this kernel's from now on; until then all of the experts' that it has. No call is under way
     * meanwhile.
     *
     * @param replicas of the whole layer's experts, those that aren't here included
     */
    void setReplicas(Replicas replicas);

    /**
     * [experts here], by their local numbers: the pairs of each in the last call. To be asked by whoever made that
     * call, before another is made; valid until then.
     */
    int[] expertLoads();

    /**
     * That kernel's.
     *
     * @throws UnsupportedOperationException if it has none
     */
    static Replicated of(MoeKernel kernel) {
        if (kernel instanceof Replicated replicated) {
            return replicated;
        }
        throw new UnsupportedOperationException("kernel does not support EPLB");
    }
}
