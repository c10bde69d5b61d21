package org.tornadomoe.tornado;

import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.tornado.kernels.GemmKernels;

/** What the expert GEMMs are computed with. */
enum Gemm {
    /** The {@code dp4a} instruction: {@link GemmKernels#dp4a}. */
    DP4A,
    /** Shifts and multiplications: {@link GemmKernels#portable}. */
    PORTABLE;

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

    static int blocks(FusedMoeConfig config, int tokens, int blockSize) {
        long p = (long) tokens * config.pairsPerToken();
        long most = (p + (long) config.globalNumExperts() * (blockSize - 1)) / blockSize;
        return Math.toIntExact(Math.min(p, most));
    }
}
