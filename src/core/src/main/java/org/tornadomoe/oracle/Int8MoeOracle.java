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
import java.util.function.BiConsumer;
import java.util.function.Function;
import java.util.function.Supplier;
import java.util.stream.Collectors;
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
 * Picks the kernel class that serves a layer: backends in priority order, each backend's classes in order, and the first
 * that supports the layer. Texts of exceptions and log lines are those of vLLM's {@code oracle/int8.py}, of April and May
 * 2026; of Python's exceptions, ValueError is {@link IllegalArgumentException} here and NotImplementedError {@link
 * UnsupportedOperationException}. Thread-safe.
 *
 * <p>{@code CPU} is ours. So is {@code REFERENCE}, which isn't one of the backends that {@link #select(FusedMoeConfig,
 * QuantKey, QuantKey)} tries: only {@link #select(FusedMoeConfig, QuantKey, QuantKey, String)} knows it, by name and as the last
 * resort of {@code auto}.
 */
public final class Int8MoeOracle {
    private static final System.Logger LOG = System.getLogger(Int8MoeOracle.class.getName());
    private static final String REFERENCE = Int8MoeBackend.REFERENCE.toString();

    private final List<FusedMoeExperts> kernelClasses;
    private final Set<String> logged = ConcurrentHashMap.newKeySet();

    /** An oracle that knows these kernel classes and no others. */
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
     * An oracle over the kernel classes that {@link ServiceLoader} finds from a class loader. One that can't be loaded is
     * left out, with a warning in the log.
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

    /** All kernel classes, in the order of their places. */
    public List<FusedMoeExperts> kernelClasses() {
        return kernelClasses;
    }

    /** The backends that {@code auto} tries, in order, whatever the configuration. */
    public static List<Int8MoeBackend> priorityBackends() {
        return List.of(Int8MoeBackend.TRITON, Int8MoeBackend.CPU);
    }

    /**
     * The backend of a user's name for it, {@code triton} or {@code cpu}.
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
     * Picks. With adapters (LoRA) it takes TRITON unseen, as vLLM did, and of its classes, of which vLLM had one, the first that
     * nothing of the device's stands in the way of.
     *
     * @param config its {@code moeBackend} is {@code auto}, or a backend's name: then nothing else is tried
     * @param weightKey null if weights aren't quantised
     * @param activationKey null if activations aren't quantised
     * @throws IllegalArgumentException if the backend asked for is unknown or doesn't support the layer, or this rank has too many weights
     * @throws UnsupportedOperationException if {@code auto} finds nothing
     */
    public Selection select(FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return pick(config, weightKey, activationKey, this::logOnce);
    }

    private Selection pick(
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey,
            BiConsumer<System.Logger.Level, String> log) {
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
        boolean auto = config.moeBackend().equals("auto");
        List<Int8MoeBackend> backends = auto ? priorityBackends() : List.of(mapInt8Backend(config.moeBackend()));
        String unsupported = "";
        List<String> refusals = new ArrayList<>();
        for (Int8MoeBackend backend : backends) {
            List<FusedMoeExperts> classes = auto ? classesOf(backend) : backendToKernelClasses(backend);
            for (FusedMoeExperts experts : classes) {
                Support support = support(experts, config, weightKey, activationKey);
                if (support.supported()) {
                    log.accept(System.Logger.Level.INFO, usingLine(backend));
                    return new Selection(backend, experts, config, refusals);
                }
                refusals.add(experts.name() + ": " + support);
                unsupported = unsupportedLine(backend, support.reason());
                if (auto) {
                    log.accept(System.Logger.Level.DEBUG, unsupported);
                }
            }
            if (classes.isEmpty()) {
                log.accept(System.Logger.Level.DEBUG, unsupportedLine(backend, null));
            }
        }
        if (auto) {
            throw new UnsupportedOperationException("No Int8 MoE backend supports the deployment configuration.");
        }
        throw new IllegalArgumentException(unsupported);
    }

    private static boolean unhindered(
            FusedMoeExperts experts,
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey) {
        return ask(() -> experts.obstacles(config, weightKey, activationKey).isEmpty(), _ -> false);
    }

    private static String usingLine(Int8MoeBackend backend) {
        return "Using " + backend.value() + " Int8 MoE backend out of potential backends: "
                + pythonList(
                        priorityBackends().stream().map(Int8MoeBackend::value).toList()) + ".";
    }

    private static String unsupportedLine(Int8MoeBackend backend, @Nullable String reason) {
        return reason == null
                ? "Int8 MoE backend '" + backend.value() + "' does not support the deployment configuration."
                : "Int8 MoE backend " + backend.value() + " does not support the deployment configuration since "
                        + reason + ".";
    }

    private void logOnce(System.Logger.Level level, String line) {
        if (logged.add(line)) {
            LOG.log(level, line);
        }
    }

    /** A class that fails when asked doesn't support the layer. */
    private static Support support(
            FusedMoeExperts experts,
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey) {
        return ask(
                () -> experts.isSupportedConfig(config, weightKey, activationKey, config.activationFormat()),
                failure -> Support.no("its check failed: " + failure, null));
    }

    /** A kernel class's answer, or something else if it fails. */
    private static <T> T ask(Supplier<T> question, Function<Throwable, T> otherwise) {
        try {
            return question.get();
        } catch (VirtualMachineError failure) {
            throw failure;
        } catch (RuntimeException | Error failure) {
            return otherwise.apply(failure);
        }
    }

    /** With a scheme's own keys; otherwise as the other. */
    public Selection select(FusedMoeConfig config, Int8Scheme scheme, @Nullable String kernelClass) {
        return select(config, scheme.weightKey(), scheme.activationKey(), kernelClass);
    }

    /**
     * Picks for a {@link org.tornadomoe.MoeLayer}. Beyond vLLM's it knows the backend {@code reference}, which is also the
     * last resort of {@code auto} unless a device or a kernel class is asked for; and what it throws names every candidate
     * with its reason.
     *
     * @param kernelClass a kernel class's name, to be taken or refused; null for the first that fits
     * @throws IllegalArgumentException if backend, device or kernel class is unknown; the message lists what is known; or if this rank has too
     *     many weights ({@link FusedMoeConfig#requireAddressableWeights})
     * @throws InsufficientMemoryException if only memory stands in the way of a class
     * @throws UnsupportedOperationException if nothing supports the layer
     */
    public Selection select(
            FusedMoeConfig config, QuantKey weightKey, @Nullable QuantKey activationKey, @Nullable String kernelClass) {
        config.requireAddressableWeights();
        String name = config.moeBackend();
        List<Int8MoeBackend> known = List.of(Int8MoeBackend.values());
        List<Int8MoeBackend> backends = name.equals("auto") ? known : List.of(map(name, known));
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
        List<String> refusals = new ArrayList<>();
        InsufficientMemoryException tooLarge = null;
        for (FusedMoeExperts experts : candidates) {
            boolean lastResort = experts.backend() == Int8MoeBackend.REFERENCE && name.equals("auto");
            // Want of memory is no case for the reference: it would take as much, and hours.
            if (lastResort && kernelClass == null && (config.device() != null || tooLarge != null)) {
                continue;
            }
            // Who names a class asks for its backend.
            FusedMoeConfig asked = kernelClass == null
                    ? config
                    : config.toBuilder()
                            .moeBackend(experts.backend().toString())
                            .build();
            Support support = support(experts, asked, weightKey, activationKey);
            if (support.supported()) {
                if (experts.backend() != Int8MoeBackend.REFERENCE) {
                    logOnce(System.Logger.Level.INFO, usingLine(experts.backend()));
                }
                return new Selection(experts.backend(), experts, config, refusals);
            }
            logOnce(System.Logger.Level.DEBUG, unsupportedLine(experts.backend(), support.reason()));
            refusals.add(experts.name() + ": " + support);
            if (tooLarge == null && support.bytesNeeded() > support.bytesAvailable()) {
                tooLarge = new InsufficientMemoryException(
                        experts.name() + ": " + support, support.bytesNeeded(), support.bytesAvailable());
            }
        }
        if (tooLarge != null) {
            throw tooLarge;
        }
        List<String> devices = candidates.stream()
                .filter(experts -> experts.backend() != Int8MoeBackend.REFERENCE)
                .flatMap(experts -> ask(experts::devices, _ -> List.<String>of()).stream())
                .distinct()
                .toList();
        if (config.device() != null
                && !devices.isEmpty()
                && candidates.stream()
                        .filter(experts -> experts.backend() != Int8MoeBackend.REFERENCE)
                        .noneMatch(experts -> ask(() -> experts.supportsCurrentDevice(config), _ -> false))) {
            throw new IllegalArgumentException(
                    "device: expected one of " + devices + ", got '" + config.device() + "'");
        }
        String failure = "No Int8 MoE backend supports the deployment configuration: "
                + (refusals.isEmpty() ? "no kernel class fills " + backends : String.join("; ", refusals));
        throw new UnsupportedOperationException(failure);
    }

    /**
     * Loads a layer into the kernel class that was chosen for it (vLLM: {@code make_int8_moe_kernel}). The weights are copied.
     *
     * @throws IllegalArgumentException if the configuration brings activations in another format than the class takes, which
     *     a class that was taken unseen may not have been asked
     * @throws InsufficientMemoryException before anything is allocated, if the layer doesn't fit
     * @throws org.tornadomoe.kernel.MoeExecutionException if the device refused it
     */
    public MoeKernel makeInt8MoeKernel(Selection selection, Int8Experts weights) {
        FusedMoeConfig config = selection.config();
        FusedMoeExperts experts = selection.experts();
        FusedMoeParallelConfig parallel = config.moeParallelConfig();
        PrepareAndFinalize prepareAndFinalize =
                PrepareAndFinalize.of(config, weights.scheme().activationKey());
        if (prepareAndFinalize == PrepareAndFinalize.NAIVE_DP_EP && !parallel.useAll2allKernels()) {
            logOnce(
                    System.Logger.Level.INFO,
                    "Detected DP deployment with no --enable-expert-parallel. Falling back to AllGather+ReduceScatter"
                            + " dispatch/combine.");
        }
        logOnce(System.Logger.Level.INFO, "Using " + prepareAndFinalize.className());
        if (prepareAndFinalize.activationFormat() != experts.activationFormat()) {
            throw new IllegalArgumentException(
                    experts.name() + ": expected " + experts.activationFormat() + " activation format, got "
                            + prepareAndFinalize.activationFormat() + " of " + prepareAndFinalize.className());
        }
        return experts.load(config, weights);
    }

    /**
     * What {@link #select(FusedMoeConfig, QuantKey, QuantKey)} considers, each candidate with everything that stands in its
     * way. Throws nothing that select throws for want of support.
     *
     * @throws IllegalArgumentException if the backend asked for is unknown, or this rank has too many weights
     */
    public Explanation explain(FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        config.requireAddressableWeights();
        boolean reference = config.moeBackend().equals(REFERENCE);
        boolean auto = config.moeBackend().equals("auto");
        List<Int8MoeBackend> backends = reference
                ? List.of(Int8MoeBackend.REFERENCE)
                : auto ? priorityBackends() : List.of(mapInt8Backend(config.moeBackend()));
        List<Explanation.Candidate> candidates = new ArrayList<>();
        for (Int8MoeBackend backend : backends) {
            for (FusedMoeExperts experts : classesOf(backend)) {
                candidates.add(candidate(experts, config, weightKey, activationKey));
            }
            if (classesOf(backend).isEmpty()) {
                Support empty = Support.no("no kernel class fills this slot", null);
                candidates.add(new Explanation.Candidate(backend, null, null, empty, List.of(empty), null, null));
            }
        }
        int chosen = -1;
        String failure = null;
        if (reference) {
            chosen = candidates.getFirst().support().supported() ? 0 : -1;
            failure = chosen == 0 ? null : candidates.getFirst().support().reason();
        } else {
            try {
                String taken = pick(config, weightKey, activationKey, (_, _) -> {})
                        .experts()
                        .name();
                chosen = candidates.stream()
                        .map(Explanation.Candidate::name)
                        .toList()
                        .indexOf(taken);
            } catch (IllegalArgumentException | UnsupportedOperationException unsupported) {
                failure = unsupported.getMessage();
            }
        }
        String lastResort = null;
        if (auto && failure != null && config.device() == null) {
            lastResort = classesOf(Int8MoeBackend.REFERENCE).stream()
                    .filter(k -> support(k, config, weightKey, activationKey).supported())
                    .map(FusedMoeExperts::name)
                    .findFirst()
                    .orElse(null);
        }
        return new Explanation(
                config, weightKey, activationKey, config.activationFormat(), candidates, chosen, failure, lastResort);
    }

    private static Explanation.Candidate candidate(
            FusedMoeExperts experts,
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey) {
        Support support = support(experts, config, weightKey, activationKey);
        String device = ask(() -> experts.device(config), _ -> String.valueOf(config.device()));
        List<Support> refusals = ask(
                () -> experts.refusals(config, weightKey, activationKey, config.activationFormat()),
                _ -> List.of(support));
        DeviceMemory memory = ask(
                        () -> Optional.ofNullable(experts.memory(config, weightKey, activationKey)),
                        _ -> Optional.<DeviceMemory>empty())
                .orElse(null);
        LaunchSpace launches = ask(
                        () -> Optional.ofNullable(experts.launches(config, weightKey, activationKey)),
                        _ -> Optional.<LaunchSpace>empty())
                .orElse(null);
        return new Explanation.Candidate(
                experts.backend(), experts.name(), device, support, refusals, memory, launches);
    }
}
