package org.tornadomoe.kernel;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;

/**
 * The shapes of what lies between the stages of a layer, known before any call, so that it is allocated once (vLLM:
 * {@code workspace_shapes} of {@code TritonExperts} and {@code BatchedTritonExperts}). One workspace has what the first
 * GEMM gives and, when the activation has read that, what the second gives; the other has what the activation gives.
 *
 * @param gemms [M, K, max(N, H)]; batched [E, S·D, max(N, H)]
 * @param activated [M, K, A]; batched [E, S·D, A]. vLLM keeps max(A, H) in the standard format, since the layer's
 *     output lies there too
 * @param output [M, H]
 */
public record WorkspaceShapes(List<Integer> gemms, List<Integer> activated, List<Integer> output) {
    /**
     * The shapes of a layer.
     *
     * @param m M, the most tokens of a call
     * @param n N, what the first GEMM gives for a row: 2I, or I without a gate
     * @param activationOut A, what the activation makes of that: I
     * @param h H
     * @param topK K
     * @param localExperts E
     * @param maxNumTokens S, slots of an expert for each that hands tokens over; batched only, null otherwise
     * @param numDispatchers D, how many hand tokens over; batched only, null otherwise
     * @throws IllegalArgumentException if slots are given in the standard format, or missing or too many in the batched
     *     one
     */
    public static WorkspaceShapes of(
            FusedMoeActivationFormat format,
            int m,
            int n,
            int activationOut,
            int h,
            int topK,
            int localExperts,
            @Nullable Integer maxNumTokens,
            @Nullable Integer numDispatchers) {
        if (format == FusedMoeActivationFormat.STANDARD) {
            if (maxNumTokens != null || numDispatchers != null) {
                throw new IllegalArgumentException("max_num_tokens and num_dispatchers should only be set for"
                        + " BatchedExperts activation format.");
            }
            return new WorkspaceShapes(
                    List.of(m, topK, Math.max(n, h)), List.of(m, topK, activationOut), List.of(m, h));
        }
        if (maxNumTokens == null || numDispatchers == null) {
            throw new IllegalArgumentException(
                    "max_num_tokens and num_dispatchers must be set for BatchedExperts activation format.");
        }
        long slotsOfAll = (long) maxNumTokens * numDispatchers;
        if (maxNumTokens < 0 || numDispatchers < 0 || slotsOfAll > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("maxNumTokens * numDispatchers: expected 0 to 2^31 - 1 slots, got "
                    + maxNumTokens + " * " + numDispatchers);
        }
        int slots = (int) slotsOfAll;
        return new WorkspaceShapes(
                List.of(localExperts, slots, Math.max(n, h)),
                List.of(localExperts, slots, activationOut),
                List.of(m, h));
    }

    /**
     * How many elements a shape has.
     *
     * @throws IllegalArgumentException if they are more than a long holds
     */
    public static long elements(List<Integer> shape) {
        try {
            return shape.stream().mapToLong(Integer::longValue).reduce(1, Math::multiplyExact);
        } catch (ArithmeticException tooMany) {
            throw new IllegalArgumentException("shape: expected fewer than 2^63 elements, got " + shape, tooMany);
        }
    }
}
