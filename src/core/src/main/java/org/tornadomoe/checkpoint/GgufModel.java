package org.tornadomoe.checkpoint;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * The MoE layers of a GGUF file: its metadata as the config.json that the same model has elsewhere, and its tensors by
 * llama.cpp's names ({@code blk.N.ffn_gate_exps.weight}, ...). What metadata or a layer's tensors hold beyond that, and
 * would change the layer's numbers, is refused by its name.
 */
record GgufModel(Gguf gguf) {
    private static final int SOFTMAX = 1; // llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX
    private static final int SIGMOID = 2; // ..._SIGMOID
    private static final int SOFTMAX_WEIGHT = 3; // ..._SOFTMAX_WEIGHT: over the chosen alone

    /**
     * An architecture of llama.cpp.
     *
     * @param modelType that of the checkpoints that are converted to it
     * @param gating what scores experts: the metadata may say so, and nothing else
     * @param renormalize whether weights are divided by their sum if the metadata doesn't say
     * @param choosesRenormalize whether the metadata may say otherwise
     * @param scales whether weights are scaled and experts chosen by groups if the metadata says so
     */
    private record Architecture(
            String modelType, int gating, boolean renormalize, boolean choosesRenormalize, boolean scales) {}

    private static final Map<String, Architecture> ARCHITECTURES = Map.ofEntries(
            Map.entry("llama", new Architecture("mixtral", SOFTMAX, true, false, false)),
            Map.entry("qwen2moe", new Architecture("qwen2_moe", SOFTMAX, false, true, false)),
            Map.entry("qwen3moe", new Architecture("qwen3_moe", SOFTMAX, true, true, false)),
            Map.entry("qwen3vlmoe", new Architecture("qwen3_moe", SOFTMAX, true, true, false)),
            Map.entry("olmoe", new Architecture("olmoe", SOFTMAX, false, true, false)),
            Map.entry("deepseek2", new Architecture("deepseek_v2", SOFTMAX, false, true, true)),
            Map.entry("glm4moe", new Architecture("glm4_moe", SIGMOID, false, true, true)),
            Map.entry("gpt-oss", new Architecture("gpt_oss", SOFTMAX_WEIGHT, true, false, false)),
            Map.entry("llama4", new Architecture("llama4", SIGMOID, false, false, false)),
            Map.entry("granitemoe", new Architecture("granitemoe", SOFTMAX, true, false, false)),
            Map.entry("phimoe", new Architecture("phimoe", SOFTMAX, true, false, false)),
            Map.entry("jamba", new Architecture("jamba", SOFTMAX, false, false, false)));

    /** DeepSeek-V3 in all but the numbers: deepseek2 with sigmoid scores, and a correction bias. */
    private static final String SIGMOID_DEEPSEEK = "deepseek_v3";

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

    /** What a key's name has in it if it is about experts. */
    private static final List<String> OF_EXPERTS = List.of("expert", "moe", "router", "gating", "swiglu", "activation");

    /** What a tensor's name has in it if it is part of a layer's feed-forward block. */
    private static final List<String> OF_BLOCK = List.of("ffn_", "exp_", "exps", "shexp", "moe");

    /** Tensors of a layer that have a name as its MoE block's have, and may be there unread: why. */
    private static final Map<String, String> UNREAD = Map.of(
            "ffn_norm.weight", "the norm before the block: a layer is handed hidden states that are normed",
            "ffn_norm.bias", "the same norm's");

    private static final ValueLayout.OfShort HALF = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /** How Q8_0 blocks are stored, in the words of compressed-tensors. */
    private static final WeightQuantization.Group Q8_0 = new WeightQuantization.Group(
            List.of(), new WeightQuantization.Arguments(8, "int", true, "group", false, 32, List.of()), null);

    /**
     * The metadata under the names that config.json has for them; what it doesn't say is what llama.cpp takes for it.
     *
     * @throws CheckpointException if a key is missing or of the wrong kind, one about experts is not understood, or the
     *     architecture has no MoE layers or is not known
     */
    JsonFile config() {
        String name = text("general.architecture");
        Architecture architecture = ARCHITECTURES.get(name);
        if (architecture == null) {
            throw new CheckpointException(
                    gguf.path(),
                    "general.architecture: expected one of "
                            + ARCHITECTURES.keySet().stream().sorted().toList() + ", got '" + name + "'");
        }
        String a = name + ".";
        requireUnderstood(a);
        String type = modelType(a, architecture);
        Map<String, @Nullable Object> fields = new LinkedHashMap<>();
        fields.put("model_type", type);
        int layers = number(a + "block_count", null);
        if (layers > gguf.names().size()) {
            throw new CheckpointException(
                    gguf.path(),
                    a + "block_count: expected no more layers than tensors, "
                            + gguf.names().size() + ", got " + layers);
        }
        fields.put("num_hidden_layers", layers);
        fields.put("hidden_size", number(a + "embedding_length", null));
        int experts = number(a + "expert_count", null);
        for (String field : List.of("num_experts", "num_local_experts", "n_routed_experts")) {
            fields.put(field, experts);
        }
        fields.put("num_experts_per_tok", number(a + "expert_used_count", null));
        int firstLayer = firstLayer();
        int intermediate = rows(firstLayer, "ffn_gate_exps", "ffn_gate.0", "ffn_up_exps", "ffn_gate_up_exps");
        requireSame(a + "expert_feed_forward_length", intermediate, "layer " + firstLayer + "'s experts");
        fields.put("intermediate_size", intermediate);
        fields.put("moe_intermediate_size", intermediate);
        int shared = sharedWidth(a, architecture, firstLayer, intermediate);
        fields.put("shared_expert_intermediate_size", shared);
        fields.put("n_shared_experts", Math.ceilDiv(shared, intermediate));
        fields.put("norm_topk_prob", renormalize(a, architecture));
        fields.put("routed_scaling_factor", factor(a, architecture));
        int groups = number(a + "expert_group_count", 0);
        if (groups > 1) {
            require(architecture.scales, a + "expert_group_count", "at most 1", groups);
            fields.put("n_group", groups);
            fields.put("topk_group", number(a + "expert_group_used_count", null));
        }
        if (type.equals("deepseek_v2")) {
            fields.put("topk_method", groups > 1 ? "group_limited_greedy" : "greedy");
        }
        if (type.equals("gpt_oss")) {
            fields.put("swiglu_limit", 7.0);
        }
        return new JsonFile(gguf.path(), fields);
    }

    private void require(boolean holds, String key, String expected, Object got) {
        if (!holds) {
            throw new CheckpointException(gguf.path(), key + ": expected " + expected + ", got " + got);
        }
    }

    /** Nothing about experts may be there that is not read, unless it is off. */
    private void requireUnderstood(String a) {
        gguf.metadata().forEach((key, value) -> {
            String name = key.startsWith(a) ? key.substring(a.length()) : "";
            boolean off = value.equals(0L) || value.equals(0.0) || value.equals(false);
            if (OF_EXPERTS.stream().anyMatch(name::contains) && !READ_KEYS.contains(name) && !off) {
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
    private String modelType(String a, Architecture architecture) {
        String key = a + "expert_gating_func";
        int gating = number(key, 0);
        if (!architecture.modelType.equals("deepseek_v2")) {
            // Divided by the sum of the chosen, a softmax over all is one over the chosen.
            boolean overChosen = architecture.renormalize && !architecture.choosesRenormalize;
            boolean same = gating == 0
                    || gating == architecture.gating
                    || (overChosen && (gating == SOFTMAX || gating == SOFTMAX_WEIGHT));
            require(same, key, "" + architecture.gating, gating);
            return architecture.modelType;
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
        return gating == SIGMOID ? SIGMOID_DEEPSEEK : architecture.modelType;
    }

    /** Its first files have no expert_gating_func; llama.cpp knows them by their sizes. */
    private boolean isGlm47Flash(String a) {
        int layers = number(a + "block_count", null);
        Object vocabulary = gguf.metadata().get(a + "vocab_size");
        if (vocabulary == null && gguf.metadata().get("tokenizer.ggml.tokens") instanceof Gguf.Skipped tokens) {
            vocabulary = tokens.length();
        }
        return (layers == 47 || layers == 48) && Long.valueOf(154_880).equals(vocabulary);
    }

    private boolean renormalize(String a, Architecture architecture) {
        String key = a + "expert_weights_norm";
        Object value = gguf.metadata().get(key);
        if (value == null) {
            return architecture.renormalize;
        }
        if (!(value instanceof Boolean renormalize)) {
            throw new CheckpointException(gguf.path(), key + ": expected true or false, got " + value);
        }
        require(
                architecture.choosesRenormalize || renormalize == architecture.renormalize,
                key,
                "" + architecture.renormalize,
                renormalize);
        return renormalize;
    }

    private double factor(String a, Architecture architecture) {
        String key = a + "expert_weights_scale";
        Object value = gguf.metadata().get(key);
        double factor = switch (value) {
            case null -> 0;
            case Double real -> real;
            case Long integer -> integer;
            default -> throw new CheckpointException(gguf.path(), key + ": expected a number, got " + value);
        };
        require(Double.isFinite(factor), key, "a finite number", factor);
        require(architecture.scales || factor == 0 || factor == 1, key, "1", factor);
        return factor == 0 ? 1 : factor;
    }

    /** The width of the shared expert, 0 if there is none. */
    private int sharedWidth(String a, Architecture architecture, int layer, int intermediate) {
        String name = "blk." + layer + ".ffn_gate_shexp.weight";
        Gguf.Entry found = gguf.find(name);
        int number = number(a + "expert_shared_count", 0);
        if (found == null) {
            require(number == 0, a + "expert_shared_count", "0, since there is no " + name, number);
            return 0;
        }
        if (found.shape().length != 2) {
            throw found.problem("expected two dimensions, got " + Arrays.toString(found.shape()));
        }
        int width = size(found, 0);
        if (number > 0 && architecture.scales && width != (long) number * intermediate) {
            throw found.problem("expected " + number + " * " + intermediate + " rows, as " + a
                    + "expert_shared_count and the routed experts have it, got " + width);
        }
        requireSame(a + "expert_shared_feed_forward_length", width, name);
        return width;
    }

    /** Checks a number that a tensor's size tells, too; some files have a list of one for each layer. */
    private void requireSame(String key, int size, String of) {
        if (!(gguf.metadata().get(key) instanceof Gguf.Skipped)) {
            int number = number(key, 0);
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

        /** The tensors looked at. */
        private final Set<String> read = new HashSet<>();

        Finder(String prefix, int layer, LayerTensors.Shape shape) {
            this.prefix = prefix;
            this.layer = layer;
            this.shape = shape;
        }

        LayerTensors find() {
            int e = shape.experts();
            int h = shape.hidden();
            int i = shape.intermediate();
            float @Nullable [] gateUpBias = bias("ffn_gate_up_exps", e, 2L * i);
            float @Nullable [] gateBias = bias("ffn_gate_exps", e, i);
            float @Nullable [] upBias = bias("ffn_up_exps", e, i);
            float @Nullable [] downBias = bias("ffn_down_exps", e, h);
            if (gateUpBias != null && (gateBias != null || upBias != null)) {
                throw refused(prefix + "ffn_gate_up_exps.bias: expected no other bias of gate and up, found " + prefix
                        + (gateBias != null ? "ffn_gate_exps.bias" : "ffn_up_exps.bias"));
            }
            List<Projections> experts = new ArrayList<>();
            for (int expert = 0; expert < e; expert++) {
                experts.add(new Projections(
                        List.of(),
                        routed("ffn_gate", expert, i, h),
                        routed("ffn_up", expert, i, h),
                        routed("ffn_down", expert, h, i),
                        gateUpBias == null ? part(gateBias, expert, i) : part(gateUpBias, 2 * expert, i),
                        gateUpBias == null ? part(upBias, expert, i) : part(gateUpBias, 2 * expert + 1, i),
                        part(downBias, expert, h)));
            }
            Projections shared = null;
            Tensor sharedGate = null;
            int width = shape.sharedIntermediate();
            if (width == 0 && gguf.find(prefix + "ffn_gate_shexp.weight") != null) {
                throw refused(LayerTensors.unexpectedShared(layer, prefix + "ffn_gate_shexp.weight"));
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
                Gguf.Entry gate = look("ffn_gate_inp_shexp.weight");
                sharedGate = gate == null ? null : vector(gate, h);
            }
            Tensor correction = null;
            for (String name : List.of("exp_probs_b.bias", "exp_probs_b")) {
                Gguf.Entry found = correction == null && shape.correctionBias() ? look(name) : null;
                correction = found == null ? correction : vector(found, e);
            }
            if (shape.correctionBias() && correction == null) {
                throw missing("exp_probs_b.bias");
            }
            Gguf.Entry routerBias = look("ffn_gate_inp.bias");
            Tensor router = floats(required("ffn_gate_inp.weight")).requireShape(e, h);
            requireAllRead();
            return new LayerTensors(
                    prefix + "ffn_gate_inp",
                    router,
                    routerBias == null ? null : vector(routerBias, e),
                    correction,
                    List.copyOf(experts),
                    shared,
                    sharedGate,
                    List.of());
        }

        /** A tensor of the block that nothing read would be missing from the result. */
        private void requireAllRead() {
            for (String name : gguf.names()) {
                String own = name.startsWith(prefix) ? name.substring(prefix.length()) : "";
                boolean ofBlock = OF_BLOCK.stream().anyMatch(own::contains);
                if (ofBlock && !read.contains(own) && !UNREAD.containsKey(own)) {
                    throw refused("layer " + layer + ": the tensor '" + name
                            + "' is part of its MoE block, and not understood");
                }
            }
        }

        private Gguf.@Nullable Entry look(String name) {
            Gguf.Entry found = gguf.find(prefix + name);
            if (found != null) {
                read.add(name);
            }
            return found;
        }

        /** An expert's matrix, in one tensor of all, of one with gate and up, or of its own, as old files have it. */
        private Matrix routed(String name, int expert, int rows, int cols) {
            Gguf.Entry all = look(name + "_exps.weight");
            if (all != null) {
                return matrix(all, expert, shape.experts(), rows, cols);
            }
            Gguf.Entry both = name.equals("ffn_down") ? null : look("ffn_gate_up_exps.weight");
            if (both != null) {
                Matrix gateUp = matrix(both, expert, shape.experts(), 2 * rows, cols);
                return new Matrix.Window(gateUp, rows, cols, name.equals("ffn_up") ? rows : 0, 0);
            }
            Gguf.Entry own = look(name + "." + expert + ".weight");
            if (own == null) {
                throw missing(name + "_exps.weight");
            }
            return matrix(own, 0, 1, rows, cols);
        }

        /** Matrix {@code index} of a tensor of {@code count}, times its scale where the tensor has scales. */
        private Matrix matrix(Gguf.Entry entry, int index, int count, int rows, int cols) {
            long[] expected = count == 1 ? new long[] {rows, cols} : new long[] {count, rows, cols};
            boolean one = count == 1 && Arrays.equals(entry.shape(), new long[] {1, rows, cols});
            if (!one && !Arrays.equals(entry.shape(), expected)) {
                throw entry.problem("expected shape " + Arrays.toString(expected) + " (outermost first), got "
                        + Arrays.toString(entry.shape()));
            }
            float scale = scale(entry, index, count);
            if (entry.type() != GgmlType.Q8_0) {
                Matrix floats = new Matrix.Floats(floats(entry), rows, cols, (long) index * rows * cols, cols, 1);
                return scale == 1 ? floats : new Matrix.Scaled(floats, scale);
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
                            MemorySegment.copy(entry.data(), ValueLayout.JAVA_BYTE, at, into, 32 * b, 32);
                        }
                    },
                    (row, b) -> {
                        long at = (start + (long) row * blocks + b) * bytes;
                        float own = Float.float16ToFloat(entry.data().get(HALF, at)) * scale;
                        if (!Float.isFinite(own)) {
                            throw entry.problem("expected finite scales, got " + own + " in matrix " + index + ", row "
                                    + row + ", block " + b);
                        }
                        return own;
                    },
                    null,
                    new Matrix.Stored(entry.file(), entry.name(), entry.name(), Q8_0, null));
        }

        /** What a matrix's products are multiplied by: its value in {@code NAME.scale} beside {@code NAME.weight}. */
        private float scale(Gguf.Entry weight, int index, int count) {
            String own = weight.name().substring(prefix.length());
            Gguf.Entry found = look(own.substring(0, own.length() - ".weight".length()) + ".scale");
            if (found == null) {
                return 1;
            }
            float scale = vector(found, count).getFloat(index);
            if (!Float.isFinite(scale)) {
                throw found.problem("expected finite values, got " + scale + " at index " + index);
            }
            return scale;
        }

        private float @Nullable [] bias(String name, long experts, long length) {
            Gguf.Entry found = look(name + ".bias");
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
            GgmlType type = entry.type();
            DType dtype = type == null ? null : type.dtype;
            if (dtype == null || !dtype.isFloat()) {
                throw entry.problem("expected type F32, F16, BF16 or (of experts) Q8_0, got " + entry.typeName());
            }
            return new Tensor(entry.file(), entry.name(), dtype, entry.shape(), entry.data());
        }

        private Gguf.Entry required(String name) {
            Gguf.Entry found = look(name);
            if (found == null) {
                throw missing(name);
            }
            return found;
        }

        private CheckpointException missing(String name) {
            return refused("layer " + layer + ": " + prefix + name + " is missing; found " + of(layer));
        }

        private CheckpointException refused(String problem) {
            return new CheckpointException(gguf.path(), problem);
        }
    }
}
