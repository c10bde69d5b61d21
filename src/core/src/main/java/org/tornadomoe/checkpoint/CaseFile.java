package org.tornadomoe.checkpoint;

import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;

/**
 * A self-contained case: int8 weights, an input, and what vLLM's {@code fused_moe_kernel} made of it at every stage, in
 * one safetensors file. Scales of weights are [E, rows, 1], [E], or [E, ⌈rows / 128⌉, ⌈cols / 128⌉] as the scheme has
 * them; with or without biases, scales of activations known beforehand, and an expert map. Arrays are the record's own,
 * not to be written to. M tokens, K top-k, H hidden, I intermediate; a pair p is token p / K, slot p % K.
 *
 * @param experts the weights, without a router: the case brings its logits; their maxNumTokens is M
 * @param tokens M
 * @param hiddenStates [M, H], every value a bf16
 * @param routerLogits [M, E]
 * @param weightOnInput whether the router weight multiplies GEMM 1's output (vLLM's {@code fused_experts} with {@code
 *     apply_router_weight_on_input}) instead of GEMM 2's; K is 1 then. A layer of this library multiplies the hidden
 *     states before they are quantised, as vLLM's modular kernels do, so that the layer's configuration here says
 *     nothing of it
 * @param topkWeights [M, K] softmax, top-k, renormalised; with {@code weightOnInput} what fits best of that, the
 *     softmax alone and the chosen logit's sigmoid (one renormalised weight is 1)
 * @param topkIds [M, K]
 * @param sortedTokenIds pairs by expert, each expert's padded with M * K to a multiple of {@link #BLOCK_SIZE}
 * @param expertIds the expert of each block
 * @param numTokensPostPadded entries of sortedTokenIds that count
 * @param a1 the quantised hidden states [M, H], null if the scheme does not quantise activations
 * @param gemm1 [M * K, 2I], or [M * K, I] without a gate, every value a bf16, with {@code weightOnInput} the router
 *     weight applied
 * @param act [M * K, I] the activation
 * @param a2 act quantised [M * K, I], null if the scheme does not quantise activations
 * @param gemm2 [M * K, H], every value a bf16, the router weight applied unless {@code weightOnInput}
 * @param output [M, H] the sum of gemm2 over K
 */
public record CaseFile(
        Path file,
        Int8Experts experts,
        int tokens,
        boolean weightOnInput,
        float[] hiddenStates,
        float[] routerLogits,
        float[] topkWeights,
        int[] topkIds,
        int[] sortedTokenIds,
        int[] expertIds,
        int numTokensPostPadded,
        @Nullable Quantized a1,
        float[] gemm1,
        float[] act,
        @Nullable Quantized a2,
        float[] gemm2,
        float[] output)
        implements AutoCloseable {
    /** The block size the files' alignment was made for. */
    public static final int BLOCK_SIZE = 16;

    /** Quantised activations: rows of int8 values with a scale each, or a scale for every group of columns. */
    public record Quantized(byte[] values, float[] scales) {}

    /**
     * Reads a case. Nothing stays open if this throws.
     *
     * @throws CheckpointException if the file is missing or damaged, lacks a tensor, or needs what is not supported;
     *     the message names it
     */
    public static CaseFile read(Path file) {
        try (Safetensors tensors = Safetensors.open(file)) {
            Metadata metadata = new Metadata(file, tensors.metadata());
            Int8Scheme scheme = metadata.scheme();
            MoeActivation activation = metadata.activation();
            if (tensors.find("expert_map") == null) {
                metadata.requireSupported("ep", "None");
            }
            boolean biases = tensors.find("w13_bias") != null || tensors.find("w2_bias") != null;
            int m = metadata.positive("tokens");
            int k = metadata.positive("top_k");
            int h = metadata.positive("hidden");
            int i = metadata.positive("intermediate");
            boolean weightOnInput =
                    k == 1 && metadata.get("apply_router_weight_on_input").equals("True");
            if (!weightOnInput) {
                metadata.requireSupported("apply_router_weight_on_input", "False");
            }
            int e = metadata.positive("E");
            FusedMoeConfig config;
            try {
                config = FusedMoeConfig.builder()
                        .numExperts(e)
                        .expertsPerToken(k)
                        .hiddenDim(h)
                        .intermediateSize(i)
                        .activation(activation)
                        .hasBias(biases)
                        .maxNumTokens(m)
                        .build();
            } catch (IllegalArgumentException wrong) {
                throw new CheckpointException(file, String.valueOf(wrong.getMessage()), wrong);
            }
            float[] routerLogits = floats(tensors, "router_logits", m, e);
            float[] topkWeights = floats(tensors, "topk_weights", m, k);
            int[] topkIds = tensors.tensor("topk_ids").requireShape(m, k).toInts();
            for (int id : topkIds) {
                if (id < 0 || id >= e) {
                    throw new CheckpointException(
                            file, "tensor 'topk_ids': expected expert ids from 0 to " + (e - 1) + ", got " + id);
                }
            }
            if (weightOnInput) {
                config = withRouterOf(config, routerLogits, topkIds, topkWeights);
            }
            long pairs = (long) m * k;
            Quantized a1 = null;
            Quantized a2 = null;
            if (scheme.quantizesActivations()) {
                a1 = quantized(tensors, "a1", scheme, m, h);
                a2 = quantized(tensors, "a2", scheme, pairs, i);
            }
            // Everything else is read before the experts, so that only they need to be freed on a failure.
            float[] hiddenStates = floats(tensors, "hidden_states", m, h);
            int[] sortedTokenIds = tensors.tensor("sorted_token_ids").toInts();
            int[] expertIds = tensors.tensor("expert_ids").toInts();
            int postPadded =
                    tensors.tensor("num_tokens_post_padded").requireShape(1).toInts()[0];
            int most = (int) Math.min(sortedTokenIds.length, (long) expertIds.length * BLOCK_SIZE);
            if (postPadded < 0 || postPadded > most || postPadded % BLOCK_SIZE != 0) {
                throw new CheckpointException(
                        file,
                        "tensor 'num_tokens_post_padded': expected a multiple of " + BLOCK_SIZE + " from 0 to " + most
                                + ", got " + postPadded);
            }
            float[] gemm1 = floats(tensors, "gemm1", m, k, config.gateUpRows());
            float[] act = floats(tensors, "act", pairs, i);
            float[] gemm2 = floats(tensors, "gemm2", m, k, h);
            float[] output = floats(tensors, "output", m, h);
            return new CaseFile(
                    file,
                    experts(file, tensors, config, scheme),
                    m,
                    weightOnInput,
                    hiddenStates,
                    routerLogits,
                    topkWeights,
                    topkIds,
                    sortedTokenIds,
                    expertIds,
                    postPadded,
                    a1,
                    gemm1,
                    act,
                    a2,
                    gemm2,
                    output);
        }
    }

    /** The same with the router whose weights [M] are nearest to those given for each token's one expert. */
    private static FusedMoeConfig withRouterOf(FusedMoeConfig config, float[] logits, int[] ids, float[] weights) {
        int experts = config.numExperts();
        double softmax = 0;
        double sigmoid = 0;
        double one = 0;
        for (int m = 0; m < ids.length; m++) {
            double chosen = logits[m * experts + ids[m]];
            double sum = 0;
            for (int e = 0; e < experts; e++) {
                sum += Math.exp(logits[m * experts + e] - chosen);
            }
            one = Math.max(one, Math.abs(1 - weights[m]));
            softmax = Math.max(softmax, Math.abs(1 / sum - weights[m]));
            sigmoid = Math.max(sigmoid, Math.abs(1 / (1 + Math.exp(-chosen)) - weights[m]));
        }
        RouterConfig router = one <= Math.min(softmax, sigmoid)
                ? config.router()
                : softmax <= sigmoid ? RouterConfig.of(ScoringFunction.SOFTMAX, false) : RouterConfig.topKThenSigmoid();
        return config.toBuilder().router(router).build();
    }

    /** What the layer is. */
    public FusedMoeConfig config() {
        return experts.config();
    }

    /** How it is quantised. */
    public Int8Scheme scheme() {
        return experts.scheme();
    }

    /** Frees the experts. */
    @Override
    public void close() {
        experts.close();
    }

    @Override
    public String toString() {
        return file + " " + scheme() + " " + config();
    }

    private static Int8Experts experts(Path file, Safetensors tensors, FusedMoeConfig config, Int8Scheme scheme) {
        int h = config.hiddenDim();
        int[] expertMap = null;
        int local = config.numExperts();
        if (tensors.find("expert_map") != null) {
            expertMap = tensors.tensor("expert_map").requireShape(local).toInts();
            local = (int) Arrays.stream(expertMap).filter(e -> e != -1).count();
        }
        float[] w13Bias = optional(tensors, "w13_bias", local, config.gateUpRows());
        float[] w2Bias = optional(tensors, "w2_bias", local, h);
        Arena arena = Arena.ofShared();
        try {
            Int8Tensor w13 = int8(tensors, arena, "w13_weight", scheme, config.gateUpRows(), h, local);
            Int8Tensor w2 = int8(tensors, arena, "w2_weight", scheme, h, config.intermediateSize(), local);
            Int8Experts experts = Int8Experts.builder(config, scheme, w13, w2, arena)
                    .expertMap(expertMap)
                    .biases(w13Bias, w2Bias)
                    .activationScales(one(tensors, "a1_static_scale"), one(tensors, "a2_static_scale"))
                    .build();
            tensors.requireUnchanged(); // nothing is read after this
            return experts;
        } catch (IllegalArgumentException e) {
            arena.close();
            throw new CheckpointException(file, String.valueOf(e.getMessage()), e);
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    private static Int8Tensor int8(
            Safetensors tensors, Arena arena, String name, Int8Scheme scheme, int rows, int cols, int experts) {
        byte[] values = tensors.tensor(name)
                .requireDType(DType.I8)
                .requireShape(experts, rows, cols)
                .toBytes();
        Int8Quantization quantization = Int8Quantization.of(scheme);
        Int8Tensor tensor = Int8Tensor.allocate(
                arena,
                experts,
                rows,
                cols,
                quantization.rowsPerScale(rows),
                quantization.colsPerScale(cols),
                quantization.zeroPoints());
        float[] scales = scheme == Int8Scheme.W8A8_TENSOR
                ? floats(tensors, name + "_scale", experts)
                : floats(tensors, name + "_scale", experts, tensor.scaleRows(), tensor.scaleCols());
        System.arraycopy(scales, 0, tensor.scales(), 0, scales.length);
        for (int row = 0; row < experts * rows; row++) {
            tensor.setRow(row / rows, row % rows, values, row * cols);
        }
        return tensor;
    }

    private static Quantized quantized(Safetensors tensors, String name, Int8Scheme scheme, long rows, int cols) {
        byte[] values = tensors.tensor(name + "_q")
                .requireDType(DType.I8)
                .requireShape(rows, cols)
                .toBytes();
        if (scheme == Int8Scheme.W8A8_TENSOR) {
            float[] scales = new float[values.length / cols];
            Arrays.fill(scales, floats(tensors, name + "_scale", 1)[0]);
            return new Quantized(values, scales);
        }
        int groups = scheme == Int8Scheme.W8A8_BLOCK ? Math.ceilDiv(cols, Int8Quantization.DEFAULT_BLOCK) : 1;
        return new Quantized(values, floats(tensors, name + "_scale", rows, groups));
    }

    private static float @Nullable [] optional(Safetensors tensors, String name, long... shape) {
        return tensors.find(name) == null ? null : floats(tensors, name, shape);
    }

    private static @Nullable Float one(Safetensors tensors, String name) {
        return tensors.find(name) == null ? null : (Float) floats(tensors, name, 1)[0];
    }

    private static float[] floats(Safetensors tensors, String name, long... shape) {
        return tensors.tensor(name)
                .requireDType(DType.F32, DType.BF16)
                .requireShape(shape)
                .toFloats();
    }

    /** The file's metadata, all strings. */
    private record Metadata(Path file, Map<String, String> values) {
        String get(String key) {
            String value = values.get(key);
            if (value == null) {
                throw new CheckpointException(
                        file, "metadata: has no '" + key + "': not a case file (it has " + values.keySet() + ")");
            }
            return value;
        }

        Int8Scheme scheme() {
            try {
                return Int8Scheme.fromString(get("scheme"));
            } catch (IllegalArgumentException e) {
                throw new CheckpointException(file, "not supported yet: " + e.getMessage(), e);
            }
        }

        MoeActivation activation() {
            try {
                return MoeActivation.fromString(get("activation"));
            } catch (IllegalArgumentException e) {
                throw new CheckpointException(file, String.valueOf(e.getMessage()), e);
            }
        }

        void requireSupported(String key, String supported) {
            if (!get(key).equals(supported)) {
                throw new CheckpointException(
                        file, "not supported yet: " + key + ": expected " + supported + ", got " + get(key));
            }
        }

        int positive(String key) {
            try {
                int value = Integer.parseInt(get(key));
                if (value > 0) {
                    return value;
                }
            } catch (NumberFormatException e) {
                // said below
            }
            throw new CheckpointException(
                    file, "metadata: '" + key + "': expected a positive number, got '" + get(key) + "'");
        }
    }
}
