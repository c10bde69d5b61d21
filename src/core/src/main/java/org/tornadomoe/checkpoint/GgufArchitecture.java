package org.tornadomoe.checkpoint;

import java.nio.file.Path;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;

/**
 * An architecture of llama.cpp that has experts: the family that it is of, and what its metadata may say of the router.
 *
 * @param modelType that of the checkpoints that are converted to it
 * @param gating what scores experts: the metadata may say so, and nothing else
 * @param renormalize whether weights are divided by their sum if the metadata doesn't say
 * @param choosesRenormalize whether the metadata may say otherwise
 * @param scales whether weights are scaled and experts chosen by groups if the metadata says so
 */
record GgufArchitecture(String modelType, int gating, boolean renormalize, boolean choosesRenormalize, boolean scales) {
    static final int SOFTMAX = 1; // llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX
    static final int SIGMOID = 2; // ..._SIGMOID
    static final int SOFTMAX_WEIGHT = 3; // ..._SOFTMAX_WEIGHT: over the chosen alone
    static final int SQRTSOFTPLUS = 4; // ..._SQRT_SOFTPLUS

    /** DeepSeek-V3 in all but the numbers: deepseek2 with sigmoid scores, and a correction bias. */
    static final String SIGMOID_DEEPSEEK = "deepseek_v3";

    private static final Map<String, GgufArchitecture> ARCHITECTURES = Map.ofEntries(
            Map.entry("llama", new GgufArchitecture("mixtral", SOFTMAX, true, false, false)),
            Map.entry("qwen2moe", new GgufArchitecture("qwen2_moe", SOFTMAX, false, true, false)),
            Map.entry("qwen3moe", new GgufArchitecture("qwen3_moe", SOFTMAX, true, true, false)),
            Map.entry("qwen3vlmoe", new GgufArchitecture("qwen3_moe", SOFTMAX, true, true, false)),
            Map.entry("olmoe", new GgufArchitecture("olmoe", SOFTMAX, false, true, false)),
            Map.entry("deepseek2", new GgufArchitecture("deepseek_v2", SOFTMAX, false, true, true)),
            Map.entry("glm4moe", new GgufArchitecture("glm4_moe", SIGMOID, false, true, true)),
            Map.entry("gpt-oss", new GgufArchitecture("gpt_oss", SOFTMAX_WEIGHT, true, false, false)),
            Map.entry("llama4", new GgufArchitecture("llama4", SIGMOID, false, false, false)),
            Map.entry("granitemoe", new GgufArchitecture("granitemoe", SOFTMAX, true, false, false)),
            Map.entry("phimoe", new GgufArchitecture("phimoe", SOFTMAX, true, false, false)),
            Map.entry("jamba", new GgufArchitecture("jamba", SOFTMAX, false, false, false)),
            Map.entry("qwen3next", new GgufArchitecture("qwen3_next", SOFTMAX, true, false, false)),
            Map.entry("qwen35moe", new GgufArchitecture("qwen3_5_moe_text", SOFTMAX, true, false, false)),
            Map.entry("ernie4_5-moe", new GgufArchitecture("ernie4_5_moe", SOFTMAX, true, false, false)),
            Map.entry("hunyuan-moe", new GgufArchitecture("hunyuan_v1_moe", SOFTMAX, true, false, false)),
            Map.entry("bailingmoe", new GgufArchitecture("bailing_moe", SOFTMAX, false, true, false)),
            Map.entry("bailingmoe2", new GgufArchitecture("bailing_moe_v2", SIGMOID, false, true, true)),
            Map.entry("dots1", new GgufArchitecture("dots1", SIGMOID, false, true, true)),
            Map.entry("exaone-moe", new GgufArchitecture("exaone_moe", SIGMOID, false, true, true)),
            Map.entry("minimax-m2", new GgufArchitecture("minimax_m2", SIGMOID, true, false, false)),
            Map.entry("lfm2moe", new GgufArchitecture("lfm2_moe", SIGMOID, true, false, false)),
            Map.entry("mellum", new GgufArchitecture("mellum", SOFTMAX, true, false, false)),
            Map.entry("arctic", new GgufArchitecture("arctic", SOFTMAX, true, false, false)));

    /** Architectures whose experts compute as another family's do, by whose name they are read and not written. */
    private static final Map<String, GgufArchitecture> LIKE_OTHERS = Map.ofEntries(
            Map.entry("dbrx", new GgufArchitecture("mixtral", SOFTMAX, true, false, false)),
            Map.entry("minicpm", new GgufArchitecture("minicpm", SOFTMAX, true, false, false)),
            Map.entry("mistral3", new GgufArchitecture("mixtral", SOFTMAX, true, false, false)),
            Map.entry("rnd1", new GgufArchitecture("qwen3_moe", SOFTMAX, true, false, false)),
            Map.entry("llada-moe", new GgufArchitecture("olmoe", SOFTMAX, false, false, false)),
            Map.entry("deepseek", new GgufArchitecture("bailing_moe", SOFTMAX, false, false, false)),
            Map.entry("granitehybrid", new GgufArchitecture("granitemoe", SOFTMAX, true, false, false)),
            Map.entry("glm-dsa", new GgufArchitecture("glm4_moe", SIGMOID, false, true, true)),
            Map.entry("axk2", new GgufArchitecture("axk2", SIGMOID, false, true, true)),
            Map.entry("afmoe", new GgufArchitecture("glm4_moe", SIGMOID, false, true, true)),
            Map.entry("deepseek32", new GgufArchitecture("deepseek_v3", SIGMOID, false, true, true)),
            Map.entry("deepseek2-ocr", new GgufArchitecture("deepseek_v2", SOFTMAX, false, true, true)),
            Map.entry("mistral4", new GgufArchitecture("mistral4", SOFTMAX, false, true, true)),
            Map.entry("deepseek4", new GgufArchitecture("deepseek_v4", SQRTSOFTPLUS, false, true, true)),
            Map.entry("grovemoe", new GgufArchitecture("grove_moe", SOFTMAX, true, false, false)),
            Map.entry("smallthinker", new GgufArchitecture("smallthinker", SOFTMAX, true, false, false)),
            Map.entry("nomic-bert-moe", new GgufArchitecture("nomic_bert", SOFTMAX, false, false, false)),
            Map.entry("step35", new GgufArchitecture("step3p5", SIGMOID, true, false, true)),
            Map.entry("hy_v3", new GgufArchitecture("glm4_moe", SIGMOID, false, true, true)),
            Map.entry("laguna", new GgufArchitecture("laguna", SIGMOID, true, false, true)),
            Map.entry("kimi-k3", new GgufArchitecture("kimi_linear", SIGMOID, false, true, true)),
            Map.entry("kimi-linear", new GgufArchitecture("glm4_moe", SIGMOID, true, false, true)),
            Map.entry("cohere2moe", new GgufArchitecture("cohere2_moe", SIGMOID, false, true, false)),
            Map.entry("nemotron_h_moe", new GgufArchitecture("nemotron_h", SIGMOID, false, true, true)),
            Map.entry("gemma4", new GgufArchitecture("gemma4_text", SOFTMAX, true, false, false)),
            Map.entry("grok", new GgufArchitecture("grok-2", SOFTMAX, true, false, false)),
            Map.entry("deepseek41", new GgufArchitecture("deepseek_v41_text", SQRTSOFTPLUS, false, true, true)),
            Map.entry("dots3note", new GgufArchitecture("dots3_note", SIGMOID, false, true, true)),
            Map.entry("gigachat35", new GgufArchitecture("gigachat3_5", SIGMOID, false, true, true)),
            Map.entry("glm5next", new GgufArchitecture("glm5_next_text", SIGMOID, false, true, true)),
            Map.entry("hy_v4", new GgufArchitecture("hy_v4", SIGMOID, false, true, true)),
            Map.entry("minimax-01", new GgufArchitecture("minimax", SOFTMAX, true, false, false)),
            Map.entry("minimax-m3", new GgufArchitecture("minimax_m3_vl_text", SIGMOID, true, false, true)),
            Map.entry("qwen4exp", new GgufArchitecture("qwen4_exp_text", SOFTMAX, true, false, false)),
            Map.entry("bailingmoe3", new GgufArchitecture("bailing_moe_v2", SIGMOID, false, true, true)),
            Map.entry("mimo2", new GgufArchitecture("minimax_m2", SIGMOID, true, false, false)));

    /**
     * The architecture of that name.
     *
     * @throws CheckpointException if it is not known
     */
    static GgufArchitecture of(Path file, String name) {
        GgufArchitecture architecture = ARCHITECTURES.getOrDefault(name, LIKE_OTHERS.get(name));
        if (architecture == null) {
            throw new CheckpointException(
                    file,
                    "general.architecture: expected one of "
                            + Stream.of(ARCHITECTURES, LIKE_OTHERS)
                                    .flatMap(map -> map.keySet().stream())
                                    .sorted()
                                    .toList()
                            + ", got '" + name + "'");
        }
        return architecture;
    }

    /**
     * Metadata that reads as a configuration: what {@link GgufModel#config} makes a model's MoE layers of, and nothing
     * else.
     *
     * @param modelTypes of the family
     * @param layers of the model
     * @param sharedWidth of the shared expert, 0 if there is none
     * @throws CheckpointException if llama.cpp has no name for the family that is known
     */
    static Map<String, Object> metadata(
            Path file, List<String> modelTypes, FusedMoeConfig config, int layers, int sharedWidth) {
        boolean sigmoid = modelTypes.contains(SIGMOID_DEEPSEEK);
        List<String> types = sigmoid ? List.of("deepseek_v2") : modelTypes;
        String name = ARCHITECTURES.keySet().stream()
                .filter(key -> types.contains(architecture(key).modelType))
                .min(Comparator.naturalOrder())
                .orElseThrow(() -> new CheckpointException(
                        file,
                        "is of the family " + modelTypes.getFirst() + ", for which GGUF has no name that is known"));
        GgufArchitecture architecture = architecture(name);
        RouterConfig router = config.router();
        Map<String, Object> metadata = new LinkedHashMap<>();
        metadata.put("general.architecture", name);
        metadata.put(name + ".block_count", layers);
        metadata.put(name + ".embedding_length", config.hiddenDim());
        metadata.put(name + ".expert_count", config.numExperts());
        metadata.put(name + ".expert_used_count", config.expertsPerToken());
        metadata.put(name + ".expert_feed_forward_length", config.intermediateSize());
        metadata.put(name + ".expert_gating_func", sigmoid ? SIGMOID : architecture.gating);
        if (sharedWidth > 0) {
            metadata.put(name + ".expert_shared_feed_forward_length", sharedWidth);
        }
        if (architecture.choosesRenormalize) {
            metadata.put(name + ".expert_weights_norm", router.renormalize());
        }
        if (architecture.scales) {
            metadata.put(name + ".expert_weights_scale", (float) router.routedScalingFactor());
        }
        if (router.numExpertGroup() > 1) {
            metadata.put(name + ".expert_group_count", router.numExpertGroup());
            metadata.put(name + ".expert_group_used_count", router.topkGroup());
        }
        return metadata;
    }

    private static GgufArchitecture architecture(String name) {
        return Objects.requireNonNull(ARCHITECTURES.get(name));
    }
}
