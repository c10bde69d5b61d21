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
 * The candidates that the oracle considers for a configuration, and its decision.
 *
 * @param config the configuration
 * @param weightKey how weights are quantised; null if they aren't
 * @param activationKey how activations are quantised; null if they aren't
 * @param format the format in which activations reach the experts
 * @param candidates in the order in which they are tried
 * @param chosen the index of the candidate taken, -1 for none
 * @param failure the exception if no candidate is taken, with the reason; null if one is
 * @param lastResort the kernel class that a {@link org.tornadomoe.MoeLayer} takes if no candidate is; null for none
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
     * A kernel class, or a backend without kernel classes.
     *
     * @param kernelClass its name; null for an empty backend
     * @param device where it would run; null for an empty backend
     * @param support whether it serves the layer
     * @param refusals all reasons against it
     * @param memory the device memory that the layer needs; null if the kernel class doesn't know
     * @param launches the possible launch configurations of the GEMMs; null if there is nothing to choose
     * @param rounding where its GEMMs round more than the definition; null if nowhere
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

        /** The kernel class's or the backend's name. */
        public String name() {
            return kernelClass == null ? backend.value() : kernelClass;
        }
    }

    /** Copies the list. */
    public Explanation {
        candidates = List.copyOf(candidates);
    }

    /** The candidate taken; null for none. */
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

    /** All changes that {@link #firstRefused} needs to be taken; empty if nothing would help. */
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
