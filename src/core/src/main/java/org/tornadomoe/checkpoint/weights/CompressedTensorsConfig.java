package org.tornadomoe.checkpoint.weights;

import static org.tornadomoe.checkpoint.weights.QuantizationFields.FIELD;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.MAX_GROUP;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.requireBlock;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.rule;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Arguments;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Group;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Method;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Rule;

/** How compressed-tensors says that weights are stored. */
final class CompressedTensorsConfig {
    /** What compressed-tensors calls ways to store matrices, of those that tensors tell apart. */
    private static final List<String> FORMATS = List.of(
            "dense",
            "fakequant",
            "int-quantized",
            "float-quantized",
            "naive-quantized",
            "pack-quantized",
            "mixed-precision",
            "nvfp4-pack-quantized",
            "mxfp4-pack-quantized",
            "mxfp8-quantized");

    private CompressedTensorsConfig() {}

    static @Nullable WeightQuantization compressedTensors(JsonFile json) {
        if (json.has("sparsity_config")) {
            String format = json.nested("sparsity_config").string("format", "dense");
            if (!format.equals("dense")) {
                throw new CheckpointException(
                        json.file(),
                        FIELD + "'sparsity_config': 'format': expected dense, got " + JsonFile.shown(format));
            }
        }
        List<Rule> rules = new ArrayList<>();
        if (json.has("config_groups")) {
            JsonFile all = json.nested("config_groups");
            for (String name : all.fields().keySet()) {
                if (all.has(name) && all.nested(name).has("weights")) {
                    JsonFile group = all.nested(name);
                    rules.add(rule(ModuleTargets.of(json.file(), group.strings("targets")), () -> group(json, group)));
                }
            }
        }
        if (rules.isEmpty()) {
            return null;
        }
        return new WeightQuantization(
                json.file(),
                Method.COMPRESSED_TENSORS,
                ModuleTargets.of(json.file(), json.strings("ignore")),
                null,
                List.copyOf(rules));
    }

    private static Group group(JsonFile json, JsonFile group) {
        String format = group.string("format", json.string("format", "fakequant"));
        if (!FORMATS.contains(format)) {
            throw new CheckpointException(
                    group.file(),
                    FIELD + "'format': expected one of " + String.join(", ", FORMATS) + ", got "
                            + JsonFile.shown(format));
        }
        if (group.has("output_activations")) {
            throw new CheckpointException(
                    group.file(), FIELD + "'output_activations': expected null, quantised outputs are not read");
        }
        JsonFile weights = group.nested("weights");
        if (weights.bool("dynamic", false)) {
            throw new CheckpointException(
                    group.file(),
                    FIELD + "'weights': 'dynamic': expected false, got true: weights without scales in the file are"
                            + " not read");
        }
        return new Group(
                arguments(weights, false),
                group.has("input_activations")
                        ? arguments(group.nested("input_activations"), isDynamic(group.nested("input_activations")))
                        : null,
                isReordered(weights));
    }

    /** Whether columns have groups in another order than they stand in; what else is said is how it was found. */
    private static boolean isReordered(JsonFile weights) {
        Object order = weights.fields().get("actorder");
        return switch (order) {
            case null -> false;
            case Boolean ordered -> ordered;
            case String name when List.of("group", "dynamic").contains(name.toLowerCase(Locale.ROOT)) -> true;
            case String name when List.of("weight", "static").contains(name.toLowerCase(Locale.ROOT)) -> false;
            default ->
                throw new CheckpointException(
                        weights.file(),
                        FIELD + "'actorder': expected group, dynamic, weight, static or null, got "
                                + JsonFile.shown(order));
        };
    }

    /** Floats of activations may have both: a scale for each group found at run time, one for all known beforehand. */
    private static boolean isDynamic(JsonFile activations) {
        boolean local = activations.string("type", "int").equals("float")
                && "local".equals(activations.fields().get("dynamic"));
        return local || activations.bool("dynamic", false);
    }

    private static Arguments arguments(JsonFile json, boolean dynamic) {
        int groupSize = json.integer("group_size", 0);
        String strategy = json.has("strategy")
                ? json.string("strategy").toLowerCase(Locale.ROOT)
                : groupSize > 0 ? "group" : groupSize == -1 ? "channel" : "tensor";
        boolean grouped = strategy.equals("group") || strategy.equals("tensor_group");
        List<Integer> block = strategy.equals("block") ? blockStructure(json) : List.of();
        if (grouped && (groupSize < 1 || groupSize > MAX_GROUP)) {
            throw new CheckpointException(
                    json.file(), FIELD + "'group_size': expected 1 to " + MAX_GROUP + ", got " + groupSize);
        }
        if (strategy.equals("block")) {
            requireBlock(json, "block_structure", block);
        }
        return new Arguments(
                json.integer("num_bits", 8),
                json.string("type", "int"),
                json.bool("symmetric", true),
                strategy,
                dynamic,
                grouped ? groupSize : 0,
                block);
    }

    /** Rows and columns; as older files have it, with an x between them. */
    private static List<Integer> blockStructure(JsonFile json) {
        if (json.fields().get("block_structure") instanceof String text && text.matches("\\d{1,6}x\\d{1,6}")) {
            return Stream.of(text.split("x")).map(Integer::valueOf).toList();
        }
        return json.integers("block_structure");
    }
}
