package org.tornadomoe.quant;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;

/**
 * A router that is a small network (ZAYA). Its state is a projection of the token, [R], plus the previous layer's state
 * times a factor per value. The state goes through an RMS norm, two linear layers with a GELU each and one without. A
 * softmax over C = E + 1 choices gives the scores; the last choice is no expert. A bias per choice is added for the
 * choice only. All values are finite. The record keeps the arrays; don't write to them.
 *
 * @param down [R, H]
 * @param downBias [R]
 * @param stateFactor [R], the factor of the previous state; null in a model's first layer, which reads none
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
    /** R, the number of values of a state. */
    public int width() {
        return norm.length;
    }

    /** C, the number of choices: the routed experts and no expert. */
    public int choices() {
        return choiceBias.length;
    }

    /** Bytes of memory held. */
    long bytes() {
        int r = width();
        long vectors = 4L * r + choiceBias.length + (stateFactor == null ? 0 : r);
        return 4 * (down.length + first.length + second.length + out.length + vectors);
    }

    /** Checks that it fits the layer; throws like {@link RouterWeights#requireFits}. */
    void requireFits(FusedMoeConfig config) {
        int choices = config.numExperts() + 1;
        if (choices() != choices || down.length != (long) width() * config.hiddenDim()) {
            throw new IllegalArgumentException("router: expected a network of " + config.hiddenDim() + " inputs and "
                    + choices + " choices, got " + down.length / width() + " and " + choices());
        }
    }
}
