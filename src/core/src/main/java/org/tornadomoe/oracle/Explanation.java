package org.tornadomoe.oracle;

import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tuning.LaunchSpace;

/**
 * What the oracle considers for a configuration, and what comes of it.
 *
 * @param config the configuration
 * @param weightKey how weights are quantised; null if they aren't
 * @param activationKey how activations are quantised; null if they aren't
 * @param format in which activations reach the experts
 * @param candidates in the order in which they are tried
 * @param chosen the number of the candidate taken, -1 for none
 * @param failure that none is taken, and why; null if one is
 * @param lastResort the kernel class that a {@link org.tornadomoe.MoeLayer} takes where nothing is chosen; null for
 *     none
 */
public record Explanation(
        FusedMoeConfig config,
        @Nullable QuantKey weightKey,
        @Nullable QuantKey activationKey,
        FusedMoeActivationFormat format,
        List<Candidate> candidates,
        int chosen,
        @Nullable String failure,
        @Nullable String lastResort) {

    /**
     * A kernel class, or a slot that none fills.
     *
     * @param kernelClass its name; null for an empty slot
     * @param device where it would run; null for an empty slot
     * @param support whether it serves the layer
     * @param refusals everything that stands in the way
     * @param memory what the layer takes of the device's memory; null where the kernel class doesn't know
     * @param launches what the GEMMs can be launched with; null where there is nothing to choose
     * @param rounding what its products round that the definition doesn't; null if nothing is
     */
    public record Candidate(
            Int8MoeBackend backend,
            @Nullable String kernelClass,
            @Nullable String device,
            Support support,
            List<Support> refusals,
            @Nullable DeviceMemory memory,
            @Nullable LaunchSpace launches,
            @Nullable String rounding) {
        /** Copies the list. */
        public Candidate {
            refusals = List.copyOf(refusals);
        }

        /** Kernel class, or slot. */
        public String name() {
            return kernelClass == null ? backend.value() : kernelClass;
        }
    }

    /** Copies the list. */
    public Explanation {
        candidates = List.copyOf(candidates);
    }

    /** The candidate that is taken; null for none. */
    public @Nullable Candidate taken() {
        return chosen < 0 ? null : candidates.get(chosen);
    }

    /** The first candidate that was refused before one was taken; null if the first was taken. */
    public @Nullable Candidate firstRefused() {
        return chosen == 0
                        || candidates.isEmpty()
                        || candidates.getFirst().support().supported()
                ? null
                : candidates.getFirst();
    }

    /** What would have to change for {@link #firstRefused} to be taken: all of it; empty if nothing would help. */
    public List<String> changes() {
        Candidate refused = firstRefused();
        if (refused == null) {
            return List.of();
        }
        List<String> changes = new ArrayList<>();
        for (Support refusal : refused.refusals()) {
            if (refusal.remedy() == null) {
                return List.of();
            }
            changes.add(refusal.remedy());
        }
        return changes;
    }
}
