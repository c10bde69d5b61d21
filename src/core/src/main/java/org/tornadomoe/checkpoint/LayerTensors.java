package org.tornadomoe.checkpoint;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.quant.RouterWeights;

/**
 * The tensors of one MoE layer.
 *
 * @param router its weight [C, H] and the rest, as floats
 * @param routerFactor what the weights of all experts are multiplied by besides the configuration's factor
 * @param experts the routed ones, in the order of their numbers
 * @param shared the expert that every token gets, null if there is none; if several, one after the other
 * @param fused the tensors of all experts, scales and biases included, if that is how they are stored
 * @param latent what routed experts are between if they compute in a narrower space, else null
 */
record LayerTensors(
        RouterWeights router,
        double routerFactor,
        List<Projections> experts,
        @Nullable Projections shared,
        List<Tensor> fused,
        @Nullable Latent latent) {
    /**
     * Of experts in a space of L.
     *
     * @param into [L, H]
     * @param norm [L]; null for none
     * @param back [H, L]
     */
    record Latent(float[] into, float @Nullable [] norm, float[] back) {}
}
