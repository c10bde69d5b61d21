package org.tornadomoe.reference;

import org.jspecify.annotations.Nullable;

/**
 * The outputs of all stages of one pass. M tokens, K top-k and shared experts, L logits, H hidden, I intermediate; pair
 * p is token p / K, slot p % K.
 *
 * @param logits [M, L]; empty if the routing was handed in
 * @param routing ids and weights [M, K]
 * @param a1 the quantised hidden states [M, H], or [M * K, H] if router weights apply to the input; null if the scheme
 *     doesn't quantise activations
 * @param gemm1 [M * K, 2I], gate then up
 * @param act [M * K, I]
 * @param a2 act quantised [M * K, I], null if the scheme doesn't quantise activations
 * @param gemm2 [M * K, H], multiplied by the router weight
 * @param output [M, H]
 */
public record Stages(
        double[] logits,
        Routing routing,
        @Nullable QuantizedTokens a1,
        double[] gemm1,
        double[] act,
        @Nullable QuantizedTokens a2,
        double[] gemm2,
        double[] output) {}
