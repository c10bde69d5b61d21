package org.tornadomoe.kernel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.LoraAdapter;

/**
 * The operations of a {@link MoeKernel} with adapter (LoRA) slots. Kernels of a class that {@linkplain
 * FusedMoeExperts#supportsLora supports adapters} implement it.
 */
public interface Adapters {
    /**
     * Puts an adapter into a slot, or empties the slot. The caller makes sure that no call runs meanwhile. The next
     * call may take long, because a device may need all of the layer's weights again.
     *
     * @param slot 0 to the configuration's {@code maxLoras} - 1
     * @param adapter an adapter that fits the layer; null to empty the slot
     */
    void setAdapter(int slot, @Nullable LoraAdapter adapter);

    /**
     * The kernel's adapters.
     *
     * @throws UnsupportedOperationException if it has no adapter slots
     */
    static Adapters of(MoeKernel kernel) {
        if (kernel instanceof Adapters adapters) {
            return adapters;
        }
        throw new UnsupportedOperationException("kernel does not support LoRA");
    }
}
