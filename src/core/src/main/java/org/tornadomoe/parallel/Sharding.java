package org.tornadomoe.parallel;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.ExpertMap;
import org.tornadomoe.config.ExpertPlacementStrategy;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.RankWeights;

/**
 * How a layer is sharded over devices of this host. Each device is a rank with its own kernel class. Determined before
 * anything is allocated.
 *
 * <p>With expert parallelism a device has a range of consecutive experts; if the numbers don't divide, the first
 * devices have one more. With tensor parallelism it has an equal part of every expert's intermediate size. Either way
 * each device gets all tokens, and the partial outputs are added. With tensor parallelism and int8 activations each
 * device finds the scale of its own columns, as vLLM's ranks do; the result is close to one device's, but not the same.
 *
 * <p>With load balancing ({@link EplbConfig}) experts move between the devices while calls go on, and popular ones may
 * be on several devices; each device then knows which tokens it computes. The loaded layer holds the current placement.
 *
 * @param config the whole layer's
 * @param ranks the oracle's choice for each device, in the order in which outputs are added; with load balancing, for
 *     the maximum number of experts that it may hold
 * @param eplb how experts move; null if they don't
 */
public record Sharding(
        FusedMoeConfig config,
        List<Selection> ranks,
        @Nullable EplbConfig eplb) {
    /** Copies the list. */
    public Sharding {
        ranks = List.copyOf(ranks);
    }

    /**
     * Chooses a kernel class for each device. A layer on one device is a sharding with one rank.
     *
     * @param layer the whole layer, with its backend
     * @param kernelClass the kernel class for every device; null for the first that fits
     * @param devices one or more device names as the oracle accepts them; a device may occur several times, for several
     *     parts on it; empty for the best device
     * @param expertParallel true to shard the experts, false to shard each expert's intermediate size
     * @throws IllegalArgumentException if a device is unknown, or the layer can't be sharded in this way; also what the
     *     oracle's select throws
     */
    public static Sharding of(
            Int8MoeOracle oracle,
            FusedMoeConfig layer,
            QuantKey weightKey,
            @Nullable QuantKey activationKey,
            @Nullable String kernelClass,
            List<String> devices,
            boolean expertParallel) {
        return of(oracle, layer, weightKey, activationKey, kernelClass, devices, expertParallel, null);
    }

    /**
     * The same with load balancing.
     *
     * @param eplb null for none; otherwise there must be several devices, expert parallelism and no adapters
     * @throws IllegalArgumentException also if that isn't so, or the copies don't fit the devices
     */
    public static Sharding of(
            Int8MoeOracle oracle,
            FusedMoeConfig layer,
            QuantKey weightKey,
            @Nullable QuantKey activationKey,
            @Nullable String kernelClass,
            List<String> devices,
            boolean expertParallel,
            @Nullable EplbConfig eplb) {
        if (eplb != null) {
            requireBalanceable(layer, devices, expertParallel, eplb);
        }
        if (devices.size() < 2) {
            FusedMoeConfig there = layer.toBuilder()
                    .device(devices.isEmpty() ? null : devices.getFirst())
                    .build();
            return of(oracle.select(there, weightKey, activationKey, kernelClass));
        }
        List<FusedMoeConfig> configs = configs(layer, devices, expertParallel, eplb);
        Int8Quantization quantization = Int8Quantization.of(weightKey, activationKey);
        if (quantization != null) {
            configs.forEach(config -> RankWeights.requireColumns(config, quantization));
        }
        List<Selection> ranks = new ArrayList<>();
        for (FusedMoeConfig config : configs) {
            try {
                ranks.add(oracle.select(config, weightKey, activationKey, kernelClass));
            } catch (UnsupportedOperationException refusal) {
                throw new UnsupportedOperationException(config.device() + ": " + refusal.getMessage(), refusal);
            }
        }
        Sharding sharding = new Sharding(layer, ranks, eplb);
        return sharding.isRoutedByHost()
                ? new Sharding(layer, ranks.stream().map(Sharding::handedIn).toList(), eplb)
                : sharding;
    }

    private static void requireBalanceable(
            FusedMoeConfig layer, List<String> devices, boolean expertParallel, EplbConfig eplb) {
        if (devices.size() < 2) {
            throw new IllegalArgumentException("devices: expected several with load balancing, got " + devices);
        }
        if (!expertParallel) {
            throw new IllegalArgumentException(
                    "expertParallel: expected true with load balancing, which moves whole experts, got false");
        }
        if (layer.isLoraEnabled()) {
            throw new IllegalArgumentException(
                    "maxLoras: expected 0 with load balancing, whose experts move without adapters, got "
                            + layer.maxLoras());
        }
        int experts = layer.globalNumExperts();
        int redundant = eplb.numRedundantExperts();
        int most = experts * (devices.size() - 1);
        if (redundant > most || (experts + redundant) % devices.size() != 0) {
            throw new IllegalArgumentException("numRedundantExperts: expected 0 to " + most + " that make the "
                    + experts + " experts a multiple of " + devices.size() + " devices, got " + redundant);
        }
    }

    private static Selection handedIn(Selection rank) {
        FusedMoeConfig config = rank.config();
        return with(rank, config.toBuilder().router(config.router().handedIn()).build());
    }

    private static Selection with(Selection rank, FusedMoeConfig config) {
        return new Selection(rank.backend(), rank.experts(), config, rank.refusals());
    }

    /** A rank with some of the experts. */
    Selection with(int rank, int[] experts) {
        Selection selection = ranks.get(rank);
        return with(
                selection,
                selection.config().toBuilder().numLocalExperts(experts.length).build());
    }

    /** A layer on one device. */
    public static Sharding of(Selection selection) {
        return new Sharding(selection.config(), List.of(selection), null);
    }

    private static List<FusedMoeConfig> configs(
            FusedMoeConfig layer, List<String> devices, boolean expertParallel, @Nullable EplbConfig eplb) {
        FusedMoeParallelConfig parallel = layer.moeParallelConfig();
        if (IntStream.of(parallel.tpSize(), parallel.epSize(), parallel.dpSize(), parallel.pcpSize(), parallel.spSize())
                .anyMatch(size -> size > 1)) {
            throw new IllegalArgumentException(
                    "devices: expected one, as the layer is already a rank's part, got " + devices);
        }
        if (expertParallel && devices.size() > layer.globalNumExperts()) {
            throw new IllegalArgumentException("devices: expected at most one per expert, " + layer.globalNumExperts()
                    + ", got " + devices.size());
        }
        return IntStream.range(0, devices.size())
                .mapToObj(rank -> layer.toBuilder()
                        .moeParallelConfig(FusedMoeParallelConfig.builder()
                                .tp(devices.size(), rank)
                                .expertParallel(expertParallel)
                                .eplb(eplb != null)
                                .build())
                        .numLocalExperts(
                                eplb == null
                                        ? 0
                                        : Math.min(
                                                layer.globalNumExperts(),
                                                (layer.globalNumExperts() + eplb.numRedundantExperts())
                                                        / devices.size()))
                        .device(devices.get(rank))
                        .build())
                .toList();
    }

    /** Whether the experts are sharded, rather than each expert's intermediate size. */
    public boolean isExpertParallel() {
        return ranks.getFirst().config().moeParallelConfig().useEp();
    }

    /** {@code expert}, {@code tensor} or {@code none}. */
    public String parallelism() {
        return ranks.size() == 1 ? "none" : isExpertParallel() ? "expert" : "tensor";
    }

    /** The backends of all ranks. */
    public String backend() {
        return joined(ranks.stream().map(rank -> rank.backend().toString()).toList());
    }

    /** The kernel classes of all ranks. */
    public String kernelClass() {
        return joined(ranks.stream().map(rank -> rank.experts().name()).toList());
    }

    /** The devices, in human-readable form. */
    public String device() {
        return ranks.stream().map(Selection::device).collect(Collectors.joining(", "));
    }

    private static String joined(List<String> names) {
        return names.stream().distinct().collect(Collectors.joining(", "));
    }

    /** The memory that each device needs, in the order of ranks; null if not known in advance. */
    public List<@Nullable DeviceMemory> memory(QuantKey weightKey, @Nullable QuantKey activationKey) {
        List<@Nullable DeviceMemory> memory = new ArrayList<>();
        for (Selection rank : ranks) {
            memory.add(rank.experts().memory(rank.config(), weightKey, activationKey));
        }
        return memory;
    }

    /**
     * Whether two devices could choose different experts for the same token, because their kernels or the devices
     * differ.
     */
    private boolean isMixed() {
        return ranks.stream()
                        .map(rank ->
                                rank.experts().name() + " on " + rank.device().replaceFirst("^[a-z]+:\\d+ ", ""))
                        .distinct()
                        .count()
                > 1;
    }

    /** Whether the host chooses the experts, because the devices' choices could differ. */
    boolean isRoutedByHost() {
        return ranks.size() > 1 && isMixed();
    }

    /**
     * A rank's part of the weights without load balancing; valid as long as the whole is open.
     *
     * @param whole all of the layer's weights
     */
    public Int8Experts weights(int rank, Int8Experts whole) {
        return weights(ranks.get(rank), whole, experts(rank));
    }

    /**
     * A rank's part of the weights; valid as long as the whole is open.
     *
     * @param experts the rank's experts, with expert parallelism
     */
    Int8Experts weights(Selection rank, Int8Experts whole, int[] experts) {
        FusedMoeConfig config = rank.config();
        if (!isExpertParallel()) {
            return RankWeights.columns(whole, config);
        }
        int[] map = new int[config.globalNumExperts()];
        Arrays.fill(map, -1);
        for (int i = 0; i < experts.length; i++) {
            map[experts[i]] = i;
        }
        return RankWeights.experts(whole, config, experts, map);
    }

    /** A rank's experts without load balancing. */
    int[] experts(int rank) {
        int all = config.globalNumExperts();
        int[] map = isExpertParallel()
                ? ExpertMap.determineExpertMap(ranks.size(), rank, all, ExpertPlacementStrategy.LINEAR)
                        .map()
                : null;
        return IntStream.range(0, all)
                .filter(expert -> map == null || map[expert] >= 0)
                .toArray();
    }
}
