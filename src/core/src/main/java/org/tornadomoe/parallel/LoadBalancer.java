package org.tornadomoe.parallel;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.EplbConfig;

/** Tracks the placement of a layer's experts and their loads, which the devices count. Not thread-safe. */
final class LoadBalancer {
    private static final System.Logger LOG = System.getLogger(LoadBalancer.class.getName());

    private final EplbConfig config;
    private final LoadWindow window;
    private ExpertPlacement placement;
    private long[] loads;
    private long steps;
    private int rearrangements;
    private @Nullable String refusal;

    LoadBalancer(EplbConfig config, int experts, int devices) {
        this.config = config;
        window = new LoadWindow(config, experts);
        placement = ExpertPlacement.initial(experts, config.numRedundantExperts(), devices);
        loads = new long[devices];
    }

    EplbConfig config() {
        return config;
    }

    ExpertPlacement placement() {
        return placement;
    }

    /**
     * Records a finished call.
     *
     * @param pairs for each device the pairs per expert, in the order of {@link ExpertPlacement#experts}
     * @return whether a rearrangement is due
     */
    boolean passed(List<int[]> pairs) {
        int[] load = new int[placement.logical()];
        long[] here = new long[loads.length];
        for (int device = 0; device < here.length; device++) {
            int[] experts = placement.experts(device);
            int[] counted = pairs.get(device);
            for (int i = 0; i < experts.length; i++) {
                load[experts[i]] += counted[i];
                here[device] += counted[i];
            }
            loads[device] += here[device];
        }
        window.record(load);
        steps++;
        if (config.logBalancedness() && steps % config.logBalancednessInterval() == 0) {
            LOG.log(
                    System.Logger.Level.INFO,
                    "expert loads of the devices: " + Arrays.toString(here) + ", balancedness "
                            + ExpertBalance.balancedness(
                                    Arrays.stream(here).boxed().toList()));
        }
        return window.isRearrangementDue();
    }

    /** [experts], the load over the window. */
    long[] window() {
        return window.loads();
    }

    /** Records that experts have moved. */
    void moved(ExpertPlacement after) {
        placement = after;
        loads = new long[loads.length];
        rearrangements++;
        refusal = null;
    }

    /** Records that a due move did not happen, and why; null if none was needed. */
    void stayed(@Nullable String why) {
        refusal = why;
    }

    ExpertBalance balance() {
        List<List<Integer>> experts = new ArrayList<>();
        for (int device = 0; device < loads.length; device++) {
            experts.add(Arrays.stream(placement.experts(device)).boxed().toList());
        }
        return new ExpertBalance(experts, Arrays.stream(loads).boxed().toList(), rearrangements, refusal);
    }
}
