package org.tornadomoe.kernel;

/**
 * Where the outputs of a token's experts get the router's weights and are summed (vLLM: {@code TopKWeightAndReduce}). M
 * tokens, K experts a token, H hidden, S slots of an expert.
 */
public enum TopKWeightAndReduce {
    /** The experts leave it to {@link PrepareAndFinalize}, which chooses one of the other two. */
    DELEGATE,
    /** The experts do both: the second GEMM weighs, and a kernel after it sums over K. */
    NO_OP,
    /** From the outputs of pairs, [M, K, H]. */
    CONTIGUOUS,
    /** From the outputs of slots, [local experts, S, H]: each pair's slot is looked up, weighed, and added. */
    NAIVE_BATCHED
}
