package org.tornadomoe.checkpoint.weights;

import java.nio.file.Path;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;

/**
 * How the weights of a model are stored, if not as floats of 16 bits or more: its {@code quantization_config}.
 *
 * @param file where it is from, for messages
 * @param ignore modules that are floats
 * @param only the modules that are not; null for all
 * @param rules schemes by module
 */
public record WeightQuantization(
        Path file,
        Method method,
        ModuleTargets ignore,
        @Nullable ModuleTargets only,
        List<Rule> rules) {
    /** Who wrote the checkpoint, and so how integers are packed. */
    public enum Method {
        COMPRESSED_TENSORS,
        GPTQ,
        /** As GPTQ, whose files hold zero points less one; these hold them as they are. */
        GPTQ_V2,
        AWQ,
        /** As AWQ's words, of signed numbers or of unsigned, in rows where a scale is of a row or of all. */
        QUARK,
        /** As {@link #QUARK}, whose words hold numbers in the order of rows or columns. */
        QUARK_IN_ORDER,
        /** Writers of small floats, whose tensors tell by their dtypes and names how they are stored. */
        FLOATS
    }

    /**
     * A scheme.
     *
     * @param activations null if they stay floats
     * @param reordered whether a tensor has to say which group each column belongs to
     */
    record Group(Arguments weights, @Nullable Arguments activations, boolean reordered) {
        Group(Arguments weights, @Nullable Arguments activations) {
            this(weights, activations, false);
        }

        /** Whole numbers of so many bits, at most 8, with a scale for so many columns, for activations in floats. */
        static Group of(int bits, int groupSize, boolean symmetric) {
            return new Group(new Arguments(bits, "int", symmetric, "group", false, groupSize, List.of()), null);
        }

        @Override
        public String toString() {
            return weights + ", " + activations;
        }
    }

    /**
     * What compressed-tensors calls quantization arguments.
     *
     * @param type {@code int}, {@code float}, or {@code uint} of what is stored from 0 on
     * @param strategy {@code tensor}, {@code channel}, {@code token}, {@code group} or {@code block}
     * @param groupSize columns that share a scale; 0 if the strategy is not {@code group}
     * @param block rows and columns that share a scale; empty if the strategy is not {@code block}
     */
    record Arguments(
            int bits,
            String type,
            boolean symmetric,
            String strategy,
            boolean dynamic,
            int groupSize,
            List<Integer> block) {
        boolean isInt8() {
            return bits == 8 && type.equals("int");
        }

        boolean isUnsigned() {
            return type.equals("uint");
        }

        /** Whether int8 holds the values. */
        boolean fitsInt8() {
            return bits >= 1 && bits <= 8 && (type.equals("int") || isUnsigned());
        }

        @Override
        public String toString() {
            return type + bits + " " + (symmetric ? "symmetric" : "asymmetric") + " " + (dynamic ? "dynamic" : "static")
                    + " per " + strategy
                    + (groupSize > 0 ? " of " + groupSize : block.isEmpty() ? "" : " of " + block);
        }
    }

    /**
     * What modules are stored in.
     *
     * @param group null if they are floats, or there is a problem
     * @param problem thrown where it is for a module that is read: what nobody reads blocks nothing
     */
    record Rule(
            ModuleTargets targets,
            @Nullable Group group,
            @Nullable CheckpointException problem) {}

    /**
     * The scheme of a module, by the rule that names it best, the first of those that do so alike; null if it is
     * floats. A class that is ignored tells of modules of that class, and not of those within: what is a float matrix
     * is read as one before this is asked.
     *
     * @param module its name without {@code .weight}
     * @throws CheckpointException if it is not one that is read
     */
    @Nullable
    Group groupOf(String module) {
        if (ignore.namesPartOf(module) || ignore.matchesPattern(module) || (only != null && !only.names(module))) {
            return null;
        }
        Rule best = rules.stream()
                .filter(rule -> rule.targets.namesPartOf(module))
                .findFirst()
                .or(() -> rules.stream()
                        .filter(rule -> rule.targets.matchesPattern(module))
                        .findFirst())
                .or(() -> rules.stream()
                        .filter(rule -> rule.targets.hasClassOf(module))
                        .findFirst())
                .orElse(null);
        if (best != null && best.problem != null) {
            throw best.problem;
        }
        return best == null ? null : best.group;
    }
}
