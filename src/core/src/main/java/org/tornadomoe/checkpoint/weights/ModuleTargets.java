package org.tornadomoe.checkpoint.weights;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;

/** Which modules of a checkpoint something is said of, by their names, patterns of them, or their classes. */
final class ModuleTargets {
    /** Classes whose modules hold the projections of routed experts and nothing else, in any model. */
    private static final Pattern EXPERT_CLASS = Pattern.compile("(?i:FusedMoE)|[A-Z]\\w*Experts?");

    /** Classes whose modules hold those of routed or shared experts. */
    private static final Pattern BLOCK_CLASS =
            Pattern.compile("Linear|[A-Z]\\w*(M[oO][eE](Block|Layer|MLP)?|MLP|MLPBlock)");

    private final Path file;
    private final Set<String> names = new HashSet<>();
    private final Map<String, NamePattern> patterns = new LinkedHashMap<>();

    /** Those that can't be read: a problem only where no other answers. */
    private final List<CheckpointException> problems = new ArrayList<>();

    private boolean experts;
    private boolean blocks;

    ModuleTargets(Path file) {
        this.file = file;
    }

    /** @param targets in compressed-tensors' words */
    static ModuleTargets of(Path file, List<String> targets) {
        ModuleTargets all = new ModuleTargets(file);
        for (String target : targets) {
            if (target.startsWith("re:")) {
                all.addPattern(target, target.substring(3));
            } else {
                all.names.add(target);
                boolean routed = EXPERT_CLASS.matcher(target).matches();
                all.experts |= routed;
                all.blocks |= !routed && BLOCK_CLASS.matcher(target).matches();
            }
        }
        return all;
    }

    boolean hasPatterns() {
        return !patterns.isEmpty();
    }

    /** @param shown what the file calls it */
    void addPattern(String shown, String text) {
        try {
            patterns.put(shown, NamePattern.compile(text));
        } catch (IllegalArgumentException e) {
            problems.add(notRead(shown, e));
        }
    }

    private CheckpointException notRead(String shown, IllegalArgumentException e) {
        return new CheckpointException(
                file,
                "quantization_config: '" + JsonFile.shown(shown) + "' is not a regular expression that is read: "
                        + e.getMessage(),
                e);
    }

    /** Whether they name a module in any way. Throws as {@link #matchesPattern}. */
    boolean names(String module) {
        return namesPartOf(module) || matchesPattern(module) || hasClassOf(module);
    }

    /** Whether a class is one that holds the module. */
    boolean hasClassOf(String module) {
        return blocks || (experts && module.contains(".experts."));
    }

    /**
     * Whether a pattern matches it.
     *
     * @throws CheckpointException if that depends on a pattern that isn't read
     */
    boolean matchesPattern(String module) {
        for (Map.Entry<String, NamePattern> pattern : patterns.entrySet()) {
            try {
                if (pattern.getValue().matchesStartOf(module)) {
                    return true;
                }
            } catch (IllegalArgumentException e) {
                throw notRead(pattern.getKey(), e);
            }
        }
        if (!problems.isEmpty()) {
            throw problems.getFirst();
        }
        return false;
    }

    /** Whether a name is the module's, or one or more of its parts one after the other. */
    boolean namesPartOf(String module) {
        if (names.isEmpty()) {
            return false;
        }
        for (int from = 0; from >= 0; from = module.indexOf('.', from) + 1) {
            for (int to = module.indexOf('.', from); to > 0; to = module.indexOf('.', to + 1)) {
                if (names.contains(module.substring(from, to))) {
                    return true;
                }
            }
            if (names.contains(module.substring(from))) {
                return true;
            }
            if (module.indexOf('.', from) < 0) {
                return false;
            }
        }
        return false;
    }
}
