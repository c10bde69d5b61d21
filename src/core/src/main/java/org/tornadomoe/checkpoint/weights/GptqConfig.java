package org.tornadomoe.checkpoint.weights;

import static org.tornadomoe.checkpoint.weights.QuantizationFields.FIELD;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.everywhere;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.requireGroup;
import static org.tornadomoe.checkpoint.weights.QuantizationFields.rule;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Arguments;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Group;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Method;
import org.tornadomoe.checkpoint.weights.WeightQuantization.Rule;

/** How GPTQ, AWQ and AutoRound say that weights are stored; AutoRound packs as one of the others. */
final class GptqConfig {
    /** Of GPTQ's numbers. */
    private static final List<Integer> GPTQ_BITS = List.of(2, 3, 4, 8);

    private GptqConfig() {}

    /**
     * GPTQ's, with what {@code dynamic} says of some modules in place of the rest: names are regular expressions, those
     * that begin with {@code -:} of modules that stay floats, which come first.
     */
    static WeightQuantization gptq(JsonFile json) {
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

    static WeightQuantization awq(JsonFile json) {
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

    /**
     * AutoRound's, packed as GPTQ's are or AWQ's, or floats of 8 or 4 bits. What {@code extra_config} says of a module
     * counts before the rest; 16 bits are floats. Zero points are less one where it says GPTQ, and as they are where it
     * says nothing or GPTQModel ({@code auto_round.export.export_to_autoround}).
     */
    static WeightQuantization autoRound(JsonFile json) {
        if (json.string("data_type", "int").contains("fp")) {
            return QuantizationConfig.floats(json);
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
}
