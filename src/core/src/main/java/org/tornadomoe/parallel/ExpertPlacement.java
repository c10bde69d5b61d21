package org.tornadomoe.parallel;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.tornadomoe.kernel.Replicas;

/**
 * Which device has which experts. The layer's L logical experts have P physical copies, P at least L; an expert with
 * several copies is replicated. Device d has P/devices slots, starting at d · P/devices. Immutable.
 */
final class ExpertPlacement {
    private final int devices;
    private final int[] physicalToLogical;
    private final LogicalMaps maps;

    /** The experts of each device. */
    private final int[][] experts;

    /**
     * The slots of each logical expert's replicas.
     *
     * @param logicalToPhysical [L, maximum number of replicas], padded with -1
     * @param replicaCount [L]
     */
    record LogicalMaps(int[][] logicalToPhysical, int[] replicaCount) {}

    /**
     * The maps from logical experts (vLLM: {@code compute_logical_maps}).
     *
     * @param physicalToLogical [P]; a slot of -1 is empty
     * @param logical L
     */
    static LogicalMaps computeLogicalMaps(int[] physicalToLogical, int logical) {
        int[] count = new int[logical];
        for (int expert : physicalToLogical) {
            if (expert >= 0) {
                count[expert]++;
            }
        }
        int most = Arrays.stream(count).max().orElse(0);
        int[][] logicalToPhysical = new int[logical][most];
        for (int[] row : logicalToPhysical) {
            Arrays.fill(row, -1);
        }
        int[] next = new int[logical];
        for (int p = 0; p < physicalToLogical.length; p++) {
            int expert = physicalToLogical[p];
            if (expert >= 0) {
                logicalToPhysical[expert][next[expert]++] = p;
            }
        }
        return new LogicalMaps(logicalToPhysical, count);
    }

    /**
     * A placement.
     *
     * @param physicalToLogical [P], with every logical expert; P is a multiple of the devices
     */
    ExpertPlacement(int[] physicalToLogical, int logical, int devices) {
        this.devices = devices;
        this.physicalToLogical = physicalToLogical.clone();
        maps = computeLogicalMaps(physicalToLogical, logical);
        int slots = physicalToLogical.length / devices;
        experts = IntStream.range(0, devices)
                .mapToObj(device -> Arrays.stream(physicalToLogical, device * slots, (device + 1) * slots)
                        .distinct()
                        .toArray())
                .toArray(int[][]::new);
    }

    /** The initial placement: experts in order, then the first ones again until all slots are full. */
    static ExpertPlacement initial(int logical, int redundant, int devices) {
        int[] slots =
                IntStream.range(0, logical + redundant).map(p -> p % logical).toArray();
        return new ExpertPlacement(slots, logical, devices);
    }

    int logical() {
        return maps.replicaCount.length;
    }

    int devices() {
        return devices;
    }

    /** [P], a copy. */
    int[] physicalToLogical() {
        return physicalToLogical.clone();
    }

    /** The experts of a device in the order of slots, each once even if several of its replicas are there; a copy. */
    int[] experts(int device) {
        return experts[device].clone();
    }

    /** Whether a device has the same experts in both placements. */
    boolean sameExperts(ExpertPlacement other, int device) {
        return Arrays.equals(
                Arrays.stream(experts(device)).sorted().toArray(),
                Arrays.stream(other.experts(device)).sorted().toArray());
    }

    /**
     * The pairs of a device. Zero experts are on the device of expert 0's first replica, so that only one device adds
     * them.
     */
    Replicas replicas(int device) {
        int experts = logical();
        int slots = physicalToLogical.length / devices;
        int[] table = new int[Replicas.ROW * (experts + 1)];
        for (int e = 0; e <= experts; e++) {
            int[] physical = e < experts ? maps.logicalToPhysical[e] : new int[] {maps.logicalToPhysical[0][0]};
            int row = Replicas.ROW * e;
            table[row] = e < experts ? maps.replicaCount[e] : 1;
            for (int replica = table[row] - 1; replica >= 0; replica--) {
                if (physical[replica] / slots == device) {
                    table[row + 1] = replica;
                    table[row + 2]++;
                }
            }
        }
        return new Replicas(table);
    }

    /** The busiest device's load divided by the mean load, if replicas share evenly; 1 without load. */
    double imbalance(long[] load) {
        double[] loads = new double[devices];
        for (int p = 0; p < physicalToLogical.length; p++) {
            int expert = physicalToLogical[p];
            loads[p / (physicalToLogical.length / devices)] += (double) load[expert] / maps.replicaCount[expert];
        }
        double sum = Arrays.stream(loads).sum();
        return sum == 0 ? 1 : Arrays.stream(loads).max().orElse(0) * devices / sum;
    }
}
