package org.tornadomoe.kernel;

/**
 * What stands between the stages of a layer, for checking one stage at a time: each stage is fed with the values given
 * and not with what the stage before it made of its own. M tokens, K top-k and shared experts, P = M·K pairs, H hidden,
 * I intermediate.
 *
 * @param logits [M, L], one an expert, then one a zero expert, then the shared expert gate's
 * @param topkIds [P]
 * @param topkWeights [P]
 * @param blockSize pairs of a block in {@code sortedIds}, at most 16
 * @param sortedIds pairs in expert order, each expert's run padded to whole blocks with P; those of experts that live
 *     elsewhere are sorted in by their global number
 * @param expertIds the local number of each block's expert, −1 if it lives elsewhere
 * @param a1 the hidden states in int8, times the router's weight first where the layer applies it on the input, [M, H],
 *     or then [P, H]; empty if the scheme keeps activations in float
 * @param a1Scales a scale a row of a1, or [rows, groups of columns] if the scheme has them; empty likewise
 * @param gemm1 [P, 2I], gate then up
 * @param act [P, I]
 * @param a2 the activations in int8, [P, I]; empty likewise
 * @param a2Scales [P] or [P, groups of columns]; empty likewise
 * @param gemm2 [P, H], times the router's weight unless the layer applies it on the input
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
