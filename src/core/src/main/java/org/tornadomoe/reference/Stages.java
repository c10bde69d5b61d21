package org.tornadomoe.reference;

import org.jspecify.annotations.Nullable;

/**
 * What every stage of one pass gave. M tokens, K top-k and shared experts, L logits, H hidden, I intermediate; pair p
 * is token p / K, slot p % K.
 *
 * @param logits [M, L]; empty if the routing was handed in
 * @param routing ids and weights [M, K]
 * @param a1 the quantised hidden states [M, H], or [M * K, H] if router weights are applied on the input; null if the
 *     scheme leaves activations alone
 * @param gemm1 [M * K, 2I], gate then up
 * @param act [M * K, I]
 * @param a2 act quantised [M * K, I], null if the scheme leaves activations alone
 * @param gemm2 [M * K, H], the router weight applied
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
