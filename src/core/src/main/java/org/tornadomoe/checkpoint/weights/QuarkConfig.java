package org.tornadomoe.checkpoint.weights;

import static org.tornadomoe.checkpoint.weights.QuantizationFields.FIELD;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.requireGroup;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.rule;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Arguments;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Group;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Method;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Rule;

/** How Quark says that weights are stored. */
final class QuarkConfig {
    /** What a scheme says of small floats, of which the tensors tell the rest. */
    private static final Group SMALL_FLOATS =
            new Group(new Arguments(8, "float", true, "channel", false, 0, List.of()), null);

    private QuarkConfig() {}

    /**
     * Quark's: what {@code layer_quant_config} says of modules whose names match a shell's pattern counts before the
     * rest. Small floats are what their tensors tell ({@code quark.torch.export.utils.pack}).
     */
    static WeightQuantization quark(JsonFile json) {
        for (Object algorithm : json.fields().get("algo_config") instanceof List<?> all ? all : List.of()) {
            if (algorithm instanceof Map<?, ?> named
                    && String.valueOf(named.get("name")).matches("rotation|quarot|spinquant")) {
                throw new CheckpointException(
                        json.file(), FIELD + "'algo_config': rotations of activations are not read");
            }
        }
        List<Rule> rules = new ArrayList<>();
        if (json.has("layer_quant_config")) {
            JsonFile layers = json.nested("layer_quant_config");
            for (String pattern : layers.fields().keySet()) {
                if (!layers.has(pattern)) {
                    continue;
                }
                ModuleTargets targets = new ModuleTargets(json.file());
                targets.addPattern(pattern, shellPattern(pattern));
                rules.add(rule(targets, () -> quarkGroup(layers.nested(pattern))));
            }
        }
        rules.add(rule(
                ModuleTargets.of(json.file(), List.of("Linear")),
                () -> quarkGroup(json.nested("global_quant_config"))));
        String order = json.has("export") ? json.nested("export").string("pack_method", "reorder") : "reorder";
        if (!List.of("reorder", "order").contains(order)) {
            throw new CheckpointException(
                    json.file(), FIELD + "'pack_method': expected reorder or order, got " + JsonFile.shown(order));
        }
        return new WeightQuantization(
                json.file(),
                order.equals("order") ? Method.QUARK_IN_ORDER : Method.QUARK,
                new ModuleTargets(json.file()),
                null,
                List.copyOf(rules));
    }

    /** Python's {@code fnmatch}: a regular expression of a whole name. */
    private static String shellPattern(String pattern) {
        StringBuilder expression = new StringBuilder();
        for (int i = 0; i < pattern.length(); i++) {
            char c = pattern.charAt(i);
            expression.append(c == '*' ? ".*" : c == '?' ? "." : Character.isLetterOrDigit(c) ? c : "\\" + c);
        }
        return expression + "$";
    }

    private static @Nullable Group quarkGroup(JsonFile module) {
        if (!module.has("weight")) {
            return null;
        }
        if (module.has("output_tensors")) {
            throw new CheckpointException(
                    module.file(), FIELD + "'output_tensors': expected null, quantised outputs are not read");
        }
        if (module.fields().get("weight") instanceof List<?>) { // a scale of scales, as NVFP4 has
            return SMALL_FLOATS;
        }
        JsonFile weight = module.nested("weight");
        if (weight.bool("is_dynamic", false)) {
            throw new CheckpointException(
                    module.file(),
                    FIELD + "'weight': 'is_dynamic': expected false, got true: weights without scales in the file are"
                            + " not read");
        }
        String dtype = weight.string("dtype");
        String scheme = weight.string("qscheme", "per_tensor");
        String scales = weight.string("scale_format", "float32");
        int axis = weight.integer("ch_axis", scheme.equals("per_group") ? -1 : 0);
        boolean alongRows = scheme.equals("per_group") ? axis == 1 || axis == -1 : axis == 0;
        if (!alongRows && !scheme.equals("per_tensor")) {
            throw new CheckpointException(
                    module.file(),
                    FIELD + "'ch_axis': expected 0 of channels and 1 or -1 of groups, got " + axis + " of " + scheme);
        }
        if (!List.of("e8m0", "float32").contains(scales)) {
            throw new CheckpointException(
                    module.file(), FIELD + "'scale_format': expected e8m0 or float32, got " + JsonFile.shown(scales));
        }
        boolean grouped = scheme.equals("per_group");
        if (!dtype.matches("u?int[48]")) {
            if (dtype.contains("int")) {
                throw new CheckpointException(
                        module.file(),
                        FIELD + "'dtype': expected int4, uint4, int8, uint8 or small floats, got "
                                + JsonFile.shown(dtype));
            }
            return SMALL_FLOATS;
        }
        int groupSize = grouped ? weight.integer("group_size") : 0;
        if (grouped) {
            requireGroup(weight, groupSize);
        }
        return new Group(
                new Arguments(
                        dtype.endsWith("4") ? 4 : 8,
                        dtype.startsWith("u") ? "uint" : "int",
                        false,
                        grouped ? "group" : scheme.equals("per_channel") ? "channel" : "tensor",
                        false,
                        groupSize,
                        List.of()),
                null);
    }
}
