package org.tornadomoe.config;

import java.util.Locale;

/** Which experts each rank has. */
public enum ExpertPlacementStrategy {
    /** Consecutive experts: rank 0 has the first ones. */
    LINEAR,
    /** Every ep-th expert, so that the experts of a group are spread over the ranks. */
    ROUND_ROBIN;

    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
