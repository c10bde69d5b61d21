package org.tornadomoe.checkpoint;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.regex.PatternSyntaxException;
import org.jspecify.annotations.Nullable;

/**
 * How config.json says that the weights of a model are stored, if not as floats: {@code quantization_config} of
 * compressed-tensors or GPTQ.
 */
record WeightQuantization(Path file, Method method, List<Group> groups, List<String> ignore) {
    /** Who wrote the checkpoint, and so how integers are packed. */
    enum Method {
        COMPRESSED_TENSORS,
        GPTQ,
        /** As GPTQ, whose files hold zero points less one; these hold them as they are. */
        GPTQ_V2
    }

    /**
     * A scheme and the modules it is for.
     *
     * @param targets module names, {@code re:} and a regular expression, or {@code Linear} for all
     * @param activations null if they stay floats
     */
    record Group(
            List<String> targets,
            Arguments weights,
            @Nullable Arguments activations) {
        @Override
        public String toString() {
            return weights + ", " + activations;
        }
    }

    /**
     * What compressed-tensors calls quantization arguments.
     *
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

        @Override
        public String toString() {
            return type + bits + " " + (symmetric ? "symmetric" : "asymmetric") + " " + (dynamic ? "dynamic" : "static")
                    + " per " + strategy
                    + (groupSize > 0 ? " of " + groupSize : block.isEmpty() ? "" : " of " + block);
        }
    }

    /**
     * Reads it from config.json.
     *
     * @return null if the model's weights are floats
     * @throws CheckpointException if it is of a method that is not read, or malformed
     */
    static @Nullable WeightQuantization of(JsonFile json) {
        String field = json.has("quantization_config") ? "quantization_config" : "compression_config";
        if (!json.has(field)) {
            return null;
        }
        JsonFile quantization = json.nested(field);
        String method = quantization.has("quant_method")
                ? quantization.string("quant_method")
                : "compressed-tensors"; // what wrote a compression_config
        return switch (method) {
            case "compressed-tensors" -> compressedTensors(quantization);
            case "gptq" -> gptq(quantization);
            default ->
                throw new CheckpointException(
                        json.file(),
                        "'" + field + "': quant_method: expected compressed-tensors or gptq (or no quantisation), got '"
                                + method + "'");
        };
    }

    private static @Nullable WeightQuantization compressedTensors(JsonFile json) {
        List<Group> groups = new ArrayList<>();
        if (json.has("config_groups")) {
            JsonFile all = json.nested("config_groups");
            for (String name : all.fields().keySet()) {
                JsonFile group = all.nested(name);
                if (group.has("weights")) {
                    groups.add(new Group(
                            group.strings("targets"),
                            arguments(group.nested("weights")),
                            group.has("input_activations") ? arguments(group.nested("input_activations")) : null));
                }
            }
        }
        return groups.isEmpty()
                ? null
                : new WeightQuantization(
                        json.file(), Method.COMPRESSED_TENSORS, List.copyOf(groups), json.strings("ignore"));
    }

    private static Arguments arguments(JsonFile json) {
        int groupSize = json.integer("group_size", 0);
        String strategy = json.has("strategy")
                ? json.string("strategy").toLowerCase(Locale.ROOT)
                : groupSize > 0 ? "group" : groupSize == -1 ? "channel" : "tensor";
        boolean grouped = strategy.equals("group") || strategy.equals("tensor_group");
        List<Integer> block = strategy.equals("block") ? json.integers("block_structure") : List.of();
        if (grouped && groupSize < 1) {
            throw new CheckpointException(
                    json.file(), "quantization_config: 'group_size': expected a positive number, got " + groupSize);
        }
        if (strategy.equals("block") && (block.size() != 2 || block.get(0) < 1 || block.get(1) < 1)) {
            throw new CheckpointException(
                    json.file(), "quantization_config: 'block_structure': expected two positive numbers, got " + block);
        }
        return new Arguments(
                json.integer("num_bits", 8),
                json.has("type") ? json.string("type") : "int",
                json.bool("symmetric", true),
                strategy,
                json.bool("dynamic", false),
                grouped ? groupSize : 0,
                block);
    }

    private static WeightQuantization gptq(JsonFile json) {
        int bits = json.integer("bits");
        if (bits != 8) {
            throw new CheckpointException(json.file(), "quantization_config: 'bits': expected 8, got " + bits);
        }
        int groupSize = json.integer("group_size");
        if (groupSize != -1 && groupSize < 1) {
            throw new CheckpointException(
                    json.file(),
                    "quantization_config: 'group_size': expected -1 or a positive number, got " + groupSize);
        }
        Arguments weights = new Arguments(
                8,
                "int",
                json.bool("sym", true),
                groupSize == -1 ? "channel" : "group",
                false,
                Math.max(0, groupSize),
                List.of());
        String format = json.has("checkpoint_format") ? json.string("checkpoint_format") : "gptq";
        return new WeightQuantization(
                json.file(),
                format.equals("gptq_v2") ? Method.GPTQ_V2 : Method.GPTQ,
                List.of(new Group(List.of("Linear"), weights, null)),
                List.of());
    }

    /**
     * The one scheme of these modules; null if they are floats.
     *
     * @param modules names without {@code .weight}
     * @throws CheckpointException if it is not the same for all
     */
    @Nullable
    Group groupOf(List<String> modules) {
        Set<@Nullable Group> found = new HashSet<>();
        for (String module : modules) {
            found.add(groupOf(module));
        }
        if (found.size() > 1) {
            throw new CheckpointException(
                    file, "All MoE projections need to have same quantization scheme but found multiple: " + found);
        }
        return found.iterator().next();
    }

    private @Nullable Group groupOf(String module) {
        if (ignore.stream().anyMatch(pattern -> matches(pattern, module))) {
            return null;
        }
        return groups.stream()
                .filter(group ->
                        group.targets.stream().anyMatch(target -> target.equals("Linear") || matches(target, module)))
                .findFirst()
                .orElse(null);
    }

    private boolean matches(String pattern, String module) {
        if (!pattern.startsWith("re:")) {
            return module.equals(pattern) || module.endsWith("." + pattern);
        }
        try {
            // as Python's re.match: from the start, not necessarily to the end
            return java.util.regex.Pattern.compile(pattern.substring(3))
                    .matcher(module)
                    .lookingAt();
        } catch (PatternSyntaxException e) {
            throw new CheckpointException(
                    file, "quantization_config: '" + pattern + "' is not a regular expression: " + e.getMessage(), e);
        }
    }
}
