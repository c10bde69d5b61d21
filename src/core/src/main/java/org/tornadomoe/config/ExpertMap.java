package org.tornadomoe.config;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * The experts of one rank.
 *
 * @param numLocalExperts the number of its experts
 * @param map [global experts]: each expert's local number on this rank, -1 if it is on another rank; null if the rank
 *     has all experts
 */
public record ExpertMap(int numLocalExperts, int @Nullable [] map) {
    /**
     * Spreads experts over ranks as evenly as possible; if they don't divide, the first ranks get one more (vLLM:
     * {@code determine_expert_map}).
     *
     * @param epSize number of ranks
     * @param epRank 0 to epSize - 1
     * @param globalNumExperts E of the whole model, at most {@value FusedMoeConfig#MAX_EXPERTS}
     * @throws IllegalArgumentException naming the argument that doesn't fit
     */
    public static ExpertMap determineExpertMap(
            int epSize, int epRank, int globalNumExperts, ExpertPlacementStrategy strategy) {
        if (epSize < 1) {
            throw new IllegalArgumentException("epSize: expected a positive number, got " + epSize);
        }
        if (epRank < 0 || epRank >= epSize) {
            throw new IllegalArgumentException("epRank: expected 0 to " + (epSize - 1) + ", got " + epRank);
        }
        if (globalNumExperts < 1) {
            throw new IllegalArgumentException("globalNumExperts: expected a positive number, got " + globalNumExperts);
        }
        if (globalNumExperts > FusedMoeConfig.MAX_EXPERTS) {
            throw new IllegalArgumentException(
                    "globalNumExperts: expected at most " + FusedMoeConfig.MAX_EXPERTS + ", got " + globalNumExperts);
        }
        if (epSize == 1) {
            return new ExpertMap(globalNumExperts, null);
        }
        int base = globalNumExperts / epSize;
        int remainder = globalNumExperts % epSize;
        int local = epRank < remainder ? base + 1 : base;
        int[] map = new int[globalNumExperts];
        Arrays.fill(map, -1);
        for (int i = 0; i < local; i++) {
            int expert = switch (strategy) {
                case LINEAR -> epRank * base + Math.min(epRank, remainder) + i;
                case ROUND_ROBIN -> epRank + i * epSize;
            };
            map[expert] = i;
        }
        return new ExpertMap(local, map);
    }
}
