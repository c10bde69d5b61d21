package org.tornadomoe.parallel;

import java.util.Arrays;
import java.util.Comparator;
import java.util.stream.IntStream;

/**
 * Computes the placement of experts from their loads: the policy of DeepSeek's expert-parallel load balancer, vLLM's
 * default. Greedy and deterministic; on ties the lower number comes first. Letters: L logical experts, P physical ones.
 */
final class EplbPolicy {
    private EplbPolicy() {}

    /**
     * Items partitioned into packs of equal size.
     *
     * @param pack [items], each item's pack
     * @param rank [items], its index in the pack, from 0
     */
    record Packing(int[] pack, int[] rank) {}

    /**
     * Physical experts.
     *
     * @param physicalToLogical [P], the first L are the experts themselves
     * @param replicaCount [L]
     */
    record Replicas(int[] physicalToLogical, int[] replicaCount) {}

    /**
     * Partitions items into packs of about equal weight: assigns the heaviest first, each to the lightest pack that
     * isn't full.
     *
     * @param weight [items]; the number of items is a multiple of {@code packs}
     */
    static Packing balancedPacking(double[] weight, int packs) {
        int size = weight.length / packs;
        int[] pack = new int[weight.length];
        int[] rank = new int[weight.length];
        double[] total = new double[packs];
        int[] count = new int[packs];
        for (int item : descending(weight)) {
            int lightest = -1;
            for (int p = 0; p < packs; p++) {
                if (count[p] < size && (lightest < 0 || total[p] < total[lightest])) {
                    lightest = p;
                }
            }
            pack[item] = lightest;
            rank[item] = count[lightest]++;
            total[lightest] += weight[item];
        }
        return new Packing(pack, rank);
    }

    private static int[] descending(double[] weight) {
        return IntStream.range(0, weight.length)
                .boxed()
                .sorted(Comparator.comparingDouble((Integer i) -> -weight[i]))
                .mapToInt(Integer::intValue)
                .toArray();
    }

    /** Gives each expert one replica, then each further replica to the expert with the highest load per replica. */
    static Replicas replicateExperts(double[] weight, int physical) {
        int[] slots = Arrays.copyOf(IntStream.range(0, weight.length).toArray(), physical);
        int[] count = new int[weight.length];
        Arrays.fill(count, 1);
        for (int p = weight.length; p < physical; p++) {
            int most = 0;
            for (int e = 1; e < weight.length; e++) {
                if (weight[e] / count[e] > weight[most] / count[most]) {
                    most = e;
                }
            }
            slots[p] = most;
            count[most]++;
        }
        return new Replicas(slots, count);
    }

    /**
     * The whole policy: packs groups of experts onto nodes, replicates experts within a node, and packs the replicas
     * onto its devices. If the number of groups is not a multiple of the nodes, all experts are one group and all
     * devices one node.
     *
     * @param load [L], non-negative; L is a multiple of the groups
     * @param physical P, at least L, a multiple of the devices
     * @param nodes number of nodes, each with the same number of devices
     * @return [P], the logical expert of each slot, device by device
     */
    static int[] rebalance(double[] load, int physical, int groups, int nodes, int devices) {
        int logical = load.length;
        if (groups % nodes != 0 || logical % groups != 0 || devices % nodes != 0) {
            return rebalance(load, physical, 1, 1, devices);
        }
        int groupSize = logical / groups;
        double[] groupLoad = new double[groups];
        for (int e = 0; e < logical; e++) {
            groupLoad[e / groupSize] += load[e];
        }
        Packing ofGroups = balancedPacking(groupLoad, nodes);
        int[] slots = new int[physical];
        for (int node = 0; node < nodes; node++) {
            int[] here = new int[logical / nodes];
            for (int e = 0; e < logical; e++) {
                int group = e / groupSize;
                if (ofGroups.pack[group] == node) {
                    here[ofGroups.rank[group] * groupSize + e % groupSize] = e;
                }
            }
            double[] loadHere = Arrays.stream(here).mapToDouble(e -> load[e]).toArray();
            Replicas replicas = replicateExperts(loadHere, physical / nodes);
            double[] each = Arrays.stream(replicas.physicalToLogical)
                    .mapToDouble(e -> loadHere[e] / replicas.replicaCount[e])
                    .toArray();
            Packing packing = balancedPacking(each, devices / nodes);
            int perDevice = physical / devices;
            for (int p = 0; p < each.length; p++) {
                int slot = packing.pack[p] * perDevice + packing.rank[p];
                slots[node * each.length + slot] = here[replicas.physicalToLogical[p]];
            }
        }
        return slots;
    }

    /**
     * Keeps each device's experts, but puts those that were there before into their old slots.
     *
     * @param before [P]
     * @param after [P]
     */
    static int[] preserveIntragpuSlots(int[] before, int[] after, int devices) {
        int size = after.length / devices;
        int[] slots = new int[after.length];
        Arrays.fill(slots, -1);
        boolean[] placed = new boolean[after.length];
        for (int p = 0; p < after.length; p++) {
            int first = p / size * size;
            for (int slot = first; slot < first + size && !placed[p]; slot++) {
                if (slots[slot] < 0 && before[slot] == after[p]) {
                    slots[slot] = after[p];
                    placed[p] = true;
                }
            }
        }
        for (int p = 0; p < after.length; p++) {
            for (int slot = p / size * size; !placed[p]; slot++) {
                if (slots[slot] < 0) {
                    slots[slot] = after[p];
                    placed[p] = true;
                }
            }
        }
        return slots;
    }

    /** The next placement on the devices of one host, which is one node, with all experts in one group. */
    static ExpertPlacement next(ExpertPlacement before, long[] load) {
        double[] weight = Arrays.stream(load).asDoubleStream().toArray();
        int[] slots = before.physicalToLogical();
        int[] after = rebalance(weight, slots.length, 1, 1, before.devices());
        return new ExpertPlacement(
                preserveIntragpuSlots(slots, after, before.devices()), before.logical(), before.devices());
    }
}
