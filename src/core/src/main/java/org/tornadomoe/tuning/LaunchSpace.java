package org.tornadomoe.tuning;

import java.util.List;
import java.util.function.IntFunction;

/**
 * What the GEMMs of a layer can be launched with on a device.
 *
 * @param key what a file that chooses among them is for
 * @param runnable every configuration that the kernels have, at least two
 * @param rule one of these for M tokens, where no file is
 */
public record LaunchSpace(LaunchKey key, List<LaunchConfig> runnable, IntFunction<LaunchConfig> rule) {
    /** Copies the list. */
    public LaunchSpace {
        runnable = List.copyOf(runnable);
    }

    /** See {@link LaunchConfigs#find}. */
    public LaunchConfigs find() {
        return LaunchConfigs.find(key, runnable, rule);
    }
}
