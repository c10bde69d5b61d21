package org.tornadomoe.kernel;

/**
 * The values between a layer's stages, to check one stage at a time: each stage gets the given values as its input, not
 * the output of the stage before it. M tokens, K top-k and shared experts, P = M·K pairs, H hidden, I intermediate.
 *
 * @param logits [M, L], one per expert, then one per zero expert, then the shared expert gate's
 * @param topkIds [P]
 * @param topkWeights [P]
 * @param blockSize pairs per block in {@code sortedIds}, at most 16
 * @param sortedIds pairs in expert order, each expert's run padded to whole blocks with P; pairs of experts on other
 *     ranks are sorted in by their global number
 * @param expertIds the local number of each block's expert, −1 if it is on another rank
 * @param a1 the hidden states in int8, [M, H]; if the layer applies the router's weight to its input, they are
 *     multiplied by it first and have the shape [P, H]; empty if the scheme keeps activations in float
 * @param a1Scales one scale per row of a1, or [rows, groups of columns] if the scheme has them; empty if a1 is
 * @param gemm1 [P, 2I], gate then up
 * @param act [P, I]
 * @param a2 the activations in int8, [P, I]; empty if a1 is
 * @param a2Scales [P] or [P, groups of columns]; empty if a1 is
 * @param gemm2 [P, H], multiplied by the router's weight unless the layer applies it to its input
 * @param output [M, H]
 */
public record StageValues(
        float[] logits,
        int[] topkIds,
        float[] topkWeights,
        int blockSize,
        int[] sortedIds,
        int[] expertIds,
        byte[] a1,
        float[] a1Scales,
        float[] gemm1,
        float[] act,
        byte[] a2,
        float[] a2Scales,
        float[] gemm2,
        float[] output) {}
