package org.tornadomoe;

import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.LoraAdapter;

/** A layer's slots for adapters: which have one, and whether it is switched on. Changed when no call is under way. */
final class AdapterSlots {
    private final FusedMoeConfig config;
    private final MoeKernel kernel;
    private final Lanes lanes;
    private final boolean[] filled;
    private final boolean[] enabled;

    /** @param kernel the lane whose weights and adapters the others share */
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

    /** @throws IllegalArgumentException if these aren't a slot or -1 for each of so many tokens */
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

    /** The slots of tokens whose adapter is switched on, -1 for others; by a call that has a lane. */
    int[] active(int[] slotOfToken, int tokens) {
        int[] active = new int[tokens];
        for (int m = 0; m < tokens; m++) {
            int slot = slotOfToken[m];
            active[m] = slot >= 0 && enabled[slot] ? slot : -1;
        }
        return active;
    }
}
