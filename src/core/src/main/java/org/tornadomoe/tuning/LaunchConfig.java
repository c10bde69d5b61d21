package org.tornadomoe.tuning;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The tile sizes and work-groups of a layer's two GEMMs, under the names of vLLM's tuned files. The kernels define the
 * valid combinations; a parameter that a kernel doesn't have is 1.
 *
 * @param blockSizeM {@code BLOCK_SIZE_M}: sorted pairs per work-group, all of one expert; the alignment pads to it
 * @param blockSizeN {@code BLOCK_SIZE_N}: rows of the weights per work-group
 * @param blockSizeK {@code BLOCK_SIZE_K}: values of a row that a work-group processes in one step
 * @param groupSizeM {@code GROUP_SIZE_M}: number of pair blocks that are processed before the next rows of the weights,
 *     so that the rows are still in the cache
 * @param numWarps {@code num_warps}: work-items per work-group, divided by 32
 * @param numStages {@code num_stages}: number of steps whose values are loaded at the same time
 */
public record LaunchConfig(
        int blockSizeM, int blockSizeN, int blockSizeK, int groupSizeM, int numWarps, int numStages) {
    /** Checks that all are positive. */
    public LaunchConfig {
        toMap(blockSizeM, blockSizeN, blockSizeK, groupSizeM, numWarps, numStages)
                .forEach((name, value) -> {
                    if (value < 1) {
                        throw new IllegalArgumentException(name + ": expected a positive number, got " + value);
                    }
                });
    }

    /** The parameters by their names in files, in order. */
    public Map<String, Integer> toMap() {
        return toMap(blockSizeM, blockSizeN, blockSizeK, groupSizeM, numWarps, numStages);
    }

    private static Map<String, Integer> toMap(int... values) {
        String[] names = {"BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages"};
        Map<String, Integer> map = new LinkedHashMap<>();
        for (int i = 0; i < names.length; i++) {
            map.put(names[i], values[i]);
        }
        return map;
    }

    @Override
    public String toString() {
        return toMap().toString();
    }
}
