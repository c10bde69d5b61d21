package example;

import java.io.IOException;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.WeightRows;

/**
 * A decoder's sizes, and its tensors by role. Qwen3-MoE, OLMoE and Mixtral differ only in the norms of queries and
 * keys: one per head, one over all heads together, none.
 */
abstract class Model implements AutoCloseable {
    /**
     * @param headDim values per head of queries, keys or values; even
     * @param context maximum number of positions of a sequence
     * @param theta the base of the rotation frequencies
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
        /** The number of rows of {@link Model#attentionInput}. */
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

    /** Opens a checkpoint, by its path or its name in Hugging Face's cache, or a {@link RandomModel}. */
    static Model open(String name) {
        return name.startsWith("random:")
                ? new RandomModel(name)
                : CheckpointModel.open(CheckpointName.of(name).path());
    }

    /** Family and format, in human-readable form. */
    abstract String description();

    /** The tokenizer; null if the model has none. */
    abstract Text text() throws IOException;

    /** [vocabulary, hidden] */
    abstract WeightRows embedding();

    /** [vocabulary, hidden]; null if the embedding serves as the head. */
    abstract WeightRows head();

    /** [hidden], the gains of the last norm. */
    abstract float[] norm();

    /** [hidden] */
    abstract float[] attentionNorm(int layer);

    /** Queries, keys and values, one after the other: [(heads + 2 * kvHeads) * headDim, hidden]. */
    abstract WeightRows attentionInput(int layer);

    /** [headDim] if each head has its own norm, [heads * headDim] if all heads share one; null for none. */
    abstract float[] queryNorm(int layer);

    /** The same for keys. */
    abstract float[] keyNorm(int layer);

    /** [hidden, heads * headDim] */
    abstract WeightRows attentionOutput(int layer);

    /** [hidden] */
    abstract float[] moeNorm(int layer);

    /**
     * The experts, which the caller must close. Without a scheme, in the checkpoint's stored scheme or the one that
     * suits it.
     */
    abstract Int8Experts experts(int layer, Int8Scheme scheme);

    /** Throws if the files have changed since they were opened. */
    abstract void requireUnchanged();

    /** The cosines, then sines, of the angles by which a head's halves are rotated at a position: [headDim]. */
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
