package example;

import java.io.IOException;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
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

    /**
     * @param count the number of all weights
     * @param bytes their bytes: int8 matrices with their scales, and floats
     */
    record Weights(long count, long bytes) {}

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

    /** All weights, if every layer has as many as the first. */
    final Weights weights(Int8Scheme scheme) {
        long width = (long) sizes.heads * sizes.headDim;
        long rows = (head() == null ? 1L : 2L) * sizes.vocabulary + sizes.layers * (long) sizes.qkv();
        long outputRows = (long) sizes.layers * sizes.hidden;
        long matrices = rows * sizes.hidden + outputRows * width;
        long ofHeads = queryNorm(0) == null ? 0 : queryNorm(0).length + keyNorm(0).length;
        long norms = sizes.hidden + sizes.layers * (2L * sizes.hidden + ofHeads);
        try (Int8Experts experts = experts(0, scheme)) {
            Int8Tensor w13 = experts.w13();
            Int8Tensor w2 = experts.w2();
            long ofExpert =
                    (long) w13.rows() * w13.cols() + (long) w2.rows() * w2.cols() + sizes.hidden; // the router's
            return new Weights(
                    matrices + norms + sizes.layers * w13.experts() * ofExpert,
                    matrices + 4 * (rows + outputRows + norms) + sizes.layers * experts.bytes());
        }
    }

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
