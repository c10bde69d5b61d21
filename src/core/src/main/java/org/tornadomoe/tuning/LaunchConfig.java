package org.tornadomoe.tuning;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * How both GEMMs of a layer are cut into work-groups, under the names of vLLM's tuned files. Which combinations there
 * are is the kernels' to say; a kernel that has no such thing as a parameter has 1 for it.
 *
 * @param blockSizeM {@code BLOCK_SIZE_M}: sorted pairs of a work-group, all of one expert; what the alignment pads to
 * @param blockSizeN {@code BLOCK_SIZE_N}: rows of the weights of a work-group
 * @param blockSizeK {@code BLOCK_SIZE_K}: values of a row that a work-group takes in one step
 * @param groupSizeM {@code GROUP_SIZE_M}: blocks of pairs that are run through before the next rows of the weights, so
 *     that these are still in the cache
 * @param numWarps {@code num_warps}: work-items of a work-group, divided by 32
 * @param numStages {@code num_stages}: steps whose values are on their way at once
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

    /** The parameters by the names that they have in files, in their order. */
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
