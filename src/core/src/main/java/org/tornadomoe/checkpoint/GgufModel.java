package org.tornadomoe.checkpoint;

import static org.tornadomoe.checkpoint.GgufArchitecture.SIGMOID;
import static org.tornadomoe.checkpoint.GgufArchitecture.SIGMOID_DEEPSEEK;
import static org.tornadomoe.checkpoint.GgufArchitecture.SOFTMAX;
import static org.tornadomoe.checkpoint.GgufArchitecture.SOFTMAX_WEIGHT;

import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.FamilyTraits;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.JsonFile;

/**
 * The MoE layers of a GGUF file: its metadata as the config.json that the same model has elsewhere, and its tensors by
 * llama.cpp's names ({@code blk.N.ffn_gate_exps.weight}, ...). What metadata or a layer's tensors hold beyond that, and
 * would change the layer's numbers, is refused by its name.
 */
record GgufModel(Gguf gguf) {
    /** Keys of the architecture about experts that {@link #config} reads, or that the tensors tell, too. */
    private static final Set<String> READ_KEYS = Set.of(
            "expert_count",
            "expert_used_count",
            "expert_weights_norm",
            "expert_weights_scale",
            "expert_gating_func",
            "expert_group_count",
            "expert_group_used_count",
            "expert_shared_count",
            "expert_feed_forward_length",
            "expert_shared_feed_forward_length",
            "hidden_activation",
            "interleave_moe_layer_step", // which layers have experts
            "moe_every_n_layers"); // likewise

    /** Of Grok: llama.cpp reads it and doesn't apply it, since the norm after the block takes most of it away. */
    private static final String UNAPPLIED = "grok.router_logit_softcapping";

    /** A value a layer, or one for all; 0 is none. */
    private static final String LIMITS = ".swiglu_clamp_exp";

    private static final String SHARED_LIMITS = ".swiglu_clamp_shexp";

    /** A limit that cuts off nothing. */
    private static final double UNLIMITED = Float.MAX_VALUE;

    private static final List<String> LIMITED =
            List.of("step35", "deepseek4", "deepseek41", "bailingmoe3", "gigachat35", "glm5next", "hy_v4");

    /** Of GroveMoE: the experts beside others, which have one value that is known each. */
    private static final Map<String, Double> ADJUGATES = Map.of(
            "grovemoe.expert_chunk_feed_forward_length", (double) LayerShape.ADJUGATE_WIDTH,
            "grovemoe.experts_per_group", (double) LayerShape.EXPERTS_AN_ADJUGATE,
            "grovemoe.expert_group_scale", (double) LayerShape.ADJUGATE_SCALE);

    /** Of experts in a narrower space: its width, which Nemotron's tensors tell, and the numbers of the activation. */
    private static final String LATENT = "kimi-k3.expert_latent_length";

    private static final String SITU = "kimi-k3.activation.situ_beta";
    private static final String SITU_LINEAR = "kimi-k3.activation.situ_linear_beta";
    private static final String NEMOTRON_LATENT = "nemotron_h_moe.moe_latent_size";

    /** Keys of one architecture that others are refused with. */
    private static final Set<String> READ_OF_ONE = Stream.concat(
                    Stream.of(UNAPPLIED, LATENT, SITU, SITU_LINEAR, NEMOTRON_LATENT),
                    LIMITED.stream().flatMap(name -> Stream.of(name + LIMITS, name + SHARED_LIMITS)))
            .collect(Collectors.toUnmodifiableSet());

    /** What a key's name has in it if it is about experts. */
    private static final List<String> OF_EXPERTS = List.of("expert", "moe", "router", "gating", "swiglu", "activation");

    /**
     * The metadata under the names that config.json has for them; what it doesn't say is what llama.cpp takes for it.
     *
     * @throws CheckpointException if a key is missing or of the wrong kind, one about experts is not understood, or the
     *     architecture has no MoE layers or is not known
     */
    JsonFile config() {
        String name = text("general.architecture");
        GgufArchitecture architecture = GgufArchitecture.of(gguf.path(), name);
        String a = name + ".";
        requireUnderstood(a);
        String type = modelType(a, architecture);
        Map<String, @Nullable Object> fields = new LinkedHashMap<>();
        fields.put("model_type", type);
        int layers = number(a + "block_count");
        if (layers > gguf.names().size()) {
            throw new CheckpointException(
                    gguf.path(),
                    a + "block_count: expected no more layers than tensors, "
                            + gguf.names().size() + ", got " + layers);
        }
        fields.put("num_hidden_layers", layers);
        fields.put("hidden_size", number(a + "embedding_length"));
        int experts = number(a + "expert_count");
        for (String field : FamilyTraits.EXPERTS) {
            fields.put(field, experts);
        }
        fields.put("num_experts_per_tok", number(a + "expert_used_count"));
        int firstLayer = firstLayer();
        int intermediate = rows(firstLayer, "ffn_gate_exps", "ffn_gate.0", "ffn_up_exps", "ffn_gate_up_exps");
        requireSame(a + "expert_feed_forward_length", intermediate, "layer " + firstLayer + "'s experts");
        fields.put("intermediate_size", intermediate);
        fields.put("moe_intermediate_size", intermediate);
        int shared = sharedWidth(a, architecture, firstLayer, intermediate);
        fields.put("shared_expert_intermediate_size", shared);
        for (String field : List.of("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")) {
            fields.put(field, Math.ceilDiv(shared, intermediate));
        }
        fields.put("norm_topk_prob", renormalize(a, architecture));
        fields.put("routed_scaling_factor", factor(a, architecture));
        int groups = numberOr0(a + "expert_group_count");
        if (groups > 1) {
            require(architecture.scales(), a + "expert_group_count", "at most 1", groups);
            fields.put("n_group", groups);
            fields.put("topk_group", number(a + "expert_group_used_count"));
        } else {
            // None here, whatever a config.json without them means.
            fields.put("n_group", 1);
            fields.put("topk_group", 1);
        }
        if (type.equals("deepseek_v2")) {
            fields.put("topk_method", groups > 1 ? "group_limited_greedy" : "greedy");
        }
        switch (type) {
            case "gpt_oss" -> fields.put("swiglu_limit", 7.0);
            case "step3p5" -> {
                requireDivided(a);
                fields.put("moe_router_scaling_factor", factor(a, architecture));
                fields.put("share_expert_dim", shared);
                fields.put("swiglu_limits", gguf.skipped(name + LIMITS));
                fields.put("swiglu_limits_shared", gguf.skipped(name + SHARED_LIMITS));
            }
            case "minimax_m3_vl_text" -> {
                requireDivided(a);
                fields.put("shared_intermediate_size", shared);
            }
            case "bailing_moe_v2" -> {
                fields.put("expert_swiglu_limit_list", gguf.skipped(name + LIMITS));
                fields.put("share_expert_swiglu_limit_list", gguf.skipped(name + SHARED_LIMITS));
            }
            case "deepseek_v4" -> {
                fields.put("num_hash_layers", number(a + "hash_layer_count"));
                fields.put("swiglu_limit", limits(name, layers, true));
            }
            case "deepseek_v41_text", "glm5_next_text", "gigachat3_5" -> {
                fields.put("swiglu_limit", limits(name, layers, true));
                fields.put(
                        "use_shared_expert_sigmoid",
                        gguf.find("blk." + firstLayer + ".ffn_gate_inp_shexp.weight") != null);
            }
            case "hy_v4" -> fields.put("swiglu_limit", limits(name, layers, false));
            case "smallthinker" -> {
                fields.put("moe_ffn_hidden_size", intermediate);
                fields.put("moe_primary_router_apply_softmax", number(a + "expert_gating_func") != SIGMOID);
            }
            case "grove_moe" -> ADJUGATES.forEach(this::requireNumber);
            case "nomic_bert" -> {
                fields.put("n_layer", layers);
                fields.put("n_embd", fields.get("hidden_size"));
                fields.put("n_inner", intermediate);
            }
            case "kimi_linear" -> {
                fields.put("moe_renormalize", renormalize(a, architecture));
                int width = numberOr0(LATENT);
                String norm = "blk." + firstLayer + "." + GgufLayer.latentName(gguf, firstLayer) + "norm.weight";
                fields.put("routed_expert_hidden_size", width == 0 ? null : width);
                fields.put("latent_moe_use_norm", gguf.find(norm) != null);
                fields.put("rms_norm_eps", gguf.metadata().get(a + "attention.layer_norm_rms_epsilon"));
                fields.put("hidden_act", "situ");
                fields.put("activation_situ_beta", gguf.metadata().get(SITU));
                Object linear = gguf.metadata().get(SITU_LINEAR);
                boolean isOff = linear instanceof Double real && real <= 0;
                fields.put("activation_situ_linear_beta", isOff ? null : linear);
                fields.put("first_k_dense_replace", 0);
            }
            case "laguna" -> fields.put("moe_routed_scaling_factor", factor(a, architecture));
            case "gemma4_text" -> fields.put("enable_moe_block", true);
            case "cohere2_moe" -> fields.put("expert_selection_fn", "sigmoid");
            case "nemotron_h" -> {
                fields.put("layers_block_type", Collections.nCopies(layers, "moe"));
                fields.put("moe_shared_expert_intermediate_size", shared);
            }
            case "grok-2" -> {
                fields.put("residual_moe", shared > 0);
                fields.put("router_logit_softcapping", 0.0);
                fields.put("intermediate_size", shared);
            }
            default -> {}
        }
        return new JsonFile(gguf.path(), fields);
    }

    /** llama.cpp divides only if it is said, these families always. */
    private void requireDivided(String a) {
        String norm = a + "expert_weights_norm";
        require(gguf.metadata().containsKey(norm), norm, "true", "none");
    }

    /**
     * What gate and up are cut off at, a value a layer.
     *
     * @param ofShared whether shared experts are cut off at the same; at nothing if not
     */
    private List<Double> limits(String name, int layers, boolean ofShared) {
        List<Double> routed = limits(name + LIMITS, layers);
        List<Double> shared = limits(name + SHARED_LIMITS, layers);
        boolean none = shared.stream().allMatch(limit -> limit == UNLIMITED);
        boolean absent = !gguf.metadata().containsKey(name + SHARED_LIMITS);
        require(
                ofShared ? absent || shared.equals(routed) : none,
                name + SHARED_LIMITS,
                ofShared ? "none, or what " + name + LIMITS + " has" : "none",
                shown(name + SHARED_LIMITS));
        return routed;
    }

    private List<Double> limits(String key, int layers) {
        Object value = value(key);
        List<?> each = value instanceof List<?> list ? list : Collections.nCopies(layers, value);
        return each.stream()
                .map(limit -> limit instanceof Number number && number.doubleValue() > 1e-6
                        ? number.doubleValue()
                        : UNLIMITED)
                .toList();
    }

    private @Nullable Object value(String key) {
        Object value = gguf.metadata().get(key);
        return value instanceof Gguf.Skipped ? gguf.skipped(key) : value;
    }

    private String shown(String key) {
        return String.valueOf(value(key));
    }

    private void require(boolean holds, String key, String expected, Object got) {
        if (!holds) {
            throw new CheckpointException(gguf.path(), key + ": expected " + expected + ", got " + got);
        }
    }

    private static boolean isOff(@Nullable Object value) {
        return value == null || value.equals(0L) || value.equals(0.0) || value.equals(false);
    }

    /** Nothing about experts may be there that is not read, unless it is off. */
    private void requireUnderstood(String a) {
        gguf.metadata().forEach((key, value) -> {
            String name = key.startsWith(a) ? key.substring(a.length()) : "";
            boolean off = isOff(value)
                    || (value instanceof Gguf.Skipped
                            && gguf.skipped(key) instanceof List<?> list
                            && list.stream().allMatch(GgufModel::isOff));
            if (OF_EXPERTS.stream().anyMatch(name::contains)
                    && !READ_KEYS.contains(name)
                    && !READ_OF_ONE.contains(key)
                    && !ADJUGATES.containsKey(key)
                    && !off) {
                throw new CheckpointException(
                        gguf.path(), key + ": is about experts and not understood: expected none, got " + value);
            }
        });
        Object activation = gguf.metadata().get(a + "hidden_activation");
        require(
                activation == null || activation.equals("silu") || activation.equals("swiglu"),
                a + "hidden_activation",
                "silu",
                String.valueOf(activation));
    }

    /** The family: DeepSeek's and that of GLM-4.7-Flash share an architecture, and their scores tell them apart. */
    private String modelType(String a, GgufArchitecture architecture) {
        String key = a + "expert_gating_func";
        int gating = numberOr0(key);
        if (!architecture.modelType().equals("deepseek_v2")) {
            // Divided by the sum of the chosen, a softmax over all is one over the chosen.
            boolean overChosen = architecture.renormalize()
                    && !architecture.choosesRenormalize()
                    && architecture.gating() != SIGMOID;
            boolean eitherOne = architecture.modelType().equals("smallthinker") && gating == SIGMOID;
            boolean same = gating == 0
                    || eitherOne
                    || gating == architecture.gating()
                    || (overChosen && (gating == SOFTMAX || gating == SOFTMAX_WEIGHT));
            require(same, key, "" + architecture.gating(), gating);
            return architecture.modelType();
        }
        if (gating == 0) {
            gating = isGlm47Flash(a) ? SIGMOID : SOFTMAX;
        }
        require(gating == SOFTMAX || gating == SIGMOID, key, SOFTMAX + " or " + SIGMOID, gating);
        boolean corrected =
                gguf.names().stream().anyMatch(tensor -> tensor.matches("blk\\.\\d{1,6}\\.exp_probs_b(\\.bias)?"));
        if (gating == SOFTMAX && corrected) {
            throw new CheckpointException(
                    gguf.path(),
                    key + ": expected " + SIGMOID + " (sigmoid), since there are tensors blk.*.exp_probs_b, got "
                            + (gguf.metadata().containsKey(key) ? "" + SOFTMAX : "none, which means " + SOFTMAX)
                            + " (softmax)");
        }
        if (gating == SIGMOID) {
            return SIGMOID_DEEPSEEK;
        }
        // Of softmax scores llama.cpp divides the weights and then scales them, as Mistral's code does (Large 3).
        boolean divides = renormalize(a, architecture) && numberOr0(a + "expert_group_count") <= 1;
        return divides ? "mistral4" : architecture.modelType();
    }

    /** Its first files have no expert_gating_func; llama.cpp knows them by their sizes. */
    private boolean isGlm47Flash(String a) {
        int layers = number(a + "block_count");
        Object vocabulary = gguf.metadata().get(a + "vocab_size");
        if (vocabulary == null && gguf.metadata().get("tokenizer.ggml.tokens") instanceof Gguf.Skipped tokens) {
            vocabulary = tokens.length();
        }
        return (layers == 47 || layers == 48) && Long.valueOf(154_880).equals(vocabulary);
    }

    /** A key that is there has to have that value. */
    private void requireNumber(String key, double expected) {
        Object value = gguf.metadata().get(key);
        boolean same = value == null
                || (value instanceof Long whole && whole == expected)
                || (value instanceof Double real && real.floatValue() == (float) expected);
        require(same, key, String.valueOf(expected), String.valueOf(value));
    }

    private boolean renormalize(String a, GgufArchitecture architecture) {
        String key = a + "expert_weights_norm";
        Object value = gguf.metadata().get(key);
        if (value == null) {
            return architecture.renormalize();
        }
        if (!(value instanceof Boolean renormalize)) {
            throw new CheckpointException(gguf.path(), key + ": expected true or false, got " + value);
        }
        require(
                architecture.choosesRenormalize() || renormalize == architecture.renormalize(),
                key,
                "" + architecture.renormalize(),
                renormalize);
        return renormalize;
    }

    private double factor(String a, GgufArchitecture architecture) {
        String key = a + "expert_weights_scale";
        Object value = gguf.metadata().get(key);
        double factor = switch (value) {
            case null -> 0;
            case Double real -> real;
            case Long integer -> integer;
            default -> throw new CheckpointException(gguf.path(), key + ": expected a number, got " + value);
        };
        require(Double.isFinite(factor), key, "a finite number", factor);
        require(architecture.scales() || factor == 0 || factor == 1, key, "1", factor);
        return factor == 0 ? 1 : factor;
    }

    /** The width of the shared expert, 0 if there is none. */
    private int sharedWidth(String a, GgufArchitecture architecture, int layer, int intermediate) {
        String name = "blk." + layer
                + switch (architecture.modelType()) {
                    case "grok-2" -> ".ffn_gate.weight";
                    case "nemotron_h" -> ".ffn_up_shexp.weight";
                    default -> ".ffn_gate_shexp.weight";
                };
        Gguf.Entry found = gguf.find(name);
        int number = numberOr0(a + "expert_shared_count");
        if (found == null) {
            require(number == 0, a + "expert_shared_count", "0, since there is no " + name, number);
            return 0;
        }
        if (found.shape().length != 2) {
            throw found.problem("expected two dimensions, got " + Arrays.toString(found.shape()));
        }
        int width = size(found, 0);
        if (number > 0
                && architecture.scales()
                && !architecture.modelType().equals("nemotron_h")
                && width != (long) number * intermediate) {
            throw found.problem("expected " + number + " * " + intermediate + " rows, as " + a
                    + "expert_shared_count and the routed experts have it, got " + width);
        }
        requireSame(a + "expert_shared_feed_forward_length", width, name);
        return width;
    }

    /** Checks a number that a tensor's size tells, too; some files have a list of one for each layer. */
    private void requireSame(String key, int size, String of) {
        if (!(gguf.metadata().get(key) instanceof Gguf.Skipped)) {
            int number = numberOr0(key);
            require(number == 0 || number == size, key, size + ", as " + of + " have it", number);
        }
    }

    private static int size(Gguf.Entry tensor, int dimension) {
        long size = tensor.shape()[dimension];
        if (size > Integer.MAX_VALUE) {
            throw tensor.problem(
                    "expected sizes of at most " + Integer.MAX_VALUE + ", got " + Arrays.toString(tensor.shape()));
        }
        return (int) size;
    }

    private int firstLayer() {
        return gguf.names().stream()
                .filter(name -> name.matches("blk\\.\\d{1,6}\\.ffn_gate_inp\\.weight"))
                .mapToInt(name -> Integer.parseInt(name.split("\\.", 3)[1]))
                .min()
                .orElseThrow(() -> new CheckpointException(
                        gguf.path(),
                        "holds no MoE layer: looked for blk.*.ffn_gate_inp.weight; found "
                                + gguf.names().stream().limit(8).toList()));
    }

    private int rows(int layer, String... names) {
        for (String name : names) {
            Gguf.Entry found = gguf.find("blk." + layer + "." + name + ".weight");
            if (found != null && found.shape().length >= 2) {
                int rows = size(found, found.shape().length - 2);
                if (!name.equals("ffn_gate_up_exps")) {
                    return rows;
                }
                if (rows % 2 != 0) {
                    throw found.problem("expected as many rows of gate as of up, got " + rows + " in all");
                }
                return rows / 2;
            }
        }
        throw new CheckpointException(
                gguf.path(),
                "layer " + layer + ": the experts are missing: looked for " + Arrays.toString(names)
                        + ".weight under blk." + layer + "; found " + of(layer));
    }

    private String text(String key) {
        Object value = gguf.metadata().get(key);
        if (value instanceof String text) {
            return text;
        }
        throw new CheckpointException(
                gguf.path(), value == null ? "has no '" + key + "'" : key + ": expected a string, got " + value);
    }

    private int number(String key) {
        Object value = gguf.metadata().get(key);
        if (value instanceof Long number && number == number.intValue()) {
            return number.intValue();
        }
        throw new CheckpointException(
                gguf.path(), value == null ? "has no '" + key + "'" : key + ": expected an integer, got " + value);
    }

    private int numberOr0(String key) {
        return gguf.metadata().containsKey(key) ? number(key) : 0;
    }

    private List<String> of(int layer) {
        return gguf.names().stream()
                .filter(name -> name.startsWith("blk." + layer + "."))
                .toList();
    }

    /** Whether a layer has experts. */
    boolean isMoe(int layer) {
        return gguf.find("blk." + layer + ".ffn_gate_inp.weight") != null;
    }

    /**
     * The tensors of an MoE layer.
     *
     * @throws CheckpointException if one is missing, or not what it should be
     */
    LayerTensors layer(int layer, LayerShape shape) {
        return new GgufLayer(gguf, layer, shape).find();
    }
}
