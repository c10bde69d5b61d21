package org.tornadomoe.oracle;

import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.kernel.FusedMoeExperts;

/**
 * What the oracle chose.
 *
 * @param config what it chose for, with the device
 * @param refusals those it tried before, each with its reason
 */
public record Selection(Int8MoeBackend backend, FusedMoeExperts experts, FusedMoeConfig config, List<String> refusals) {
    /** Copies the list. */
    public Selection {
        refusals = List.copyOf(refusals);
    }

    /** Where it runs, for people. */
    public String device() {
        return experts.device(config);
    }
}
