package org.tornadomoe.oracle;

import java.util.List;
import org.tornadomoe.modular.FusedMoeExperts;

/**
 * What the oracle chose.
 *
 * @param refusals those it tried before, each with its reason
 */
public record Selection(Int8MoeBackend backend, FusedMoeExperts experts, List<String> refusals) {
    /** Copies the list. */
    public Selection {
        refusals = List.copyOf(refusals);
    }
}
