package org.tornadomoe.tornado;

import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** What the expert GEMMs are computed with. */
enum Gemm {
    /** Hopper's tensor cores: the kernels of {@code hopper-gemm.cu}, on {@link HopperWeights}. */
    HOPPER {
        @Override
        int blockSize(FusedMoeConfig config, int tokens) {
            return Math.ceilDiv(tokens * config.pairsPerToken(), config.globalNumExperts()) <= 5 ? 8 : TILE;
        }
    },
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
    /** Shifts and multiplications that compilers make such instructions of: {@link PanelGemmKernels}, on {@link PanelWeights}. */
    PANELS {
        @Override
        int blockSize(FusedMoeConfig config, int tokens) {
            int pairsOfExpert = Math.ceilDiv(tokens * config.pairsPerToken(), config.globalNumExperts());
            return pairsOfExpert <= 6 ? PanelGemmKernels.FEW : PanelGemmKernels.MANY;
        }
    },
    /** Shifts and multiplications: {@link GemmKernels#portable}. */
    PORTABLE;

    /** The block of pairs that is a tile of a matrix product; for smaller ones weights are streamed. */
    static final int TILE = 128;

    /** A line of the cache. Without it, the GEMMs took up to 1.7 times as long. */
    private static final int ALIGNMENT = 128;

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

    /** Ints of a row of int8 values: four an int, and in tiles whole chunks of them. */
    int rowInts(int cols) {
        return switch (this) {
            case HOPPER -> HopperWeights.chunks(cols) * (HopperWeights.CHUNK / 4);
            case TENSOR_CORES -> TiledWeights.chunks(cols) * (TiledWeights.CHUNK / 4);
            case DP4A, PANELS, PORTABLE -> Math.ceilDiv(cols, 4);
        };
    }

    /**
     * Ints in front of weights and of what is between kernels, so that these begin at a multiple of {@link #ALIGNMENT} bytes on the
     * device, where TornadoVM's header begins at one.
     */
    int lead() {
        return this == HOPPER ? Math.floorMod(-(int) TornadoNativeArray.ARRAY_HEADER, ALIGNMENT) / 4 : 0;
    }

    /**
     * Ints of the weights [E, rows, cols].
     *
     * @param layout of {@link ActivationKernels}: what the rows of the product are
     */
    long weightInts(long experts, int rows, int cols, int layout) {
        return switch (this) {
            case HOPPER -> HopperWeights.ints(experts, rows, cols, layout);
            case TENSOR_CORES -> TiledWeights.ints(experts, rows, cols);
            case PANELS -> PanelWeights.ints(experts, rows, cols);
            case DP4A, PORTABLE -> experts * rowInts(cols) * rows;
        };
    }

    /** Rows of an expert that there is a scale and a bias for. */
    int packedRows(int rows, int layout) {
        return this == HOPPER ? HopperWeights.groups(rows, layout) * 8 : rows;
    }

    static int blocks(FusedMoeConfig config, int tokens, int blockSize) {
        long p = (long) tokens * config.pairsPerToken();
        long most = (p + (long) config.globalNumExperts() * (blockSize - 1)) / blockSize;
        return Math.toIntExact(Math.min(p, most));
    }
}
