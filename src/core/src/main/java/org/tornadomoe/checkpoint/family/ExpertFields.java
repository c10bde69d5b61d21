package org.tornadomoe.checkpoint.family;

import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;

/** The fields of a config.json that may concern an MoE layer. */
public final class ExpertFields {
    /** Names of fields that may say how an MoE layer computes. */
    private static final Pattern CONCERNS_EXPERTS =
            Pattern.compile("expert|moe|rout(er|ed|ing)|top_?k|swiglu|scor(e|ing)|scaling_factor"
                    + "|(^|_)(act|activation|glu|gate|gating|n_groups?|num_groups?)(_|$)");

    /** Fields of that kind which change no number of an MoE layer, and why. */
    private static final List<Map.Entry<Pattern, String>> WITHOUT_EFFECT = List.of(
            Map.entry(Pattern.compile("(router|moe)_.*(loss|noise|jitter).*|.*_dropout"), "training"),
            Map.entry(Pattern.compile("output_(router_logits|scores)"), "what the model returns beside its output"),
            Map.entry(
                    Pattern.compile("_?experts_implementation.*|(moe|router)_dtype|need_fp32_gate"),
                    "how it is computed, not what"),
            Map.entry(Pattern.compile("expert_dtype"), "how experts are stored, which their tensors tell"),
            Map.entry(Pattern.compile("top_k"), "sampling, of releases that kept it here"),
            Map.entry(
                    Pattern.compile("(index|indexer|linear|mamba|mtp|rope|vision|audio|(use_)?gqa|kda)_.*"
                            + "|(.*_)?(attn|attention)(_.*)?"),
                    "another block"));

    /** Values with which a field says that there is nothing of what it is about, in whatever family. */
    private static final Set<String> NOTHING = Set.of(
            "routed_scaling_factor=1",
            "n_group=0",
            "n_group=1",
            "topk_group=0",
            "topk_group=1",
            "n_shared_experts=0",
            "num_shared_experts=0",
            "shared_expert_intermediate_size=0",
            "first_k_dense_replace=0",
            "moe_layer_freq=1",
            "decoder_sparse_step=1",
            "apply_router_weight_on_input=false");

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
    public static void requireUnderstood(ModelFamily family, JsonFile json) {
        Set<String> known = family.fields();
        List<String> sizes = family.sizeFields();
        for (String field : json.fields().keySet()) {
            if (!json.has(field) || known.contains(field)) {
                continue;
            }
            Object value = json.fields().get(field);
            String expected = valuesOf(field, known).findFirst().orElse(null);
            if (expected != null && !same(expected, value)) {
                throw json.wrong(field, expected + ", since " + family + " computes as if it were");
            }
            if (expected == null
                    && CONCERNS_EXPERTS.matcher(field).find()
                    && !sizes.contains(field)
                    && !field.equals("model_type")
                    && !field.equals("moe_intermediate_size")
                    && !field.equals("hidden_act")
                    && WITHOUT_EFFECT.stream()
                            .noneMatch(it -> it.getKey().matcher(field).matches())
                    && valuesOf(field, NOTHING).noneMatch(it -> same(it, value))) {
                throw new CheckpointException(
                        json.file(),
                        "'" + field + "': not known of " + family + " and may change what its experts compute, got "
                                + JsonFile.shown(value));
            }
        }
    }

    /** What follows FIELD= among such sentences. */
    private static Stream<String> valuesOf(String field, Set<String> sentences) {
        return sentences.stream().filter(it -> it.startsWith(field + "=")).map(it -> it.substring(field.length() + 1));
    }
}
