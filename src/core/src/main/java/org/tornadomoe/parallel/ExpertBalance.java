package org.tornadomoe.parallel;

import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * How the experts of a layer with load balancing lie, and how even the devices' loads are.
 *
 * @param experts of each device, in their order: numbers of the layer's experts, the shared ones from E on
 * @param loads pairs of a token and an expert that each device was given since it has these
 * @param rearrangements how often experts have moved
 * @param refusal why the last one that was due did not take place, where it failed or did not fit; null otherwise
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

    /** Mean by maximum of the loads, 1 where all are the same (vLLM's balancedness); 1 without load. */
    public double balancedness() {
        return balancedness(loads);
    }

    static double balancedness(List<Long> loads) {
        long max = loads.stream().mapToLong(Long::longValue).max().orElse(0);
        long sum = loads.stream().mapToLong(Long::longValue).sum();
        return max == 0 ? 1 : (double) sum / loads.size() / max;
    }
}
