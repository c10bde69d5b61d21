package org.tornadomoe.parallel;

import java.util.Arrays;
import java.util.Comparator;
import java.util.stream.IntStream;

/**
 * Where experts are to be, by the load that each had: the policy of DeepSeek's expert-parallel load balancer, which is
 * vLLM's default. Greedy and deterministic; of equals the one with the lower number comes first. Letters: L logical
 * experts, P physical ones.
 */
final class EplbPolicy {
    private EplbPolicy() {}

    /**
     * Items partitioned into packs of equal count.
     *
     * @param pack [items], each item's pack
     * @param rank [items], its place there, from 0
     */
    record Packing(int[] pack, int[] rank) {}

    /**
     * Physical experts.
     *
     * @param physicalToLogical [P], the first L each one's own
     * @param replicaCount [L]
     */
    record Replicas(int[] physicalToLogical, int[] replicaCount) {}

    /**
     * Partitions items so that packs weigh about the same: the heaviest first, each to the lightest pack that isn't
     * full.
     *
     * @param weight [items], a multiple of the packs
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

    /** Gives each expert a replica, then each further one to the expert with the most load a replica. */
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
     * The whole policy: groups of experts are packed to nodes, experts are replicated within a node, and the replicas
     * packed to its devices. Where the groups don't divide by the nodes, all experts are one group and all devices one
     * node.
     *
     * @param load [L], 0 or more, L a multiple of the groups
     * @param physical P, at least L, a multiple of the devices
     * @param nodes of as many devices each
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
     * The same experts on each device, those that were there before in the slots they had.
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

    /** The placement after another, on the devices of one host: a node of its own, with all experts in one group. */
    static ExpertPlacement next(ExpertPlacement before, long[] load) {
        double[] weight = Arrays.stream(load).asDoubleStream().toArray();
        int[] slots = before.physicalToLogical();
        int[] after = rebalance(weight, slots.length, 1, 1, before.devices());
        return new ExpertPlacement(
                preserveIntragpuSlots(slots, after, before.devices()), before.logical(), before.devices());
    }
}
