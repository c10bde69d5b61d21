package org.tornadomoe;

import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.modular.TopKRouter;
import org.tornadomoe.quant.Progress;

/**
 * How a layer is loaded. Immutable; every {@code with} method gives a copy.
 *
 * @param quantization what becomes int8, and what shares a scale
 * @param backend {@code auto} (a device through TornadoVM, else the CPU), {@code triton} (TornadoVM's task graphs; on the
 *     interpreter where there is no SDK), {@code cpu} or {@code reference}
 * @param device where, such as {@code ptx:0} or {@code opencl}; null for the best there is
 * @param kernelClass which kernel class, by name; null for the first that fits
 * @param maxTokens the most tokens of a call: device memory is taken for so many, and a call's transfers are of that size
 * @param progress is told how far quantisation has come
 * @param router a way of routing of the caller's own, in place of the layer's; null for the layer's. It runs on the host in every
 *     call, and so do the router's logits, in double
 * @param maxLoras adapters (LoRA) that there is to be room for; 0 for a layer without
 * @param maxLoraRank the greatest rank of an adapter; not looked at without adapters
 */
public record MoeOptions(
        Int8Quantization quantization,
        String backend,
        @Nullable String device,
        @Nullable String kernelClass,
        int maxTokens,
        Progress progress,
        @Nullable TopKRouter router,
        int maxLoras,
        int maxLoraRank) {

    /** {@code w8a8_channel} on the best backend there is, up to 256 tokens a call. */
    public static final MoeOptions DEFAULT = new MoeOptions(
            Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), "auto", null, null, 256, Progress.NONE, null, 0, 16);

    /** Checks that nothing is missing and {@code maxTokens} is positive. */
    public MoeOptions {
        Objects.requireNonNull(quantization, "quantization");
        Objects.requireNonNull(backend, "backend");
        Objects.requireNonNull(progress, "progress");
        if (maxTokens < 1) {
            throw new IllegalArgumentException("maxTokens: expected a positive number, got " + maxTokens);
        }
        if (maxLoras < 0) {
            throw new IllegalArgumentException("maxLoras: expected 0 or more, got " + maxLoras);
        }
        if (maxLoraRank < 1) {
            throw new IllegalArgumentException("maxLoraRank: expected a positive number, got " + maxLoraRank);
        }
    }

    /** What becomes int8. */
    public Int8Scheme scheme() {
        return quantization.scheme();
    }

    /** A scheme with its own block or group. */
    public MoeOptions withScheme(Int8Scheme scheme) {
        return withQuantization(Int8Quantization.of(scheme));
    }

    public MoeOptions withQuantization(Int8Quantization quantization) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, maxLoras, maxLoraRank);
    }

    public MoeOptions withBackend(String backend) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, maxLoras, maxLoraRank);
    }

    public MoeOptions withDevice(@Nullable String device) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, maxLoras, maxLoraRank);
    }

    public MoeOptions withKernelClass(@Nullable String kernelClass) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, maxLoras, maxLoraRank);
    }

    public MoeOptions withMaxTokens(int maxTokens) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, maxLoras, maxLoraRank);
    }

    public MoeOptions withRouter(@Nullable TopKRouter router) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, maxLoras, maxLoraRank);
    }

    public MoeOptions withProgress(Progress progress) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, maxLoras, maxLoraRank);
    }

    /** With room for that many adapters of that rank: {@link MoeLayer#setAdapter}. */
    public MoeOptions withLora(int adapters, int maxRank) {
        return new MoeOptions(
                quantization, backend, device, kernelClass, maxTokens, progress, router, adapters, maxRank);
    }
}
