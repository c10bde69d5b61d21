package org.tornadomoe.tuning;

import java.util.List;
import java.util.function.IntFunction;

/**
 * The possible launch configurations of a layer's GEMMs on a device.
 *
 * @param key the key of the tuned file that chooses among them
 * @param runnable every configuration that the kernels support, at least two
 * @param rule chooses one of these for M tokens, if there is no file
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
