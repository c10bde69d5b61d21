package example;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.quant.WeightRows;

/**
 * A decoder of Qwen3-MoE, OLMoE or Mixtral as it lies in a folder of safetensors or in a GGUF file: its sizes, and its
 * tensors by what they are for. The three differ in the norms of queries and keys alone: of each head, of all heads
 * together, none.
 */
final class Model implements AutoCloseable {
    /** In Hugging Face's files and in GGUF's. */
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
    final int layers;
    final int hidden;
    final int heads;
    final int kvHeads;
    final int headDim;
    final int vocabulary;

    /** The most positions of a sequence. */
    final int context;

    final float epsilon;
    private final double theta;

    /** GGUF's name of the architecture; null of safetensors. */
    private final String gguf;

    /** Opens a checkpoint: a path, or a name in Hugging Face's cache. */
    static Model open(String name) {
        Path path = CheckpointName.of(name).path();
        MoeCheckpoint checkpoint = MoeCheckpoint.open(path);
        try {
            return new Model(path, checkpoint);
        } catch (Throwable failure) {
            checkpoint.close();
            throw failure;
        }
    }

    private Model(Path path, MoeCheckpoint checkpoint) {
        this.path = path;
        this.checkpoint = checkpoint;
        gguf = (String) checkpoint.field("general.architecture");
        require(FAMILIES.contains(checkpoint.modelType()), "one of " + FAMILIES, checkpoint.modelType());
        layers = checkpoint.layers();
        require(checkpoint.moeLayers().size() == layers, "an MoE layer in each", checkpoint.moeLayers());
        hidden = integer("hidden_size", "embedding_length");
        heads = integer("num_attention_heads", "attention.head_count");
        kvHeads = integer("num_key_value_heads", "attention.head_count_kv");
        headDim = value("head_dim", "attention.key_length") == null
                ? hidden / heads
                : integer("head_dim", "attention.key_length");
        context = integer("max_position_embeddings", "context_length");
        vocabulary = embedding().rows();
        epsilon = number("rms_norm_eps", "attention.layer_norm_rms_epsilon").floatValue();
        Map<?, ?> rope = checkpoint.field("rope_parameters") instanceof Map<?, ?> fields ? fields : Map.of();
        theta = (rope.get("rope_theta") instanceof Number in ? in : number("rope_theta", "rope.freq_base"))
                .doubleValue();
        // What changes the numbers and isn't here.
        Object scaled = rope.isEmpty() ? value("rope_scaling", "rope.scaling.type") : rope.get("rope_type");
        require(scaled == null || scaled.equals("default") || scaled.equals("none"), "plain rotary positions", scaled);
        Object window = value("sliding_window", "attention.sliding_window");
        boolean all = window == null || Boolean.FALSE.equals(checkpoint.field("use_sliding_window"));
        require(all, "attention to all positions", "a window of " + window);
        require(checkpoint.field("clip_qkv") == null, "no clip_qkv", checkpoint.field("clip_qkv"));
        require(!checkpoint.names().contains(tensor(0, Name.QUERY, "bias")), "projections without biases", "biases");
    }

    private void require(boolean holds, String expected, Object got) {
        if (!holds) {
            throw new IllegalArgumentException(path + ": expected " + expected + ", got " + got);
        }
    }

    private Object value(String hub, String gguf) {
        return checkpoint.field(this.gguf == null ? hub : this.gguf + "." + gguf);
    }

    private Number number(String hub, String gguf) {
        Object value = value(hub, gguf);
        require(value instanceof Number, "a number as " + (this.gguf == null ? hub : gguf), value);
        return (Number) Objects.requireNonNull(value);
    }

    private int integer(String hub, String gguf) {
        return Math.toIntExact(number(hub, gguf).longValue());
    }

    private String tensor(int layer, Name name, String end) {
        String prefix = layer < 0 ? "" : (gguf == null ? "model.layers." : "blk.") + layer + ".";
        return prefix + (gguf == null ? name.hub : name.gguf) + "." + end;
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

    /** [vocabulary, hidden] */
    WeightRows embedding() {
        return matrix(-1, Name.EMBEDDING);
    }

    /** [vocabulary, hidden]; null where the embedding serves. */
    WeightRows head() {
        return checkpoint.names().contains(tensor(-1, Name.HEAD, "weight")) ? matrix(-1, Name.HEAD) : null;
    }

    /** [hidden], of the last norm. */
    float[] norm() {
        return vector(-1, Name.NORM);
    }

    float[] attentionNorm(int layer) {
        return vector(layer, Name.ATTENTION_NORM);
    }

    float[] moeNorm(int layer) {
        return vector(layer, Name.MOE_NORM);
    }

    /** [headDim] where each head has its norm, [heads * headDim] where all have one; null for none. */
    float[] queryNorm(int layer) {
        return checkpoint.names().contains(tensor(layer, Name.QUERY_NORM, "weight"))
                ? vector(layer, Name.QUERY_NORM)
                : null;
    }

    /** Likewise, of keys. */
    float[] keyNorm(int layer) {
        return queryNorm(layer) == null ? null : vector(layer, Name.KEY_NORM);
    }

    /** Queries, keys and values, one after the other: [(heads + 2 * kvHeads) * headDim, hidden]. */
    WeightRows attentionInput(int layer) {
        List<WeightRows> parts = List.of(
                inHalves(matrix(layer, Name.QUERY)), inHalves(matrix(layer, Name.KEY)), matrix(layer, Name.VALUE));
        return new WeightRows() {
            @Override
            public int rows() {
                return (heads + 2 * kvHeads) * headDim;
            }

            @Override
            public int cols() {
                return hidden;
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

    /** [hidden, heads * headDim] */
    WeightRows attentionOutput(int layer) {
        return matrix(layer, Name.OUTPUT);
    }

    /** A head's first half is rotated with its second. llama.cpp has them side by side in this architecture's files. */
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
                int i = row % headDim;
                int half = headDim / 2;
                of.row(row - i + (i % half) * 2 + i / half, into);
            }
        };
    }

    /** Cosines, then sines, of the angles that a head's halves are rotated by at a position: [headDim]. */
    float[] rotation(int position) {
        float[] rotation = new float[headDim];
        for (int i = 0; i < headDim / 2; i++) {
            float angle = position * (float) (1 / Math.pow(theta, 2.0 * i / headDim));
            rotation[i] = (float) Math.cos(angle);
            rotation[headDim / 2 + i] = (float) Math.sin(angle);
        }
        return rotation;
    }

    @Override
    public void close() {
        checkpoint.close();
    }
}
