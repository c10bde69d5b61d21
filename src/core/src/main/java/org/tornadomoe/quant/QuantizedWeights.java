package org.tornadomoe.quant;

import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Weights that are int8 already. Read as floats they are what the integers stand for, so they can be quantised again,
 * too.
 */
public interface QuantizedWeights extends ExpertWeights {
    /** How they are stored, and the activations they are meant for. */
    @Override
    Int8Quantization quantization();

    /** Whether they can be run in that scheme as they are: weights share scales the way it says. */
    boolean serves(Int8Scheme scheme);

    /** Whether {@link #load} rounds nothing; false where some weights are floats. */
    default boolean isExact() {
        return true;
    }

    /**
     * The weights as they are.
     *
     * @param progress told in rows of w13 and w2
     * @return the experts, to be closed by the caller
     * @throws IllegalArgumentException if they don't serve the scheme, or a scale is not finite
     * @throws OutOfMemoryError if they do not fit
     * @throws RuntimeException if their files were changed meanwhile ({@link #requireUnchanged})
     */
    Int8Experts load(Int8Scheme scheme, Progress progress);

    /**
     * A layer's weights in int8: as they are if they are stored so, quantised if not. Throws what {@link
     * Int8Quantizer#quantize(ExpertWeights, Int8Quantization, Progress)} and {@link #load} throw.
     *
     * @param progress told in rows, and then of the error
     * @param quantization what is int8; the block or group that its scheme has unless something is chosen stands for
     *     the stored ones, too
     */
    static Int8Experts int8(ExpertWeights weights, Int8Quantization quantization, Progress progress) {
        Int8Scheme scheme = quantization.scheme();
        boolean asStored = weights instanceof QuantizedWeights stored
                && stored.serves(scheme)
                && (quantization.equals(Int8Quantization.of(scheme)) || quantization.equals(stored.quantization()));
        Int8Experts experts = asStored
                ? ((QuantizedWeights) weights).load(scheme, progress)
                : Int8Quantizer.quantize(weights, quantization, progress);
        try {
            if (progress.wantsError()) {
                boolean exact = asStored && ((QuantizedWeights) weights).isExact();
                progress.quantized(exact ? 0 : experts.relativeL2(weights));
            }
            return experts;
        } catch (RuntimeException | Error e) {
            experts.close();
            throw e;
        }
    }

    /** With the scheme's own block or group. Otherwise as the other. */
    static Int8Experts int8(ExpertWeights weights, Int8Scheme scheme, Progress progress) {
        return int8(weights, Int8Quantization.of(scheme), progress);
    }
}
