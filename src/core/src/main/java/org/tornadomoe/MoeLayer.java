package org.tornadomoe;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.host.HostRouter;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.observe.MoeListener;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.ExpertBalance;
import org.tornadomoe.parallel.ShardedLayer;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LatentSpace;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.quant.RouterWeights;

/**
 * An int8 mixture-of-experts layer: it takes hidden states and returns the layer's output, computed on the best device
 * of the machine.
 *
 * {@snippet :
 * try (MoeLayer layer = MoeLayer.load(Path.of("Qwen3-30B-A3B"), 0, MoeOptions.DEFAULT)) {
 *     float[] output = layer.forward(hidden); // [M, H] in, [M, H] out
 * }
 * }
 *
 * <p>Hidden states may have any magnitude. If a value overflows float on the way, or on a device exceeds its kernels'
 * range (1e30, through OpenCL 1e20), the token's output is infinite or NaN, never another number. A token with a NaN or
 * an infinity also gets such an output; with one scale found for all activations, every token of the call does. {@link
 * MoeOptions#withCheckFinite} refuses such tokens instead.
 *
 * <p>Thread-safe. Calls from several threads get lanes in the order in which they came. There are as many lanes as the
 * options ask for and the kernel class supports: one on a device. A waiting thread is parked and can be interrupted.
 * The same input gives the same bits. With several devices ({@link MoeOptions#withDevices}) each has a part of the
 * layer and a thread; callers still see one layer. With load balancing ({@link MoeOptions#withLoadBalancing}) the bits
 * stay the same until experts move; after that they are the same except for rounding. Close the layer to free the
 * device's memory.
 */
public final class MoeLayer implements AutoCloseable {
    private final FusedMoeConfig config;
    private final Int8Scheme scheme;
    private final Sharding sharding;
    private final MoeKernel kernel;

    /** Chooses the experts; null if the kernels do. */
    private final @Nullable HostRouter router;

    private final Lanes lanes;

    /** One per lane. */
    private final List<MoeKernel> kernels;

    private final AdapterSlots adapters;
    private final LayerEvents events;
    private final boolean checkFinite;

    /** @param config the layer's as callers see it, with the options' sizes and types */
    private MoeLayer(
            FusedMoeConfig config,
            Sharding sharding,
            Int8Scheme scheme,
            List<MoeKernel> lanes,
            RouterWeights routerWeights,
            @Nullable Int8Experts source,
            MoeOptions options) {
        this.sharding = sharding;
        this.scheme = scheme;
        this.config = config;
        kernel = lanes.getFirst();
        boolean routed =
                config.router().isHandedIn() || sharding.config().router().isHandedIn();
        router = routed ? new HostRouter(config, routerWeights, options.router()) : null;
        kernels = List.copyOf(lanes);
        this.lanes = new Lanes(lanes, source, options.laneWait());
        checkFinite = options.checkFinite();
        adapters = new AdapterSlots(config, kernel, this.lanes);
        events = new LayerEvents(
                options.listener(),
                () -> new MoeListener.Layer(backend(), kernelClass(), device(), deviceBytes(), lanes()));
    }

    /**
     * Loads one layer of a checkpoint. Quantises it, unless it is stored in the scheme asked for, or no scheme is asked
     * for and the stored weights already are in one.
     *
     * @param checkpoint a directory with {@code config.json} and safetensors, or a GGUF file
     * @param layer the decoder layer's number, from 0
     * @throws org.tornadomoe.checkpoint.file.CheckpointException if the checkpoint can't be read, or has no such
     *     layer; also if the thread is interrupted while files are opened; it stays interrupted
     * @throws org.tornadomoe.kernel.InsufficientMemoryException if the layer doesn't fit on the device
     * @throws UnsupportedOperationException if no kernel class serves it, with the reasons
     * @throws java.util.concurrent.CancellationException if the thread is interrupted while weights are quantised; it
     *     stays interrupted
     */
    public static MoeLayer load(Path checkpoint, int layer, MoeOptions options) {
        try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint)) {
            return of(opened.layer(layer), options);
        }
    }

    /** Makes a layer, and quantises it unless it is stored in the scheme already. Throws what {@link #load} throws. */
    public static MoeLayer of(ExpertWeights weights, MoeOptions options) {
        // Selected before quantising, so that a refusal comes at once.
        Int8Quantization asked = options.quantization();
        Int8Quantization quantization = asked == null ? weights.quantization() : asked;
        LatentSpace latent = weights.latent();
        if (latent != null) {
            return ofLatent(weights, latent, quantization, options);
        }
        LayerLoader.select(weights.config(), quantization.weightKey(), quantization.activationKey(), options);
        // With load balancing, moves read the experts again until the layer is closed.
        boolean kept = options.loadBalancing() != null;
        Int8Experts experts = kept
                ? QuantizedWeights.int8(weights, quantization, options.progress())
                : QuantizedWeights.opened(weights, quantization, options.progress());
        try (Int8Experts _ = kept ? null : experts) {
            return of(experts, kept ? experts : null, options);
        } catch (RuntimeException | Error failure) {
            experts.close();
            throw failure;
        }
    }

    /**
     * Makes a layer from int8 weights; ignores {@code options}' quantization. The experts may be closed afterwards, but
     * with load balancing not before the layer. Throws what {@link #load} throws.
     *
     * @throws IllegalArgumentException if the layer has no router, and the options have none
     */
    public static MoeLayer of(Int8Experts experts, MoeOptions options) {
        return of(experts, null, options);
    }

    /** @param source the experts if the layer is to close them, else null */
    private static MoeLayer of(Int8Experts experts, @Nullable Int8Experts source, MoeOptions options) {
        if (!experts.hasRouter() && options.router() == null) {
            throw new IllegalArgumentException("experts: expected a layer with a router, got one without");
        }
        Sharding sharding = LayerLoader.select(experts.config(), experts.weightKey(), experts.activationKey(), options);
        FusedMoeConfig config = sharding.config();
        if (config.router().isOfCaller() && options.router() == null) {
            throw new IllegalArgumentException("router: expected one in the options, since the layer's is "
                    + config.routingMethod() + ", got none");
        }
        List<MoeKernel> lanes = LayerLoader.lanes(sharding, experts, options);
        MoeLayer layer = new MoeLayer(config, sharding, experts.scheme(), lanes, experts.router(), source, options);
        layer.events.loaded();
        return layer;
    }

    private static MoeLayer ofLatent(
            ExpertWeights weights, LatentSpace latent, Int8Quantization quantization, MoeOptions options) {
        LatentLayer loaded = LatentLayer.load(weights, latent, quantization, options);
        MoeLayer layer = new MoeLayer(
                LayerLoader.withOptions(latent.config(), options),
                loaded.sharding(),
                loaded.scheme(),
                loaded.lanes(),
                latent.router(),
                null,
                options);
        layer.events.loaded();
        return layer;
    }

    /**
     * Runs the layer.
     *
     * @param hidden [M, H], row-major, where M follows from the length: a multiple of H, 0 included, at most the
     *     options' {@code maxTokens} tokens. Input and result are rounded to the options' {@code hiddenType}
     * @return [M, H]
     * @throws IllegalArgumentException if the length doesn't fit
     * @throws IllegalStateException after {@link #close}
     * @throws LaneException if no lane came free in the options' time, or the thread was interrupted before
     * @throws org.tornadomoe.kernel.MoeExecutionException if the device failed
     */
    public float[] forward(float[] hidden) {
        int h = config.hiddenDim();
        if (hidden.length % h != 0) {
            throw new IllegalArgumentException(
                    "hidden: expected a multiple of the hidden size " + h + " values, got " + hidden.length);
        }
        float[] output = new float[hidden.length];
        forward(hidden, hidden.length / h, output, null);
        return output;
    }

    /**
     * Runs the layer and writes into the caller's array.
     *
     * @param hidden [M, H], row-major; may be longer
     * @param tokens M, 0 to the options' {@code maxTokens}; without tokens nothing runs
     * @param output [M, H], written; may be longer
     * @param chosen receives the chosen experts, unless null; must have room for at least M tokens
     * @throws IllegalArgumentException naming the argument that doesn't fit, before anything is changed
     * @throws IllegalStateException after {@link #close}
     * @throws LaneException if no lane came free in the options' time, or the thread was interrupted before
     * @throws org.tornadomoe.kernel.MoeExecutionException if the device failed
     */
    public void forward(float[] hidden, int tokens, float[] output, @Nullable ChosenExperts chosen) {
        check(tokens, hidden.length, output.length, chosen);
        run(hidden, tokens, output, chosen, null, RouterInputs.NONE);
    }

    /**
     * Runs a layer whose router reads more than hidden states; otherwise like {@link #forward(float[], int, float[],
     * ChosenExperts)}, which doesn't run a layer that routes by token ids.
     *
     * @param inputs what the router reads; other layers ignore it
     * @throws IllegalArgumentException also if the inputs are missing or don't fit the layer
     */
    public void forward(
            float[] hidden, int tokens, float[] output, @Nullable ChosenExperts chosen, RouterInputs inputs) {
        check(tokens, hidden.length, output.length, chosen);
        run(hidden, tokens, output, chosen, null, inputs);
    }

    /**
     * Runs the layer on the caller's memory, heap or native: values of the options' {@code hiddenType} in native byte
     * order. A device converts 16-bit values itself. Otherwise like {@link #forward(float[], int, float[],
     * ChosenExperts)}.
     */
    public void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        if (output.isReadOnly()) {
            throw new IllegalArgumentException("output: expected memory that can be written, got a read-only segment");
        }
        int bytes = config.inDtype().bytes();
        check(tokens, hidden.byteSize() / bytes, output.byteSize() / bytes, chosen);
        run(hidden, tokens, output, chosen, null, RouterInputs.NONE);
    }

    /**
     * Allocates memory for the hidden states or output of up to M tokens, of the options' {@code hiddenType}, filled
     * with zeros. On CUDA the device copies from and to this memory by itself; other memory is copied by the host's
     * cores. The system keeps its pages in place (pinned), so use it for buffers that serve many calls. You may
     * allocate several; slices of one work as well.
     *
     * @param tokens M, 0 to the options' {@code maxTokens}
     * @param arena owns the memory; no call may use the memory after the arena is closed
     * @throws IllegalArgumentException for another number of tokens
     */
    public MemorySegment allocate(int tokens, Arena arena) {
        if (tokens < 0 || tokens > config.maxNumTokens()) {
            throw new IllegalArgumentException("tokens: expected 0 to " + config.maxNumTokens() + ", got " + tokens);
        }
        return kernel.allocate((long) config.inDtype().bytes() * tokens * config.hiddenDim(), arena);
    }

    /**
     * Runs the layer with adapters; otherwise like {@link #forward(float[], int, float[], ChosenExperts)}.
     *
     * @param slotOfToken [M], the slot of each token's adapter, -1 for none; an empty or disabled slot counts as none,
     *     and gives the same bits
     * @throws IllegalArgumentException also for a slot that isn't the layer's
     */
    public void forward(float[] hidden, int tokens, float[] output, @Nullable ChosenExperts chosen, int[] slotOfToken) {
        check(tokens, hidden.length, output.length, chosen);
        adapters.requireSlots(slotOfToken, tokens);
        run(hidden, tokens, output, chosen, slotOfToken, RouterInputs.NONE);
    }

    /**
     * Puts an adapter into a slot, replacing any adapter there, and switches it on. Waits for running calls. After
     * that, a layer on a device sends all of its weights there again in its next call, so set several adapters
     * together.
     *
     * @param slot 0 to the options' {@code maxLoras} - 1
     * @throws IllegalArgumentException if slot or adapter don't fit the layer
     * @throws IllegalStateException after {@link #close}
     */
    public void setAdapter(int slot, LoraAdapter adapter) {
        adapters.set(slot, adapter);
    }

    /** Empties a slot. Throws what {@link #setAdapter} throws. */
    public void removeAdapter(int slot) {
        adapters.remove(slot);
    }

    /**
     * Switches a slot's adapter on or off, at no cost. Throws what {@link #setAdapter} throws, also for an empty slot.
     */
    public void enableAdapter(int slot, boolean enabled) {
        adapters.enable(slot, enabled);
    }

    /** If the layer's hidden type has 16 bits, rounds the values to it. */
    private void run(
            float[] hidden,
            int tokens,
            float[] output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken,
            RouterInputs inputs) {
        ScalarType type = config.inDtype();
        int count = tokens * config.hiddenDim();
        MemorySegment written = HiddenStates.memory(type, output, count);
        run(HiddenStates.memory(type, hidden, count), tokens, written, chosen, slotOfToken, inputs);
        HiddenStates.read(type, written, output, type == ScalarType.F32 ? 0 : count);
    }

    private void run(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken,
            RouterInputs inputs) {
        lanes.requireOpen();
        if (tokens == 0) {
            return;
        }
        if (checkFinite) {
            HiddenStates.requireFinite(config.inDtype(), hidden, tokens, config.hiddenDim());
        }
        long start = events.now();
        long waited = 0;
        Map<String, Long> stages = Map.of();
        Throwable thrown = null;
        try {
            ChosenExperts routed = router == null ? chosen : route(router, hidden, tokens, inputs);
            long asked = events.now();
            MoeKernel lane;
            try {
                lane = lanes.take();
            } finally {
                waited = events.now() - asked;
            }
            try {
                int[] slots = slotOfToken == null ? null : adapters.active(slotOfToken, tokens);
                lane.forward(hidden, tokens, output, routed, slots);
                stages = Profiled.stageTimes(lane);
            } finally {
                lanes.give(lane);
            }
            if (routed != chosen && routed != null && chosen != null) {
                System.arraycopy(routed.ids(), 0, chosen.ids(), 0, routed.ids().length);
                System.arraycopy(routed.weights(), 0, chosen.weights(), 0, routed.weights().length);
            }
        } catch (RuntimeException | Error failure) {
            thrown = failure;
            throw failure;
        } finally {
            long bytes = (long) config.inDtype().bytes() * tokens * config.hiddenDim();
            events.called(tokens, bytes, waited, start, stages, thrown);
        }
    }

    private ChosenExperts route(HostRouter router, MemorySegment hidden, int tokens, RouterInputs inputs) {
        float[] x = new float[tokens * config.hiddenDim()];
        HiddenStates.read(config.inDtype(), hidden, x, x.length);
        return router.routeOnAllCores(x, tokens, inputs);
    }

    private void check(int tokens, long hidden, long output, @Nullable ChosenExperts chosen) {
        if (tokens < 0 || tokens > config.maxNumTokens()) {
            throw new IllegalArgumentException("tokens: expected 0 to " + config.maxNumTokens()
                    + " (the layer's limit: MoeOptions.maxTokens), got " + tokens);
        }
        long values = (long) tokens * config.hiddenDim();
        requireRoom("hidden", values, hidden);
        requireRoom("output", values, output);
        if (chosen != null && (chosen.topK() != config.pairsPerToken() || chosen.tokens() < tokens)) {
            throw new IllegalArgumentException("chosen: expected room for " + tokens + " tokens of "
                    + config.pairsPerToken() + " experts, got " + chosen.tokens() + " of " + chosen.topK());
        }
    }

    private void requireRoom(String name, long expected, long got) {
        if (got < expected) {
            throw new IllegalArgumentException(name + ": expected at least " + expected
                    + (config.inDtype() == ScalarType.F32
                            ? " floats"
                            : " values in " + config.inDtype().abbreviation())
                    + " (tokens x hidden size " + config.hiddenDim() + "), got " + got);
        }
    }

    /** The layer's configuration, with the options' {@code maxNumTokens}, {@code moeBackend} and {@code device}. */
    public FusedMoeConfig config() {
        return config;
    }

    /** The quantisation scheme. */
    public Int8Scheme scheme() {
        return scheme;
    }

    /**
     * The backend that runs it: {@code triton}, {@code cpu} or {@code reference}; with several devices, all their
     * backends.
     */
    public String backend() {
        return sharding.backend();
    }

    /** The kernel class that runs it; with several devices, all their kernel classes. */
    public String kernelClass() {
        return sharding.kernelClass();
    }

    /** The device, in human-readable form. */
    public String device() {
        return kernel.device();
    }

    /** Bytes of device memory that the layer holds, for all lanes. */
    public long deviceBytes() {
        return bytesByDevice().stream().mapToLong(Long::longValue).sum();
    }

    /**
     * The devices that have a part of the layer, in the order in which their outputs are added; for a layer on one
     * device, that device.
     */
    public List<DevicePart> parts() {
        ExpertBalance balance = balance();
        List<Long> bytes = bytesByDevice();
        List<DevicePart> parts = new ArrayList<>();
        for (Selection rank : sharding.ranks()) {
            int number = parts.size();
            FusedMoeConfig config = rank.config();
            parts.add(new DevicePart(
                    rank.device(),
                    rank.experts().name(),
                    balance == null
                            ? config.numLocalExperts()
                            : balance.experts().get(number).size(),
                    config.intermediateSizePerPartition(),
                    bytes.get(number)));
        }
        return List.copyOf(parts);
    }

    /** For all lanes. */
    private List<Long> bytesByDevice() {
        List<List<Long>> ofLanes =
                kernels.stream().map(MoeKernel::bytesByDevice).toList();
        return IntStream.range(0, sharding.ranks().size())
                .mapToObj(rank ->
                        ofLanes.stream().mapToLong(lane -> lane.get(rank)).sum())
                .toList();
    }

    /** The current placement of the experts; null without load balancing. Waits for a running call. */
    public @Nullable ExpertBalance balance() {
        return ShardedLayer.balance(kernel);
    }

    /**
     * One device's part of a layer.
     *
     * @param device its human-readable name
     * @param kernelClass the kernel class that runs it
     * @param experts number of experts on it, shared ones included
     * @param intermediateSize columns that it has of each expert
     * @param bytes bytes of its memory, for all lanes
     */
    public record DevicePart(String device, String kernelClass, int experts, int intermediateSize, long bytes) {}

    /** The number of calls that can run at the same time; at most what the options ask for. */
    public int lanes() {
        return lanes.count();
    }

    /** The layer and its device, on one line. */
    @Override
    public String toString() {
        return "MoeLayer[" + config.summary() + "; " + scheme + ", " + kernelClass() + " on " + device() + ", up to "
                + config.maxNumTokens() + " tokens]";
    }

    /** Frees all memory, after the calls that run or wait have ended. A second call does nothing. */
    @Override
    public void close() {
        if (lanes.close()) {
            events.closed();
        }
    }
}
