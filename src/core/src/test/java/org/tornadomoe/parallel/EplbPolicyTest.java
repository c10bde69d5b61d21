package org.tornadomoe.parallel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.tornadomoe.Draw;
import org.tornadomoe.Draw.Property;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.kernel.Replicas;

/** Where experts are to be, what they have had to do, and who takes which pair. */
class EplbPolicyTest {
    /** Loads with a long tail, some of them 0, some equal. */
    private static double[] loads(int experts, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        return random.ints(experts, 0, 40)
                .mapToDouble(i -> i < 8 ? 0 : 1000.0 / (40 - i))
                .toArray();
    }

    private static int[] count(int[] values, int kinds) {
        int[] count = new int[kinds];
        Arrays.stream(values).forEach(v -> count[v]++);
        return count;
    }

    /** As the definition has it, by looking at every pack each time. */
    @Property
    void packsHaveEqualCountsAndTheHeaviestComeFirst(Draw draw) {
        int packs = draw.between(1, 8);
        int size = draw.between(1, 12);
        long seed = draw.aLong();
        double[] weight = loads(packs * size, seed);
        EplbPolicy.Packing packing = EplbPolicy.balancedPacking(weight, packs);
        assertThat(count(packing.pack(), packs)).containsOnly(size);
        // A pack's places are all taken once.
        int[] places = IntStream.range(0, weight.length)
                .map(i -> packing.pack()[i] * size + packing.rank()[i])
                .sorted()
                .toArray();
        assertThat(places).isEqualTo(IntStream.range(0, weight.length).toArray());
        // Within a pack places are taken in descending order; no pack outweighs another by more than its last, unless
        // the other was full.
        double[] total = new double[packs];
        for (int i = 0; i < weight.length; i++) {
            total[packing.pack()[i]] += weight[i];
            for (int j = 0; j < weight.length; j++) {
                if (packing.pack()[i] == packing.pack()[j] && packing.rank()[i] < packing.rank()[j]) {
                    assertThat(weight[i]).isGreaterThanOrEqualTo(weight[j]);
                }
            }
        }
        double heaviest = Arrays.stream(weight).max().orElseThrow();
        assertThat(Arrays.stream(total).max().orElseThrow())
                .isLessThanOrEqualTo(Arrays.stream(total).sum() / packs + heaviest + 1e-9);
    }

    @Test
    void itemsGoToTheLightestPackThatIsNotFull() {
        EplbPolicy.Packing packing = EplbPolicy.balancedPacking(new double[] {1, 9, 1, 5, 4, 1}, 2);
        // 9 | 5, 5 4, 9: 9 is as heavy as 5 + 4, the first pack comes first; then 5 4 1 is full.
        assertThat(packing.pack()).containsExactly(0, 0, 1, 1, 1, 0);
        assertThat(packing.rank()).containsExactly(1, 0, 2, 0, 1, 2);
    }

    @Property
    void replicasGoWhereTheLoadIs(Draw draw) {
        int logical = draw.between(1, 40);
        int redundant = draw.between(0, 40);
        long seed = draw.aLong();
        double[] weight = loads(logical, seed);
        EplbPolicy.Replicas replicas = EplbPolicy.replicateExperts(weight, logical + redundant);
        assertThat(count(replicas.physicalToLogical(), logical)).isEqualTo(replicas.replicaCount());
        assertThat(replicas.replicaCount()).doesNotContain(0);
        assertThat(Arrays.stream(replicas.replicaCount()).sum()).isEqualTo(logical + redundant);
        // Whoever got its last replica had at least as much to do without it as anybody has now.
        double most = IntStream.range(0, logical)
                .mapToDouble(e -> weight[e] / replicas.replicaCount()[e])
                .max()
                .orElseThrow();
        for (int e = 0; e < logical; e++) {
            int n = replicas.replicaCount()[e];
            if (n > 1) {
                assertThat(weight[e] / (n - 1)).isGreaterThanOrEqualTo(most - 1e-9);
            }
        }
    }

    @Property
    void everyExpertIsPlaced(Draw draw) {
        int groups = draw.between(1, 6);
        int groupSize = draw.between(1, 6);
        int nodes = draw.between(1, 3);
        int devicesPerNode = draw.between(1, 4);
        int spare = draw.between(0, 3);
        long seed = draw.aLong();
        int logical = groups * groupSize;
        int devices = nodes * devicesPerNode;
        int physical = (Math.ceilDiv(logical, devices) + spare) * devices;
        double[] load = loads(logical, seed);
        int[] slots = EplbPolicy.rebalance(load, physical, groups, nodes, devices);
        assertThat(slots).hasSize(physical).isEqualTo(EplbPolicy.rebalance(load, physical, groups, nodes, devices));
        assertThat(count(slots, logical)).doesNotContain(0);
        if (groups % nodes == 0) {
            // A group is on one node, and each node has as many.
            int[] nodeOf = new int[groups];
            Arrays.fill(nodeOf, -1);
            for (int p = 0; p < physical; p++) {
                int node = p / (physical / nodes);
                int group = slots[p] / groupSize;
                assertThat(nodeOf[group]).isIn(-1, node);
                nodeOf[group] = node;
            }
            assertThat(count(nodeOf, nodes)).containsOnly(groups / nodes);
        } else {
            assertThat(slots).isEqualTo(EplbPolicy.rebalance(load, physical, 1, 1, devices));
        }
    }

    @Property
    void whatStaysOnADeviceKeepsItsSlot(Draw draw) {
        int devices = draw.between(1, 5);
        int size = draw.between(1, 8);
        long seed = draw.aLong();
        int physical = devices * size;
        int logical = Math.max(1, physical * 3 / 4);
        int[] before = EplbPolicy.rebalance(loads(logical, seed), physical, 1, 1, devices);
        int[] after = EplbPolicy.rebalance(loads(logical, seed + 1), physical, 1, 1, devices);
        int[] kept = EplbPolicy.preserveIntragpuSlots(before, after, devices);
        for (int device = 0; device < devices; device++) {
            int from = device * size;
            int[] old = count(Arrays.copyOfRange(before, from, from + size), logical);
            int[] wanted = count(Arrays.copyOfRange(after, from, from + size), logical);
            assertThat(count(Arrays.copyOfRange(kept, from, from + size), logical))
                    .isEqualTo(wanted);
            int[] unmoved = new int[logical];
            for (int p = from; p < from + size; p++) {
                unmoved[kept[p]] += kept[p] == before[p] ? 1 : 0;
            }
            for (int e = 0; e < logical; e++) {
                assertThat(unmoved[e]).isEqualTo(Math.min(old[e], wanted[e]));
            }
        }
    }

    @Property
    void mapsAreInverse(Draw draw) {
        int logical = draw.between(1, 20);
        int more = draw.between(0, 20);
        long seed = draw.aLong();
        SplittableRandom random = new SplittableRandom(seed);
        int[] slots = IntStream.concat(IntStream.range(0, logical), random.ints(more, -1, logical))
                .toArray();
        ExpertPlacement.LogicalMaps maps = ExpertPlacement.computeLogicalMaps(slots, logical);
        int most = Arrays.stream(maps.replicaCount()).max().orElseThrow();
        boolean[] seen = new boolean[slots.length];
        for (int e = 0; e < logical; e++) {
            int[] row = maps.logicalToPhysical()[e];
            assertThat(row).hasSize(most);
            for (int r = 0; r < most; r++) {
                if (r < maps.replicaCount()[e]) {
                    assertThat(slots[row[r]]).isEqualTo(e);
                    assertThat(seen[row[r]]).isFalse();
                    seen[row[r]] = true;
                } else {
                    assertThat(row[r]).isEqualTo(-1);
                }
            }
        }
        for (int p = 0; p < slots.length; p++) {
            assertThat(seen[p]).isEqualTo(slots[p] >= 0);
        }
    }

    /** The physical expert that a pair goes to, by vLLM's maps; ids of no expert give -1. */
    private static int physical(ExpertPlacement placement, int id, int token) {
        ExpertPlacement.LogicalMaps maps =
                ExpertPlacement.computeLogicalMaps(placement.physicalToLogical(), placement.logical());
        return id < 0 || id >= placement.logical()
                ? -1
                : maps.logicalToPhysical()[id][Replicas.replica(token, maps.replicaCount()[id])];
    }

    /** Its device, or -1. */
    private static int device(ExpertPlacement placement, int id, int token) {
        int physical = physical(placement, id, token);
        return physical < 0 ? -1 : physical / (placement.physicalToLogical().length / placement.devices());
    }

    /** 2654435769 t mod 2^32, in numbers of their own. */
    @Test
    void tokensAreAssignedToReplicasByTheirHash() {
        ExpertPlacement placement = new ExpertPlacement(new int[] {0, 1, 0, 2, 0, 1}, 3, 3);
        for (int t = 0; t < 1000; t++) {
            long hash = t * 2_654_435_769L % (1L << 32);
            assertThat(physical(placement, 0, t)).isEqualTo(new int[] {0, 2, 4}[(int) (hash % 3)]);
            assertThat(physical(placement, 1, t)).isEqualTo(hash % 2 == 0 ? 1 : 5);
            assertThat(physical(placement, 2, t)).isEqualTo(3);
            assertThat(device(placement, 2, t)).isEqualTo(1);
            for (int e = 0; e < 3; e++) {
                for (int d = 0; d < 3; d++) {
                    assertThat(placement.replicas(d).isHere(e, t)).isEqualTo(d == device(placement, e, t));
                }
            }
        }
        assertThat(physical(placement, -1, 5)).isEqualTo(-1);
        assertThat(physical(placement, 3, 5)).isEqualTo(-1);
        assertThat(device(placement, 3, 5)).isEqualTo(-1);
    }

    /** Every pair is some one device's; zero experts that of one with expert 0. */
    @Test
    void aCallIsSharedOutOnce() {
        ExpertPlacement placement = new ExpertPlacement(new int[] {1, 0, 2, 0, 0, 1}, 3, 3);
        int[] ids = new SplittableRandom(1).ints(120, -1, 5).toArray();
        int[] takers = new int[120];
        for (int device = 0; device < 3; device++) {
            Replicas replicas = placement.replicas(device);
            assertThat(replicas.table()).hasSize(4 * 3);
            for (int p = 0; p < 120; p++) {
                int id = ids[p];
                if (replicas.isHere(id, p / 3)) {
                    assertThat(placement.experts(device)).contains(id < 3 ? id : 0);
                    assertThat(device).isEqualTo(id < 3 ? device(placement, id, p / 3) : 0);
                    takers[p]++;
                }
            }
        }
        for (int p = 0; p < 120; p++) {
            assertThat(takers[p]).isEqualTo(ids[p] == -1 ? 0 : 1);
        }
    }

    // ---- the load

    @Test
    void theFirstRearrangementComesAfterAQuarter() {
        LoadWindow window = new LoadWindow(EplbConfig.DEFAULT, 2);
        for (int interval : new int[] {750, 3000, 3000}) {
            for (int step = 0; step < interval; step++) {
                assertThat(window.isRecording()).isEqualTo(interval - step <= 1000);
                window.record(new int[] {step, 1});
                assertThat(window.isRearrangementDue()).isEqualTo(step == interval - 1);
            }
            int recorded = Math.min(interval, 1000);
            long first = IntStream.range(interval - recorded, interval)
                    .asLongStream()
                    .sum();
            // The ring is full from the second interval on; before, it has all there is.
            assertThat(window.loads()).containsExactly(first, recorded);
        }
    }

    @Test
    void loadsAreOfTheLayersExpertsAndOfTheDevices() {
        EplbConfig config =
                EplbConfig.DEFAULT.withWindowSize(8).withStepInterval(8).withNumRedundantExperts(1);
        LoadBalancer balancer = new LoadBalancer(config, 3, 2);
        // Physical 0 1 | 2 0.
        assertThat(balancer.passed(List.of(new int[] {1, 2}, new int[] {1, 0}))).isFalse();
        assertThat(balancer.window()).containsExactly(1, 2, 1);
        assertThat(balancer.balance().loads()).containsExactly(3L, 1L);
        assertThat(balancer.balance().balancedness()).isEqualTo(2.0 / 3);
        assertThat(balancer.balance().experts()).isEqualTo(List.of(List.of(0, 1), List.of(2, 0)));
        assertThat(balancer.passed(List.of(new int[] {0, 0}, new int[] {5, 1}))).isTrue();
        assertThat(balancer.window()).containsExactly(2, 2, 6);
    }

    @Test
    void optionsThatDoNotFitAreNamed() {
        assertThatThrownBy(() -> EplbConfig.DEFAULT.withWindowSize(0))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("windowSize: expected a positive number, got 0");
        assertThatThrownBy(() -> EplbConfig.DEFAULT.withStepInterval(-3))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("stepInterval: expected a positive number, got -3");
        assertThatThrownBy(() -> EplbConfig.DEFAULT.withNumRedundantExperts(-1))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("numRedundantExperts: expected 0 or more, got -1");
        assertThatThrownBy(() -> new EplbConfig(1, 1, 0, true, 0, true))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("logBalancednessInterval: expected a positive number, got 0");
    }
}
