package org.tornadomoe.checkpoint.weights;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.function.Supplier;
import java.util.stream.Stream;
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
    private static final String FIELD = "quantization_config: ";

    /** Rows or columns that share a scale: longer than any row, short of where ints overflow. */
    private static final int MAX_GROUP = 1 << 20;

    /** Of GPTQ's numbers. */
    private static final List<Integer> GPTQ_BITS = List.of(2, 3, 4, 8);

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

    /** Fields of any writer that say of numbers which are not in the weights, and what those would be. */
    private static final Map<String, String> BESIDE_THE_WEIGHTS = Map.of(
            "rotation", "rotations of activations",
            "rotation_config", "rotations of activations",
            "rotation_configs", "rotations of activations",
            "spinquant_config", "rotations of activations",
            "transform_config", "transforms of activations",
            "adapter", "adapters");

    /** What a scheme says of small floats, of which the tensors tell the rest. */
    private static final Group SMALL_FLOATS =
            new Group(new Arguments(8, "float", true, "channel", false, 0, List.of()), null);

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
            case "compressed-tensors" -> compressedTensors(json);
            case "gptq" -> gptq(json);
            case "awq" -> awq(json);
            case "mlx" -> mlx(json);
            case "auto-round", "intel/auto-round" -> autoRound(json);
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
            case "blockwise_int8", "w8a8_int8" -> int8(json);
            case "quark" -> json.has("global_quant_config") ? quark(json) : floats(json);
            default ->
                throw new CheckpointException(
                        json.file(),
                        "'" + field
                                + "': quant_method: expected compressed-tensors, gptq, awq, auto-round, fp8,"
                                + " fbgemm_fp8, mxfp4, mxfp8, modelopt, quark, bitsandbytes, w8a8_int8 or"
                                + " blockwise_int8 (or no quantisation), got '" + JsonFile.shown(method)
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

    /**
     * AutoRound's, packed as GPTQ's are or AWQ's, or floats of 8 or 4 bits. What {@code extra_config} says of a module
     * counts before the rest; 16 bits are floats. Zero points are less one where it says GPTQ, and as they are where it
     * says nothing or GPTQModel ({@code auto_round.export.export_to_autoround}).
     */
    private static WeightQuantization autoRound(JsonFile json) {
        if (json.string("data_type", "int").contains("fp")) {
            return floats(json);
        }
        String packing = json.string("packing_format", json.string("backend", ""));
        boolean awq = packing.contains("awq");
        boolean plain = List.of("auto_round", "auto_round:gptqmodel").contains(packing);
        if (!awq && !plain && !packing.contains("gptq")) {
            throw new CheckpointException(
                    json.file(),
                    FIELD + "'packing_format': expected auto_round, auto_round:auto_gptq or auto_round:auto_awq, got '"
                            + JsonFile.shown(packing) + "'");
        }
        List<Rule> rules = new ArrayList<>();
        if (json.has("extra_config")) {
            JsonFile extra = json.nested("extra_config");
            for (String name : extra.fields().keySet()) {
                JsonFile own = extra.nested(name);
                ModuleTargets targets = ModuleTargets.of(json.file(), List.of(name));
                targets.addPattern(name, name);
                rules.add(rule(targets, () -> autoRoundGroup(json, own, awq)));
            }
        }
        rules.add(rule(
                ModuleTargets.of(json.file(), List.of("Linear")),
                () -> autoRoundGroup(json, new JsonFile(json.file(), Map.of()), awq)));
        return new WeightQuantization(
                json.file(),
                awq ? Method.AWQ : plain ? Method.GPTQ_V2 : Method.GPTQ,
                new ModuleTargets(json.file()),
                null,
                List.copyOf(rules));
    }

    private static @Nullable Group autoRoundGroup(JsonFile json, JsonFile own, boolean awq) {
        String type = own.string("data_type", json.string("data_type", "int"));
        if ((own.has("bits") ? own : json).integer("bits") >= 16) {
            return null;
        }
        if (!type.equals("int")) {
            throw new CheckpointException(
                    json.file(), FIELD + "'data_type': expected int, got " + JsonFile.shown(type));
        }
        Group group = gptqGroup(json, own);
        if (awq) {
            requireAwqBits(json, group.weights().bits());
        }
        return group;
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
    private static WeightQuantization floats(JsonFile json) {
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

    /**
     * Quark's: what {@code layer_quant_config} says of modules whose names match a shell's pattern counts before the
     * rest. Small floats are what their tensors tell ({@code quark.torch.export.utils.pack}).
     */
    private static WeightQuantization quark(JsonFile json) {
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

    /** One scheme for all modules. */
    private static WeightQuantization everywhere(JsonFile json, Method method, Group group) {
        ModuleTargets all = ModuleTargets.of(json.file(), List.of("Linear"));
        return new WeightQuantization(
                json.file(), method, new ModuleTargets(json.file()), null, List.of(new Rule(all, group, null)));
    }

    private static WeightQuantization awq(JsonFile json) {
        for (String field : List.of("version", "format", "checkpoint_format")) {
            String version = json.string(field, "gemm").toLowerCase(Locale.ROOT);
            if (!version.equals("gemm")) {
                throw new CheckpointException(
                        json.file(), FIELD + "'" + field + "': expected gemm, got " + JsonFile.shown(version));
            }
        }
        if (json.string("backend", "").equals("llm-awq")) { // which lays out words in another way
            throw new CheckpointException(json.file(), FIELD + "'backend': expected autoawq, got llm-awq");
        }
        int bits = json.integer(json.has("w_bit") ? "w_bit" : "bits", 4);
        requireAwqBits(json, bits);
        int groupSize = json.integer(json.has("q_group_size") ? "q_group_size" : "group_size", 128);
        requireGroup(json, groupSize);
        Arguments weights = new Arguments(
                bits,
                "int",
                !json.bool("zero_point", true),
                groupSize == -1 ? "channel" : "group",
                false,
                Math.max(0, groupSize),
                List.of());
        return everywhere(json, Method.AWQ, new Group(weights, null));
    }

    private static void requireAwqBits(JsonFile json, int bits) {
        if (bits != 4 && bits != 8) {
            throw new CheckpointException(json.file(), FIELD + "'bits': expected 4 or 8, got " + bits);
        }
    }

    private static void requireGroup(JsonFile json, int groupSize) {
        if (groupSize != -1 && (groupSize < 1 || groupSize > MAX_GROUP)) {
            throw new CheckpointException(
                    json.file(), FIELD + "'group_size': expected -1 or 1 to " + MAX_GROUP + ", got " + groupSize);
        }
    }

    private static void requireBlock(JsonFile json, String field, List<Integer> block) {
        if (block.size() != 2 || block.stream().anyMatch(size -> size < 1 || size > MAX_GROUP)) {
            throw new CheckpointException(
                    json.file(),
                    FIELD + "'" + field + "': expected two numbers from 1 to " + MAX_GROUP + ", got "
                            + JsonFile.shown(block));
        }
    }

    private static Rule rule(ModuleTargets targets, Supplier<@Nullable Group> group) {
        try {
            return new Rule(targets, group.get(), null);
        } catch (CheckpointException e) {
            return new Rule(targets, null, e);
        }
    }

    private static @Nullable WeightQuantization compressedTensors(JsonFile json) {
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

    /**
     * GPTQ's, with what {@code dynamic} says of some modules in place of the rest: names are regular expressions, those
     * that begin with {@code -:} of modules that stay floats, which come first.
     */
    private static WeightQuantization gptq(JsonFile json) {
        String format = json.string("checkpoint_format", json.string("format", "gptq"));
        if ((!format.equals("gptq") && !format.equals("gptq_v2")) || json.bool("is_marlin_format", false)) {
            throw new CheckpointException(
                    json.file(),
                    FIELD + "'checkpoint_format': expected gptq or gptq_v2, got "
                            + (json.bool("is_marlin_format", false) ? "marlin" : JsonFile.shown(format)));
        }
        ModuleTargets floats = new ModuleTargets(json.file());
        List<Rule> rules = new ArrayList<>();
        if (json.has("dynamic")) {
            JsonFile dynamic = json.nested("dynamic");
            for (String name : dynamic.fields().keySet()) {
                if (name.startsWith("-:")) {
                    floats.addPattern(name, name.substring(2));
                    continue;
                }
                ModuleTargets targets = new ModuleTargets(json.file());
                targets.addPattern(name, name.startsWith("+:") ? name.substring(2) : name);
                JsonFile own = dynamic.has(name) ? dynamic.nested(name) : new JsonFile(json.file(), Map.of());
                rules.add(rule(targets, () -> gptqGroup(json, own)));
            }
        }
        Rule rest = rule(
                ModuleTargets.of(json.file(), List.of("Linear")),
                () -> gptqGroup(json, new JsonFile(json.file(), Map.of())));
        List<String> only = new ArrayList<>();
        if (json.has("modules_in_block_to_quantize")) {
            modules(json, json.fields().get("modules_in_block_to_quantize"), only);
        }
        if (rules.isEmpty() && only.isEmpty() && !floats.hasPatterns()) { // no module has another scheme
            if (rest.problem() != null) {
                throw rest.problem();
            }
        }
        rules.add(rest);
        return new WeightQuantization(
                json.file(),
                format.equals("gptq_v2") ? Method.GPTQ_V2 : Method.GPTQ,
                floats,
                only.isEmpty() ? null : ModuleTargets.of(json.file(), only),
                List.copyOf(rules));
    }

    /** A list of names, or of lists of them. */
    private static void modules(JsonFile json, @Nullable Object value, List<String> into) {
        switch (value) {
            case String name -> into.add(name);
            case List<?> list -> list.forEach(item -> modules(json, item, into));
            case null, default ->
                throw new CheckpointException(
                        json.file(),
                        FIELD + "'modules_in_block_to_quantize': expected lists of names, got "
                                + JsonFile.shown(value));
        }
    }

    /** @param own what is said of these modules alone */
    private static Group gptqGroup(JsonFile json, JsonFile own) {
        JsonFile size = own.has("group_size") ? own : json;
        int groupSize = size.integer("group_size", 128);
        requireGroup(json, groupSize);
        String words = own.string("pack_dtype", json.string("pack_dtype", "int32"));
        if (!words.equalsIgnoreCase("int32")) {
            throw new CheckpointException(
                    json.file(), FIELD + "'pack_dtype': expected int32, got " + JsonFile.shown(words));
        }
        if (own.has("format") || own.has("checkpoint_format")) {
            throw new CheckpointException(
                    json.file(), FIELD + "'dynamic': expected one format for all modules, got another for some");
        }
        int bits = (own.has("bits") ? own : json).integer("bits");
        if (!GPTQ_BITS.contains(bits)) {
            throw new CheckpointException(json.file(), FIELD + "'bits': expected 2, 3, 4 or 8, got " + bits);
        }
        Arguments weights = new Arguments(
                bits,
                "int",
                (own.has("sym") ? own : json).bool("sym", true),
                groupSize == -1 ? "channel" : "group",
                false,
                Math.max(0, groupSize),
                List.of());
        return new Group(weights, null, (own.has("desc_act") ? own : json).bool("desc_act", false));
    }
}
