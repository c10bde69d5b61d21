package org.tornadomoe.checkpoint.weights;

import static org.tornadomoe.checkpoint.weights.QuantizationFields.FIELD;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.everywhere;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.requireBlock;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.requireGroup;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.rule;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.ModelFamilies;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Arguments;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Group;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Method;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Rule;

/** Reads what a configuration says of how weights are stored, in the words of each writer of such checkpoints. */
public final class QuantizationConfig {
    /** Fields of any writer that say of numbers which are not in the weights, and what those would be. */
    private static final Map<String, String> BESIDE_THE_WEIGHTS = Map.of(
            "rotation", "rotations of activations",
            "rotation_config", "rotations of activations",
            "rotation_configs", "rotations of activations",
            "spinquant_config", "rotations of activations",
            "transform_config", "transforms of activations",
            "adapter", "adapters");

    private static final List<String> MLX_MODES = List.of("affine", "mxfp4", "mxfp8", "nvfp4");

    private QuantizationConfig() {}

    /**
     * Finds it: in config.json, in what config.json has of the language model, or, where GPTQ and AWQ once wrote it, in
     * a file of its own beside it.
     *
     * @return null if the model's weights are floats
     * @throws CheckpointException if it is of a method that is not read, or malformed
     */
    public static @Nullable WeightQuantization of(JsonFile config) {
        List<JsonFile> places = new ArrayList<>(List.of(config));
        ModelFamilies.LANGUAGE_MODEL.stream()
                .filter(config::has)
                .map(config::nested)
                .forEach(places::add);
        for (JsonFile place : places) {
            for (String field : List.of("quantization_config", "compression_config", "quantization")) {
                if (place.has(field) && !place.object(field).isEmpty()) {
                    return of(field, place.nested(field));
                }
            }
        }
        for (String name : List.of("quantize_config.json", "quant_config.json")) {
            Path beside = config.file().resolveSibling(name);
            if (Files.exists(beside)) {
                return of(name, JsonFile.read(beside));
            }
        }
        return null;
    }

    private static @Nullable WeightQuantization of(String field, JsonFile json) {
        BESIDE_THE_WEIGHTS.forEach((name, what) -> {
            if (!isNothing(json.fields().get(name))) {
                throw new CheckpointException(json.file(), FIELD + "'" + name + "': " + what + " are not read");
            }
        });
        // As in files that are older than the field; MLX writes bits and the size of groups alone.
        boolean gptq = json.has("sym") || json.has("desc_act") || field.endsWith(".json");
        String absent = json.has("w_bit") ? "awq" : !json.has("bits") ? "compressed-tensors" : gptq ? "gptq" : "mlx";
        String method = json.string("quant_method", json.string("method", absent));
        return switch (method) {
            case "compressed-tensors" -> CompressedTensorsConfig.compressedTensors(json);
            case "gptq" -> GptqConfig.gptq(json);
            case "awq" -> GptqConfig.awq(json);
            case "mlx" -> mlx(json);
            case "auto-round", "intel/auto-round" -> GptqConfig.autoRound(json);
            case "fp8",
                    "fbgemm_fp8",
                    "mxfp4",
                    "mxfp8",
                    "w8a8_fp8",
                    "modelopt",
                    "modelopt_fp4",
                    "modelopt_mxfp8",
                    "modelopt_mixed",
                    "bitsandbytes" -> floats(json);
            case "w4afp8" -> everywhere(json, Method.FLOATS, Group.of(4, 128, true));
            case "blockwise_int8", "w8a8_int8" -> int8(json);
            case "quark" -> json.has("global_quant_config") ? QuarkConfig.quark(json) : floats(json);
            default ->
                throw new CheckpointException(
                        json.file(),
                        "'" + field
                                + "': quant_method: expected compressed-tensors, gptq, awq, auto-round, fp8,"
                                + " fbgemm_fp8, mxfp4, mxfp8, modelopt, quark, bitsandbytes, w8a8_int8,"
                                + " blockwise_int8 or w4afp8 (or no quantisation), got '" + JsonFile.shown(method)
                                + "'");
        };
    }

    /** Whether a field says that there is nothing of what it is about. */
    private static boolean isNothing(@Nullable Object value) {
        return switch (value) {
            case null -> true;
            case Map<?, ?> map ->
                map.isEmpty() || (map.keySet().equals(Set.of("config_groups")) && isNothing(map.get("config_groups")));
            case List<?> list -> list.isEmpty();
            default -> value.equals(false) || value.equals("");
        };
    }

    /** MLX's, whose tensors tell all but how wide a row is; what it says of a module by its name counts first. */
    private static WeightQuantization mlx(JsonFile json) {
        String mode = json.string("mode", "affine");
        if (!MLX_MODES.contains(mode)) {
            throw new CheckpointException(
                    json.file(),
                    FIELD + "'mode': expected one of " + String.join(", ", MLX_MODES) + ", got "
                            + JsonFile.shown(mode));
        }
        List<Rule> rules = new ArrayList<>();
        for (Map.Entry<String, @Nullable Object> field : json.fields().entrySet()) {
            if (field.getValue() instanceof Map<?, ?>) {
                JsonFile own = json.nested(field.getKey());
                rules.add(rule(ModuleTargets.of(json.file(), List.of(field.getKey())), () -> mlxGroup(json, own)));
            }
        }
        rules.add(rule(
                ModuleTargets.of(json.file(), List.of("Linear")),
                () -> mlxGroup(json, new JsonFile(json.file(), Map.of()))));
        return new WeightQuantization(
                json.file(), Method.FLOATS, new ModuleTargets(json.file()), null, List.copyOf(rules));
    }

    private static Group mlxGroup(JsonFile json, JsonFile own) {
        int bits = (own.has("bits") ? own : json).integer("bits");
        int groupSize = (own.has("group_size") ? own : json).integer("group_size", 64);
        requireGroup(json, groupSize);
        if (bits < 2 || bits > 8) {
            throw new CheckpointException(json.file(), FIELD + "'bits': expected 2 to 8, got " + bits);
        }
        return new Group(new Arguments(bits, "int", false, "group", false, groupSize, List.of()), null);
    }

    /** FP8 and FP4 of a writer that says of its modules no more than the tensors do, but for the size of blocks. */
    static WeightQuantization floats(JsonFile json) {
        List<Integer> block = json.integers("weight_block_size");
        if (!block.isEmpty()) {
            requireBlock(json, "weight_block_size", block);
        }
        Arguments weights = new Arguments(8, "float", true, block.isEmpty() ? "channel" : "block", false, 0, block);
        return everywhere(json, Method.FLOATS, new Group(weights, null));
    }

    /** SGLang's int8: blocks, activations in groups as long as those are wide; or a scale a row, and one a token. */
    private static WeightQuantization int8(JsonFile json) {
        List<Integer> block = json.integers("weight_block_size");
        boolean blocks = json.string("quant_method").equals("blockwise_int8");
        if (blocks) {
            requireBlock(json, "weight_block_size", block);
        }
        String activations = json.string("activation_scheme", "dynamic");
        if (!activations.equals("dynamic")) {
            throw new CheckpointException(
                    json.file(), FIELD + "'activation_scheme': expected dynamic, got " + JsonFile.shown(activations));
        }
        return everywhere(
                json,
                Method.COMPRESSED_TENSORS,
                new Group(
                        new Arguments(
                                8, "int", true, blocks ? "block" : "channel", false, 0, blocks ? block : List.of()),
                        new Arguments(
                                8,
                                "int",
                                true,
                                blocks ? "group" : "token",
                                true,
                                blocks ? block.getLast() : 0,
                                List.of())));
    }
}
