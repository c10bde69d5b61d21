package org.tornadomoe.oracle;

import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.kernel.FusedMoeExperts;

/**
 * The oracle's choice.
 *
 * @param config the configuration, with the device
 * @param refusals the classes that it tried before, each with its reason
 */
public record Selection(Int8MoeBackend backend, FusedMoeExperts experts, FusedMoeConfig config, List<String> refusals) {
    /** Copies the list. */
    public Selection {
        refusals = List.copyOf(refusals);
    }

    /** The device, in human-readable form. */
    public String device() {
        return experts.device(config);
    }
}
