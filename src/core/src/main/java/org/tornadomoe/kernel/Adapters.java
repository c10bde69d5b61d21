package org.tornadomoe.kernel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.LoraAdapter;

/**
 * What a {@link MoeKernel} can that has slots for adapters (LoRA): of a class that {@linkplain
 * FusedMoeExperts#supportsLora says so}.
 */
public interface Adapters {
    /**
     * Puts an adapter into a slot, or takes out what is there. No call is under way meanwhile. The next one may take
     * long: a device may be given all of the layer's weights anew.
     *
     * @param slot from 0 to the configuration's {@code maxLoras} - 1
     * @param adapter fits the layer; null for none
     */
    void setAdapter(int slot, @Nullable LoraAdapter adapter);

    /**
     * That kernel's.
     *
     * @throws UnsupportedOperationException if it has none
     */
    static Adapters of(MoeKernel kernel) {
        if (kernel instanceof Adapters adapters) {
            return adapters;
        }
        throw new UnsupportedOperationException("kernel does not support LoRA");
    }
}
