package org.tornadomoe.oracle;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.ServiceConfigurationError;
import java.util.ServiceLoader;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.PrepareAndFinalize;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tuning.LaunchSpace;

/**
 * Picks the kernel class that serves a layer: it tries backends in priority order and each backend's classes in their
 * order, and takes the first that supports the layer. Exception messages and log lines are those of vLLM's {@code
 * oracle/int8.py}, of April and May 2026. Python's ValueError is {@link IllegalArgumentException} here,
 * NotImplementedError is {@link UnsupportedOperationException}. Thread-safe.
 *
 * <p>{@code CPU} is ours. So is {@code REFERENCE}, which isn't one of the backends that {@link #select(FusedMoeConfig,
 * QuantKey, QuantKey)} tries: only {@link #select(FusedMoeConfig, QuantKey, QuantKey, String)} knows it, by name and as
 * the last resort of {@code auto}.
 */
public final class Int8MoeOracle {
    private static final System.Logger LOG = System.getLogger(Int8MoeOracle.class.getName());
    private static final String NOTHING = "No Int8 MoE backend supports the deployment configuration.";
    private static final List<Int8MoeBackend> ALL = List.of(Int8MoeBackend.values());

    private final List<FusedMoeExperts> kernelClasses;
    private final Set<String> logged = ConcurrentHashMap.newKeySet();

    /** An oracle over only these kernel classes. */
    public Int8MoeOracle(List<FusedMoeExperts> kernelClasses) {
        this.kernelClasses = kernelClasses.stream()
                .sorted(Comparator.comparing(FusedMoeExperts::backend)
                        .thenComparingInt(FusedMoeExperts::order)
                        .thenComparing(FusedMoeExperts::name))
                .toList();
    }

    /** The oracle over the kernel classes that the library's class loader finds. */
    public static Int8MoeOracle installed() {
        return Installed.ORACLE;
    }

    private static final class Installed {
        static final Int8MoeOracle ORACLE = of(Int8MoeOracle.class.getClassLoader());
    }

    /**
     * An oracle over the kernel classes that {@link ServiceLoader} finds from a class loader. It skips a class that
     * can't be loaded, with a warning in the log.
     */
    public static Int8MoeOracle of(@Nullable ClassLoader loader) {
        List<FusedMoeExperts> found = new ArrayList<>();
        Iterator<FusedMoeExperts> providers =
                ServiceLoader.load(FusedMoeExperts.class, loader).iterator();
        while (true) {
            try {
                if (!providers.hasNext()) {
                    return new Int8MoeOracle(found);
                }
                found.add(providers.next());
            } catch (ServiceConfigurationError | LinkageError broken) {
                LOG.log(System.Logger.Level.WARNING, "a kernel class can't be loaded: " + broken);
            }
        }
    }

    /** All kernel classes, in order. */
    public List<FusedMoeExperts> kernelClasses() {
        return kernelClasses;
    }

    /** The backends that {@code auto} tries, in order, whatever the configuration. */
    public static List<Int8MoeBackend> priorityBackends() {
        return List.of(Int8MoeBackend.TRITON, Int8MoeBackend.CPU);
    }

    /**
     * The backend with that user's spelling, {@code triton} or {@code cpu}.
     *
     * @throws IllegalArgumentException if there is none; the message lists all
     */
    public static Int8MoeBackend mapInt8Backend(String name) {
        return map(name, priorityBackends());
    }

    private static Int8MoeBackend map(String name, List<Int8MoeBackend> known) {
        return known.stream()
                .filter(backend -> backend.toString().equals(name))
                .findFirst()
                .orElseThrow(() -> new IllegalArgumentException("moe_backend='" + name
                        + "' is not supported for Int8 MoE. Expected one of "
                        + pythonList(
                                known.stream().map(Int8MoeBackend::toString).toList()) + "."));
    }

    private static String pythonList(List<String> values) {
        return values.stream().map(value -> "'" + value + "'").collect(Collectors.joining(", ", "[", "]"));
    }

    /**
     * A backend's kernel classes, in order.
     *
     * @throws IllegalArgumentException if it has none
     */
    public List<FusedMoeExperts> backendToKernelClasses(Int8MoeBackend backend) {
        List<FusedMoeExperts> classes = classesOf(backend);
        if (classes.isEmpty()) {
            throw new IllegalArgumentException("Unknown Int8 MoE backend: " + backend.value());
        }
        return classes;
    }

    private List<FusedMoeExperts> classesOf(Int8MoeBackend backend) {
        return kernelClasses.stream().filter(k -> k.backend() == backend).toList();
    }

    /** Picks for int8 weights with a scale per channel and int8 activations with a scale per token. */
    public Selection select(FusedMoeConfig config) {
        return select(config, QuantKey.INT8_STATIC_CHANNEL_SYM, QuantKey.INT8_DYNAMIC_TOKEN_SYM);
    }

    /**
     * Picks a kernel class. With adapters (LoRA) it takes TRITON without checks, as vLLM did. vLLM had one class there;
     * this method takes the first one that has no obstacle on the device.
     *
     * @param config its {@code moeBackend} is {@code auto} or a backend's name; with a name no other backend is tried
     * @param weightKey null if weights aren't quantised
     * @param activationKey null if activations aren't quantised
     * @throws IllegalArgumentException if the backend asked for is unknown or doesn't support the layer, or this rank
     *     has too many weights
     * @throws UnsupportedOperationException if {@code auto} finds nothing
     */
    public Selection select(FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        config.requireAddressableWeights();
        if (config.isLoraEnabled()) {
            List<FusedMoeExperts> classes = backendToKernelClasses(Int8MoeBackend.TRITON);
            FusedMoeConfig triton = config.toBuilder()
                    .moeBackend(Int8MoeBackend.TRITON.toString())
                    .build();
            FusedMoeExperts first = classes.stream()
                    .filter(experts -> unhindered(experts, triton, weightKey, activationKey))
                    .findFirst()
                    .orElse(classes.getFirst());
            return new Selection(Int8MoeBackend.TRITON, first, config, List.of());
        }
        boolean auto = isAuto(config);
        List<Int8MoeBackend> backends = auto ? priorityBackends() : List.of(mapInt8Backend(config.moeBackend()));
        List<FusedMoeExperts> classes = backends.stream()
                .flatMap(backend -> (auto ? classesOf(backend) : backendToKernelClasses(backend)).stream())
                .toList();
        Walk walk = Walk.over(classes, config, weightKey, activationKey);
        if (auto) {
            logRefusals(backends, walk);
        }
        if (walk.taken() != null) {
            logOnce(System.Logger.Level.DEBUG, usingLine(walk.taken().backend()));
            return walk.selection(config);
        }
        if (auto) {
            throw new UnsupportedOperationException(NOTHING);
        }
        throw new IllegalArgumentException(walk.refused().getLast().unsupportedLine());
    }

    private static boolean isAuto(FusedMoeConfig config) {
        return config.moeBackend().equals("auto");
    }

    /** Logs the refusals up to the backend of the class that was taken. */
    private void logRefusals(List<Int8MoeBackend> backends, Walk walk) {
        for (Int8MoeBackend backend : backends) {
            walk.refused().stream()
                    .filter(answer -> answer.experts().backend() == backend)
                    .forEach(answer -> logOnce(System.Logger.Level.DEBUG, answer.unsupportedLine()));
            if (classesOf(backend).isEmpty()) {
                logOnce(System.Logger.Level.DEBUG, Walk.unsupportedLine(backend, null));
            }
            if (walk.taken() != null && walk.taken().backend() == backend) {
                return;
            }
        }
    }

    private static boolean unhindered(
            FusedMoeExperts experts,
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey) {
        return Walk.ask(
                () -> experts.obstacles(config, weightKey, activationKey).isEmpty(), _ -> false);
    }

    private static String usingLine(Int8MoeBackend backend) {
        return "Using " + backend.value() + " Int8 MoE backend out of potential backends: "
                + pythonList(
                        priorityBackends().stream().map(Int8MoeBackend::value).toList()) + ".";
    }

    private void logOnce(System.Logger.Level level, String line) {
        if (logged.add(line)) {
            LOG.log(level, line);
        }
    }

    /** Picks for a scheme's default keys; otherwise like the method with keys. */
    public Selection select(FusedMoeConfig config, Int8Scheme scheme, @Nullable String kernelClass) {
        return select(config, scheme.weightKey(), scheme.activationKey(), kernelClass);
    }

    /**
     * Picks for a {@link org.tornadomoe.MoeLayer}. Unlike vLLM's method, it knows the backend {@code reference}, which
     * is also the last resort of {@code auto} unless a device or a kernel class is asked for, and its exceptions name
     * every candidate with its reason.
     *
     * @param kernelClass the kernel class to take or refuse, by name; null for the first that fits
     * @throws IllegalArgumentException if backend, device or kernel class is unknown; the message lists what is known;
     *     or if this rank has too many weights ({@link FusedMoeConfig#requireAddressableWeights})
     * @throws InsufficientMemoryException if a class lacks only memory
     * @throws UnsupportedOperationException if nothing supports the layer
     */
    public Selection select(
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey,
            @Nullable String kernelClass) {
        config.requireAddressableWeights();
        List<Int8MoeBackend> backends = isAuto(config) ? ALL : List.of(map(config.moeBackend(), ALL));
        List<FusedMoeExperts> candidates = backends.stream()
                .flatMap(backend -> classesOf(backend).stream())
                .filter(experts -> kernelClass == null || experts.name().equals(kernelClass))
                .toList();
        if (kernelClass != null && candidates.isEmpty()) {
            throw new IllegalArgumentException("kernel class: expected one of "
                    + backends.stream()
                            .flatMap(b -> classesOf(b).stream())
                            .map(FusedMoeExperts::name)
                            .toList()
                    + ", got '" + kernelClass + "'");
        }
        Walk walk = kernelClass != null
                ? named(candidates, config, weightKey, activationKey)
                : isAuto(config)
                        ? automatic(config, weightKey, activationKey)
                        : Walk.over(candidates, config, weightKey, activationKey);
        walk.refused().forEach(answer -> logOnce(System.Logger.Level.DEBUG, answer.unsupportedLine()));
        if (walk.taken() != null) {
            if (walk.taken().backend() != Int8MoeBackend.REFERENCE) {
                logOnce(System.Logger.Level.DEBUG, usingLine(walk.taken().backend()));
            }
            return walk.selection(config);
        }
        walk.refused().stream().filter(Walk.Answer::isTooLarge).findFirst().ifPresent(answer -> {
            throw new InsufficientMemoryException(
                    answer.toString(),
                    answer.support().bytesNeeded(),
                    answer.support().bytesAvailable());
        });
        List<String> devices = candidates.stream()
                .filter(experts -> experts.backend() != Int8MoeBackend.REFERENCE)
                .flatMap(experts -> Walk.ask(experts::devices, _ -> List.<String>of()).stream())
                .distinct()
                .toList();
        if (config.device() != null
                && !devices.isEmpty()
                && candidates.stream()
                        .filter(experts -> experts.backend() != Int8MoeBackend.REFERENCE)
                        .noneMatch(experts -> Walk.ask(() -> experts.supportsCurrentDevice(config), _ -> false))) {
            String notes = candidates.stream()
                    .flatMap(experts ->
                            Walk.ask(() -> Optional.ofNullable(experts.devicesNote()), _ -> Optional.<String>empty())
                                    .stream())
                    .distinct()
                    .collect(Collectors.joining("; "));
            throw new IllegalArgumentException("device: expected one of " + devices + ", got '" + config.device() + "'"
                    + (notes.isEmpty() ? "" : ": " + notes));
        }
        String failure = NOTHING.replace('.', ':') + " "
                + (walk.refused().isEmpty()
                        ? "no kernel class fills " + backends
                        : walk.refused().stream().map(Walk.Answer::toString).collect(Collectors.joining("; ")));
        throw new UnsupportedOperationException(failure);
    }

    /** The classes with one name. Naming a class also asks for its backend. */
    private static Walk named(
            List<FusedMoeExperts> classes,
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey) {
        Walk walk = new Walk(List.of(), null);
        for (FusedMoeExperts experts : classes) {
            FusedMoeConfig asked =
                    config.toBuilder().moeBackend(experts.backend().toString()).build();
            walk = walk.or(() -> Walk.over(List.of(experts), asked, weightKey, activationKey));
        }
        return walk;
    }

    /** All backends in order, and the reference as the last resort. */
    private Walk automatic(FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        List<FusedMoeExperts> classes = priorityBackends().stream()
                .flatMap(backend -> classesOf(backend).stream())
                .toList();
        Walk walk = Walk.over(classes, config, weightKey, activationKey);
        // If memory is lacking, the reference doesn't help: it would need as much, and hours.
        boolean noResort = config.device() != null || walk.refused().stream().anyMatch(Walk.Answer::isTooLarge);
        return noResort
                ? walk
                : walk.or(() -> Walk.over(classesOf(Int8MoeBackend.REFERENCE), config, weightKey, activationKey));
    }

    /**
     * Loads a layer with the kernel class that was chosen for it (vLLM: {@code make_int8_moe_kernel}). The weights are
     * copied.
     *
     * @throws IllegalArgumentException if the class doesn't support the configuration's activation format, which a
     *     class taken without checks may not have been asked
     * @throws InsufficientMemoryException before anything is allocated, if the layer doesn't fit
     * @throws org.tornadomoe.kernel.MoeExecutionException if the device refuses the layer
     */
    public MoeKernel makeInt8MoeKernel(Selection selection, Int8Experts weights) {
        FusedMoeConfig config = selection.config();
        FusedMoeExperts experts = selection.experts();
        FusedMoeParallelConfig parallel = config.moeParallelConfig();
        PrepareAndFinalize prepareAndFinalize =
                PrepareAndFinalize.of(config, weights.scheme().activationKey());
        if (prepareAndFinalize == PrepareAndFinalize.NAIVE_DP_EP && !parallel.useAll2allKernels()) {
            logOnce(
                    System.Logger.Level.DEBUG,
                    "Detected DP deployment with no --enable-expert-parallel. Falling back to AllGather+ReduceScatter"
                            + " dispatch/combine.");
        }
        logOnce(System.Logger.Level.DEBUG, "Using " + prepareAndFinalize.className());
        if (!experts.supportsActivationFormat(prepareAndFinalize.activationFormat())) {
            throw new IllegalArgumentException(experts.name() + ": does not support the "
                    + prepareAndFinalize.activationFormat() + " activation format of "
                    + prepareAndFinalize.className());
        }
        return experts.load(config, weights);
    }

    /**
     * Explains what {@link #select(FusedMoeConfig, QuantKey, QuantKey, String)} considers without a kernel class's
     * name: each candidate with all reasons against it. Unlike select, it doesn't throw if nothing supports the layer.
     *
     * @throws IllegalArgumentException if the backend asked for is unknown, or this rank has too many weights
     */
    public Explanation explain(FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        config.requireAddressableWeights();
        boolean auto = isAuto(config);
        List<Int8MoeBackend> backends = auto ? priorityBackends() : List.of(map(config.moeBackend(), ALL));
        List<Explanation.Candidate> candidates = new ArrayList<>();
        for (Int8MoeBackend backend : backends) {
            for (FusedMoeExperts experts : classesOf(backend)) {
                candidates.add(candidate(experts, config, weightKey, activationKey));
            }
            if (classesOf(backend).isEmpty()) {
                Support empty = Support.no("no kernel class fills this slot", null);
                candidates.add(new Explanation.Candidate(backend, null, null, empty, List.of(empty), null, null, null));
            }
        }
        int chosen = IntStream.range(0, candidates.size())
                .filter(c -> candidates.get(c).support().supported())
                .findFirst()
                .orElse(-1);
        Explanation.Candidate last = candidates.getLast();
        String failure = chosen >= 0
                ? null
                : auto
                        ? NOTHING
                        : last.backend() == Int8MoeBackend.REFERENCE
                                ? last.support().reason()
                                : Walk.unsupportedLine(
                                        last.backend(), last.support().reason());
        FusedMoeExperts lastResort =
                auto && chosen < 0 ? automatic(config, weightKey, activationKey).taken() : null;
        return new Explanation(
                config,
                weightKey,
                activationKey,
                config.activationFormat(),
                candidates,
                chosen,
                failure,
                lastResort == null ? null : lastResort.name());
    }

    private static Explanation.Candidate candidate(
            FusedMoeExperts experts,
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey) {
        Support support =
                Walk.Answer.of(experts, config, weightKey, activationKey).support();
        String device = Walk.ask(() -> experts.device(config), _ -> String.valueOf(config.device()));
        List<Support> refusals = Walk.ask(
                () -> experts.refusals(config, weightKey, activationKey, config.activationFormat()),
                _ -> List.of(support));
        DeviceMemory memory = Walk.ask(
                        () -> Optional.ofNullable(experts.memory(config, weightKey, activationKey)),
                        _ -> Optional.<DeviceMemory>empty())
                .orElse(null);
        LaunchSpace launches = Walk.ask(
                        () -> Optional.ofNullable(experts.launches(config, weightKey, activationKey)),
                        _ -> Optional.<LaunchSpace>empty())
                .orElse(null);
        String rounding = Walk.ask(
                        () -> Optional.ofNullable(weightKey).map(experts::rounding), _ -> Optional.<String>empty())
                .orElse(null);
        return new Explanation.Candidate(
                experts.backend(), experts.name(), device, support, refusals, memory, launches, rounding);
    }
}
