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
 * How a layer is sharded over devices of this host, each of which is a rank with a kernel class of its own; settled
 * before anything is allocated.
 *
 * <p>With expert parallelism a device has some of the experts, neighbours, the first devices one more where they don't
 * divide; with tensor parallelism it has an equal part of every expert's intermediate size. Either way each device is
 * given all tokens, and their partial outputs are added. With tensor parallelism and activations in int8 each device
 * finds the scale of its own columns, as vLLM's ranks do; the result is near that of one device, but not the same.
 *
 * <p>With load balancing ({@link EplbConfig}) experts move between the devices while calls go on, and popular ones may
 * be on several: then each device knows which tokens are its own. Where the experts are is the loaded layer's.
 *
 * @param config the whole layer's
 * @param ranks what was chosen for each device, in the order in which outputs are added; with load balancing for the
 *     most experts that it may have
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
     * Chooses a kernel class for each device. A layer on one device is a spread of one rank.
     *
     * @param layer the whole layer, with its backend
     * @param kernelClass to be taken on every device; null for the first that fits
     * @param devices as the oracle takes them, one or more; the same one more than once for several parts on it; empty
     *     for the best there is
     * @param expertParallel whether experts are sharded, or each expert's intermediate size
     * @throws IllegalArgumentException if a device is unknown, or the layer can't be sharded so; also what the oracle's
     *     select throws
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
     * With load balancing. Otherwise as the other.
     *
     * @param eplb null for none; otherwise several devices, expert parallelism and a layer without adapters
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
                    "devices: expected one for a layer that is a rank's part already, got " + devices);
        }
        if (expertParallel && devices.size() > layer.globalNumExperts()) {
            throw new IllegalArgumentException(
                    "devices: expected at most one an expert, " + layer.globalNumExperts() + ", got " + devices.size());
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
                        .intermediateSizePerPartitionUnpadded(0)
                        .device(devices.get(rank))
                        .build())
                .toList();
    }

    /** Whether experts are sharded, and not each expert's intermediate size. */
    public boolean isExpertParallel() {
        return ranks.getFirst().config().moeParallelConfig().useEp();
    }

    /** {@code expert}, {@code tensor} or {@code none}. */
    public String parallelism() {
        return ranks.size() == 1 ? "none" : isExpertParallel() ? "expert" : "tensor";
    }

    /** The backends, of which there may be several. */
    public String backend() {
        return joined(ranks.stream().map(rank -> rank.backend().toString()).toList());
    }

    /** The kernel classes, of which there may be several. */
    public String kernelClass() {
        return joined(ranks.stream().map(rank -> rank.experts().name()).toList());
    }

    /** Where it runs, for people. */
    public String device() {
        return ranks.stream().map(Selection::device).collect(Collectors.joining(", "));
    }

    private static String joined(List<String> names) {
        return names.stream().distinct().collect(Collectors.joining(", "));
    }

    /** What each device will take of its memory, in the order of ranks; null where that is not known beforehand. */
    public List<@Nullable DeviceMemory> memory(QuantKey weightKey, @Nullable QuantKey activationKey) {
        List<@Nullable DeviceMemory> memory = new ArrayList<>();
        for (Selection rank : ranks) {
            memory.add(rank.experts().memory(rank.config(), weightKey, activationKey));
        }
        return memory;
    }

    /**
     * Whether two devices could choose other experts for the same token, because their kernels or the devices
     * themselves differ.
     */
    private boolean isMixed() {
        return ranks.stream()
                        .map(rank ->
                                rank.experts().name() + " on " + rank.device().replaceFirst("^[a-z]+:\\d+ ", ""))
                        .distinct()
                        .count()
                > 1;
    }

    /** Whether the host chooses the experts, because devices could differ. */
    boolean isRoutedByHost() {
        return ranks.size() > 1 && isMixed();
    }

    /**
     * A rank's part of the weights where experts don't move, which is valid as long as the whole is open.
     *
     * @param whole all of the layer's weights
     */
    public Int8Experts weights(int rank, Int8Experts whole) {
        return weights(ranks.get(rank), whole, experts(rank));
    }

    /**
     * A rank's part of the weights, which is valid as long as the whole is open.
     *
     * @param experts that it has, with expert parallelism
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

    /** The experts that a rank has where they don't move. */
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
