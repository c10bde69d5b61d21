package org.tornadomoe.tornado;

import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.tornado.kernels.GemmKernels;

/** What the expert GEMMs are computed with. */
enum Gemm {
    /** Tensor cores: the kernels of {@code expert-gemm.cu}, on {@link TiledWeights}. */
    TENSOR_CORES {
        @Override
        int blockSize(FusedMoeConfig config, int tokens) {
            int pairsOfExpert = Math.ceilDiv(tokens * config.pairsPerToken(), config.globalNumExperts());
            return pairsOfExpert <= 6 ? 8 : pairsOfExpert < 16 ? 16 : TILE;
        }
    },
    /** The {@code dp4a} instruction: {@link GemmKernels#dp4a}. */
    DP4A,
    /** Shifts and multiplications: {@link GemmKernels#portable}. */
    PORTABLE;

    /** The block of pairs that is a tile of a matrix product; for smaller ones weights are streamed. */
    static final int TILE = 128;

    /** Pairs of one expert that a work-group takes together in a call of M tokens. */
    int blockSize(FusedMoeConfig config, int tokens) {
        return GemmKernels.BLOCK;
    }

    /** Blocks that the pairs of M tokens can come to: every expert that has a pair may have one block that isn't full. */
    int blocks(FusedMoeConfig config, int tokens) {
        return blocks(config, tokens, blockSize(config, tokens));
    }

    /** The same for calls of up to that many tokens. */
    int mostBlocks(FusedMoeConfig config, int maxTokens) {
        return IntStream.rangeClosed(1, maxTokens)
                .map(m -> blocks(config, m))
                .max()
                .orElseThrow();
    }

    /** Places that the pairs of up to M tokens and what pads their blocks take. */
    int mostPlaces(FusedMoeConfig config, int maxTokens) {
        return IntStream.rangeClosed(1, maxTokens)
                .map(m -> Math.multiplyExact(blocks(config, m), blockSize(config, m)))
                .max()
                .orElseThrow();
    }

    /** Whether weights lie as {@link TiledWeights} has them; else as {@code [E, k / 4, rows]}. */
    boolean tiled() {
        return this == TENSOR_CORES;
    }

    /** Ints of a row of int8 values: four an int, and in tiles whole chunks of them. */
    int rowInts(int cols) {
        return tiled() ? TiledWeights.chunks(cols) * (TiledWeights.CHUNK / 4) : Math.ceilDiv(cols, 4);
    }

    /** Ints of the weights [E, rows, cols]. */
    long weightInts(long experts, int rows, int cols) {
        return tiled() ? TiledWeights.ints(experts, rows, cols) : experts * rowInts(cols) * rows;
    }

    static int blocks(FusedMoeConfig config, int tokens, int blockSize) {
        long p = (long) tokens * config.pairsPerToken();
        long most = (p + (long) config.globalNumExperts() * (blockSize - 1)) / blockSize;
        return Math.toIntExact(Math.min(p, most));
    }
}
