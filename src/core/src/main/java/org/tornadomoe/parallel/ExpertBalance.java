package org.tornadomoe.parallel;

import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The placement of a layer's experts under load balancing, and how even the devices' loads are.
 *
 * @param experts for each device, in order, the numbers of its experts; shared experts have the numbers from E on
 * @param loads the (token, expert) pairs that each device got since the last rearrangement
 * @param rearrangements how often experts have moved
 * @param refusal why the last due rearrangement did not happen, if it failed or did not fit into memory; null otherwise
 */
public record ExpertBalance(
        List<List<Integer>> experts,
        List<Long> loads,
        int rearrangements,
        @Nullable String refusal) {
    /** Copies the lists. */
    public ExpertBalance {
        experts = experts.stream().map(List::copyOf).toList();
        loads = List.copyOf(loads);
    }

    /**
     * The mean load divided by the maximum load (vLLM's balancedness): 1 if all loads are equal, and 1 without load.
     */
    public double balancedness() {
        return balancedness(loads);
    }

    static double balancedness(List<Long> loads) {
        long max = loads.stream().mapToLong(Long::longValue).max().orElse(0);
        long sum = loads.stream().mapToLong(Long::longValue).sum();
        return max == 0 ? 1 : (double) sum / loads.size() / max;
    }
}
