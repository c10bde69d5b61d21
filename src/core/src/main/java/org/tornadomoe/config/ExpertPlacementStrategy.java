package org.tornadomoe.config;

import java.util.Locale;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;

/** Which experts each rank has. */
public enum ExpertPlacementStrategy {
    /** Consecutive experts: rank 0 has the first ones. */
    LINEAR,
    /** Every ep-th expert, so that the experts of a group are spread over the ranks. */
    ROUND_ROBIN;

    private static final Set<String> LOGGED = ConcurrentHashMap.newKeySet();
    private static final System.Logger LOG = System.getLogger(ExpertPlacementStrategy.class.getName());

    /**
     * The strategy of that name, {@code "round_robin"}.
     *
     * @throws IllegalArgumentException if there is none; the message lists all
     */
    public static ExpertPlacementStrategy fromString(String name) {
        return switch (name) {
            case "linear" -> LINEAR;
            case "round_robin" -> ROUND_ROBIN;
            default ->
                throw new IllegalArgumentException("Unsupported expert placement strategy '" + name
                        + "', expected one of ('linear', 'round_robin')");
        };
    }

    /**
     * This strategy if the layer supports it, otherwise {@link #LINEAR}, with a warning that is logged once (vLLM:
     * {@code determine_expert_placement_strategy}).
     *
     * @param numExpertGroup number of expert groups in routing; 0 for none
     * @param numRedundantExperts copies of experts
     */
    public ExpertPlacementStrategy orLinear(
            FusedMoeParallelConfig parallel, int numExpertGroup, int numRedundantExperts) {
        if (this == LINEAR) {
            return this;
        }
        if (numExpertGroup <= 1 || numRedundantExperts != 0 || parallel.enableEplb()) {
            warnOnce("Round-robin expert placement is only supported for models with multiple expert groups and no"
                    + " redundant experts. Falling back to linear expert placement.");
            return LINEAR;
        }
        if (parallel.useAll2allKernels() && !parallel.needsRoundRobinRoutingTables()) {
            warnOnce("Round-robin expert placement currently only supports the DeepEP low-latency or NIXL EP backend,"
                    + " but '"
                    + parallel.all2allBackend()
                    + "' was configured. Falling back to linear expert placement.");
            return LINEAR;
        }
        return this;
    }

    private static void warnOnce(String line) {
        if (LOGGED.add(line)) {
            LOG.log(System.Logger.Level.WARNING, line);
        }
    }

    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
