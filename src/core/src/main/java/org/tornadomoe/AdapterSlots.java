package org.tornadomoe;

import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.LoraAdapter;

/** A layer's adapter slots: which are filled, and which are switched on. They change only while no call runs. */
final class AdapterSlots {
    private final FusedMoeConfig config;
    private final MoeKernel kernel;
    private final Lanes lanes;
    private final boolean[] filled;
    private final boolean[] enabled;

    /** @param kernel the lane whose weights and adapters the other lanes share */
    AdapterSlots(FusedMoeConfig config, MoeKernel kernel, Lanes lanes) {
        this.config = config;
        this.kernel = kernel;
        this.lanes = lanes;
        filled = new boolean[config.isLoraEnabled() ? config.maxLoras() : 0];
        enabled = new boolean[filled.length];
    }

    void set(int slot, LoraAdapter adapter) {
        requireSlot("slot", slot);
        adapter.requireFits(config);
        change(slot, true, () -> {
            Adapters.of(kernel).setAdapter(slot, adapter);
            filled[slot] = true;
        });
    }

    void remove(int slot) {
        requireSlot("slot", slot);
        change(slot, false, () -> {
            Adapters.of(kernel).setAdapter(slot, null);
            filled[slot] = false;
        });
    }

    void enable(int slot, boolean enabled) {
        requireSlot("slot", slot);
        change(slot, enabled, () -> {
            if (!filled[slot]) {
                throw new IllegalArgumentException("slot: expected one with an adapter, " + slot + " is empty");
            }
        });
    }

    private void change(int slot, boolean enable, Runnable how) {
        lanes.alone(() -> {
            how.run();
            enabled[slot] = enable;
        });
    }

    /** @throws IllegalArgumentException unless there is a slot or -1 for each of these tokens */
    void requireSlots(int[] slotOfToken, int tokens) {
        if (slotOfToken.length < tokens) {
            throw new IllegalArgumentException(
                    "slotOfToken: expected a slot for each of the " + tokens + " tokens, got " + slotOfToken.length);
        }
        for (int m = 0; m < tokens; m++) {
            if (slotOfToken[m] != -1) {
                requireSlot("slotOfToken[" + m + "]", slotOfToken[m]);
            }
        }
    }

    private void requireSlot(String name, int slot) {
        if (slot < 0 || slot >= enabled.length) {
            throw new IllegalArgumentException(name + ": expected "
                    + (enabled.length == 0
                            ? "none, the layer has no room for adapters"
                            : "0 to " + (enabled.length - 1))
                    + " (MoeOptions.withLora), got " + slot);
        }
    }

    /** The slot of each token whose adapter is switched on, -1 for other tokens. Call it only while holding a lane. */
    int[] active(int[] slotOfToken, int tokens) {
        int[] active = new int[tokens];
        for (int m = 0; m < tokens; m++) {
            int slot = slotOfToken[m];
            active[m] = slot >= 0 && enabled[slot] ? slot : -1;
        }
        return active;
    }
}
