package org.tornadomoe.quant;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;

/**
 * A router that is a network of its own (ZAYA). A projection of the token, [R], plus what the same layer before it in
 * the model made, times a factor a value, is its state. The state's RMS norm goes through two layers with a GELU each
 * and one without; a softmax over C = E + 1 choices gives scores, the last choice being no expert at all. A bias a
 * choice is added for the choice alone. All finite; arrays are the record's own, not to be written to.
 *
 * @param down [R, H]
 * @param downBias [R]
 * @param stateFactor [R], times the state before; null in a model's first layer, which reads none
 * @param norm [R]
 * @param epsilon of the norm
 * @param first [R, R]
 * @param firstBias [R]
 * @param second [R, R]
 * @param secondBias [R]
 * @param out [C, R]
 * @param choiceBias [C]
 */
public record RouterNetwork(
        float[] down,
        float[] downBias,
        float @Nullable [] stateFactor,
        float[] norm,
        double epsilon,
        float[] first,
        float[] firstBias,
        float[] second,
        float[] secondBias,
        float[] out,
        float[] choiceBias) {
    /** R: values of a state. */
    public int width() {
        return norm.length;
    }

    /** C: the routed experts and no expert. */
    public int choices() {
        return choiceBias.length;
    }

    /** Bytes of memory held. */
    long bytes() {
        int r = width();
        long vectors = 4L * r + choiceBias.length + (stateFactor == null ? 0 : r);
        return 4 * (down.length + first.length + second.length + out.length + vectors);
    }

    /** Checks that it is of such a layer; throws as {@link RouterWeights#requireFits}. */
    void requireFits(FusedMoeConfig config) {
        int choices = config.numExperts() + 1;
        if (choices() != choices || down.length != (long) width() * config.hiddenDim()) {
            throw new IllegalArgumentException("router: expected a network of " + config.hiddenDim() + " inputs and "
                    + choices + " choices, got " + down.length / width() + " and " + choices());
        }
    }
}
