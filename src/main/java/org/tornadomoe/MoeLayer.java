package org.tornadomoe;

import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.SplittableRandom;
import java.util.concurrent.locks.ReentrantReadWriteLock;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.modular.ChosenExperts;
import org.tornadomoe.modular.MoeExecutionException;
import org.tornadomoe.modular.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.reference.Reference;

/**
 * An int8 mixture-of-experts layer: hidden states in, the layer's output out, computed on the best the machine has.
 *
 * {@snippet :
 * try (MoeLayer layer = MoeLayer.load(Path.of("Qwen3-30B-A3B"), 0, MoeOptions.DEFAULT)) {
 *     float[] output = layer.forward(hidden); // [M, H] in, [M, H] out
 * }
 * }
 *
 * <p>Thread-safe; calls from several threads take turns on a device. The same input gives the same bits. Close it to free
 * the device's memory.
 */
public final class MoeLayer implements AutoCloseable {
    /** Activations on a rounding boundary, and experts with nearly the same score, may go either way. */
    private static final double SELF_CHECK_TOLERANCE = 5e-2;

    private final FusedMoeConfig config;
    private final Int8Scheme scheme;
    private final Selection selection;
    private final MoeKernel kernel;

    /** Calls hold the read lock, so that closing waits for those under way. */
    private final ReentrantReadWriteLock inUse = new ReentrantReadWriteLock();

    private boolean closed;

    private MoeLayer(FusedMoeConfig config, Int8Scheme scheme, Selection selection, MoeKernel kernel) {
        this.config = config;
        this.scheme = scheme;
        this.selection = selection;
        this.kernel = kernel;
    }

    /**
     * Loads one layer of a checkpoint and quantises it.
     *
     * @param checkpoint a directory with {@code config.json} and safetensors
     * @param layer the decoder layer's number, from 0
     * @throws org.tornadomoe.checkpoint.CheckpointException if the checkpoint can't be read, or has no such layer
     * @throws org.tornadomoe.modular.InsufficientMemoryException if the layer doesn't fit on the device
     * @throws UnsupportedOperationException if no kernel class serves it, with the reasons
     */
    public static MoeLayer load(Path checkpoint, int layer, MoeOptions options) {
        try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint)) {
            return of(opened.layer(layer), options);
        }
    }

    /** Quantises a layer. Throws what {@link #load} throws. */
    public static MoeLayer of(ExpertWeights weights, MoeOptions options) {
        // Selected before the work of quantising, so that a refusal comes at once.
        select(weights.config(), options.scheme(), options);
        try (Int8Experts experts = Int8Quantizer.quantize(weights, options.scheme(), options.progress())) {
            return of(experts, options);
        }
    }

    /**
     * A layer that is in int8 already; {@code options}' scheme is not looked at, and the experts may be closed afterwards.
     * Throws what {@link #load} throws.
     *
     * @throws IllegalArgumentException if the layer has no router
     */
    public static MoeLayer of(Int8Experts experts, MoeOptions options) {
        if (!experts.hasRouter()) {
            throw new IllegalArgumentException("experts: expected a layer with a router, got one without");
        }
        Selection selection = select(experts.config(), experts.scheme(), options);
        MoeKernel kernel = Int8MoeOracle.installed().makeInt8MoeKernel(selection, experts);
        try {
            if (kernel.needsSelfCheck()) {
                selfCheck(kernel, experts);
            }
        } catch (RuntimeException | Error failure) {
            kernel.close();
            throw failure;
        }
        return new MoeLayer(selection.config(), experts.scheme(), selection, kernel);
    }

    /** One random token through the kernel and through the definition: a kernel that gives wrong numbers is never used. */
    private static void selfCheck(MoeKernel kernel, Int8Experts experts) {
        float[] hidden = new float[experts.config().hiddenDim()];
        SplittableRandom random = new SplittableRandom(1);
        for (int i = 0; i < hidden.length; i++) {
            hidden[i] = (float) random.nextGaussian();
        }
        float[] output = new float[hidden.length];
        kernel.forward(MemorySegment.ofArray(hidden), 1, MemorySegment.ofArray(output), null);
        double error = Reference.relativeL2(
                Reference.widen(output), Reference.forward(experts, hidden, 1).output());
        if (!(error < SELF_CHECK_TOLERANCE)) {
            throw new MoeExecutionException("the kernels give wrong numbers on " + kernel.device()
                    + ": relative L2 error " + error + " of one token against the definition, expected less than "
                    + SELF_CHECK_TOLERANCE);
        }
    }

    private static Selection select(FusedMoeConfig config, Int8Scheme scheme, MoeOptions options) {
        FusedMoeConfig here = config.toBuilder()
                .maxNumTokens(options.maxTokens())
                .moeBackend(options.backend())
                .device(options.device())
                .build();
        return Int8MoeOracle.installed().select(here, scheme, options.kernelClass());
    }

    /**
     * Runs the layer.
     *
     * @param hidden [M, H], row-major, with M from its length: a multiple of H, at least one token, at most the options'
     *     {@code maxTokens}
     * @return [M, H]
     * @throws IllegalArgumentException if the length doesn't fit
     * @throws IllegalStateException after {@link #close}
     * @throws org.tornadomoe.modular.MoeExecutionException if the device failed
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
     * Runs the layer, into an array of the caller's.
     *
     * @param hidden [M, H], row-major; may be longer
     * @param tokens M, 1 to the options' {@code maxTokens}
     * @param output [M, H], written; may be longer
     * @param chosen is told the experts chosen, if given; made for at least M tokens
     * @throws IllegalArgumentException naming the argument that doesn't fit, before anything is changed
     * @throws IllegalStateException after {@link #close}
     * @throws org.tornadomoe.modular.MoeExecutionException if the device failed
     */
    public void forward(float[] hidden, int tokens, float[] output, @Nullable ChosenExperts chosen) {
        check(tokens, hidden.length, output.length, chosen);
        run(MemorySegment.ofArray(hidden), tokens, MemorySegment.ofArray(output), chosen);
    }

    /**
     * Runs the layer on memory of the caller's, heap or native: floats in native byte order. Otherwise as {@link
     * #forward(float[], int, float[], ChosenExperts)}.
     */
    public void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        if (output.isReadOnly()) {
            throw new IllegalArgumentException("output: expected memory that can be written, got a read-only segment");
        }
        check(tokens, hidden.byteSize() / 4, output.byteSize() / 4, chosen);
        run(hidden, tokens, output, chosen);
    }

    private void run(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        inUse.readLock().lock();
        try {
            if (closed) {
                throw new IllegalStateException("the layer is closed");
            }
            kernel.forward(hidden, tokens, output, chosen);
        } finally {
            inUse.readLock().unlock();
        }
    }

    private void check(int tokens, long hidden, long output, @Nullable ChosenExperts chosen) {
        if (tokens < 1 || tokens > config.maxNumTokens()) {
            throw new IllegalArgumentException("tokens: expected 1 to " + config.maxNumTokens()
                    + " (the layer was loaded for so many: MoeOptions.maxTokens), got " + tokens);
        }
        long values = (long) tokens * config.hiddenDim();
        requireRoom("hidden", values, hidden);
        requireRoom("output", values, output);
        if (chosen != null && (chosen.topK() != config.expertsPerToken() || chosen.tokens() < tokens)) {
            throw new IllegalArgumentException("chosen: expected room for " + tokens + " tokens of "
                    + config.expertsPerToken() + " experts, got " + chosen.tokens() + " of " + chosen.topK());
        }
    }

    private void requireRoom(String name, long expected, long got) {
        if (got < expected) {
            throw new IllegalArgumentException(name + ": expected at least " + expected
                    + " floats (tokens x hidden size " + config.hiddenDim() + "), got " + got);
        }
    }

    /** What the layer is; {@code maxNumTokens}, {@code moeBackend} and {@code device} are the options'. */
    public FusedMoeConfig config() {
        return config;
    }

    /** What is int8. */
    public Int8Scheme scheme() {
        return scheme;
    }

    /** The backend that runs it: {@code triton} or {@code reference}. */
    public String backend() {
        return selection.backend().toString();
    }

    /** The kernel class that runs it. */
    public String kernelClass() {
        return selection.experts().name();
    }

    /** Where it runs, for people. */
    public String device() {
        return kernel.device();
    }

    /** Bytes of device memory it holds. */
    public long deviceBytes() {
        return kernel.deviceBytes();
    }

    /** Frees everything, after the calls that are under way. A second call does nothing. */
    @Override
    public void close() {
        inUse.writeLock().lock();
        try {
            if (!closed) {
                closed = true;
                kernel.close();
            }
        } finally {
            inUse.writeLock().unlock();
        }
    }
}
