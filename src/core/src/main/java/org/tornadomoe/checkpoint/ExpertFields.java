package org.tornadomoe.checkpoint;

import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/** The fields of a config.json that may concern an MoE layer. */
final class ExpertFields {
    /** Names of fields that may say how an MoE layer computes. */
    private static final Pattern CONCERNS_EXPERTS =
            Pattern.compile("expert|moe|rout(er|ed|ing)|top_?k|swiglu|scor(e|ing)|scaling_factor"
                    + "|(^|_)(act|activation|glu|gate|gating|n_groups?|num_groups?)(_|$)");

    /** Fields of that kind which change no number of an MoE layer, and why. */
    private static final List<Map.Entry<Pattern, String>> WITHOUT_EFFECT = List.of(
            Map.entry(Pattern.compile("(router|moe)_.*(loss|noise|jitter).*|.*_dropout"), "training"),
            Map.entry(Pattern.compile("output_router_logits"), "what the model returns beside its output"),
            Map.entry(Pattern.compile("_?experts_implementation.*|(moe|router)_dtype"), "how it is computed, not what"),
            Map.entry(Pattern.compile("top_k"), "sampling, of releases that kept it here"),
            Map.entry(
                    Pattern.compile("(attn|attention|index|indexer|linear|mamba|mtp|rope|vision|audio)_.*"),
                    "another block"));

    private ExpertFields() {}

    private static boolean same(String expected, @Nullable Object value) {
        return (value instanceof Number number && expected.matches("-?[0-9.]+(e-?[0-9]+)?"))
                ? Double.parseDouble(expected) == number.doubleValue()
                : expected.equals(String.valueOf(value));
    }

    /**
     * Checks that every field which may concern an MoE layer is one that is read, or changes nothing.
     *
     * @throws CheckpointException naming the first that isn't
     */
    static void requireUnderstood(ModelFamily family, JsonFile json) {
        Set<String> known = family.fields();
        List<String> sizes = family.sizeFields();
        for (String field : json.fields().keySet()) {
            if (!json.has(field)
                    || !CONCERNS_EXPERTS.matcher(field).find()
                    || known.contains(field)
                    || sizes.contains(field)
                    || field.equals("model_type")
                    || field.equals("moe_intermediate_size")
                    || field.equals("hidden_act")
                    || WITHOUT_EFFECT.stream()
                            .anyMatch(it -> it.getKey().matcher(field).matches())) {
                continue;
            }
            String value = known.stream()
                    .filter(it -> it.startsWith(field + "="))
                    .map(it -> it.substring(field.length() + 1))
                    .findFirst()
                    .orElse(null);
            if (value == null) {
                throw new CheckpointException(
                        json.file(),
                        "'" + field + "': not known of " + family + " and may change what its experts compute, got "
                                + JsonFile.shown(json.fields().get(field)));
            }
            if (!same(value, json.fields().get(field))) {
                throw json.wrong(field, value + ", since " + family + " computes as if it were");
            }
        }
    }
}
