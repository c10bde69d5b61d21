package org.tornadomoe.checkpoint.weights;

import java.util.List;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Group;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Method;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Rule;

/** What the writers' ways to say how weights are stored have in common; see {@link QuantizationConfig}. */
final class QuantizationFields {
    static final String FIELD = "quantization_config: ";

    /** Rows or columns that share a scale: longer than any row, short of where ints overflow. */
    static final int MAX_GROUP = 1 << 20;

    private QuantizationFields() {}

    /** One scheme for all modules. */
    static WeightQuantization everywhere(JsonFile json, Method method, Group group) {
        ModuleTargets all = ModuleTargets.of(json.file(), List.of("Linear"));
        return new WeightQuantization(
                json.file(), method, new ModuleTargets(json.file()), null, List.of(new Rule(all, group, null)));
    }

    static Rule rule(ModuleTargets targets, Supplier<@Nullable Group> group) {
        try {
            return new Rule(targets, group.get(), null);
        } catch (CheckpointException e) {
            return new Rule(targets, null, e);
        }
    }

    static void requireGroup(JsonFile json, int groupSize) {
        if (groupSize != -1 && (groupSize < 1 || groupSize > MAX_GROUP)) {
            throw new CheckpointException(
                    json.file(), FIELD + "'group_size': expected -1 or 1 to " + MAX_GROUP + ", got " + groupSize);
        }
    }

    static void requireBlock(JsonFile json, String field, List<Integer> block) {
        if (block.size() != 2 || block.stream().anyMatch(size -> size < 1 || size > MAX_GROUP)) {
            throw new CheckpointException(
                    json.file(),
                    FIELD + "'" + field + "': expected two numbers from 1 to " + MAX_GROUP + ", got "
                            + JsonFile.shown(block));
        }
    }
}
