package org.tornadomoe.checkpoint;

import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * The MoE layers of a GGUF file: its metadata as the config.json that the same model has elsewhere, and its tensors by
 * llama.cpp's names ({@code blk.N.ffn_gate_exps.weight}, ...).
 */
record GgufModel(Gguf gguf) {
    /** llama.cpp's architectures and the model types whose layers they hold. */
    private static final Map<String, String> MODEL_TYPES = Map.ofEntries(
            Map.entry("llama", "mixtral"),
            Map.entry("qwen2moe", "qwen2_moe"),
            Map.entry("qwen3moe", "qwen3_moe"),
            Map.entry("qwen3vlmoe", "qwen3_moe"),
            Map.entry("olmoe", "olmoe"),
            Map.entry("deepseek2", "deepseek_v2"),
            Map.entry("glm4moe", "glm4_moe"),
            Map.entry("gpt-oss", "gpt_oss"),
            Map.entry("llama4", "llama4"),
            Map.entry("granitemoe", "granitemoe"),
            Map.entry("phimoe", "phimoe"),
            Map.entry("jamba", "jamba"));

    private static final ValueLayout.OfShort HALF = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final int SIGMOID = 2; // LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID

    /** How Q8_0 blocks are stored, in the words of compressed-tensors. */
    private static final WeightQuantization.Group Q8_0 = new WeightQuantization.Group(
            List.of(), new WeightQuantization.Arguments(8, "int", true, "group", false, 32, List.of()), null);

    /**
     * The metadata under the names that config.json has for them.
     *
     * @throws CheckpointException if a key is missing or of the wrong kind, or the architecture has no MoE layers or is not
     *     known
     */
    JsonFile config() {
        String architecture = text("general.architecture");
        String type = MODEL_TYPES.get(architecture);
        if (type == null) {
            throw new CheckpointException(
                    gguf.path(),
                    "general.architecture: expected one of "
                            + MODEL_TYPES.keySet().stream().sorted().toList() + ", got '" + architecture + "'");
        }
        String a = architecture + ".";
        boolean corrected = gguf.names().stream().anyMatch(name -> name.contains(".exp_probs_b"));
        if (type.equals("deepseek_v2") && (corrected || number(a + "expert_gating_func", 1) == SIGMOID)) {
            type = "deepseek_v3";
        }
        Map<String, Object> fields = new LinkedHashMap<>();
        fields.put("model_type", type);
        fields.put("num_hidden_layers", number(a + "block_count", null));
        fields.put("hidden_size", number(a + "embedding_length", null));
        int experts = number(a + "expert_count", null);
        for (String name : List.of("num_experts", "num_local_experts", "n_routed_experts")) {
            fields.put(name, experts);
        }
        fields.put("num_experts_per_tok", number(a + "expert_used_count", null));
        int firstLayer = firstLayer();
        int intermediate = rows(firstLayer, "ffn_gate_exps", "ffn_gate.0", "ffn_up_exps", "ffn_gate_up_exps");
        fields.put("intermediate_size", intermediate);
        fields.put("moe_intermediate_size", intermediate);
        Gguf.Entry shared = gguf.find("blk." + firstLayer + ".ffn_gate_shexp.weight");
        if (shared != null && shared.shape().length == 2) {
            int width = Math.toIntExact(shared.shape()[0]);
            fields.put("shared_expert_intermediate_size", width);
            fields.put("n_shared_experts", (width + intermediate - 1) / intermediate);
        } else {
            fields.put("shared_expert_intermediate_size", 0);
            fields.put("n_shared_experts", 0);
        }
        if (gguf.metadata().get(a + "expert_weights_norm") instanceof Boolean renormalize) {
            fields.put("norm_topk_prob", renormalize);
        } else {
            fields.put("norm_topk_prob", List.of("qwen3_moe", "glm4_moe").contains(type));
        }
        fields.put(
                "routed_scaling_factor",
                gguf.metadata().get(a + "expert_weights_scale") instanceof Double scale && scale != 0 ? scale : 1.0);
        int groups = number(a + "expert_group_count", 1);
        fields.put("n_group", groups);
        fields.put("topk_group", number(a + "expert_group_used_count", 1));
        fields.put("topk_method", groups > 1 ? "group_limited_greedy" : "greedy");
        if (type.equals("gpt_oss")) {
            fields.put("swiglu_limit", 7.0);
        }
        return new JsonFile(gguf.path(), fields);
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
                int rows = Math.toIntExact(found.shape()[found.shape().length - 2]);
                return name.equals("ffn_gate_up_exps") ? rows / 2 : rows;
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

    private int number(String key, @Nullable Integer absent) {
        Object value = gguf.metadata().get(key);
        if (value == null && absent != null) {
            return absent;
        }
        if (value instanceof Long number && number == number.intValue()) {
            return number.intValue();
        }
        throw new CheckpointException(
                gguf.path(), value == null ? "has no '" + key + "'" : key + ": expected an integer, got " + value);
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
    LayerTensors layer(int layer, LayerTensors.Shape shape) {
        return new Finder("blk." + layer + ".", layer, shape).find();
    }

    private final class Finder {
        private final String prefix;
        private final int layer;
        private final LayerTensors.Shape shape;

        Finder(String prefix, int layer, LayerTensors.Shape shape) {
            this.prefix = prefix;
            this.layer = layer;
            this.shape = shape;
        }

        LayerTensors find() {
            int e = shape.experts();
            int h = shape.hidden();
            List<Projections> experts = new ArrayList<>();
            float[] gateBias = bias("ffn_gate_exps", e, shape.intermediate());
            float[] upBias = bias("ffn_up_exps", e, shape.intermediate());
            float[] downBias = bias("ffn_down_exps", e, h);
            for (int expert = 0; expert < e; expert++) {
                experts.add(new Projections(
                        List.of(),
                        routed("ffn_gate", expert, shape.intermediate(), h),
                        routed("ffn_up", expert, shape.intermediate(), h),
                        routed("ffn_down", expert, h, shape.intermediate()),
                        part(gateBias, expert, shape.intermediate()),
                        part(upBias, expert, shape.intermediate()),
                        part(downBias, expert, h)));
            }
            Projections shared = null;
            Tensor sharedGate = null;
            int width = shape.sharedIntermediate();
            if (width == 0 && gguf.find(prefix + "ffn_gate_shexp.weight") != null) {
                throw new CheckpointException(
                        gguf.path(), LayerTensors.unexpectedShared(layer, prefix + "ffn_gate_shexp.weight"));
            }
            if (width > 0) {
                shared = new Projections(
                        List.of(),
                        matrix(required("ffn_gate_shexp.weight"), 0, 1, width, h),
                        matrix(required("ffn_up_shexp.weight"), 0, 1, width, h),
                        matrix(required("ffn_down_shexp.weight"), 0, 1, h, width),
                        null,
                        null,
                        null);
                Gguf.Entry gate = gguf.find(prefix + "ffn_gate_inp_shexp.weight");
                sharedGate = gate == null ? null : vector(gate, h);
            }
            Tensor correction = Stream.of("exp_probs_b.bias", "exp_probs_b")
                    .map(name -> gguf.find(prefix + name))
                    .flatMap(Stream::ofNullable)
                    .map(found -> vector(found, e))
                    .findFirst()
                    .orElse(null);
            if (shape.correctionBias() && correction == null) {
                throw missing("exp_probs_b.bias");
            }
            Gguf.Entry routerBias = gguf.find(prefix + "ffn_gate_inp.bias");
            return new LayerTensors(
                    prefix + "ffn_gate_inp",
                    floats(required("ffn_gate_inp.weight")).requireShape(e, h),
                    routerBias == null ? null : vector(routerBias, e),
                    correction,
                    List.copyOf(experts),
                    shared,
                    sharedGate,
                    List.of());
        }

        /** An expert's matrix, in one tensor of all, of one with gate and up, or of its own, as old files have it. */
        private Matrix routed(String name, int expert, int rows, int cols) {
            Gguf.Entry all = gguf.find(prefix + name + "_exps.weight");
            if (all != null) {
                return matrix(all, expert, shape.experts(), rows, cols);
            }
            Gguf.Entry both = name.equals("ffn_down") ? null : gguf.find(prefix + "ffn_gate_up_exps.weight");
            if (both != null) {
                Matrix gateUp = matrix(both, expert, shape.experts(), 2 * rows, cols);
                return new Matrix.Window(gateUp, rows, cols, name.equals("ffn_up") ? rows : 0, 0);
            }
            Gguf.Entry own = gguf.find(prefix + name + "." + expert + ".weight");
            if (own == null) {
                throw missing(name + "_exps.weight");
            }
            return matrix(own, 0, 1, rows, cols);
        }

        /** Matrix {@code index} of a tensor of {@code count}. */
        private Matrix matrix(Gguf.Entry entry, int index, int count, int rows, int cols) {
            long[] expected = count == 1 ? new long[] {rows, cols} : new long[] {count, rows, cols};
            if (!Arrays.equals(entry.shape(), expected)) {
                throw problem(
                        entry,
                        "expected shape " + Arrays.toString(expected) + " (outermost first), got "
                                + Arrays.toString(entry.shape()));
            }
            if (entry.type() != GgmlType.Q8_0) {
                return new Matrix.Floats(floats(entry), rows, cols, (long) index * rows * cols, cols, 1);
            }
            int blocks = cols / 32;
            int bytes = GgmlType.Q8_0.bytes;
            long start = (long) index * rows * blocks;
            return new Matrix.Int8(
                    rows,
                    cols,
                    1,
                    32,
                    (row, into) -> {
                        for (int b = 0; b < blocks; b++) {
                            long at = (start + (long) row * blocks + b) * bytes + 2;
                            java.lang.foreign.MemorySegment.copy(
                                    entry.data(), ValueLayout.JAVA_BYTE, at, into, 32 * b, 32);
                        }
                    },
                    (row, b) -> Float.float16ToFloat(entry.data().get(HALF, (start + (long) row * blocks + b) * bytes)),
                    null,
                    new Matrix.Stored(entry.file(), entry.name(), entry.name(), Q8_0, null));
        }

        private float @Nullable [] bias(String name, int experts, int length) {
            Gguf.Entry found = gguf.find(prefix + name + ".bias");
            return found == null
                    ? null
                    : floats(found).requireShape(experts, length).toFloats();
        }

        private static float @Nullable [] part(float @Nullable [] all, int expert, int length) {
            return all == null ? null : Arrays.copyOfRange(all, expert * length, (expert + 1) * length);
        }

        private Tensor vector(Gguf.Entry entry, int length) {
            Tensor tensor = floats(entry);
            if (tensor.elements() != length) {
                throw tensor.problem("expected " + length + " values, got " + tensor);
            }
            return tensor;
        }

        private Tensor floats(Gguf.Entry entry) {
            DType dtype = entry.type().dtype;
            if (dtype == null || !dtype.isFloat()) {
                throw problem(entry, "expected type F32, F16, BF16 or (of experts) Q8_0, got " + entry.type());
            }
            return new Tensor(entry.file(), entry.name(), dtype, entry.shape(), entry.data());
        }

        private Gguf.Entry required(String name) {
            Gguf.Entry found = gguf.find(prefix + name);
            if (found == null) {
                throw missing(name);
            }
            return found;
        }

        private CheckpointException missing(String name) {
            return new CheckpointException(
                    gguf.path(), "layer " + layer + ": " + prefix + name + " is missing; found " + of(layer));
        }

        private CheckpointException problem(Gguf.Entry entry, String problem) {
            return new CheckpointException(entry.file(), "tensor '" + entry.name() + "': " + problem);
        }
    }
}
