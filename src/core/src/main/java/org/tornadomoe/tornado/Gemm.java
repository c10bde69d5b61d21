package org.tornadomoe.tornado;

import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.kernels.GemmKernels;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;

/** What the expert GEMMs are computed with. */
enum Gemm {
    /** Hopper's tensor cores: the kernels of {@code hopper-gemm.cu}, on {@link HopperWeights}. */
    HOPPER {
        @Override
        int blockSize(FusedMoeConfig config, int tokens) {
            return Math.ceilDiv(tokens * config.pairsPerToken(), config.globalNumExperts()) <= 5 ? 8 : TILE;
        }

        // That of the first GEMM; each has as many warps as suit its own k.
        @Override
        LaunchConfig byRule(FusedMoeConfig config, int tokens) {
            int warps = blockSize(config, tokens) == TILE ? 12 : HopperStages.streamingWarps(config.hiddenDim());
            return launches().stream()
                    .filter(launch -> launch.numWarps() == warps)
                    .findFirst()
                    .orElseThrow();
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

    /** Pairs of one expert that a work-group takes together in a call of M tokens, where nothing else is said. */
    int blockSize(FusedMoeConfig config, int tokens) {
        return GemmKernels.BLOCK;
    }

    /** What both GEMMs can be launched with; of those with the same block of pairs the first is the usual one. */
    List<LaunchConfig> launches() {
        return switch (this) {
            case HOPPER ->
                List.of(
                        new LaunchConfig(8, 32, 64, 1, 8, 4),
                        new LaunchConfig(8, 32, 64, 1, 4, 4),
                        new LaunchConfig(TILE, 256, 128, 8, 12, 4));
            case TENSOR_CORES ->
                List.of(
                        new LaunchConfig(8, 16, 64, 8, 4, 4),
                        new LaunchConfig(16, 16, 64, 8, 4, 4),
                        new LaunchConfig(32, 16, 64, 8, 4, 2),
                        new LaunchConfig(TILE, 128, 64, 8, 8, 3));
            case PANELS ->
                List.of(
                        new LaunchConfig(
                                PanelGemmKernels.FEW,
                                PanelGemmKernels.STREAM_ROWS,
                                4 * PanelGemmKernels.SLICES,
                                1,
                                PanelGemmKernels.STREAM_GROUP / 32,
                                1),
                        new LaunchConfig(
                                PanelGemmKernels.MANY,
                                PanelGemmKernels.TILE_ROWS,
                                4 * PanelGemmKernels.CHUNK,
                                1,
                                PanelGemmKernels.TILE_GROUP / 32,
                                1));
            case DP4A, PORTABLE ->
                List.of(new LaunchConfig(
                        GemmKernels.BLOCK, GemmKernels.ROWS, 4 * GemmKernels.SLICES, 1, GemmKernels.GROUP / 32, 1));
        };
    }

    /** Of these, that for M tokens where nothing else is said. */
    LaunchConfig byRule(FusedMoeConfig config, int tokens) {
        int size = blockSize(config, tokens);
        return launches().stream()
                .filter(launch -> launch.blockSizeM() == size)
                .findFirst()
                .orElseThrow();
    }

    /** The same for every M. */
    LaunchConfigs byRule(FusedMoeConfig config) {
        return LaunchConfigs.byRule(launches(), m -> byRule(config, m));
    }

    /** Blocks that the pairs of up to M tokens can come to, whatever they are launched with. */
    int mostBlocks(FusedMoeConfig config, int maxTokens) {
        return launches().stream()
                .mapToInt(launch -> blocks(config, maxTokens, launch.blockSizeM()))
                .max()
                .orElseThrow();
    }

    /** Places that the pairs of up to M tokens and what pads their blocks take, whatever they are launched with. */
    int mostPlaces(FusedMoeConfig config, int maxTokens) {
        return launches().stream()
                .mapToInt(launch ->
                        Math.multiplyExact(blocks(config, maxTokens, launch.blockSizeM()), launch.blockSizeM()))
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
     * device, where memory of CUDA's does.
     */
    int lead() {
        return lead(Quirks.HERE);
    }

    /** As {@link #lead()}, with another version of TornadoVM's. */
    int lead(Quirks quirks) {
        return this == HOPPER ? Math.floorMod(-quirks.payload(), ALIGNMENT) / 4 : 0;
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

    /** Blocks that the pairs of M tokens can come to: every expert that has a pair may have one block that isn't full. */
    static int blocks(FusedMoeConfig config, int tokens, int blockSize) {
        long p = (long) tokens * config.pairsPerToken();
        long most = (p + (long) config.globalNumExperts() * (blockSize - 1)) / blockSize;
        return Math.toIntExact(Math.min(p, most));
    }
}
