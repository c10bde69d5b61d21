package org.tornadomoe.quant;

import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Weights that are stored as int8. Read as floats they give the dequantised values, so they can also be quantised
 * again.
 */
public interface QuantizedWeights extends ExpertWeights {
    /** Their stored quantisation, and that of the activations they are meant for. */
    @Override
    Int8Quantization quantization();

    /** Whether they can run in that scheme without requantising: their scales have the scheme's layout. */
    boolean serves(Int8Scheme scheme);

    /** Whether {@link #load} rounds nothing; false if some weights are floats. */
    default boolean isExact() {
        return true;
    }

    /**
     * Loads the weights without requantising them.
     *
     * @param progress is notified in rows of w13 and w2
     * @return the experts, which the caller must close
     * @throws IllegalArgumentException if they don't fit the scheme, or a scale is not finite
     * @throws OutOfMemoryError if they do not fit
     * @throws RuntimeException if their files were changed meanwhile ({@link #requireUnchanged})
     */
    Int8Experts load(Int8Scheme scheme, Progress progress);

    /**
     * Like {@link #load}, but values may be read later, when they are needed, from files that must be open until then;
     * {@link Int8Experts#requireUnchanged} tells afterwards whether they were right. So a layer that puts weights in
     * another order needs no copy of all of them besides.
     *
     * @param progress is notified when they are read, also later
     */
    default Int8Experts open(Int8Scheme scheme, Progress progress) {
        return load(scheme, progress);
    }

    /** {@link #int8}, with weights that are as stored {@link #open opened}; the error is told at once. */
    static Int8Experts opened(ExpertWeights weights, Int8Quantization quantization, Progress progress) {
        return isAsStored(weights, quantization)
                ? told(weights, ((QuantizedWeights) weights).open(quantization.scheme(), progress), true, progress)
                : int8(weights, quantization, progress);
    }

    /** Whether weights are stored in that quantisation. */
    private static boolean isAsStored(ExpertWeights weights, Int8Quantization quantization) {
        Int8Scheme scheme = quantization.scheme();
        return weights instanceof QuantizedWeights stored
                && stored.serves(scheme)
                && (quantization.equals(Int8Quantization.of(scheme)) || quantization.equals(stored.quantization()));
    }

    /** Tells of the error. */
    private static Int8Experts told(ExpertWeights weights, Int8Experts experts, boolean asStored, Progress progress) {
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

    /**
     * A layer's weights in int8: as stored if they already have the quantisation, otherwise quantised. Throws what
     * {@link Int8Quantizer#quantize(ExpertWeights, Int8Quantization, Progress)} and {@link #load} throw.
     *
     * @param progress is notified in rows, and then of the error
     * @param quantization the quantisation; if it has its scheme's default block or group, the stored blocks or groups
     *     are accepted too
     */
    static Int8Experts int8(ExpertWeights weights, Int8Quantization quantization, Progress progress) {
        boolean asStored = isAsStored(weights, quantization);
        Int8Experts experts = asStored
                ? ((QuantizedWeights) weights).load(quantization.scheme(), progress)
                : Int8Quantizer.quantize(weights, quantization, progress);
        return told(weights, experts, asStored, progress);
    }

    /** The same with the scheme's default block or group. */
    static Int8Experts int8(ExpertWeights weights, Int8Scheme scheme, Progress progress) {
        return int8(weights, Int8Quantization.of(scheme), progress);
    }
}
