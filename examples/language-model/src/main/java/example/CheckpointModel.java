package example;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.quant.WeightRows;

/** A model in a folder of safetensors or in a GGUF file. */
final class CheckpointModel extends Model {
    /** A tensor's names in Hugging Face's files and in GGUF. */
    private enum Name {
        EMBEDDING("model.embed_tokens", "token_embd"),
        NORM("model.norm", "output_norm"),
        HEAD("lm_head", "output"),
        ATTENTION_NORM("input_layernorm", "attn_norm"),
        QUERY("self_attn.q_proj", "attn_q"),
        KEY("self_attn.k_proj", "attn_k"),
        VALUE("self_attn.v_proj", "attn_v"),
        OUTPUT("self_attn.o_proj", "attn_output"),
        QUERY_NORM("self_attn.q_norm", "attn_q_norm"),
        KEY_NORM("self_attn.k_norm", "attn_k_norm"),
        MOE_NORM("post_attention_layernorm", "ffn_norm");

        final String hub;
        final String gguf;

        Name(String hub, String gguf) {
            this.hub = hub;
            this.gguf = gguf;
        }
    }

    private static final Set<String> FAMILIES = Set.of("qwen3_moe", "olmoe", "mixtral");

    final Path path;
    final MoeCheckpoint checkpoint;

    /** GGUF's name of the architecture; null for safetensors. */
    private final String gguf;

    static CheckpointModel open(Path path) {
        MoeCheckpoint checkpoint = MoeCheckpoint.open(path);
        try {
            return new CheckpointModel(path, checkpoint, new Fields(path, checkpoint));
        } catch (Throwable failure) {
            checkpoint.close();
            throw failure;
        }
    }

    private CheckpointModel(Path path, MoeCheckpoint checkpoint, Fields fields) {
        super(path.getFileName().toString(), fields.sizes());
        this.path = path;
        this.checkpoint = checkpoint;
        gguf = fields.gguf;
        fields.require(
                !checkpoint.names().contains(tensor(0, Name.QUERY, "bias")), "projections without biases", "biases");
    }

    /** The configuration's fields, by Hugging Face's and GGUF's names. */
    private record Fields(Path path, MoeCheckpoint checkpoint, String gguf) {
        Fields(Path path, MoeCheckpoint checkpoint) {
            this(path, checkpoint, (String) checkpoint.field("general.architecture"));
        }

        Sizes sizes() {
            require(FAMILIES.contains(checkpoint.modelType()), "one of " + FAMILIES, checkpoint.modelType());
            int layers = checkpoint.layers();
            require(checkpoint.moeLayers().size() == layers, "an MoE layer in each", checkpoint.moeLayers());
            Map<?, ?> rope = checkpoint.field("rope_parameters") instanceof Map<?, ?> fields ? fields : Map.of();
            // Refuses features that would change the numbers and aren't implemented.
            Object scaled = rope.isEmpty() ? value("rope_scaling", "rope.scaling.type") : rope.get("rope_type");
            boolean plain = scaled == null || scaled.equals("default") || scaled.equals("none");
            require(plain, "plain rotary positions", scaled);
            Object window = value("sliding_window", "attention.sliding_window");
            boolean all = window == null || Boolean.FALSE.equals(checkpoint.field("use_sliding_window"));
            require(all, "attention to all positions", "a window of " + window);
            require(checkpoint.field("clip_qkv") == null, "no clip_qkv", checkpoint.field("clip_qkv"));
            int hidden = integer("hidden_size", "embedding_length");
            int heads = integer("num_attention_heads", "attention.head_count");
            return new Sizes(
                    layers,
                    hidden,
                    heads,
                    integer("num_key_value_heads", "attention.head_count_kv"),
                    value("head_dim", "attention.key_length") == null
                            ? hidden / heads
                            : integer("head_dim", "attention.key_length"),
                    checkpoint.matrix(name(-1, Name.EMBEDDING, gguf, "weight")).rows(),
                    integer("max_position_embeddings", "context_length"),
                    number("rms_norm_eps", "attention.layer_norm_rms_epsilon").floatValue(),
                    (rope.get("rope_theta") instanceof Number theta ? theta : number("rope_theta", "rope.freq_base"))
                            .doubleValue());
        }

        void require(boolean holds, String expected, Object got) {
            if (!holds) {
                throw new IllegalArgumentException(path + ": expected " + expected + ", got " + got);
            }
        }

        private Object value(String hub, String there) {
            return checkpoint.field(gguf == null ? hub : gguf + "." + there);
        }

        private Number number(String hub, String there) {
            if (value(hub, there) instanceof Number number) {
                return number;
            }
            throw new IllegalArgumentException(
                    path + ": expected a number as " + (gguf == null ? hub : there) + ", got " + value(hub, there));
        }

        private int integer(String hub, String there) {
            return Math.toIntExact(number(hub, there).longValue());
        }
    }

    private static String name(int layer, Name name, String gguf, String end) {
        String prefix = layer < 0 ? "" : (gguf == null ? "model.layers." : "blk.") + layer + ".";
        return prefix + (gguf == null ? name.hub : name.gguf) + "." + end;
    }

    private String tensor(int layer, Name name, String end) {
        return name(layer, name, gguf, end);
    }

    private boolean has(int layer, Name name) {
        return checkpoint.names().contains(tensor(layer, name, "weight"));
    }

    private WeightRows matrix(int layer, Name name) {
        return checkpoint.matrix(tensor(layer, name, "weight"));
    }

    private float[] vector(int layer, Name name) {
        WeightRows rows = matrix(layer, name);
        float[] vector = new float[rows.cols()];
        rows.row(0, vector);
        return vector;
    }

    @Override
    WeightRows embedding() {
        return matrix(-1, Name.EMBEDDING);
    }

    @Override
    WeightRows head() {
        return has(-1, Name.HEAD) ? matrix(-1, Name.HEAD) : null;
    }

    @Override
    float[] norm() {
        return vector(-1, Name.NORM);
    }

    @Override
    float[] attentionNorm(int layer) {
        return vector(layer, Name.ATTENTION_NORM);
    }

    @Override
    float[] moeNorm(int layer) {
        return vector(layer, Name.MOE_NORM);
    }

    @Override
    float[] queryNorm(int layer) {
        return has(layer, Name.QUERY_NORM) ? vector(layer, Name.QUERY_NORM) : null;
    }

    @Override
    float[] keyNorm(int layer) {
        return has(layer, Name.QUERY_NORM) ? vector(layer, Name.KEY_NORM) : null;
    }

    @Override
    WeightRows attentionInput(int layer) {
        List<WeightRows> parts = List.of(
                inHalves(matrix(layer, Name.QUERY)), inHalves(matrix(layer, Name.KEY)), matrix(layer, Name.VALUE));
        return new WeightRows() {
            @Override
            public int rows() {
                return sizes.qkv();
            }

            @Override
            public int cols() {
                return sizes.hidden();
            }

            @Override
            public void row(int row, float[] into) {
                int at = row;
                for (WeightRows part : parts) {
                    if (at < part.rows()) {
                        part.row(at, into);
                        return;
                    }
                    at -= part.rows();
                }
                throw new IndexOutOfBoundsException(row);
            }
        };
    }

    @Override
    WeightRows attentionOutput(int layer) {
        return matrix(layer, Name.OUTPUT);
    }

    /**
     * Reorders the rows so that a head's first half is rotated with its second. In this architecture's files llama.cpp
     * stores each pair side by side.
     */
    private WeightRows inHalves(WeightRows of) {
        if (!"llama".equals(gguf)) {
            return of;
        }
        return new WeightRows() {
            @Override
            public int rows() {
                return of.rows();
            }

            @Override
            public int cols() {
                return of.cols();
            }

            @Override
            public void row(int row, float[] into) {
                int i = row % sizes.headDim();
                int half = sizes.headDim() / 2;
                of.row(row - i + (i % half) * 2 + i / half, into);
            }
        };
    }

    @Override
    Int8Experts experts(int layer, Int8Scheme scheme) {
        ExpertWeights weights = checkpoint.layer(layer);
        Int8Quantization quantization = scheme == null ? weights.quantization() : Int8Quantization.of(scheme);
        return QuantizedWeights.int8(weights, quantization, Progress.NONE);
    }

    @Override
    String description() {
        return checkpoint.modelType() + ": " + sizes.layers() + " layers, " + checkpoint.format();
    }

    @Override
    Text text() throws IOException {
        return Text.of(this);
    }

    @Override
    void requireUnchanged() {
        checkpoint.requireUnchanged();
    }

    @Override
    public void close() {
        checkpoint.close();
    }
}
