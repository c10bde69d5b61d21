package org.tornadomoe;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.function.Consumer;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.TopKRouter;
import org.tornadomoe.observe.MoeListener;
import org.tornadomoe.quant.Progress;

/**
 * How to load a layer. Immutable; every {@code with} method returns a copy.
 *
 * @param quantization what becomes int8, and which values share a scale. Null for the scheme in which the weights are
 *     stored, or that suits them, without loss if they lie on an int8 grid: {@link
 *     org.tornadomoe.quant.ExpertWeights#quantization}
 * @param backend {@code auto} (a device through TornadoVM, else the CPU), {@code triton} (TornadoVM's task graphs;
 *     without an SDK on the interpreter), {@code cpu} or {@code reference}
 * @param devices the devices to run on, such as {@code ptx:0} or {@code opencl}; empty for the best one, several to
 *     shard the layer over them. A device may be named more than once
 * @param expertParallel how several devices share the layer: true gives each expert to one of them, false gives each
 *     device a part of every expert's intermediate size
 * @param loadBalancing how experts move between several devices by load, while calls go on; null if they don't move. It
 *     needs expert parallelism, allows no adapters and gives one lane. The layer then keeps its int8 weights in the
 *     host's memory
 * @param kernelClass the kernel class's name; null for the first that fits
 * @param maxTokens the maximum number of tokens per call; it sets the size of device buffers and of each call's
 *     transfers
 * @param progress is notified of the progress of quantisation
 * @param router the caller's own router, in place of the layer's; null for the layer's. It runs on the host in every
 *     call; so do the router's logits, in double
 * @param maxLoras number of adapter (LoRA) slots; 0 for none
 * @param maxLoraRank maximum rank of an adapter; ignored without adapters
 * @param lanes the maximum number of concurrent calls, 1 to {@link #MAX_LANES}. A kernel class that can't share its
 *     weights between calls has one lane whatever you ask for ({@link MoeLayer#lanes}). Each lane has its own
 *     activation buffers
 * @param laneWait how long a call waits for a lane when all are busy before it throws {@link LaneException}; {@link
 *     Duration#ZERO} to fail at once, null to wait without a limit
 * @param hiddenType type of hidden states and output in the caller's memory: F32, F16 or BF16
 * @param checkFinite whether a call checks its hidden states first and refuses a NaN or an infinity, naming its
 *     position. Without the check, such a token's output is NaN or infinite, and its experts are arbitrary
 * @param listener is notified of calls, their times and bytes; null for none, and then the layer reads no clock
 */
public record MoeOptions(
        @Nullable Int8Quantization quantization,
        String backend,
        List<String> devices,
        boolean expertParallel,
        @Nullable EplbConfig loadBalancing,
        @Nullable String kernelClass,
        int maxTokens,
        Progress progress,
        @Nullable TopKRouter router,
        int maxLoras,
        int maxLoraRank,
        int lanes,
        @Nullable Duration laneWait,
        ScalarType hiddenType,
        boolean checkFinite,
        @Nullable MoeListener listener) {

    private static final List<String> BACKENDS = Stream.concat(
                    Stream.of("auto"), Stream.of(Int8MoeBackend.values()).map(Int8MoeBackend::toString))
            .toList();

    /** The maximum number of lanes of a layer. */
    public static final int MAX_LANES = 1024;

    /**
     * Weights in the scheme in which they are stored (floats as {@code w8a8_channel}), on the best backend, up to 256
     * tokens per call.
     */
    public static final MoeOptions DEFAULT = new MoeOptions(
            null,
            "auto",
            List.of(),
            true,
            null,
            null,
            256,
            Progress.NONE,
            null,
            0,
            16,
            1,
            null,
            ScalarType.F32,
            false,
            null);

    /**
     * Checks that nothing is missing and numbers are in range, and copies the list. Checks that need a layer's sizes
     * happen when the layer is loaded.
     *
     * @throws IllegalArgumentException naming the option, what was expected and what came
     */
    public MoeOptions {
        devices = List.copyOf(devices);
        Objects.requireNonNull(backend, "backend");
        Objects.requireNonNull(progress, "progress");
        if (!BACKENDS.contains(backend)) {
            throw new IllegalArgumentException("backend: expected one of " + BACKENDS + ", got '" + backend + "'");
        }
        if (maxTokens < 1) {
            throw new IllegalArgumentException("maxTokens: expected a positive number, got " + maxTokens);
        }
        if (maxLoras < 0) {
            throw new IllegalArgumentException("maxLoras: expected 0 or more, got " + maxLoras);
        }
        if (maxLoraRank < 1) {
            throw new IllegalArgumentException("maxLoraRank: expected a positive number, got " + maxLoraRank);
        }
        if (lanes < 1 || lanes > MAX_LANES) {
            throw new IllegalArgumentException("lanes: expected 1 to " + MAX_LANES + ", got " + lanes);
        }
        Objects.requireNonNull(hiddenType, "hiddenType");
        if (hiddenType == ScalarType.I8) {
            throw new IllegalArgumentException("hiddenType: expected f32, f16 or bf16, got i8");
        }
        if (laneWait != null && laneWait.isNegative()) {
            throw new IllegalArgumentException("laneWait: expected zero or more, or null, got " + laneWait);
        }
    }

    /** The scheme; null for the one in which the weights are stored, or that suits them. */
    public @Nullable Int8Scheme scheme() {
        return quantization == null ? null : quantization.scheme();
    }

    /** Sets a scheme, with its default block or group. */
    public MoeOptions withScheme(Int8Scheme scheme) {
        return withQuantization(Int8Quantization.of(scheme));
    }

    /** Sets a scheme and its block or group; null for the one in which the weights are stored, or that suits them. */
    public MoeOptions withQuantization(@Nullable Int8Quantization quantization) {
        return with(p -> p.quantization = quantization);
    }

    public MoeOptions withBackend(String backend) {
        return with(p -> p.backend = backend);
    }

    /** Runs on one device; null for the best one. */
    public MoeOptions withDevice(@Nullable String device) {
        return withDevices(device == null ? List.of() : List.of(device));
    }

    /** Runs on several devices of this host, each with a part of the layer. */
    public MoeOptions withDevices(List<String> devices) {
        return with(p -> p.devices = devices);
    }

    /** Whether several devices share the experts (true) or every expert's intermediate size (false). */
    public MoeOptions withExpertParallel(boolean expertParallel) {
        return with(p -> p.expertParallel = expertParallel);
    }

    /** Turns on load balancing between the devices; null turns it off. */
    public MoeOptions withLoadBalancing(@Nullable EplbConfig loadBalancing) {
        return with(p -> p.loadBalancing = loadBalancing);
    }

    public MoeOptions withKernelClass(@Nullable String kernelClass) {
        return with(p -> p.kernelClass = kernelClass);
    }

    public MoeOptions withMaxTokens(int maxTokens) {
        return with(p -> p.maxTokens = maxTokens);
    }

    public MoeOptions withRouter(@Nullable TopKRouter router) {
        return with(p -> p.router = router);
    }

    public MoeOptions withProgress(Progress progress) {
        return with(p -> p.progress = progress);
    }

    /** Makes room for that many adapters of up to that rank: {@link MoeLayer#setAdapter}. */
    public MoeOptions withLora(int adapters, int maxRank) {
        return with(p -> {
            p.maxLoras = adapters;
            p.maxLoraRank = maxRank;
        });
    }

    public MoeOptions withLanes(int lanes) {
        return with(p -> p.lanes = lanes);
    }

    public MoeOptions withLaneWait(@Nullable Duration laneWait) {
        return with(p -> p.laneWait = laneWait);
    }

    public MoeOptions withHiddenType(ScalarType hiddenType) {
        return with(p -> p.hiddenType = hiddenType);
    }

    /** Whether calls refuse hidden states that are NaN or infinite. */
    public MoeOptions withCheckFinite(boolean checkFinite) {
        return with(p -> p.checkFinite = checkFinite);
    }

    public MoeOptions withListener(@Nullable MoeListener listener) {
        return with(p -> p.listener = listener);
    }

    /** The scheme, backend and token count, and all other options that differ from {@link #DEFAULT}. */
    @Override
    public String toString() {
        Int8Scheme scheme = scheme();
        List<String> settings = new ArrayList<>(
                List.of(scheme == null ? "as stored" : scheme.toString(), backend, "up to " + maxTokens + " tokens"));
        addIf(settings, "devices " + devices, !devices.isEmpty());
        addIf(settings, "tensor parallel", !expertParallel);
        addIf(settings, String.valueOf(loadBalancing), loadBalancing != null);
        addIf(settings, "kernel class " + kernelClass, kernelClass != null);
        addIf(settings, "a router of its own", router != null);
        addIf(settings, maxLoras + " adapters up to rank " + maxLoraRank, maxLoras > 0);
        addIf(settings, lanes + " lanes", lanes > 1);
        addIf(settings, "waiting " + laneWait, laneWait != null);
        addIf(settings, "hidden states in " + hiddenType.abbreviation(), hiddenType != ScalarType.F32);
        addIf(settings, "checked to be finite", checkFinite);
        addIf(settings, "a listener", listener != null);
        return "MoeOptions[" + String.join(", ", settings) + "]";
    }

    private static void addIf(List<String> settings, String what, boolean differs) {
        if (differs) {
            settings.add(what);
        }
    }

    private MoeOptions with(Consumer<Parts> change) {
        Parts parts = new Parts(this);
        change.accept(parts);
        return parts.options();
    }

    /** A mutable copy of the components. */
    private static final class Parts {
        private @Nullable Int8Quantization quantization;
        private String backend;
        private List<String> devices;
        private boolean expertParallel;
        private @Nullable EplbConfig loadBalancing;
        private @Nullable String kernelClass;
        private int maxTokens;
        private Progress progress;
        private @Nullable TopKRouter router;
        private int maxLoras;
        private int maxLoraRank;
        private int lanes;
        private @Nullable Duration laneWait;
        private ScalarType hiddenType;
        private boolean checkFinite;
        private @Nullable MoeListener listener;

        Parts(MoeOptions from) {
            quantization = from.quantization;
            backend = from.backend;
            devices = from.devices;
            expertParallel = from.expertParallel;
            loadBalancing = from.loadBalancing;
            kernelClass = from.kernelClass;
            maxTokens = from.maxTokens;
            progress = from.progress;
            router = from.router;
            maxLoras = from.maxLoras;
            maxLoraRank = from.maxLoraRank;
            lanes = from.lanes;
            laneWait = from.laneWait;
            hiddenType = from.hiddenType;
            checkFinite = from.checkFinite;
            listener = from.listener;
        }

        MoeOptions options() {
            return new MoeOptions(
                    quantization,
                    backend,
                    devices,
                    expertParallel,
                    loadBalancing,
                    kernelClass,
                    maxTokens,
                    progress,
                    router,
                    maxLoras,
                    maxLoraRank,
                    lanes,
                    laneWait,
                    hiddenType,
                    checkFinite,
                    listener);
        }
    }
}
