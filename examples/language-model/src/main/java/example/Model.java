package example;

import java.io.IOException;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.WeightRows;

/**
 * A decoder's sizes, and its tensors by what they are for. Qwen3-MoE, OLMoE and Mixtral differ in the norms of queries
 * and keys alone: of each head, of all heads together, none.
 */
abstract class Model implements AutoCloseable {
    /**
     * @param headDim values of a head of queries, keys or values; even
     * @param context the most positions of a sequence
     * @param theta the base of the rotations' frequencies
     */
    record Sizes(
            int layers,
            int hidden,
            int heads,
            int kvHeads,
            int headDim,
            int vocabulary,
            int context,
            float epsilon,
            double theta) {
        /** Rows of {@link Model#attentionInput}. */
        int qkv() {
            return (heads + 2 * kvHeads) * headDim;
        }
    }

    final String name;
    final Sizes sizes;

    Model(String name, Sizes sizes) {
        this.name = name;
        this.sizes = sizes;
    }

    /** A checkpoint, by its path or its name in Hugging Face's cache; or one of {@link RandomModel}'s. */
    static Model open(String name) {
        return name.startsWith("random:")
                ? new RandomModel(name)
                : CheckpointModel.open(CheckpointName.of(name).path());
    }

    /** Family and format, for people. */
    abstract String description();

    /** The tokenizer; null of a model that has none. */
    abstract Text text() throws IOException;

    /** [vocabulary, hidden] */
    abstract WeightRows embedding();

    /** [vocabulary, hidden]; null where the embedding serves. */
    abstract WeightRows head();

    /** [hidden], of the last norm. */
    abstract float[] norm();

    /** [hidden] */
    abstract float[] attentionNorm(int layer);

    /** Queries, keys and values, one after the other: [(heads + 2 * kvHeads) * headDim, hidden]. */
    abstract WeightRows attentionInput(int layer);

    /** [headDim] where each head has its norm, [heads * headDim] where all have one; null for none. */
    abstract float[] queryNorm(int layer);

    /** Likewise, of keys. */
    abstract float[] keyNorm(int layer);

    /** [hidden, heads * headDim] */
    abstract WeightRows attentionOutput(int layer);

    /** [hidden] */
    abstract float[] moeNorm(int layer);

    /** To be closed by the caller. Without a scheme in that which the checkpoint is stored in, or suits. */
    abstract Int8Experts experts(int layer, Int8Scheme scheme);

    /** Throws if what was read isn't what was opened. */
    abstract void requireUnchanged();

    /** Cosines, then sines, of the angles that a head's halves are rotated by at a position: [headDim]. */
    float[] rotation(int position) {
        int half = sizes.headDim / 2;
        float[] rotation = new float[sizes.headDim];
        for (int i = 0; i < half; i++) {
            float angle = position * (float) (1 / Math.pow(sizes.theta, (double) i / half));
            rotation[i] = (float) Math.cos(angle);
            rotation[half + i] = (float) Math.sin(angle);
        }
        return rotation;
    }

    @Override
    public abstract void close();
}
