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
 * How a layer is loaded. Immutable; every {@code with} method gives a copy.
 *
 * @param quantization what becomes int8, and what shares a scale; null for what the weights are stored in or suit,
 *     which loses nothing where they lie on an int8 grid: {@link org.tornadomoe.quant.ExpertWeights#quantization}
 * @param backend {@code auto} (a device through TornadoVM, else the CPU), {@code triton} (TornadoVM's task graphs; on
 *     the interpreter where there is no SDK), {@code cpu} or {@code reference}
 * @param devices where, such as {@code ptx:0} or {@code opencl}; empty for the best there is, several to shard the
 *     layer over them, where the same one may be named more than once
 * @param expertParallel what several devices shard: experts, each whole on one of them, or if not every expert's
 *     intermediate size
 * @param loadBalancing how experts move between several devices, by load, while calls go on; null if they don't. It
 *     needs expert parallelism and goes without adapters; there is one lane. A layer loaded so keeps its int8 weights
 *     in the host's memory
 * @param kernelClass which kernel class, by name; null for the first that fits
 * @param maxTokens the most tokens of a call: device memory is taken for so many, and a call's transfers are of that
 *     size
 * @param progress is notified how far quantisation has come
 * @param router a way of routing of the caller's own, in place of the layer's; null for the layer's. It runs on the
 *     host in every call, and so do the router's logits, in double
 * @param maxLoras adapters (LoRA) that there is to be room for; 0 for a layer without
 * @param maxLoraRank the greatest rank of an adapter; not looked at without adapters
 * @param lanes the most calls at the same time, 1 to {@link #MAX_LANES}; a kernel class that can't share its weights
 *     between calls has one lane however many are asked for ({@link MoeLayer#lanes}). Each lane has activations of its
 *     own
 * @param laneWait how long a call waits for a lane when all are busy, before it is a {@link LaneException}; {@link
 *     Duration#ZERO} to fail at once, null to wait as long as it takes
 * @param hiddenType what hidden states are in memory of the caller's, in and out: F32, F16 or BF16
 * @param checkFinite whether a call looks at its hidden states first, and refuses a NaN or an infinity by its place;
 *     without, such a token's output is NaN or infinite, and its experts are any
 * @param listener is notified of calls, what they took and moved; null for none, and then no clock is looked at
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

    /** The most lanes of a layer. */
    public static final int MAX_LANES = 1024;

    /** As weights are stored, floats as {@code w8a8_channel}, on the best backend there is, up to 256 tokens a call. */
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
     * Checks that nothing is missing and the numbers may be; copies the list. What goes with a layer's sizes alone is
     * checked when it is loaded.
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

    /** What becomes int8; null for what the weights are stored in or suit. */
    public @Nullable Int8Scheme scheme() {
        return quantization == null ? null : quantization.scheme();
    }

    /** A scheme with its own block or group. */
    public MoeOptions withScheme(Int8Scheme scheme) {
        return withQuantization(Int8Quantization.of(scheme));
    }

    /** With a scheme and its block or group; null for what the weights are stored in or suit. */
    public MoeOptions withQuantization(@Nullable Int8Quantization quantization) {
        return with(p -> p.quantization = quantization);
    }

    public MoeOptions withBackend(String backend) {
        return with(p -> p.backend = backend);
    }

    /** On one device; null for the best there is. */
    public MoeOptions withDevice(@Nullable String device) {
        return withDevices(device == null ? List.of() : List.of(device));
    }

    /** On several devices of this host, each with a part of the layer. */
    public MoeOptions withDevices(List<String> devices) {
        return with(p -> p.devices = devices);
    }

    /** Whether experts are sharded over several devices, or every expert's intermediate size. */
    public MoeOptions withExpertParallel(boolean expertParallel) {
        return with(p -> p.expertParallel = expertParallel);
    }

    /** With experts that move between the devices by load; null for none. */
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

    /** With room for that many adapters of that rank: {@link MoeLayer#setAdapter}. */
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

    /** Whether calls refuse hidden states that are no finite numbers. */
    public MoeOptions withCheckFinite(boolean checkFinite) {
        return with(p -> p.checkFinite = checkFinite);
    }

    public MoeOptions withListener(@Nullable MoeListener listener) {
        return with(p -> p.listener = listener);
    }

    /** What differs from {@link #DEFAULT}, scheme, backend and token count in any case. */
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

    /** The components, to be changed. */
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
